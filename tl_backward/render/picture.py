"""Any figure of the kinds that this package draws as one static SVG, by matplotlib: no script, no browser."""

from collections.abc import Mapping
from typing import Any

from tl_backward.render.heat_map_picture import HeatMapPicture
from tl_backward.render.lines_picture import LinesPicture

KINDS = ("heatmap", "scatter", "bar")
"""Kinds of traces that a picture is made of."""

_OTHER = ("annotations", "shapes", "images", "xaxis2", "yaxis2", "scene", "polar")  # in a layout


def drawable(figure: Mapping[str, Any]) -> bool:
    """Whether a figure (plotly's JSON) is of the kinds that `picture` draws, and has no shapes, notes or other axes."""
    kinds = [trace.get("type", "scatter") for trace in figure["data"]]
    known = set(kinds) <= set(KINDS) and kinds.count("heatmap") <= 1
    return bool(kinds) and known and not any(figure["layout"].get(name) for name in _OTHER)


def picture(figure: Mapping[str, Any]) -> str:
    """Draw a figure (plotly's JSON) as SVG; each cell, point or place along x says its values in a ``<title>``.

    Texts and axes have the colour of the text around the picture. The same figure gives the same SVG.

    Raises:
        ValueError: a figure that is not `drawable`.
    """
    if not drawable(figure):
        found = sorted({trace.get("type", "scatter") for trace in figure["data"]})
        raise ValueError(
            f"Expected one heat map, or lines, points and bars, without shapes and annotations, got {found}; show the "
            "figure with plotly itself."
        )
    import matplotlib  # here: it takes half a second

    kept = {"backend", "backend_fallback", "interactive", "toolbar"}
    own: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in kept}
    with matplotlib.rc_context({**own, "svg.fonttype": "none", "svg.hashsalt": "tl_backward"}):
        heat = any(trace.get("type") == "heatmap" for trace in figure["data"])
        return (HeatMapPicture if heat else LinesPicture)(figure).svg()
