"""A figure as a piece of a page: its static picture, or where it is of another kind, plotly's script."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tl_backward._support.public import public
from tl_backward.render.circuits import CARD
from tl_backward.render.page import Fragment
from tl_backward.render.picture import drawable, picture
from tl_backward.render.scripts import draw_script, escape_json, place, place_key, to_json

if TYPE_CHECKING:
    import plotly.graph_objects


@public
def figure_fragment(
    figure: "plotly.graph_objects.Figure | Mapping[str, Any]", *, min_width: int | None = None, static: str = ""
) -> Fragment:
    """Draw any plotly figure from data inside the page: no cloud button, no logo, no request.

    One heat map, or lines, points and bars, become a static picture (SVG) with values on hover; other figures are
    drawn by plotly's script. It fills the width it gets, down to `min_width` pixels (default: what its labels need),
    below which it scrolls. Texts in a figure of your own must have gone through `plot_text` or `plot_token`. `static`
    is trusted HTML that shows in place of a figure of other kinds where scripts do not run.

    Examples:
        >>> figure = tlb.render.curves([tlb.render.Curve('a', [1.0])], title='A', x_title='x', y_title='y')
        >>> '<svg' in tlb.render.figure_fragment(figure).html
        True
    """
    drawing = figure if isinstance(figure, Mapping) else figure.to_plotly_json()
    if not drawable(drawing):
        return _by_plotly(figure, min_width=min_width, static=static)
    svg = picture(drawing)
    width = int(svg.split(' width="', 1)[1].split('"', 1)[0])
    # Letters of 11 pixels stay legible at four fifths of that, and grow no larger than the text around them.
    least = min_width or round(0.8 * width)
    style = f"display:block;width:100%;min-width:{least}px;max-width:{max(least, round(1.45 * width))}px;height:auto"
    svg = svg.replace("<svg ", f'<svg style="{style}" ', 1)
    return Fragment(f'<div style="overflow-x:auto;margin:6px 0">{svg}</div>')


def _by_plotly(
    figure: "plotly.graph_objects.Figure | Mapping[str, Any]", *, min_width: int | None, static: str
) -> Fragment:
    # plotly's own JSON knows arrays, dates and NaN.
    text = json.dumps(figure) if isinstance(figure, Mapping) else str(figure.to_json())
    layout, data = json.loads(text)["layout"], escape_json(text)
    width = int((layout.get("meta") or {}).get("min_width", 300)) if min_width is None else min_width
    config = to_json(
        {
            "responsive": True,
            "displaylogo": False,
            "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
            "plotlyServerURL": "",
            "showSendToCloud": False,
            "showEditInChartStudio": False,
            "typesetMath": False,
            "toImageButtonOptions": {"format": "png", "scale": 2},
        }
    )
    key = place_key("plotly", data)
    body = f"place.textContent = ''; Plotly.newPlot(place, data.data, data.layout, {config});"
    note = '<span style="font-size:12px">This figure is drawn by a script.</span>'
    box = place(key, note + static, f"min-width:{width}px;min-height:{int(layout.get('height') or 450)}px")
    return Fragment(
        f'<div style="{CARD}overflow-x:auto">{box}</div>',
        (draw_script(key, "Plotly", data, body),),
        frozenset({"plotly"}),
    )
