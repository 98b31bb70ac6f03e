"""Attention patterns beside their gradients, layer by layer, for a Backward Lens's report."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._typing import TransformerLensModel
from tl_backward.render.circuits import attention
from tl_backward.render.key_figures import PromptView
from tl_backward.render.page import Fragment

MOST_SQUARES = 200_000  # in all charts of a page; a browser draws them in a few seconds


def pattern_names(model: TransformerLensModel, layers: Sequence[int] | None = None) -> list[str]:
    """The model's attention pattern hook points, to pass as `names_filter` to `backward_lens`; [] if it has none."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (range(model.cfg.n_layers) if layers is None else layers)]
    return [name for name in names if name in model.hook_dict]


def attention_patterns(
    model: TransformerLensModel, tokens: Int[Tensor, " pos"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "head query key"]]:
    """Each layer's attention probabilities in one forward pass, hooks on the model taking part; layers without: left out."""
    names = pattern_names(model, layers)
    if not names:
        return {}
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens[None], names_filter=lambda name: name in names)
    found = {layer: cache[name] for layer in layers if (name := f"blocks.{layer}.attn.hook_pattern") in cache}
    return {layer: pattern[0].float().cpu() for layer, pattern in found.items()}


def pattern_gradients(view: PromptView) -> dict[int, Float[Tensor, "head query key"]]:
    """Raw gradient of the loss with respect to each layer's attention probabilities, where the lens kept it."""
    cache, real = view.lens.cache, view.mask.cpu()
    found = {layer: cache[name] for layer in view.lens.layers if (name := f"blocks.{layer}.attn.hook_pattern") in cache}
    return {layer: each[view.example].float().cpu()[:, real][:, :, real] for layer, each in found.items()}


def attention_section(view: PromptView, patterns: dict[int, Tensor], gradients: dict[int, Tensor]) -> tuple[str, Fragment]:
    """A note and one box a layer: the pattern and, beside it, its gradient. The layer with the largest gradient is open.

    Layers beyond what a browser can draw are left out, those with the smallest gradients first, and the note says so.
    """
    strength = {layer: float(gradients[layer].norm()) if layer in gradients else 0.0 for layer in patterns}
    ranked = sorted(patterns, key=lambda layer: -strength[layer])
    each = {layer: patterns[layer].numel() * (1 + (layer in gradients)) for layer in ranked}
    kept: list[int] = []
    for layer in ranked:
        if sum(each[other] for other in kept) + each[layer] <= MOST_SQUARES:
            kept.append(layer)
    if not kept:
        note = f"{len(view.tokens)} tokens and {len(patterns[ranked[0]])} heads are more squares than a browser can draw."
        return note, Fragment("")
    boxes = Fragment("")
    for layer in sorted(kept):
        boxes += _box(view, layer, patterns[layer], gradients.get(layer), is_open=layer == ranked[0])
    left_out = sorted(set(ranked) - set(kept))
    note = (
        f"Left out, because a browser could not draw them all: layers {', '.join(map(str, left_out))}, whose gradients "
        "are the smallest."
        if left_out
        else ""
    )
    return note, boxes


def _box(view: PromptView, layer: int, pattern: Tensor, gradient: Tensor | None, *, is_open: bool) -> Fragment:
    parts = [attention(view.tokens, pattern, value_label="attention (probability)", bound=1.0)]
    about = ""
    if gradient is not None:
        label = "dL/d(attention), raw gradient (nats per unit of attention)"
        parts.append(attention(view.tokens, gradient, value_label=label, signed=True))
        about = f": gradient's norm {float(gradient.norm()):.3g}"
    joined = beside(*parts)
    summary = f'<summary style="cursor:pointer;font-weight:bold">layer {layer}{about}</summary>'
    html = f'<details{" open" if is_open else ""} style="margin:6px 0">{summary}{joined.html}</details>'
    return Fragment(html, joined.scripts, joined.needs)


def beside(*parts: Fragment) -> Fragment:
    """Fragments side by side, one below the other where the page is narrow."""
    columns = "".join(f'<div style="flex:1 1 440px;min-width:0">{part.html}</div>' for part in parts)
    joined = sum(parts, start=Fragment(""))
    html = f'<div style="display:flex;flex-wrap:wrap;gap:4px 20px;align-items:flex-start">{columns}</div>'
    return Fragment(html, joined.scripts, joined.needs)
