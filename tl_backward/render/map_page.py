"""Layers of many models as points of a plane."""

from itertools import combinations
from typing import TYPE_CHECKING

from tl_backward._support.html import visible_text
from tl_backward._support.public import public
from tl_backward._support.sentences import listed
from tl_backward._support.types import typed
from tl_backward.dissimilarity import ModelDistances
from tl_backward.render.compare_page import measure_in_words
from tl_backward.render.figures import heatmap, plot_layout, plot_text
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page, beside
from tl_backward.render.shown_figure import shown
from tl_backward.render.svg import PALETTE
from tl_backward.render.tables import frame_block

if TYPE_CHECKING:
    import plotly.graph_objects

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "hexagon", "cross")
_DASHES = ("solid", "dot", "dash", "longdash")
_HIDDEN = 0.01  # of the largest distance: markers are that large
_INTRO = (
    "Every point is one layer of one model, joined in order of depth. Distances on the map are as near as a plane "
    "allows to the measured ones; the axes themselves mean nothing, and neither do turns and reflections of the whole."
)


@public
def models_map(distances: ModelDistances) -> "plotly.graph_objects.Figure":
    """Draw classical multidimensional scaling of a metric between layers: a path a model, both axes in its units.

    Raises:
        ValueError: fewer than three points.

    Examples:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> d = tlb.dissimilarity.model_distances({"a": model, "b": model}, texts, show_progress=False)
        >>> len(tlb.render.models_map(d).data) > 0
        True
    """
    plane = distances.map()
    figure = shown({"data": [], "layout": {}})
    models = list(dict.fromkeys(distances.models))
    for index, model in enumerate(models):
        at = [i for i, each in enumerate(distances.models) if each == model]
        labels = [plot_text(distances.layers[i]) for i in at]
        color = PALETTE[index % len(PALETTE)]
        # The first are the broadest: a model on top of another like it leaves a rim of that.
        figure.add_scatter(
            x=plane.points[at, 0].tolist(),
            y=plane.points[at, 1].tolist(),
            name=plot_text(model),
            mode="lines+markers+text" if len(at) > 1 else "markers+text",
            text=labels if len(at) > 1 else [plot_text(model)],
            textposition="middle right",
            textfont={"size": 10},
            cliponaxis=False,
            line={
                "color": color,
                "width": max(4.5 - 2 * index, 1.5),
                "dash": _DASHES[index // len(PALETTE) % len(_DASHES)],
            },
            marker={"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": max(13 - 3 * index, 8), "color": color},
            customdata=labels,
            hovertemplate=f"{plot_text(model)} %{{customdata}}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>",
        )
    shares = [f"{float(share):.0%}" for share in plane.shares]
    axis = {"gridcolor": "#dddddd", "zeroline": False, "linecolor": "#888888", "showline": True, "automargin": True}
    title = f"{distances.measure}: {sum(plane.shares.tolist()):.0%} shown, stress {plane.stress:.2f}"
    figure.update_layout(
        plot_layout(title, 440 + 20 * len(models)),
        xaxis={**axis, "title": {"text": f"{plot_text(distances.measure)} ({shares[0]})"}},
        yaxis={**axis, "title": {"text": f"({shares[1]})"}, "scaleanchor": "x", "scaleratio": 1},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        meta={"min_width": 340},
    )
    return figure


@typed
def map_report(distances: ModelDistances, *, name: str = "") -> Page:
    """Make a page of the map, the distances as a heat map, and all of them as data.

    Examples:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> d = tlb.dissimilarity.model_distances({"a": model, "b": model}, texts, show_progress=False)
        >>> isinstance(tlb.render.map_report(d), tlb.render.Page)
        True
    """
    page = Page(f"A map of models: {name}" if name else "A map of models", finding=distances.summary())
    plane = distances.map()
    low, high = distances.n_samples
    words = _hidden(distances) + (
        f"The plane holds {sum(plane.shares.tolist()):.0%} of the distances; {plane.negative:.0%} fit no flat space of "
        f"any dimension. Samples: {low if low == high else f'{low} to {high}, pair by pair'}, aligned by "
        f"{' and '.join(distances.aligned)}."
    )
    if low != high:
        words += " Pairs measured on different samples are comparable only roughly."
    words += f"\n\n{distances.measure}: {measure_in_words(distances.measure)}"
    every = heatmap(
        distances.values,
        rows=distances.names,
        columns=distances.names,
        title=f"{distances.measure} (0 = the same)",
        value_title=distances.measure,
        row_title="layer",
        column_title="layer",
    )
    every.update_traces(colorbar={"title": {"text": ""}})
    figures = beside(figure_fragment(models_map(distances)), figure_fragment(every))
    data = frame_block(distances.to_frame(), "distances.csv")
    page.section("Map and distances", "", figures, Fragment(paragraphs(words)), data)
    return page.section("How to read the map", _INTRO, folded=True)


def _hidden(distances: ModelDistances) -> str:
    """Which models lie on each other, layer by layer, so that one of them is not seen; "" where none do."""
    at = {model: [i for i, each in enumerate(distances.models) if each == model] for model in distances.models}
    found = []
    for a, b in combinations(at, 2):
        apart = [float(distances.values[i, j]) for i, j in zip(at[a], at[b], strict=False)]
        if len(at[a]) == len(at[b]) and max(apart) <= _HIDDEN * float(distances.values.max()):
            found.append(
                f"{visible_text(b)} lies on {visible_text(a)} (at most {max(apart):.2g} apart, layer by layer)"
            )
    return f"On the map {listed(found)}. " if found else ""
