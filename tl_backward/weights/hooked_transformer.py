"""Where each weight of a HookedTransformer reads and writes (TransformerLens 3).

Verified against autograd in float64, weight by weight, in tests/gradients/test_capture.py. Two things are not what the
names suggest: the attention and MLP modules' own inputs and outputs are the exact places (hook_mlp_out may come after a
further norm, and an unfolded LayerNorm's output has no HookPoint at all), and hook_z / hook_post must be read after
the user's hooks. All this is true of TransformerLens's own classes: in a module of another class, or one whose weight
is computed (a parametrization, pruning), the operations of a pass tell.
"""

from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.modules import every_module
from tl_backward.weights._site import (
    Argument,
    ModuleArgs,
    ModuleKwargs,
    Read,
    WeightSite,
    WeightSites,
    Write,
    first_input,
    output,
)
from tl_backward.weights.layout import Layout
from tl_backward.weights.learn import learn
from tl_backward.weights.names import named_weights
from tl_backward.weights.token_rows import Shapes


class _Rotary(Protocol):
    """The part of TransformerLens's attention that turns queries and keys."""

    def apply_rotary(self, x: Tensor, past_kv_pos_offset: int) -> Tensor: ...


def collect(model: TransformerLensModel, run: Callable[[], object], shapes: Shapes) -> WeightSites:
    """The weights of a HookedTransformer that have no known place, as one pass used them."""
    root = cast(nn.Module, model)
    parameters = dict(root.named_parameters())
    known = frozenset(id(site.parameter) for site in _known_places(root).values())
    if all(id(parameter) in known for parameter in parameters.values()):
        return WeightSites(parameters)
    ways, modules = named_weights(root, {}), every_module(model)
    return learn(parameters, ways, run, shapes, modules, lambda way: None, known)


def with_known_places(model: TransformerLensModel, learnt: WeightSites) -> WeightSites:
    """Every weight of a HookedTransformer, by its state-dict name: those of known places beside what a pass told."""
    places = _known_places(cast(nn.Module, model))
    known = {id(site.parameter) for site in places.values()}
    sites = WeightSites(learnt.parameters)
    sites.update({**learnt, **places})
    sites.unused = learnt.unused
    sites.missing = {
        name: why
        for name, why in learnt.missing.items()
        if name not in places and id(learnt.parameters.get(name)) not in known
    }
    return sites


def _known_places(root: nn.Module) -> WeightSites:
    return _without_shared(_places(root))


def _places(root: nn.Module) -> WeightSites:
    sites = WeightSites()
    _embeddings(sites, root)
    for layer, block in enumerate(root.get_submodule("blocks").children()):
        if _as_written(block.get_submodule("attn")):
            _attention(sites, f"blocks.{layer}.attn", block.get_submodule("attn"))
        if "mlp" in block._modules and _as_written(block.get_submodule("mlp")):
            _mlp(sites, f"blocks.{layer}.mlp", block.get_submodule("mlp"))
        for norm in ("ln1", "ln1_post", "ln2", "ln2_post"):
            _norm(sites, f"blocks.{layer}.{norm}", block._modules.get(norm))
    _norm(sites, "ln_final", root._modules.get("ln_final"))
    unembed = root.get_submodule("unembed")
    if not _as_written(unembed):
        return sites
    written = Write(unembed.get_submodule("hook_out"), "input")
    _matrix(sites, "unembed.W_U", unembed, Read(unembed.get_submodule("hook_in"), output), written)
    _bias(sites, "unembed.b_U", unembed, written)
    return sites


def _without_shared(sites: WeightSites) -> WeightSites:
    """Leave to the operations what two blocks share: a module's hooks do not tell whose turn it is."""
    places = Counter((id(site.parameter), site.kind) for site in sites.values())
    for name, site in list(sites.items()):
        if places[id(site.parameter), site.kind] > 1:
            del sites[name]
    return sites


def _as_written(module: nn.Module) -> bool:
    """Whether a module and what is inside it are TransformerLens's own, with parameters for weights."""
    own = type(module).__module__.startswith(("transformer_lens", "torch.nn.modules")) and "forward" not in vars(module)
    orig = any(name.endswith(("_orig", "_v")) for name in module._parameters)
    orig = orig and any(isinstance(value, Tensor) for value in vars(module).values())
    return own and not orig and all(_as_written(child) for child in module._modules.values() if child is not None)


def rotation(model: TransformerLensModel, layer: int, position: int) -> Tensor | None:
    """What turns a row of queries or keys [d_head] at a position, as a matrix; None where nothing does."""
    attn = cast(nn.Module, model).get_submodule(f"blocks.{layer}.attn")
    if getattr(attn.cfg, "positional_embedding_type", None) != "rotary":
        return None
    basis = torch.eye(model.cfg.d_head, dtype=model.W_U.dtype, device=model.W_U.device)
    return cast(_Rotary, attn).apply_rotary(basis[:, None, None], past_kv_pos_offset=position)[:, 0, 0]


def _matrix(
    sites: WeightSites,
    name: str,
    owner: nn.Module,
    read: Read,
    write: Write,
    heads: Literal["in", "out"] | None = None,
    attribute: str | None = None,
) -> None:
    parameter = owner.get_parameter(attribute or name.rsplit(".", 1)[1])
    layout = Layout(tuple(parameter.shape), heads=heads)
    sites.add(WeightSite(name, "matrix", parameter, layout, read, write))


