"""Sites of a HookedTransformer: where each weight reads and writes (TransformerLens 3).

Verified against autograd in float64, weight by weight, in tests/gradients/test_capture.py. Two things are not what the
names suggest: the attention and MLP modules' own inputs and outputs are the exact places (hook_mlp_out may come after a
further norm, and an unfolded LayerNorm's output has no HookPoint at all), and hook_z / hook_post must be read after
the user's hooks. All this is true of TransformerLens's own classes: in a module of another class, or one whose weight
is computed (a parametrization, pruning), the operations of a pass tell.
"""

from collections import Counter
from collections.abc import Callable
from typing import Literal, cast
from weakref import ref

import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.modules import every_module
from tl_backward.weights._site import (
    Argument,
    Combine,
    ModuleArgs,
    ModuleKwargs,
    Read,
    SiteKind,
    WeightSite,
    Write,
    first_input,
    output,
)
from tl_backward.weights.account import WeightSites
from tl_backward.weights.layout import Layout
from tl_backward.weights.learn import learn
from tl_backward.weights.names import named_weights
from tl_backward.weights.token_rows import Shapes


def collect(model: TransformerLensModel, run: Callable[[], object], shapes: Shapes) -> WeightSites:
    """Every weight of a HookedTransformer, by its state-dict name: those of no known place as one pass used them."""
    root = cast(nn.Module, model)
    parameters, places = dict(root.named_parameters()), _known_places(root)
    known = frozenset(id(site.parameter) for site in places.values())
    sites = WeightSites(parameters)
    if not all(id(parameter) in known for parameter in parameters.values()):
        ways, modules = named_weights(root, {}), every_module(model)
        sites = learn(parameters, ways, run, shapes, modules, lambda way: None, dict(root.named_modules()), known)
        told = {name: why for name, why in sites.missing.items() if id(parameters.get(name)) not in known}
        sites.missing = {name: why for name, why in told.items() if name not in places}
    sites.update(places)
    return sites


def _known_places(root: nn.Module) -> WeightSites:
    sites = WeightSites()
    _embeddings(sites, root)
    for layer, block in enumerate(root.get_submodule("blocks").children()):
        for part, add in (("attn", _attention), ("mlp", _mlp)):
            if part in block._modules and _as_written(block.get_submodule(part)):
                add(sites, f"blocks.{layer}.{part}", block.get_submodule(part))
        for norm in ("ln1", "ln1_post", "ln2", "ln2_post"):
            _norm(sites, f"blocks.{layer}.{norm}", block._modules.get(norm))
    _norm(sites, "ln_final", root._modules.get("ln_final"))
    unembed = root.get_submodule("unembed")
    if _as_written(unembed):
        written = Write(ref(unembed.get_submodule("hook_out")), "input")
        _add(sites, "unembed.W_U", unembed, written, Read(ref(unembed.get_submodule("hook_in")), output))
        _add(sites, "unembed.b_U", unembed, written)
    # What two blocks share is left to the operations: a module's hooks do not tell whose turn it is.
    uses = Counter((id(site.parameter), site.kind) for site in sites.values())
    for name in [name for name, site in sites.items() if uses[id(site.parameter), site.kind] > 1]:
        del sites[name]
    return sites


def _as_written(module: nn.Module) -> bool:
    """Whether a module and what is inside it are TransformerLens's own, with parameters for weights."""
    own = type(module).__module__.startswith(("transformer_lens", "torch.nn.modules")) and "forward" not in vars(module)
    named = any(name.endswith(("_orig", "_v")) for name in module._parameters)
    computed = named and any(isinstance(value, Tensor) for value in vars(module).values())
    return own and not computed and all(_as_written(child) for child in module._modules.values() if child is not None)


def rotation(model: TransformerLensModel, layer: int, position: int) -> Tensor | None:
    """The rotary matrix [d_head, d_head] of a position for rows of queries or keys; None without rotary embeddings."""
    attn = cast(nn.Module, model).get_submodule(f"blocks.{layer}.attn")
    if getattr(attn.cfg, "positional_embedding_type", None) != "rotary":
        return None
    basis = torch.eye(model.cfg.d_head, dtype=model.W_U.dtype, device=model.W_U.device)
    return cast(Callable[..., Tensor], attn.apply_rotary)(basis[:, None, None], past_kv_pos_offset=position)[:, 0, 0]


def _add(
    sites: WeightSites,
    name: str,
    owner: nn.Module,
    write: Write,
    read: Read | None = None,
    *,
    heads: Literal["in", "out"] | None = None,
    attribute: str | None = None,
    combine: Combine | None = None,
) -> None:
    """A matrix W, a bias b, a norm's w or an embedding, under its name; `attribute` where its parameter has another."""
    last = name.rpartition(".")[2]
    parameter = owner.get_parameter(attribute or last)
    kind = _KINDS.get(last, "bias" if last[0] == "b" else "matrix")
    heads = "out" if kind == "bias" and parameter.ndim == 2 else heads
    sites.add(WeightSite(name, kind, parameter, Layout(tuple(parameter.shape), heads), read, write, combine))


