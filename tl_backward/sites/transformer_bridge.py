"""Where each weight of a TransformerBridge reads and writes (TransformerLens 3 and 4).

A Bridge wraps every Hugging Face layer in a component; the wrapped layer's own input and output are the exact places:
after the user's hooks on the component's hook_in, before those on its hook_out. In three modes the wrapped layer is not
called and the component's HookPoints are exact instead: use_attn_result, split_qkv_input / attn_in, and gated MLPs in
compatibility mode. Verified against autograd in float64, weight by weight, in tests/test_capture.py.
"""

from copy import copy
from dataclasses import dataclass
from inspect import signature
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from tl_backward._torch_hooks import without_hooks
from tl_backward._typing import TransformerLensModel
from tl_backward.factors import Layout
from tl_backward.sites._site import ModuleArgs, ModuleKwargs, Read, WeightSite, WeightSites, Write, first_input, output

_ATTENTION = {"q": "Q", "k": "K", "v": "V", "o": "O"}
_MLP = {"in": "in", "gate": "gate", "out": "out", "dense_in": "in", "dense_gate": "gate", "dense_out": "out"}


class _Forkable(Protocol):
    """The private part of TransformerLens's AttentionBridge that the split-input mode needs."""

    _captured_pre_ln_residual: Tensor | None

    def _apply_ln1_per_head(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _Forked:
    """Reads one head's own input in split-input mode: hook_{q,k,v}_input, then ln1 where the fork precedes it.

    That norm's output passes no hook, so it is computed once more from what left the user's hooks.
    """

    attn: nn.Module

    def __call__(self, args: ModuleArgs, kwargs: ModuleKwargs, out: object) -> Tensor:
        fork = cast(Tensor, out)
        attn = cast(_Forkable, self.attn)
        if attn._captured_pre_ln_residual is None:
            return fork
        with torch.no_grad():
            return attn._apply_ln1_per_head(fork.detach())


@dataclass(frozen=True)
class _Normalized:
    """What a norm's weight multiplied: the layer's output with its weight set to one and its bias to zero.

    Not hook_normalized, which TransformerLens computes beside it: Hugging Face's RMSNorm rounds to float32.
    """

    layer: nn.Module
    offset: bool
    """Whether the layer multiplies by 1 + weight (Gemma)."""

    def __call__(self, args: ModuleArgs, kwargs: ModuleKwargs, out: object) -> Tensor:
        bare = copy(self.layer)
        bare._parameters = {
            name: None if p is None else nn.Parameter(torch.full_like(p, float(name == "weight" and not self.offset)))
            for name, p in self.layer._parameters.items()
        }
        with torch.no_grad():  # the forward alone: calling the layer would run its hooks again
            return type(self.layer).forward(bare, first_input(args, kwargs, out))


@dataclass(frozen=True)
class _Lookup:
    """Factors of an nn.Embedding: Gemma's multiplies what it looked up, and a padding_idx row is never trained."""

    scale: float
    padding_idx: int | None

    def __call__(self, ids: Tensor | None, delta: Tensor) -> tuple[Tensor, Tensor]:
        ids = cast(Tensor, ids).expand(delta.shape[:2])
        delta = delta if self.scale == 1 else delta * self.scale
        return ids, delta if self.padding_idx is None else delta * (ids != self.padding_idx)[..., None]


def collect(model: TransformerLensModel) -> WeightSites:
    """Every weight of a TransformerBridge, by TransformerLens's name."""
    sites = WeightSites()
    root = cast(nn.Module, model)
    _embedding(sites, "embed.W_E", _component(root, "embed"))
    _embedding(sites, "pos_embed.W_pos", _component(root, "pos_embed"))
    for layer, block in enumerate(model.blocks):
        _attention(sites, f"blocks.{layer}.attn", _component(block, "attn"))
        _mlp(sites, f"blocks.{layer}.mlp", _component(block, "mlp"))
        forked = _split_inputs(_component(block, "attn"))
        for norm in ("ln1", "ln1_post", "ln2", "ln2_post"):
            _norm(sites, f"blocks.{layer}.{norm}", _component(block, norm), forked=forked and norm == "ln1")
    _norm(sites, "ln_final", _component(root, "ln_final"))
    unembed = _component(root, "unembed")
    if unembed is not None:
        _linear(sites, "unembed", "U", unembed)
    return sites


def rotation(model: TransformerLensModel, layer: int, position: int) -> Tensor | None:
    """What turns a row of queries or keys [d_head] at a position, as a matrix; None where nothing does.

    Raises:
        ValueError: the architecture turns them in a way of its own.
    """
    from transformer_lens.utilities.hf_utils import get_rotary_pct_from_config

    if getattr(model.cfg, "positional_embedding_type", None) != "rotary":
        return None
    component = _component(cast(nn.Module, model), "rotary_emb")
    source = None if component is None else _wrapped(component)
    if source is None:
        raise ValueError(
            "Expected rotary embeddings that one module computes, got an architecture without; leave out the offset."
        )
    d_head, like = model.cfg.d_head, model.W_U
    types = getattr(getattr(source, "config", None), "layer_types", None)  # Gemma 3 turns local and global layers apart
    options = {"layer_type": types[layer]} if types and "layer_type" in signature(source.forward).parameters else {}
    basis = torch.eye(d_head, dtype=like.dtype, device=like.device)
    place = torch.tensor([[position]], device=like.device)
    cos, sin = (part[0, 0] for part in without_hooks(source)(basis[None], place, **options))
    if 2 * len(cos) == d_head and get_rotary_pct_from_config(model.cfg) == 1.0:  # GPT-OSS gives each angle once
        cos, sin = cos.repeat(2), sin.repeat(2)
    width, half = len(cos), len(cos) // 2
    if getattr(model.cfg, "rotary_adjacent_pairs", False):
        partner = torch.stack([-basis[:, 1:width:2], basis[:, 0:width:2]], -1).flatten(-2)
        cos, sin = (part[:half].repeat_interleave(2) for part in (cos, sin))
    else:
        partner = torch.cat([-basis[:, half:width], basis[:, :half]], -1)
    return torch.cat([basis[:, :width] * cos + partner * sin, basis[:, width:]], -1)


def _component(parent: nn.Module, name: str) -> nn.Module | None:
    """A Bridge component by attribute, or None where this architecture has none."""
    found = getattr(parent, name, None)
    return found if isinstance(found, nn.Module) else None


def _wrapped(component: nn.Module) -> nn.Module | None:
    return component._modules.get("_original_component")


def _flag(component: nn.Module | None, name: str) -> bool:
    return bool(getattr(getattr(component, "config", None), name, False))


def _split_inputs(attn: nn.Module | None) -> bool:
    return _flag(attn, "use_split_qkv_input") or _flag(attn, "use_attn_in")


def _linear(
    sites: WeightSites,
    owner: str,
    letter: str,
    component: nn.Module,
    *,
    d_head: int | None = None,
    read: Read | None = None,
    write: Write | None = None,
    bias_write: Write | None = None,
) -> None:
    """Matrix and bias of a wrapped nn.Linear or Conv1D, exact at its own input and output unless told otherwise."""
    from transformers.pytorch_utils import Conv1D

    layer, name = _wrapped(component), f"{owner}.W_{letter}"
    if not isinstance(layer, nn.Linear | Conv1D) or not layer.weight.is_floating_point():
        sites.missing[name] = (
            f"its layer is a {type(layer).__name__}, not a floating-point nn.Linear or Conv1D, so what it reads and "
            "writes is not known; capture the layers around it instead."
        )
        return
    weight = cast(nn.Parameter, layer.weight)
    stored: Literal["in_out", "out_in"] = "in_out" if isinstance(layer, Conv1D) else "out_in"
    d_in, d_out = weight.shape if stored == "in_out" else weight.shape[::-1]
    shape, heads = (d_in, d_out), None
    if d_head is not None:
        heads = "in" if letter == "O" else "out"
        shape = (d_in // d_head, d_head, d_out) if heads == "in" else (d_out // d_head, d_in, d_head)
    layout = Layout(shape, heads, stored, tuple(weight.shape))
    read, write = read or Read(layer, first_input), write or Write(layer, "output")
    sites.add(WeightSite(name, "matrix", weight, layout, read, write))
    # TransformerLens 4 gives an unembedding without a bias a constant one, which nothing trains.
    if isinstance(layer.bias, nn.Parameter):
        bias, per_head = layer.bias, heads == "out" and d_head is not None
        shape = (d_out // d_head, d_head) if per_head and d_head else (d_out,)
        layout = Layout(shape, "out" if per_head else None, "in_out", (d_out,))
        sites.add(WeightSite(f"{owner}.b_{letter}", "bias", bias, layout, None, bias_write or write))


def _embedding(sites: WeightSites, name: str, component: nn.Module | None) -> None:
    if component is None:
        return
    layer = _wrapped(component)
    if not isinstance(layer, nn.Embedding) or (name.endswith("W_pos") and type(layer) is not nn.Embedding):
        if layer is not None and any(True for _ in layer.parameters()):
            sites.missing[name] = (
                f"its layer is a {type(layer).__name__}, not an nn.Embedding, so which rows it looks up is not known."
            )
        return
    weight = cast(nn.Parameter, layer.weight)
    scale = getattr(layer, "embed_scale", getattr(layer, "scalar_embed_scale", 1.0))
    # A position table is looked up once for the whole batch, and broadcast before its hook_out.
    write = Write(component.get_submodule("hook_out"), "input") if name.endswith("W_pos") else Write(layer, "output")
    layout, read = Layout(tuple(weight.shape)), Read(layer, first_input)
    lookup = _Lookup(float(scale), layer.padding_idx)
    sites.add(WeightSite(name, "embedding", weight, layout, read, write, combine=lookup))


def _norm(sites: WeightSites, name: str, component: nn.Module | None, *, forked: bool = False) -> None:
    layer = None if component is None else _wrapped(component)
    weight = None if layer is None else layer._parameters.get("weight")
    if component is None or layer is None or weight is None or "hook_normalized" not in component._modules:
        return
    if forked or weight.ndim != 1:
        reason = (
            "with split_qkv_input or attn_in the norm runs once a head outside its hooks; turn the flag off."
            if forked
            else f"its weight has shape {list(weight.shape)}, one row a head."
        )
        sites.missing |= {f"{name}.{letter}": reason for letter in ("w", "b")[: len(layer._parameters)]}
        return
    write = Write(component.get_submodule("hook_out"), "input")
    # Hugging Face's own norm runs unless a hook edits hook_scale or hook_normalized; then TransformerLens's does.
    native = Read(layer, _Normalized(layer, offset=_flag(component, "rmsnorm_uses_offset")))
    edited = Read(component.get_submodule("hook_normalized"), output)
    layout = Layout(tuple(weight.shape))
    sites.add(WeightSite(f"{name}.w", "norm", weight, layout, native, write, otherwise=edited))
    bias = layer._parameters.get("bias")
    if bias is not None:
        sites.add(WeightSite(f"{name}.b", "bias", bias, Layout(tuple(bias.shape)), None, write))


def _attention(sites: WeightSites, name: str, attn: nn.Module | None) -> None:
    if attn is None:
        return
    from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import JointQKVAttentionBridge

    joint = isinstance(attn, JointQKVAttentionBridge)  # it has one hook more between b_O and hook_out
    d_head = int(getattr(attn.config, "d_head", 0)) or None
    for part, letter in _ATTENTION.items():
        component = _component(attn, part)
        if component is None or _wrapped(component) is None:
            continue
        read = write = bias_write = None
        if letter == "O" and _flag(attn, "use_attn_result"):
            read = Read(component.get_submodule("hook_in"), output)
            write = Write(attn.get_submodule("hook_result"), "input")
            bias_write = Write(attn.get_submodule("hook_hidden_states" if joint else "hook_out"), "input")
        elif letter != "O" and _split_inputs(attn):
            fork = f"hook_{part}_input" if _flag(attn, "use_split_qkv_input") else "hook_attn_in"
            read = Read(attn.get_submodule(fork), _Forked(attn))
            write = Write(component.get_submodule("hook_out"), "input")
        _linear(sites, name, letter, component, d_head=d_head, read=read, write=write, bias_write=bias_write)
    for norm in ("q_norm", "k_norm"):
        _norm(sites, f"{name}.{norm}", _component(attn, norm))


def _mlp(sites: WeightSites, name: str, mlp: nn.Module | None) -> None:
    if mlp is None:
        return
    functional = bool(getattr(mlp, "_use_processed_weights", False))
    for part, letter in _MLP.items():
        component = _component(mlp, part)
        if component is None or _wrapped(component) is None:
            continue
        read = write = None
        if functional:
            before = component.get_submodule("hook_in") if letter == "out" else mlp.get_submodule("hook_in")
            read, write = Read(before, output), Write(component.get_submodule("hook_out"), "input")
        _linear(sites, name, letter, component, read=read, write=write)
    experts = getattr(_wrapped(mlp), "experts", None)
    if experts is not None:
        sites.missing[f"{name}.experts"] = sites.missing[f"{name}.W_in"] = sites.missing[f"{name}.W_out"] = (
            f"{type(experts).__name__} holds all experts in 3-D parameters without a submodule each, so what one "
            "expert reads and writes cannot be observed; capture the attention matrices instead."
        )
