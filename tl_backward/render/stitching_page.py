"""Stitching grids as figures: penalties of head layers by tail layers each way, and curves beside the self-stitches."""

from typing import TYPE_CHECKING

import torch

from tl_backward._support.public import public
from tl_backward._support.types import typed
from tl_backward.dissimilarity import StitchingGrid
from tl_backward.render.figures import Curve, banded, curves, heatmap
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page, beside
from tl_backward.render.tables import frame_block
from tl_backward.render.told_apart import told_apart

if TYPE_CHECKING:
    import plotly.graph_objects

_VALUE = "penalty (nats a token)"
_ROUNDING = 1e-3  # of the scale: a negative penalty this small does not make it signed
_GRIDS = (
    "Stitches: {} maps",
    "The head of one model up to a layer (upwards), a fitted map, the tail of another from after a layer on (to the "
    "right). The penalty is the stitched model's loss minus the tail model's own, on {} texts apart from the {} of the "
    "fit: 0 costs nothing, negative would be better than the tail model's own head. One scale for all directions. A "
    "penalty between two models says little by itself: layers far apart in one model cost something too, so its "
    "stitches to itself stand beside it.",
)
_CURVES = (
    "Each tail with the head left at the same relative depth; bands, 95 % intervals over texts. Dashed, the tail "
    "model's own head left there: what the depths alone cost."
)


def _bound(grid: StitchingGrid) -> float:
    return max(float(grid.nats(direction).abs().nan_to_num(0.0).max()) for direction in grid.penalties) or 1.0


@public
def stitching_heatmap(
    grid: StitchingGrid, direction: str, *, names: tuple[str, str] | None = None
) -> "plotly.graph_objects.Figure":
    """Draw one direction's penalties, head layers upwards and tail layers to the right, on the scale of all directions.

    Args:
        grid: the stitches.
        direction: "A->B" is A's head and B's tail.
        names: what A and B are called.

    Raises:
        KeyError: a direction that was not stitched.

    Examples:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> from tl_backward.text.options import TextOptions
        >>> text = TextOptions(batch_size=1)
        >>> grid = tlb.dissimilarity.stitching_grid(model, model, texts, layers_a=[1], layers_b=[1], text_options=text)
        >>> len(tlb.render.stitching_heatmap(grid, 'A->B').data) > 0
        True
    """
    nats, bound = grid.nats(direction), _bound(grid)
    heads, tails = grid.layers(direction)
    head, tail = _called(direction, names)
    figure = heatmap(
        nats,
        rows=[f"L{layer}" for layer in heads],
        columns=[f"L{layer}" for layer in tails],
        title=f"{head}'s head, {tail}'s tail",
        value_title=_VALUE,
        row_title=f"head: last layer of {head}",
        column_title=f"tail: after layer of {tail}",
        signed=any(bool((grid.nats(each) < -_ROUNDING * bound).any()) for each in grid.penalties),
        bound=bound,
        details=[
            [
                f"95 %: {each.interval[0]:.3g} to {each.interval[1]:.3g}; {each.bits_per_byte:.3g} bits a byte; loss "
                f"{each.loss:.4g}, the tail's own {each.tail_loss:.4g}"
                for each in row
            ]
            for row in grid.penalties[direction]
        ],
    )
    return figure.update_traces(colorbar={"title": {"text": "nats"}}).update_xaxes(tickangle=0)


