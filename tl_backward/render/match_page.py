"""Matches of two models' parameters: heat maps of layers x layers with the assignment, and a page of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tl_backward._support.public import public
from tl_backward._support.types import typed
from tl_backward.alignment import ParameterMatch
from tl_backward.render.figures import Curve, curves, heatmap
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page, beside
from tl_backward.render.tables import frame_block

if TYPE_CHECKING:
    import plotly.graph_objects

_INTRO = (
    "Each vector of a weight in model A is assigned to one in model B so that the similarities add up to the most "
    "(Dar et al. 2022, section 5). In embedding space two vectors are as similar as their scores over the shared "
    "vocabulary are correlated; in feature space, as their coordinates are, which two training runs have no reason to "
    "share. The best assignment of any vectors is better than none, and two embeddings of one vocabulary make any "
    "vectors correlate: chance is the same with B's vectors turned at random, so only what lies above it is a finding."
)
_FOOTER = "Hover over any cell or point for its exact value. This page is one file and asks no network for anything."
_MAPS = (
    "Circles mark the assignment of whole layers that adds up to the most. Between two runs of one recipe it should "
    "follow the diagonal; by chance it does so once in n! for n layers."
)
_CURVES = "Each layer of A with the same layer of B. Dashed, chance; the band holds the central 95 % of its draws."


@public
def match_heatmap(match: ParameterMatch, space: str = "embedding") -> "plotly.graph_objects.Figure":
    """Draw score above mean chance for layers of A x layers of B, the assignment of layers as circles.

    Raises:
        ValueError: a space that was not compared.

    Examples:
        >>> m = tlb.alignment.match_parameters(model, model, "W_O", show_progress=False)
        >>> len(tlb.render.match_heatmap(m).data) > 0
        True
    """
    if space not in match.spaces():
        raise ValueError(
            f"Expected one of {', '.join(match.spaces())}, got {space!r}; widths that differ share no other."
        )
    of = match.spaces()[space]
    figure = heatmap(
        of.score - of.chance.mean(0),
        rows=[str(layer) for layer in match.layers_a],
        columns=[str(layer) for layer in match.layers_b],
        title=f"{match.weight} in {space} space",
        value_title="score above chance",
        row_title="layer of A",
        column_title="layer of B",
        signed=True,
        bound=max(float((each.score - each.chance.mean(0)).abs().max()) for each in match.spaces().values()) or 1.0,
    )
    assigned = of.layer_assignment()
    figure.add_scatter(
        x=[b for _, b in assigned],
        y=[a for a, _ in assigned],
        mode="markers",
        marker={"symbol": "circle-open", "size": 15, "color": "#000000", "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_xaxes(tickangle=0)
    return figure


@public
def match_curves(match: ParameterMatch) -> "plotly.graph_objects.Figure":
    """Draw the score of each layer with the same place in the other model, beside chance and its interval.

    Examples:
        >>> m = tlb.alignment.match_parameters(model, model, "W_O", show_progress=False)
        >>> len(tlb.render.match_curves(m).data) > 0
        True
    """
    lines = []
    n = min(len(match.layers_a), len(match.layers_b))
    for name, of in match.spaces().items():
        low, high = of.chance_interval().diagonal(dim1=1, dim2=2)
        chance = of.chance.mean(0).diagonal()
        lines.append(Curve(f"{name} space", of.score.diagonal()))
        lines.append(Curve(f"{name} space, chance", chance, control_of=f"{name} space", low=low, high=high))
    labels = [f"{a} | {b}" for a, b in zip(match.layers_a[:n], match.layers_b[:n], strict=True)]
    return curves(
        lines,
        title=f"{match.weight}, same place",
        x_title="layer of A | of B",
        y_title="mean similarity",
        x_labels=labels,
    )


@typed
def match_report(matches: ParameterMatch | Sequence[ParameterMatch], *, name: str = "") -> Page:
    """Make a page of one or more weights' matches: heat maps, curves with chance, and the numbers.

    Examples:
        >>> m = tlb.alignment.match_parameters(model, model, "W_O", show_progress=False)
        >>> isinstance(tlb.render.match_report(m), tlb.render.Page)
        True
    """
    every = [matches] if isinstance(matches, ParameterMatch) else list(matches)
    page = Page(
        f"Parameters of two models: {name}" if name else "Parameters of two models",
        finding=" ".join(match.summary() for match in every),
        footer=_FOOTER,
    )
    for match in every:
        maps = [figure_fragment(match_heatmap(match, space)) for space in match.spaces()]
        data = frame_block(match.to_frame(), f"match_{match.weight}.csv")
        below = Fragment(paragraphs(_MAPS))
        page.section(f"{match.weight}, layer by layer", "", beside(*maps), below)
        page.section("", _CURVES, figure_fragment(match_curves(match)), data)
    return page.section("Method: what chance is", _INTRO, folded=True)
