"""Attention patterns for a lens's report: recorded in its own pass with their gradients, or in one more pass."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_backward._support.public import public
from tl_backward._support.types import NamesFilter, TransformerLensModel
from tl_backward.gradients.capture import HookList, user_hooks
from tl_backward.model.guard import rng_untouched


@public
def pattern_names(model: TransformerLensModel, layers: Sequence[int] | None = None) -> list[str]:
    """List the model's attention pattern hook points: as `names_filter`, what has a lens keep patterns and gradients.

    Examples:
        >>> tlb.render.pattern_names(model, layers=[0])
        ['blocks.0.attn.hook_pattern']
    """
    chosen = range(model.cfg.n_layers) if layers is None else layers
    return [name for name in map(pattern_name, chosen) if name in model.hook_dict]


def pattern_name(layer: int) -> str:
    """The hook point of a layer's pattern."""
    return f"blocks.{layer}.attn.hook_pattern"


def keeping(
    model: TransformerLensModel, layers: Sequence[int], names_filter: NamesFilter, patterns: dict[int, Tensor]
) -> HookList:
    """Hooks that record each layer's attention pattern [batch, head, query, key] whose name a filter selects."""

    def keep(pattern: Tensor, hook: nn.Module, *, layer: int) -> None:
        patterns[layer] = pattern.detach().float().cpu()

    def wanted(name: str) -> bool:
        if names_filter is None or callable(names_filter):
            return names_filter is None or names_filter(name)
        return name == names_filter if isinstance(names_filter, str) else name in names_filter

    return [
        (pattern_name(layer), partial(keep, layer=layer))
        for layer in layers
        if wanted(pattern_name(layer)) and pattern_name(layer) in model.hook_dict
    ]


def attention_patterns(
    model: TransformerLensModel, tokens: Int[Tensor, " pos"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "head query key"]]:
    """Read each layer's attention probabilities in one forward pass; layers that have none are left out.

    Hooks on the model take part.
    """
    patterns: dict[int, Tensor] = {}
    hooks = keeping(model, layers, None, patterns)
    if hooks:
        with torch.no_grad(), rng_untouched(model), user_hooks(model, hooks, ()):
            model(tokens[None], return_type="logits")
    return {layer: patterns[layer][0] for layer in layers if layer in patterns}
