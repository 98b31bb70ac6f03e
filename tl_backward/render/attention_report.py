"""Attention patterns beside their gradients, layer by layer, for a Backward Lens's report."""

from jaxtyping import Float
from torch import Tensor

from tl_backward.lens.patterns import pattern_name
from tl_backward.render.circuits import attention
from tl_backward.render.key_figures import PromptView
from tl_backward.render.page import Fragment, beside
from tl_backward.render.tables import data_block

MOST_SQUARES = 200_000  # in all charts of a page; a browser draws them in a few seconds
MOST_ROWS = 20_000  # of the data below the charts, about 1 MB


def kept_patterns(view: PromptView) -> dict[int, Float[Tensor, "head query key"]]:
    """Each layer's attention pattern, where the lens recorded it."""
    return {layer: _real(view.row(each), view) for layer, each in view.lens.patterns.items()}


def pattern_gradients(view: PromptView) -> dict[int, Float[Tensor, "head query key"]]:
    """Each layer's raw gradient with respect to its attention pattern, where the lens recorded it."""
    cache, names = view.lens.cache, {layer: pattern_name(layer) for layer in view.lens.layers}
    return {
        layer: _real(cache[name][view.example].float().cpu(), view) for layer, name in names.items() if name in cache
    }


def _real(of: Float[Tensor, "head query key"], view: PromptView) -> Float[Tensor, "head some some"]:
    """Attention between real tokens, padding left out: [head, query, key]."""
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
    drawn = (_box(view, each, patterns[each], gradients.get(each), is_open=each == kept[0]) for each in sorted(kept))
    boxes = sum(drawn, start=Fragment(""))
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
    parts = [attention(view.tokens, pattern, value_label="attention (probability)", bound=1.0, causal=causal)]
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
    """Table rows of attention and gradient, without keys that nothing attends to; at most MOST_ROWS."""
    rows: list[list[int | float]] = []
    for layer, pattern in patterns.items():
        for head, query, key in pattern.nonzero()[: MOST_ROWS + 1 - len(rows)].tolist():
            values = [float(each[layer][head, query, key]) for each in (patterns, gradients) if layer in each]
            rows.append([layer, head, query, key, *values])
    return rows