def _bias(sites: WeightSites, name: str, owner: nn.Module, write: Write, attribute: str | None = None) -> None:
    parameter = owner.get_parameter(attribute or name.rsplit(".", 1)[1])
    layout = Layout(tuple(parameter.shape), heads="out" if parameter.ndim == 2 else None)
    sites.add(WeightSite(name, "bias", parameter, layout, None, write))


def _norm(sites: WeightSites, name: str, norm: nn.Module | None) -> None:
    """A norm's scale and shift; folded norms have neither."""
    if norm is None or "w" not in norm._parameters or not _as_written(norm):
        return
    weight, written = norm.get_parameter("w"), Write(norm, "output")
    read = Read(norm.get_submodule("hook_normalized"), output)
    sites.add(WeightSite(f"{name}.w", "norm", weight, Layout(tuple(weight.shape)), read, written))
    if "b" in norm._parameters:
        _bias(sites, f"{name}.b", norm, written)


def _embeddings(sites: WeightSites, root: nn.Module) -> None:
    embed = root._modules.get("embed")
    if embed is not None and _as_written(embed):
        weight = embed.get_parameter("W_E")
        inner = embed._modules.get("ln")  # Bloom normalises what it looked up before anyone sees it
        write = Write(embed, "output") if inner is None else Write(inner, "input")
        layout = Layout(tuple(weight.shape))
        sites.add(WeightSite("embed.W_E", "embedding", weight, layout, Read(embed, first_input), write))
        _norm(sites, "embed.ln", inner)
    positions = root._modules.get("pos_embed")
    used = getattr(root.cfg, "positional_embedding_type", "standard") in ("standard", "shortformer")
    # With ALiBi TransformerLens keeps a table that it never reads.
    if positions is not None and used and _as_written(positions):
        weight = positions.get_parameter("W_pos")
        read, write = Read(positions, _position_ids), Write(positions, "output")
        layout = Layout(tuple(weight.shape))
        sites.add(WeightSite("pos_embed.W_pos", "embedding", weight, layout, read, write, combine=_no_padding))


def _position_ids(args: ModuleArgs, kwargs: ModuleKwargs, out: object) -> Tensor:
    """The rows of W_pos that PosEmbed looked up, -1 where it wrote zeros instead (padding)."""
    named = dict(zip(("tokens", "past_kv_pos_offset", "attention_mask"), args, strict=False)) | kwargs
    tokens, offset, mask = (named.get(name) for name in ("tokens", "past_kv_pos_offset", "attention_mask"))
    offset = cast(int, offset or 0)
    tokens = cast(Tensor, tokens)
    if mask is None:
        return torch.arange(offset, offset + tokens.shape[-1], device=tokens.device).expand(tokens.shape)
    from transformer_lens.utilities.tensors import get_offset_position_ids

    mask = cast(Tensor, mask)
    real = mask.bool()[:, offset : offset + tokens.shape[-1]]
    return torch.where(real, get_offset_position_ids(offset, mask), -1)


def _no_padding(ids: Tensor | None, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of W_pos: a padding position looked nothing up, so its delta does not reach the weight."""
    ids = cast(Tensor, ids)
    return ids.clamp(min=0), torch.where((ids >= 0)[..., None], delta, 0)


def _attention(sites: WeightSites, name: str, attn: nn.Module) -> None:
    for index, letter in enumerate("QKV"):
        written = Write(attn.get_submodule(f"hook_{letter.lower()}"), "input")
        shared = "_" if f"_W_{letter}" in attn._parameters else ""  # grouped-query attention stores _W_K and _W_V
        read = Read(attn, Argument(index, ("query_input", "key_input", "value_input")[index]))
        _matrix(sites, f"{name}.W_{letter}", attn, read, written, "out", f"{shared}W_{letter}")
        _bias(sites, f"{name}.b_{letter}", attn, written, f"{shared}b_{letter}")
    per_head = bool(getattr(attn.cfg, "use_attn_result", False))
    result = Write(attn.get_submodule("hook_result"), "input") if per_head else Write(attn, "output")
    _matrix(sites, f"{name}.W_O", attn, Read(attn.get_submodule("hook_z"), output), result, "in")
    _bias(sites, f"{name}.b_O", attn, Write(attn, "output"))
    for norm in ("q_norm", "k_norm"):
        _norm(sites, f"{name}.{norm}", attn._modules.get(norm))


def _mlp(sites: WeightSites, name: str, mlp: nn.Module) -> None:
    if "W_in" not in mlp._parameters:  # experts, whose rows the operations tell
        return
    gated = "W_gate" in mlp._parameters
    read = Read(mlp, first_input)
    pre, post = mlp.get_submodule("hook_pre"), mlp.get_submodule("hook_post")
    if gated and "ln" in mlp._modules:
        _matrix(sites, f"{name}.W_gate", mlp, read, Write(pre, "input"))
    elif gated:
        _matrix(sites, f"{name}.W_gate", mlp, read, Write(pre, "input"))
        _matrix(sites, f"{name}.W_in", mlp, read, Write(mlp.get_submodule("hook_pre_linear"), "input"))
        _bias(sites, f"{name}.b_in", mlp, Write(post, "input"))  # TL adds b_in after the gate
    else:
        _matrix(sites, f"{name}.W_in", mlp, read, Write(pre, "input"))
        _bias(sites, f"{name}.b_in", mlp, Write(pre, "input"))
    _matrix(sites, f"{name}.W_out", mlp, Read(post, output), Write(mlp, "output"))
    _bias(sites, f"{name}.b_out", mlp, Write(mlp, "output"))
    _norm(sites, f"{name}.ln", mlp._modules.get("ln"))
