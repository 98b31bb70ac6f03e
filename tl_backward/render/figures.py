"""Figures of untrusted text, heat maps and named curves: as plotly's JSON, and as plotly's objects."""

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Real
from torch import Tensor

from tl_backward._support.html import UNKNOWN, Number, color_for, scale_bound, visible_text, visible_token
from tl_backward._support.public import public
from tl_backward.render.circuits import floats, isolate
from tl_backward.render.shown_figure import shown
from tl_backward.render.svg import PALETTE

if TYPE_CHECKING:
    import plotly.graph_objects

Drawing: TypeAlias = dict[str, Any]
"""A figure as plotly's JSON, "data" and "layout", without plotly: what `figure_fragment` draws."""

Numbers = Real[Tensor, "x"] | Sequence[Number]

_LONGEST_LABEL = 16  # characters of a token below an axis; hovering shows all of it
_LONGEST_ROW = 44  # characters of a name beside one
_PLOT_HEIGHT = 230  # pixels between the axes of a curves figure
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
_FONT = {"family": "system-ui, sans-serif", "size": 12, "color": "#1a1a1a"}
_GRID = {"gridcolor": "#dddddd", "zerolinecolor": "#aaaaaa", "linecolor": "#888888", "showline": True}


@public
def plot_text(text: str) -> str:
    """Turn plain text into a string that plotly shows as it is.

    plotly reads a subset of HTML in every text, and TeX between dollar signs where MathJax is loaded.

    Examples:
        >>> tlb.render.plot_text('<b>')[-10:]
        '&lt;b&gt;'
    """
    # Not the quotes: plotly would show "&quot;" as it is.
    return html.escape(isolate(visible_text(text)), quote=False).replace("$", "&#36;")


@public
def plot_token(token: str, limit: int | None = None) -> str:
    """Turn a raw token into a string that plotly shows as it is: visible and escaped.

    Examples:
        >>> 'Oslo' in tlb.render.plot_token(' Oslo')
        True
    """
    return plot_text(visible_token(token, limit))


def plot_layout(title: str, height: int) -> dict[str, object]:
    """The layout that all figures share: a wrapped title, plain text, above `height` pixels."""
    lines = textwrap.wrap(visible_text(title), 48) or [""]
    return {
        "title": {
            "text": "<br>".join(map(plot_text, lines)),
            # On the left and right above the plot: the buttons that appear on top would cover it.
            **{"x": 0, "xanchor": "left", "xref": "paper"},
            **{"y": 1, "yanchor": "bottom", "yref": "paper", "pad": {"b": 18 * len(lines) - 10}},
            "font": {"size": 14},
        },
        "font": _FONT,
        "height": height + 34 + 20 * len(lines),
        "margin": {"l": 60, "r": 20, "t": 34 + 20 * len(lines), "b": 50},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "template": "none",
        "autosize": True,
    }