_KINDS: dict[str, SiteKind] = {"w": "norm", "W_E": "embedding", "W_pos": "embedding"}


def _norm(sites: WeightSites, name: str, norm: nn.Module | None) -> None:
    """A norm's scale and shift; folded norms have neither."""
    if norm is None or "w" not in norm._parameters or not _as_written(norm):
        return
    written = Write(ref(norm), "output")
    _add(sites, f"{name}.w", norm, written, Read(ref(norm.get_submodule("hook_normalized")), output))
    if "b" in norm._parameters:
        _add(sites, f"{name}.b", norm, written)


def _embeddings(sites: WeightSites, root: nn.Module) -> None:
    embed, positions = root._modules.get("embed"), root._modules.get("pos_embed")
    if embed is not None and _as_written(embed):
        inner = embed._modules.get("ln")  # Bloom normalises what it looked up before anyone sees it
        write = Write(ref(embed), "output") if inner is None else Write(ref(inner), "input")
        _add(sites, "embed.W_E", embed, write, Read(ref(embed), first_input))
        _norm(sites, "embed.ln", inner)
    used = getattr(root.cfg, "positional_embedding_type", "standard") in ("standard", "shortformer")
    # With ALiBi TransformerLens keeps a table that it never reads.
    if positions is not None and used and _as_written(positions):
        read, write = Read(ref(positions), _position_ids), Write(ref(positions), "output")
        _add(sites, "pos_embed.W_pos", positions, write, read, combine=_no_padding)


def _position_ids(args: ModuleArgs, kwargs: ModuleKwargs, out: object) -> Tensor:
    """The rows of W_pos that PosEmbed looked up, -1 where it wrote zeros instead (padding)."""
    named = dict(zip(("tokens", "past_kv_pos_offset", "attention_mask"), args, strict=False)) | kwargs
    tokens, offset, mask = (named.get(name) for name in ("tokens", "past_kv_pos_offset", "attention_mask"))
    offset, tokens = cast(int, offset or 0), cast(Tensor, tokens)
    if mask is None:
        return torch.arange(offset, offset + tokens.shape[-1], device=tokens.device).expand(tokens.shape)
    from transformer_lens.utilities.tensors import get_offset_position_ids

    mask = cast(Tensor, mask)
    return torch.where(mask.bool()[:, offset : offset + tokens.shape[-1]], get_offset_position_ids(offset, mask), -1)


def _no_padding(ids: Tensor | None, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of W_pos: a padding position looked nothing up, so its delta does not reach the weight."""
    ids = cast(Tensor, ids)
    return ids.clamp(min=0), torch.where((ids >= 0)[..., None], delta, 0)


def _attention(sites: WeightSites, name: str, attn: nn.Module) -> None:
    for index, (letter, argument) in enumerate(zip("QKV", ("query_input", "key_input", "value_input"), strict=True)):
        written = Write(ref(attn.get_submodule(f"hook_{letter.lower()}")), "input")
        shared = "_" if f"_W_{letter}" in attn._parameters else ""  # grouped-query attention stores _W_K and _W_V
        read = Read(ref(attn), Argument(index, argument))
        _add(sites, f"{name}.W_{letter}", attn, written, read, heads="out", attribute=f"{shared}W_{letter}")
        _add(sites, f"{name}.b_{letter}", attn, written, attribute=f"{shared}b_{letter}")
    per_head = bool(getattr(attn.cfg, "use_attn_result", False))
    result = Write(ref(attn.get_submodule("hook_result")), "input") if per_head else Write(ref(attn), "output")
    _add(sites, f"{name}.W_O", attn, result, Read(ref(attn.get_submodule("hook_z")), output), heads="in")
    _add(sites, f"{name}.b_O", attn, Write(ref(attn), "output"))
    for norm in ("q_norm", "k_norm"):
        _norm(sites, f"{name}.{norm}", attn._modules.get(norm))


def _mlp(sites: WeightSites, name: str, mlp: nn.Module) -> None:
    if "W_in" not in mlp._parameters:  # experts, whose rows the operations tell
        return
    gated, read = "W_gate" in mlp._parameters, Read(ref(mlp), first_input)
    pre, post = mlp.get_submodule("hook_pre"), mlp.get_submodule("hook_post")
    if gated:
        _add(sites, f"{name}.W_gate", mlp, Write(ref(pre), "input"), read)
    if not gated or "ln" not in mlp._modules:
        linear, added = (mlp.get_submodule("hook_pre_linear"), post) if gated else (pre, pre)
        _add(sites, f"{name}.W_in", mlp, Write(ref(linear), "input"), read)
        _add(sites, f"{name}.b_in", mlp, Write(ref(added), "input"))  # TL adds b_in after the gate
    _add(sites, f"{name}.W_out", mlp, Write(ref(mlp), "output"), Read(ref(post), output))
    _add(sites, f"{name}.b_out", mlp, Write(ref(mlp), "output"))
    _norm(sites, f"{name}.ln", mlp._modules.get("ln"))
