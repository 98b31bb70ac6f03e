"""Sites of a TransformerBridge: names of its weights, and how its attention is split into heads.

Where they are used the operations of a pass tell (`learn`); here is what TransformerLens's classes look like inside.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import cast

import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.modules import every_module
from tl_backward.model.torch_hooks import without_hooks
from tl_backward.weights.account import WeightSites
from tl_backward.weights.forms import Geometry
from tl_backward.weights.learn import learn
from tl_backward.weights.names import Named, components, named_weights
from tl_backward.weights.other_model import mark_adapted, warn_of_lost_adapters
from tl_backward.weights.token_rows import Shapes


def collect(model: TransformerLensModel, run: Callable[[], object], shapes: Shapes) -> WeightSites:
    """Every weight of a TransformerBridge, as one pass used it."""
    root = cast(nn.Module, model)
    inner = getattr(model, "original_model", root)
    ways, modules = named_weights(inner, components(model)), every_module(model)
    paths = {name.replace("._original_component", ""): module for name, module in inner.named_modules()}
    sites = learn(dict(root.named_parameters()), ways, run, shapes, modules, partial(_geometry, model), paths)
    warn_of_lost_adapters(paths, sites)
    mark_adapted(paths, sites)
    return sites


def _geometry(model: TransformerLensModel, way: Named) -> Geometry | None:
    """How the attention that a matrix belongs to is split into heads; None where it belongs to none."""
    attention = way.parent
    if attention is None or way.name.rsplit(".", 1)[-1] not in _HEADED:
        return None
    source = _wrapped(attention) or attention
    n_heads = (
        _number(source, "num_heads", "num_attention_heads", "n_heads")
        or _number(getattr(source, "config", None), "num_attention_heads", "n_head", "num_heads")
        or int(model.cfg.n_heads)
    )
    d_head = _number(source, "head_dim", "attention_head_size", "key_value_proj_dim", "d_head")
    d_head = d_head or int(getattr(model.cfg, "d_head", 0) or 0)
    return Geometry(n_heads, d_head, _number(source, "v_head_dim") or d_head) if d_head else None


_HEADED = {f"{kind}_{letter}" for kind in "Wb" for letter in "QKVO"}


def _number(owner: object, *names: str) -> int:
    """The first of some attributes that is a positive integer; 0 where none is."""
    values = (getattr(owner, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def rotation(model: TransformerLensModel, layer: int, position: int) -> Tensor | None:
    """What turns a row of queries or keys [d_head] at a position, as a matrix; None where nothing does.

    Raises:
        ValueError: the architecture turns them in a way of its own.
    """
    from transformer_lens.utilities.hf_utils import get_rotary_pct_from_config

    if getattr(model.cfg, "positional_embedding_type", None) != "rotary":
        return None
    component = getattr(model, "rotary_emb", None)
    source = _wrapped(component) if isinstance(component, nn.Module) else None
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


def _wrapped(component: nn.Module) -> nn.Module | None:
    return component._modules.get("_original_component")