@public
def heatmap(
    z: Real[Tensor, "row column"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    value_title: str,
    row_title: str = "layer",
    column_title: str = "token",
    signed: bool = False,
    bound: Number | None = None,
    details: Sequence[Sequence[str]] | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw values as coloured squares, first row at the bottom (layers rise); exact values on hover.

    `rows` and `columns` are raw token strings or labels. Colours run from 0 (or -`bound` if `signed`) to
    `bound`, by default the largest absolute value; NaN stays grey. `value_title` says quantity, unit, sign.
    `details` is plain text for each square, which hovering shows below its value.

    Examples:
        >>> figure = tlb.render.heatmap(torch.eye(2), rows=['0', '1'], columns=['a', 'b'], title='I', value_title='x')
        >>> figure.layout.title.text
        'I'
    """
    return shown(
        heatmap_drawing(
            z,
            rows=rows,
            columns=columns,
            title=title,
            value_title=value_title,
            row_title=row_title,
            column_title=column_title,
            signed=signed,
            bound=bound,
            details=details,
        )
    )


def heatmap_drawing(
    z: Real[Tensor, "row column"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    value_title: str,
    row_title: str = "layer",
    column_title: str = "token",
    signed: bool = False,
    bound: Number | None = None,
    details: Sequence[Sequence[str]] | None = None,
) -> Drawing:
    """What `heatmap` draws, as plotly's JSON."""
    if tuple(z.shape) != (len(rows), len(columns)):
        raise ValueError(
            f"Expected one row and one column name per value: got values of shape {list(z.shape)}, "
            f"{len(rows)} rows and {len(columns)} columns."
        )
    values = z.detach().to("cpu", torch.float64).tolist()
    bound = scale_bound(value for row in values for value in row) if bound is None else bound
    low = -1 if signed else 0
    shares = [step / 10 for step in range(10 * low, 11)]
    full_columns = [plot_token(name) for name in columns]
    names = [
        [
            [plot_token(row), column, f"<br>{plot_text(details[i][j])}" if details else ""]
            for j, column in enumerate(full_columns)
        ]
        for i, row in enumerate(rows)
    ]
    trace = {
        "type": "heatmap",
        "z": values,
        "customdata": names,
        "hovertemplate": f"{plot_text(row_title)}: %{{customdata[0]}}<br>{plot_text(column_title)}: "
        f"%{{customdata[1]}}<br>{plot_text(value_title)}: %{{z:.6g}}%{{customdata[2]}}<extra></extra>",
        "hoverongaps": False,
        "zmin": low * bound,
        "zmax": bound,
        "colorscale": [[(share - low) / (1 - low), color_for(share, 1.0)] for share in shares],
        "colorbar": {
            "title": {"text": plot_text(value_title), "side": "right"},
            "thickness": 14,
            "outlinewidth": 1,
            "outlinecolor": "#888888",
        },
        "xgap": 1,
        "ygap": 1,
    }
    layout = plot_layout(title, max(24 * len(rows), 120) + _label_height(columns) + 50) | {
        "xaxis": _label_axis(column_title, columns, angle=-60),
        "yaxis": _label_axis(row_title, rows, angle=0, limit=_LONGEST_ROW),
        "plot_bgcolor": UNKNOWN,
        # For figure_fragment: below this, the columns' names would run into each other.
        "meta": {"min_width": _min_width(columns) + (5 * _longest(rows, _LONGEST_ROW) if len(columns) > 12 else 0)},
    }
    return {"data": [trace], "layout": layout}


def _min_width(labels: Sequence[str]) -> int:
    return max(300, 120 + 12 * len(labels))


def _label_height(labels: Sequence[str]) -> int:
    """Pixels that slanted labels take below the axis."""
    return 16 + 6 * _longest(labels, _LONGEST_LABEL)


def _longest(labels: Sequence[str], limit: int) -> int:
    """Characters of the longest label as it is shown."""
    return max((len(visible_token(label, limit)) for label in labels), default=0)


def _label_axis(title: str, names: Sequence[str], angle: int, limit: int = _LONGEST_LABEL) -> dict[str, object]:
    labels = [plot_token(name, limit) for name in names]
    # The categories are positions, because a text can hold the same token twice.
    return {
        "title": {"text": plot_text(title), "standoff": 8},
        "tickvals": list(range(len(labels))),
        "ticktext": labels,
        "tickangle": angle,
        "tickfont": {"size": 11},
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
    }


@dataclass(frozen=True)
class Curve:
    """One named line of a `curves` figure."""

    name: str
    """Plain text, for the legend."""
    values: Numbers
    """[x]; NaN leaves a gap."""
    control_of: str | None = None
    """Name of the curve that this one is the control of: it gets that curve's colour, dashed."""
    low: Numbers | None = None
    """[x]; with `high`, the edges of a band around the line."""
    high: Numbers | None = None
    """[x]"""


def banded(name: str, values: Tensor, low: Numbers, high: Numbers, *, control_of: str | None = None) -> Curve:
    """A curve with a band, which is left out where a bound is NaN."""
    known = not any(map(math.isnan, (*floats(low), *floats(high))))
    return Curve(name, values, control_of, low if known else None, high if known else None)


@public
def curves(
    lines: Sequence[Curve],
    *,
    title: str,
    x_title: str,
    y_title: str,
    x: Numbers | None = None,
    x_labels: Sequence[str] | None = None,
    log_y: bool = False,
    reverse_y: bool = False,
) -> "plotly.graph_objects.Figure":
    """Draw named lines over `x` (default 0, 1, ...), each with a colour and a marker; controls are dashed.

    `x_labels` (raw tokens or labels) replace the numbers below the axis. A log axis cannot show zero: plot
    ranks as rank + 1. `reverse_y` puts small values, such as rank 1, on top.

    Examples:
        >>> line = tlb.render.Curve('trained', [3.0, 2.0])
        >>> tlb.render.curves([line], title='Loss', x_title='layer', y_title='nats').layout.yaxis.title.text
        'nats'
    """
    return shown(
        curves_drawing(
            lines,
            title=title,
            x_title=x_title,
            y_title=y_title,
            x=x,
            x_labels=x_labels,
            log_y=log_y,
            reverse_y=reverse_y,
        )
    )


def curves_drawing(
    lines: Sequence[Curve],
    *,
    title: str,
    x_title: str,
    y_title: str,
    x: Numbers | None = None,
    x_labels: Sequence[str] | None = None,
    log_y: bool = False,
    reverse_y: bool = False,
) -> Drawing:
    """What `curves` draws, as plotly's JSON."""
    positions = list(range(len(lines[0].values))) if x is None and lines else floats(x or ())
    _check_curves(lines, len(positions), x_labels, log_y)
    traces: list[Drawing] = []
    solid = [line.name for line in lines if line.control_of is None]
    for line in lines:
        index = solid.index(line.control_of or line.name)
        color = PALETTE[index % len(PALETTE)]
        if line.low is not None and line.high is not None:
            band = {
                "type": "scatter",
                "x": [*positions, *reversed(positions)],
                "y": [*floats(line.high), *reversed(floats(line.low))],
                "fill": "toself",
                "fillcolor": color,
                "opacity": 0.18,
                "line": {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
                "legendgroup": str(index),
                "mode": "lines",
            }
            traces.append(band)
        is_control = line.control_of is not None
        drawn = {
            "type": "scatter",
            "x": positions,
            "y": floats(line.values),
            "name": plot_text(line.name),
            "mode": "lines+markers",
            # The later ones are thinner: where lines coincide, all are seen.
            "line": {"color": color, "width": max(3.6 - 1.8 * index, 1.2), "dash": "dash" if is_control else "solid"},
            # A control's marker is a ring around its curve's: both are seen where they coincide.
            "marker": {
                "symbol": _SYMBOLS[index % len(_SYMBOLS)] + ("-open" if is_control else ""),
                "size": max(9 - 2 * index, 5) + 4 * is_control,
                "color": color,
            },
            "hovertemplate": f"%{{y:.6g}} at {plot_text(x_title)} %{{{'customdata' if x_labels else 'x'}}}",
        }
        traces.append(drawn | ({"customdata": [plot_token(label) for label in x_labels]} if x_labels else {}))
    below = (_label_height(x_labels) if x_labels else 16) + 50  # pixels: tick labels and the axis title
    x_axis = _label_axis(x_title, x_labels, -60) if x_labels else _number_axis(x_title, positions)
    layout = plot_layout(title, _PLOT_HEIGHT + below + 20 * len(lines)) | {
        "xaxis": {**_GRID, **x_axis},
        "yaxis": {
            "title": {"text": plot_text(y_title)},
            **_GRID,
            "automargin": True,
            "type": "log" if log_y else "linear",
            **({"tickvals": _log_ticks(lines)} if log_y else {}),
            "autorange": "reversed" if reverse_y else True,
        },
        "hovermode": "x unified",
        # Below the plot, so that long names take no width from it on a narrow screen.
        "legend": {"orientation": "h", "y": -below / _PLOT_HEIGHT, "yanchor": "top", "x": 0},
        "meta": {"min_width": _min_width(x_labels or ())},
    }
    return {"data": traces, "layout": layout}


def _number_axis(title: str, positions: Sequence[Number]) -> dict[str, object]:
    every_one = len(positions) <= 32 and all(float(position).is_integer() for position in positions)
    return {"title": {"text": plot_text(title)}, **({"dtick": 1} if every_one else {})}


def _log_ticks(lines: Sequence[Curve]) -> list[float]:
    """Powers of ten, on a short axis 2 and 5 times each too: plotly's own labels there lack the power."""
    values = [value for line in lines for value in floats(line.values) if math.isfinite(value)] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [step * 10.0**power for power in range(low, high + 1) for step in ((1,) if high - low > 3 else (1, 2, 5))]


def _check_curves(lines: Sequence[Curve], length: int, x_labels: Sequence[str] | None, log_y: bool) -> None:
    names = [line.name for line in lines]
    if not lines or len(set(names)) != len(names):
        raise ValueError(f"Expected at least one curve, each with a name of its own, got {names}.")
    solid = {line.name for line in lines if line.control_of is None}
    for line in lines:
        if line.control_of is not None and line.control_of not in solid:
            raise ValueError(f"{line.name!r} is the control of {line.control_of!r}, which is not in {sorted(solid)}.")
        for part in (line.values, line.low, line.high):
            if part is not None and len(part) != length:
                raise ValueError(f"Expected {length} values for {line.name!r}, one per x, got {len(part)}.")
        if log_y and any(value <= 0 for value in floats(line.values)):
            raise ValueError(f"A log axis needs values above 0, got {line.name!r} with others; plot rank + 1.")
    if x_labels is not None and len(x_labels) != length:
        raise ValueError(f"Expected {length} labels, one per x, got {len(x_labels)}.")
