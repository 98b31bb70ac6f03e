"""Attention patterns beside their gradients, layer by layer, for a Backward Lens's report."""

from jaxtyping import Float
from torch import Tensor

from tl_backward.lens.patterns import pattern_name
from tl_backward.render.circuits import attention
from tl_backward.render.export import data_block
from tl_backward.render.key_figures import PromptView
from tl_backward.render.page import Fragment

MOST_SQUARES = 200_000  # in all charts of a page; a browser draws them in a few seconds
MOST_ROWS = 20_000  # of the data below the charts, about 1 MB


def kept_patterns(view: PromptView) -> dict[int, Float[Tensor, "head query key"]]:
    """Look up each layer's attention, where the lens kept it."""
    kept = {layer: each[view.example] if view.lens.is_batch else each for layer, each in view.lens.patterns.items()}
    return {layer: _real(pattern, view) for layer, pattern in kept.items()}


def pattern_gradients(view: PromptView) -> dict[int, Float[Tensor, "head query key"]]:
    """Look up the raw gradient with respect to each layer's attention, where the lens kept it."""
    cache, names = view.lens.cache, {layer: pattern_name(layer) for layer in view.lens.layers}
    found = {layer: cache[name][view.example].float().cpu() for layer, name in names.items() if name in cache}
    return {layer: _real(gradient, view) for layer, gradient in found.items()}


def _real(of: Float[Tensor, "head query key"], view: PromptView) -> Float[Tensor, "head some some"]:
    """Between real tokens alone."""
    real = view.mask.cpu()
    return of[:, real][:, :, real]


def attention_section(
    view: PromptView, patterns: dict[int, Tensor], gradients: dict[int, Tensor]
) -> tuple[str, Fragment]:
    """Make one box a layer, the pattern beside its gradient, and a note on what is missing.

    The layer with the largest gradient is open. Layers beyond what a browser can draw are left out, those
    with the smallest gradients first.
    """
    strength = {layer: float(gradients[layer].norm()) if layer in gradients else 0.0 for layer in patterns}
    ranked = sorted(patterns, key=lambda layer: -strength[layer])
    kept, room = [], MOST_SQUARES
    for layer in ranked:
        squares = patterns[layer].numel() * (1 + (layer in gradients))
        if squares <= room:
            kept.append(layer)
            room -= squares
    boxes = Fragment("")
    for layer in sorted(kept):
        boxes += _box(view, layer, patterns[layer], gradients.get(layer), is_open=layer == kept[0])
    left_out = ", ".join(str(layer) for layer in sorted(set(ranked) - set(kept)))
    note = f"Not drawn, because a browser could not draw so many squares: layers {left_out}." if left_out else ""
    rows = _rows(patterns, gradients)
    if len(rows) > MOST_ROWS:
        note += " The numbers are too many to be offered here as CSV; run_with_cache gives them."
    else:
        columns = ["layer", "head", "query", "key", "attention", *(["gradient"] if gradients else [])]
        boxes += data_block(columns, rows, filename="attention.csv")
    return note.strip(), boxes


def _box(view: PromptView, layer: int, pattern: Tensor, gradient: Tensor | None, *, is_open: bool) -> Fragment:
    causal = not bool(pattern.triu(1).any())
    label = "attention (probability)"
    parts = [attention(view.tokens, pattern, value_label=label, bound=1.0, causal=causal)]
    about = ""
    if gradient is not None:
        label = "dL/d(attention), raw gradient (nats per unit of attention)"
        parts.append(attention(view.tokens, gradient, value_label=label, signed=True, causal=causal))
        about = f": gradient's norm {float(gradient.norm()):.3g}"
    joined = beside(*parts)
    summary = f'<summary style="cursor:pointer;font-weight:bold">layer {layer}{about}</summary>'
    html = f'<details{" open" if is_open else ""} style="margin:6px 0">{summary}{joined.html}</details>'
    return Fragment(html, joined.scripts, joined.needs)


def _rows(patterns: dict[int, Tensor], gradients: dict[int, Tensor]) -> list[list[int | float]]:
    """Both as a table, without the keys that nothing attends to; it stops after MOST_ROWS."""
    rows: list[list[int | float]] = []
    for layer, pattern in patterns.items():
        for head, query, key in pattern.nonzero()[: MOST_ROWS + 1 - len(rows)].tolist():
            values = [float(each[layer][head, query, key]) for each in (patterns, gradients) if layer in each]
            rows.append([layer, head, query, key, *values])
    return rows


def beside(*parts: Fragment) -> Fragment:
    """Fragments side by side, one below the other where the page is narrow."""
    columns = "".join(f'<div style="flex:1 1 440px;min-width:0">{part.html}</div>' for part in parts)
    joined = sum(parts, start=Fragment(""))
    html = f'<div style="display:flex;flex-wrap:wrap;gap:4px 20px;align-items:flex-start">{columns}</div>'
    return Fragment(html, joined.scripts, joined.needs)
