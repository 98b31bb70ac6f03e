"""Sweeps and gradient similarities as pictures: curves by layer with their control, and a matrix of examples."""

from typing import TYPE_CHECKING

import torch

from tl_backward._support.html import Cell, frame_table, visible_text
from tl_backward._support.public import public
from tl_backward._support.types import typed
from tl_backward.gradients.similarity import GradientSimilarity, Metric
from tl_backward.lens.segments import NAMES
from tl_backward.lens.sweep_result import BY_SEGMENT, Quantity, Sweep
from tl_backward.render.figures import Curve, curves, heatmap
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.page import Fragment, Page
from tl_backward.render.tables import frame_block, table

if TYPE_CHECKING:
    import plotly.graph_objects

_TITLES: dict[Quantity, tuple[str, str]] = {
    "norm": ("VJP norms by part of the prompt", "mean |\u03b4\u1d62| (nats per unit of output)"),
    "gradient_norm": ("Gradient norms", "|dL/dW|"),
    "share": ("Who carries the gradient", "share of |dL/dW|\u00b2"),
    "rank": ("Numerical rank of the gradient", "rank"),
    "target_rank": ("Rank of the target where it is asked for", "mean rank in the raw readout (0 = largest)"),
    "answer_rank": ("Rank of the old answer where it is asked for", "mean rank in the raw readout (0 = largest)"),
}
_ORDER: tuple[Quantity, ...] = ("answer_rank", "target_rank", "share", "norm", "gradient_norm", "rank")
_METRICS: dict[Metric, str] = {"inner": "inner product", "cosine": "cosine"}
_TERMS = (
    "A weight's VJP at a token, delta_i, is how the loss changes with what the weight writes there; its raw readout, "
    "the logits that the model's head gives it, sign unchanged: a descent step pushes down rank 0 and writes the last."
)
_INTRO = (
    "Means over prompts with 95 % bootstrap intervals; dashed, the same architecture with random weights (several "
    "draws). All gradients are raw, dL/d(.): a descent step subtracts. Where a curve lies on its control, it says "
    "nothing about what the model has learned."
)


@public
def sweep_curves(sweep: Sweep, quantity: Quantity, *, weight: str = "W_out") -> "plotly.graph_objects.Figure":
    """Draw one quantity of a sweep over the layers, with intervals and its control (dashed).

    Args:
        sweep: from `sweep`.
        quantity: that was collected; `norm` and `share` get a curve a segment.
        weight: the short name of a weight that was swept.

    Raises:
        ValueError: a quantity or weight that the sweep lacks.

    Examples:
        >>> s = tlb.sweep(model, tlb.zoo.edit_cases("test")[:3], collect=["norm", "answer_rank"], show_progress=False)
        >>> len(tlb.render.sweep_curves(s, 'answer_rank').data) > 0
        True
    """
    layers = {i: layer for i, layer in enumerate(sweep.layers) if sweep.weights[i].rpartition(".")[2] == weight}
    places = [i for i, layer in layers.items() if layer is not None]
    if not places:
        raise ValueError(f"Expected a weight of the sweep's layers, got {weight!r}; it has {list(sweep.weights)}.")
    lines = []
    sides = {"": sweep} | ({", untrained control": sweep.control} if sweep.control else {})
    for end, side in sides.items():
        interval = side.interval(quantity)
        for s, segment in enumerate(NAMES if quantity in BY_SEGMENT else ("",)):
            low, mean, high = (
                (each[places, s] if segment else each[places]) for each in (interval.low, interval.mean, interval.high)
            )
            if not mean.isnan().all():
                name = segment or "model"
                lines.append(Curve(f"{name}{end}", mean, low=low, high=high, control_of=name if end else None))
    title, y_title = _TITLES[quantity]
    x = [layers[i] or 0 for i in places]
    return curves(lines, title=f"{title}: {weight}", x_title="layer", y_title=y_title, x=x)