@public
def stitching_curves(grid: StitchingGrid, *, names: tuple[str, str] | None = None) -> "plotly.graph_objects.Figure":
    """Draw the penalty of each tail with the head at the same relative depth, each direction beside its self-stitch.

    Args:
        grid: the stitches.
        names: what A and B are called.

    Examples:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> from tl_backward.text.options import TextOptions
        >>> text = TextOptions(batch_size=1)
        >>> grid = tlb.dissimilarity.stitching_grid(model, model, texts, layers_a=[1], layers_b=[1], text_options=text)
        >>> len(tlb.render.stitching_curves(grid).data) > 0
        True
    """
    lines, length = [], max(len(grid.layers_a), len(grid.layers_b))
    for direction in ("A->B", "B->A"):
        own = f"{direction[-1]}->{direction[-1]}"
        lines.append(_curve(grid, direction, length, names))
        if own in grid.penalties:
            lines.append(_curve(grid, own, length, names, beside=direction))
    same = grid.layers_a == grid.layers_b
    figure = curves(
        lines,
        title="Same relative depth",
        x_title="layer" if same else "relative depth (0 = first layer, 1 = last)",
        y_title=_VALUE,
        x=None if same else [step / max(1, length - 1) for step in range(length)],
        x_labels=[f"L{layer}" for layer in grid.layers_a] if same else None,
    )
    return figure.update_yaxes(exponentformat="power")


def _called(direction: str, names: tuple[str, str] | None) -> list[str]:
    """What the head's and the tail's model are called."""
    known = {"A": "A", "B": "B"} if names is None else dict(zip("AB", told_apart(names), strict=True))
    return [known[side] for side in direction.split("->")]


def _curve(
    grid: StitchingGrid, direction: str, length: int, names: tuple[str, str] | None, beside: str | None = None
) -> Curve:
    """Penalties down the diagonal in relative depth; a self-stitch with the head's depths of the direction `beside`."""
    heads = beside[0] if beside else ""
    n_heads, n_tails = map(len, grid.layers(direction))
    like = len(grid.layers_a if heads == "A" else grid.layers_b) if heads else n_heads
    penalties = []
    for step in range(length):
        head, tail = _nearest(step, length, like), _nearest(step, length, n_tails)
        penalties.append(grid.penalties[direction][_nearest(head, like, n_heads) if heads else head][tail])
    values = torch.tensor([each.nats for each in penalties], dtype=torch.float64)
    called, control_of = (each and "->".join(_called(each, names)) for each in (direction, beside))
    intervals = zip(*(each.interval for each in penalties), strict=True)
    return banded(called or "", values, *intervals, control_of=control_of)


def _nearest(step: int, of: int, among: int) -> int:
    """Index among `among` layers nearest in relative depth to layer `step` of `of` layers."""
    return round(step * (among - 1) / max(1, of - 1))


@typed
def stitching_report(grid: StitchingGrid, *, name: str = "", names: tuple[str, str] | None = None) -> Page:
    """Make a page of a stitching grid: both directions beside each model stitched to itself, curves, and the data.

    Args:
        grid: the stitches.
        name: of the two models, for the title.
        names: what A and B are called, on the page.

    Examples:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> from tl_backward.text.options import TextOptions
        >>> text = TextOptions(batch_size=1)
        >>> grid = tlb.dissimilarity.stitching_grid(model, model, texts, layers_a=[1], layers_b=[1], text_options=text)
        >>> isinstance(tlb.render.stitching_report(grid), tlb.render.Page)
        True
    """
    if names is not None and not name:
        name = f"{names[0]} and {names[1]}"
    said = grid.summary(*([] if names is None else [told_apart(names)]))
    page = Page(f"Two models stitched: {name}" if name else "Two models stitched", finding=said)
    add_stitches(page, grid, names)
    return page


def add_stitches(page: Page, grid: StitchingGrid, names: tuple[str, str] | None = None) -> None:
    """Append a stitching grid to a page."""
    maps = [figure_fragment(stitching_heatmap(grid, direction, names=names)) for direction in grid.penalties]
    data = frame_block(grid.to_frame(), "stitches.csv")
    n_texts = next(iter(grid.penalties.values()))[0][0].n_texts
    words = Fragment(paragraphs(_GRIDS[1].format(n_texts, grid.n_fit_texts)))
    page.section(_GRIDS[0].format(grid.map), "", beside(*maps), words, data)
    if max(len(grid.layers_a), len(grid.layers_b)) > 1:
        page.section("", _CURVES, figure_fragment(stitching_curves(grid, names=names)))