@typed
def sweep_report(sweep: Sweep, *, name: str = "") -> Page:
    """Make a page of everything a sweep collected: curves by layer with the control, and its tokens, each with data.

    Examples:
        >>> s = tlb.sweep(model, tlb.zoo.edit_cases("test")[:3], collect=["norm", "answer_rank"], show_progress=False)
        >>> isinstance(tlb.render.sweep_report(s), tlb.render.Page)
        True
    """
    title, short = f"Gradients of {len(sweep.items)} prompts", str(sweep.about.get("left_out", ""))
    page = Page(title + (f": {name}" if name else ""), finding=sweep.summary(), intro=_TERMS, footer=short)
    shorts = list(dict.fromkeys(weight.rpartition(".")[2] for weight in sweep.weights if weight.startswith("blocks.")))
    frame = sweep.to_frame()
    told: dict[Quantity, tuple[str, str]] = {
        each: _TITLES[each] for each in _ORDER
    }  # what the sentence on top tells of comes first
    for quantity, (title, _) in told.items():
        if quantity in sweep.values:
            figures = [
                figure_fragment(sweep_curves(sweep, quantity, weight=short))
                for short in shorts
                if not frame[(frame["quantity"] == quantity) & frame["weight"].str.endswith(f".{short}")].empty
            ]
            page.section(title, "", *figures, frame_block(frame[frame["quantity"] == quantity], f"{quantity}.csv"))
    if "top_ids" in sweep.values:
        for weight in sweep.weights:
            for end in ("top", "bottom"):
                tokens = sweep.top_tokens(weight, end)
                if len(tokens):
                    rows = [[Cell(token), *rest] for token, *rest in tokens.astype(object).values.tolist()]
                    page.section(f"Most often at the {end}: {weight}", "", table(list(map(str, tokens.columns)), rows))
    if sweep.skipped:
        page.section("Left out", "", table(["prompt", "why"], [[index, why] for index, why in sweep.skipped.items()]))
    return page.section("How to read the curves", _INTRO, folded=True)


@public
def similarity_heatmap(similarity: GradientSimilarity) -> "plotly.graph_objects.Figure":
    """Draw the matrix of examples x examples, symmetric around zero; the examples' texts on hover.

    Examples:
        >>> g = tlb.gradient_similarity(model, tlb.zoo.edit_cases("test")[:3], show_progress=False)
        >>> len(tlb.render.similarity_heatmap(g).data)
        1
    """
    matrix = similarity.matrix
    bound = None
    if similarity.metric == "cosine":
        bound = 1.0
    elif similarity.within:
        bound = float(matrix.masked_fill(torch.eye(len(matrix), dtype=torch.bool), 0).abs().max()) or None
    return heatmap(
        matrix,
        rows=[_label(name) for name in similarity.names_a],
        columns=[_label(name) for name in similarity.names_b],
        title=f"Gradient similarity: {_METRICS[similarity.metric]} over {len(similarity.weights)} weights",
        value_title=similarity.metric,
        row_title="example",
        column_title="example",
        signed=True,
        bound=bound,
    )


@typed
def similarity_report(similarity: GradientSimilarity, *, k: int = 20, name: str = "") -> Page:
    """Make a page of a gradient similarity: the matrix, and the pairs most and least alike.

    Examples:
        >>> g = tlb.gradient_similarity(model, tlb.zoo.edit_cases("test")[:3], show_progress=False)
        >>> isinstance(tlb.render.similarity_report(g), tlb.render.Page)
        True
    """
    page = Page(
        "Which examples would write the same thing?" + (f" {name}" if name else ""),
        finding=similarity.summary(),
        intro=f"The {_METRICS[similarity.metric]} between the raw gradients of pairs of examples. Positive: a descent "
        "step on one lowers the loss of the other too, to first order.",
    )
    page.section("All pairs", "", figure_fragment(similarity_heatmap(similarity)))
    for title, largest in (("Most alike", True), ("Least alike", False)):
        page.section(title, "", Fragment(frame_table(similarity.pairs(k, largest=largest), limit=50)))
    return page


def _label(name: str) -> str:
    """An example as the picture names it: a target that begins with a space has no second one behind its arrow."""
    return visible_text(name.replace("->  ", "-> "))[:200]
