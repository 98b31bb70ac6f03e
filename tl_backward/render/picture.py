"""Any figure of the kinds that this package draws as one static SVG, by matplotlib: no script, no browser.

matplotlib places axes, grid, lines and markers. Texts it gets as stand-ins: it would measure them in a font of its own,
warn of glyphs that font lacks, and read TeX in a token. Whoever shows the picture sets them.
"""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_backward._support.html import UNKNOWN, Number
from tl_backward.render.plotly_texts import filler, number, plain, plain_lines, text_width, title_of
from tl_backward.render.svg import CLEAR, INK, LINES, PALETTE, TICKS, Hit, rewritten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("heatmap", "scatter", "bar")
"""Kinds of traces that a picture is made of."""

_OTHER = ("annotations", "shapes", "images", "xaxis2", "yaxis2", "scene", "polar")  # in a layout
_TITLE, _FONT, _TICK = 14, 12, 11  # sizes of texts, pixels
_WIDTH = 440  # pixels of a figure of lines that needs no more: a telephone's
_ROW = 20  # pixels of a line of the legend
_MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "x": "X", "star": "*",
    "cross": "P", "hexagon": "h",
}  # fmt: skip
_DASHES = {"dash": (4.0, 2.5), "dot": (1.2, 2.2), "longdash": (8.0, 3.0), "dashdot": (5.0, 2.0, 1.2, 2.0)}
_MOST_PLACES = 60  # along x that answer to a pointer; of more, each would be a few pixels wide

_Trace = Mapping[str, Any]


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
        return (_HeatMap if heat else _Lines)(figure).svg()


class _Picture:
    """One figure on its way to SVG; lengths are pixels, which are matplotlib's points."""

    def __init__(self, figure: Mapping[str, Any]) -> None:
        self.layout = figure["layout"]
        self.traces: list[_Trace] = [trace for trace in figure["data"] if trace.get("visible", True) is True]
        self.x, self.y = self.layout.get("xaxis") or {}, self.layout.get("yaxis") or {}
        self.title = plain_lines(title_of(self.layout))
        self.x_labels = [plain(text) for text in self.x.get("ticktext") or ()]
        self.y_labels = [plain(text) for text in self.y.get("ticktext") or ()]
        self.texts: list[str] = []
        self.legend: list[list[_Trace]] = []
        self.slanted = False

    # What the two kinds say

    def size(self) -> tuple[Number, Number]:
        """Width and height between the axes."""
        raise NotImplementedError

    def right(self, high: Number) -> Number:
        """Pixels to the right of the axes."""
        raise NotImplementedError

    def draw(self, axes: "Axes") -> None:
        """Everything between the axes and what belongs to it."""
        raise NotImplementedError

    def hits(self, axes: "Axes") -> list[Hit]:
        """What answers to a pointer."""
        raise NotImplementedError

    def svg(self) -> str:
        """The picture."""
        from matplotlib.figure import Figure

        wide, high = self.size()
        y_title = _wrapped(title_of(self.y), high)
        left = 12 + max(map(text_width, self.y_labels or ["0.0000"])) + 15 * len(y_title) + 5 * bool(y_title)
        right = self.right(high)
        wide = max(wide, self.least() - left - right)
        self.slanted = self.x.get("tickangle") != 0 and _collide(self.x_labels, wide)
        labels = 8 + 0.87 * max(map(text_width, self.x_labels)) if self.slanted else 18
        self.legend = self.legend_rows(left + wide + right)
        below = labels + (24 if title_of(self.x) else 6) + _ROW * len(self.legend)
        above = 10 + 19 * len(self.title) if any(self.title) else 8
        total = max(left + wide + right, 12 + max(text_width(line, _TITLE) for line in self.title))
        tall = above + high + below
        self.total, self.tall, self.edges = total, tall, (left, below, wide, high)
        self.figure = Figure(figsize=(total / 72, tall / 72), dpi=72)
        self.figure.patch.set_visible(False)
        axes = self.figure.add_axes((left / total, below / tall, wide / total, high / tall))
        axes.patch.set_gid("cells")
        self.draw(axes)
        self.draw_legend()
        for i, line in enumerate(self.title):
            self.write(4, tall - 16 - 19 * i, line, _TITLE, weight="bold")
        self.write(left + wide / 2, _ROW * len(self.legend) + 7, plain(title_of(self.x)), _FONT, ha="center")
        for i, line in enumerate(y_title):
            self.write(14 + 15 * i, below + high / 2, line, _FONT, ha="center", rotation=90)
        return rewritten(self.figure, self.texts, self.hits(axes), label=" ".join(self.title))

    def least(self) -> Number:
        """Pixels that the picture has at least."""
        return 0

    def legend_rows(self, width: Number) -> list[list[_Trace]]:
        """The traces that the legend names, in rows that fit."""
        named = [trace for trace in self.traces if trace.get("name") and trace.get("showlegend", True)]
        rows: list[list[_Trace]] = []
        room = 0.0
        for trace in named if len(named) > 1 or self.layout.get("showlegend") else ():
            needed = text_width(plain(trace["name"]), _FONT) + 52
            if room < needed:
                rows.append([])
                room = width - 20
            rows[-1].append(trace)
            room -= needed
        return rows

    # Texts

    def word(self, text: str) -> str:
        """The stand-in of a plain text."""
        self.texts.append(text)
        return f"t{len(self.texts) - 1}t"

    def write(self, x: Number, y: Number, text: str, size: Number, **how: Any) -> None:
        """A text at pixels from the left and the bottom."""
        if text:
            how = {"color": INK, "rotation_mode": "anchor", "parse_math": False, **how}
            self.figure.text(x / self.total, y / self.tall, self.word(text), fontsize=size, **how)

    def set_ticks(self, axis: Any, places: Sequence[Number], labels: Sequence[str], length: Number) -> None:
        """Ticks with labels, those below slanted where they would run into each other."""
        from matplotlib.ticker import NullLocator

        slant = axis.axis_name == "x" and self.slanted
        turned = {"rotation": 60, "ha": "right", "va": "center", "rotation_mode": "anchor"} if slant else {}
        axis.set_ticks(list(places), [self.word(label) for label in labels], parse_math=False, **turned)
        axis.set_minor_locator(NullLocator())
        axis.set_tick_params(length=length, width=0.8, color=TICKS, labelsize=_TICK, labelcolor=INK)

    # Lines and points

    def draw_trace(self, axes: "Axes", trace: _Trace, order: Number) -> None:
        """One trace of lines, markers, texts, an area or bars."""
        x, y = _xy(trace)
        color, alpha, line = self.color(trace), trace.get("opacity", 1.0), trace.get("line") or {}
        mode = trace.get("mode") or "lines+markers"
        area = {"color": _hex(trace.get("fillcolor") or color), "linewidth": 0, "zorder": 1}
        if trace.get("type") == "bar":
            axes.bar(x, y, color=color, alpha=alpha, width=0.8)
            return
        if trace.get("fill") == "toself":
            axes.fill(x, y, alpha=alpha, **area)
        elif trace.get("fill") == "tozeroy":
            axes.fill_between(x, y, alpha=0.35, **area)
        errors = (trace.get("error_y") or {}).get("array")
        if errors is not None:
            axes.errorbar(x, y, yerr=list(map(float, errors)), fmt="none", ecolor=color, elinewidth=1, capsize=3)
        if "lines" in mode and line.get("width", 2):
            (drawn,) = axes.plot(x, y, color=color, linewidth=line.get("width", 2), alpha=alpha, zorder=2 + order)
            _dash(drawn, line)
        if "markers" in mode:
            axes.plot(x, y, linestyle="none", zorder=3 + order, clip_on=False, **self.marker(trace))

    def marker(self, trace: _Trace) -> dict[str, Any]:
        """How matplotlib calls a trace's marker."""
        marker, color = trace.get("marker") or {}, self.color(trace)
        symbol = str(marker.get("symbol", "circle"))
        hollow = symbol.endswith("-open")
        return {
            "marker": _MARKERS.get(symbol.removesuffix("-open"), "o"),
            "markersize": marker.get("size", 6),
            "markerfacecolor": "none" if hollow else color,
            "markeredgecolor": color,
            "markeredgewidth": (marker.get("line") or {}).get("width", 1.4 if hollow else 0),
        }

    def color(self, trace: _Trace) -> str:
        """A trace's colour: its line's, its markers', or the next of the palette."""
        given = (trace.get("line") or {}).get("color") or (trace.get("marker") or {}).get("color")
        return _hex(given if isinstance(given, str) else PALETTE[self.traces.index(trace) % len(PALETTE)])

    def draw_legend(self) -> None:
        """Each row: a piece of line with its marker, and the name."""
        from matplotlib.lines import Line2D

        for i, row in enumerate(self.legend):
            x, y = 10.0, _ROW * (len(self.legend) - 1 - i) + 6.0
            for trace in row:
                line, mode = trace.get("line") or {}, trace.get("mode") or "lines+markers"
                look = self.marker(trace) if "markers" in mode else {}
                style = {"color": self.color(trace), "linewidth": line.get("width", 2), "transform": None}
                drawn = Line2D([x, x + 13, x + 26], [y + 4] * 3, markevery=[1], **style, **look)
                _dash(drawn, line)
                self.figure.add_artist(drawn)
                name = plain(trace["name"])
                self.write(x + 32, y, name, _FONT)
                x += text_width(name, _FONT) + 52


class _HeatMap(_Picture):
    """Squares with a colour bar, and perhaps markers on them."""

    def __init__(self, figure: Mapping[str, Any]) -> None:
        super().__init__(figure)
        (self.heat,) = (trace for trace in self.traces if trace.get("type") == "heatmap")
        self.values = [[math.nan if value is None else float(value) for value in row] for row in self.heat["z"]]
        given = [self.heat.get(side) for side in "xy"]
        counts = len(self.values[0]), len(self.values)
        x, y = ([str(i) for i in range(n)] if of is None else [plain(str(name)) for name in of]
                for of, n in zip(given, counts, strict=True))  # fmt: skip
        self.x_labels, self.y_labels = self.x_labels or x, self.y_labels or y

    def size(self) -> tuple[Number, Number]:
        n, m = len(self.x_labels), len(self.y_labels)
        cell = 44 if n <= 6 else 32 if n <= 12 else 22 if n <= 60 else 14
        row = 24 if m <= 16 else 16 if m <= 40 else 13
        return max(cell * n, 150.0), max(row * m, 76.0)

    def right(self, high: Number) -> Number:
        return 30 + self.bar_labels_width() + 15 * len(self.bar_title(high)) + 8

    def bar_labels(self) -> list[str]:
        """The colour bar's ends and middle."""
        low, high, _ = self.scale()
        return [number(value, 3) for value in (low, (low + high) / 2, high)]

    def bar_labels_width(self) -> Number:
        return max(map(text_width, self.bar_labels()))

    def bar_title(self, high: Number) -> list[str]:
        """The colour bar's title in lines as long as it is high."""
        return _wrapped(title_of(self.heat.get("colorbar") or {}), high)

    def draw(self, axes: "Axes") -> None:
        n, m = len(self.x_labels), len(self.y_labels)
        for i, trace in enumerate(trace for trace in self.traces if trace is not self.heat):
            self.draw_trace(axes, trace, i / 99)
        axes.set_xlim(-0.5, n - 0.5)
        axes.set_ylim(-0.5, m - 0.5)
        self.set_ticks(axes.xaxis, range(n), self.x_labels, 0)
        self.set_ticks(axes.yaxis, range(m), self.y_labels, 0)
        axes.spines[:].set_visible(False)
        if self.heat.get("showscale", True):
            self.draw_bar()

    def scale(self) -> tuple[Number, Number, Any]:
        """The ends of the scale and its colours."""
        from matplotlib.colors import LinearSegmentedColormap

        known = [value for row in self.values for value in row if math.isfinite(value)] or [0.0]
        low, high = self.heat.get("zmin"), self.heat.get("zmax")
        low, high = min(known) if low is None else float(low), max(known) if high is None else float(high)
        stops = [(share, _hex(color)) for share, color in self.heat.get("colorscale") or ((0, "#fff"), (1, "#2166ac"))]
        return low, high if high > low else low + 1, LinearSegmentedColormap.from_list("own", stops, N=512)

    def hits(self, axes: "Axes") -> list[Hit]:
        """A square a value."""
        import numpy as np

        low, high, colors = self.scale()
        shares = (np.array(self.values) - low) / (high - low)
        painted = colors(np.nan_to_num(shares).clip(0, 1), bytes=True)[..., :3].tolist()
        left, bottom, wide, tall = self.edges
        width, height = wide / len(self.x_labels), tall / len(self.y_labels)
        said = filler(self.heat.get("hovertemplate") or "%{x}, %{y}: %{z}")
        custom = self.heat.get("customdata")
        hits = []
        for i, row in enumerate(self.values):
            top = self.tall - bottom - (i + 1) * height
            for j, value in enumerate(row):
                own = {"x": self.x_labels[j], "y": self.y_labels[i], "z": value}
                title = said(own if custom is None else own | {"customdata": custom[i][j]})
                color = "#{:02x}{:02x}{:02x}".format(*painted[i][j]) if math.isfinite(value) else UNKNOWN
                hits.append(Hit(left + j * width, top, width - 1, height - 1, title, color))
        return hits

    def draw_bar(self) -> None:
        """The colour bar to the right: the scale, its ends and middle, its title."""
        from matplotlib.patches import Rectangle

        left, bottom, wide, tall = self.edges
        colors = self.scale()[2]
        x, n = left + wide + 10, 32
        for step in range(n):
            place = (x, bottom + tall * step / n)
            self.figure.add_artist(
                Rectangle(place, 14, tall / n + (step < n - 1), fc=colors((step + 0.5) / n), lw=0, transform=None)
            )
        frame = Rectangle((x, bottom), 14, tall, fill=False, edgecolor=TICKS, linewidth=0.8, transform=None)
        self.figure.add_artist(frame)
        for i, label in enumerate(self.bar_labels()):
            self.write(x + 20, bottom + i * (tall / 2 - 4), label, _TICK)
        for i, line in enumerate(self.bar_title(tall)):
            self.write(
                x + 36 + self.bar_labels_width() + 15 * i, bottom + tall / 2, line, _FONT, ha="center", rotation=90
            )


class _Lines(_Picture):
    """Lines, points, areas and bars on two axes."""

    def size(self) -> tuple[Number, Number]:
        # Labels need 16 pixels each, slanted.
        return (320.0, 320.0) if self.y.get("scaleanchor") else (16.0 * len(self.x_labels), 200.0)

    def least(self) -> Number:
        return _WIDTH

    def right(self, high: Number) -> Number:
        texts = [text_width(plain(text), 10) for trace in self.traces for text in (trace.get("text") or ())]
        return 16 + max(texts, default=0)

    def draw(self, axes: "Axes") -> None:
        for i, trace in enumerate(self.traces):
            self.draw_trace(axes, trace, i / 99)
        self.set_limits(axes)
        for axis, given, labels in ((axes.xaxis, self.x, self.x_labels), (axes.yaxis, self.y, self.y_labels)):
            ticks = self.ticks(axis, given, labels)
            self.set_ticks(axis, [place for place, _ in ticks], [label for _, label in ticks], 3)
        axes.grid(color=LINES, linewidth=0.8)
        axes.set_axisbelow(True)
        low, high = sorted(axes.get_ylim())
        if self.y.get("zeroline", True) and self.y.get("type") != "log" and low < 0 < high:
            axes.axhline(0, color=TICKS, linewidth=0.8, zorder=1)
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set(color=TICKS, linewidth=0.8)
        self.name_points(axes)

    def set_limits(self, axes: "Axes") -> None:
        """Scales and limits as the layout asks for."""
        for name, axis, given in (("x", axes.xaxis, self.x), ("y", axes.yaxis, self.y)):
            logarithmic = given.get("type") == "log"
            if logarithmic:
                getattr(axes, f"set_{name}scale")("log")
            if given.get("range") is not None:
                ends = [10.0**edge if logarithmic else edge for edge in given["range"]]
                getattr(axes, f"set_{name}lim")(*ends)
            elif given.get("autorange") == "reversed":
                axis.set_inverted(True)
        if self.y.get("scaleanchor"):
            axes.set_aspect("equal", adjustable="datalim")
            axes.apply_aspect()

    def name_points(self, axes: "Axes") -> None:
        """Texts beside their points, where they lie on nothing else; the others are on hover."""
        named = [trace for trace in self.traces if "text" in (trace.get("mode") or "")]
        points = [(*axes.transData.transform(place).tolist(), plain(text)) for trace in named
                  for *place, text in zip(*_xy(trace), trace.get("text") or (), strict=False)]  # fmt: skip
        taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
        for x, y, text in points:
            width = text_width(text, 10)
            for left, bottom in (
                (x + 8, y - 4),
                (x - 8 - width, y - 4),
                (x - width / 2, y + 8),
                (x - width / 2, y - 16),
            ):
                box = (left, bottom - 1, left + width, bottom + 9)
                if not any(box[0] < a[2] and a[0] < box[2] and box[1] < a[3] and a[1] < box[3] for a in taken):
                    taken.append(box)
                    self.write(left, bottom, text, 10)
                    break

    def ticks(self, axis: Any, given: Mapping[str, Any], labels: Sequence[str]) -> list[tuple[Number, str]]:
        """Places and labels; fewer than asked for where they would run into each other."""
        low, high = sorted(axis.get_view_interval())
        if given.get("tickvals") is not None:
            values = list(map(float, given["tickvals"]))
            named = zip(values, labels or map(number, values), strict=True)
            pairs = [(value, label) for value, label in named if low <= value <= high]
            return pairs if axis.axis_name == "x" else _apart(pairs, axis.axes.transData)
        values = axis.get_majorticklocs().tolist()
        if given.get("dtick") == 1:
            step = max(1, math.ceil((high - low) / 20))
            values = list(range(math.ceil(low), math.floor(high) + 1, step))
        return [(value, number(value)) for value in values if low <= value <= high]

    def hits(self, axes: "Axes") -> list[Hit]:
        """A band a place along x with the values of all traces; or, where that is not asked for, one a point."""
        told = [trace for trace in self.traces if trace.get("hoverinfo") != "skip"]
        return self.bands(axes, told) if self.layout.get("hovermode") == "x unified" else self.points(axes, told)

    def points(self, axes: "Axes", traces: Sequence[_Trace]) -> list[Hit]:
        """A small square a point."""
        hits = []
        for trace in traces:
            custom, said = trace.get("customdata"), filler(trace.get("hovertemplate") or "%{x:.6g}, %{y:.6g}")
            for i, (x, y) in enumerate(zip(*_xy(trace), strict=True)):
                if math.isfinite(x) and math.isfinite(y):
                    at, height = axes.transData.transform((x, y)).tolist()
                    title = said({"x": x, "y": y, "customdata": "" if custom is None else custom[i]})
                    hits.append(Hit(at - 9, self.tall - height - 9, 18, 18, title, CLEAR))
        return hits

    def bands(self, axes: "Axes", traces: Sequence[_Trace]) -> list[Hit]:
        """A band a place along x: its label, and a line a trace."""
        said = filler((self.layout.get("meta") or {}).get("value") or "%{y:.6g}")
        found: dict[Number, list[str]] = {}
        for trace in traces:
            name, custom = plain(trace.get("name")), trace.get("customdata")
            for i, (x, y) in enumerate(zip(*_xy(trace), strict=True)):
                text = said({"x": x, "y": y, "customdata": "" if custom is None else custom[i]})
                found.setdefault(x, []).append(f"{name}: {text}" if name else text)
        places = sorted(found)[:: max(1, math.ceil(len(found) / _MOST_PLACES))]
        left, bottom, wide, tall = self.edges
        pixels = [float(axes.transData.transform((x, 1))[0]) for x in places]
        middles = [(a + b) / 2 for a, b in itertools.pairwise(pixels)]
        hits = []
        for place, low, high in zip(places, [left, *middles], [*middles, left + wide], strict=True):
            label = self.x_labels[int(place)] if self.x_labels else f"{place:.6g}"
            title = "\n".join([f"{plain(title_of(self.x))} {label}", *found[place]])
            hits.append(Hit(low, self.tall - bottom - tall, high - low, tall, title, CLEAR))
        return hits


def _wrapped(title: str, height: Number) -> list[str]:
    """An upright title in lines as long as the axes are high."""
    return textwrap.wrap(plain(title), max(int(height / 6.6), 12))


def _collide(labels: Sequence[str], width: Number) -> bool:
    """Whether labels side by side would run into each other."""
    return bool(labels) and max(map(text_width, labels)) > width / len(labels) - 5


def _xy(trace: _Trace) -> tuple[list[Number], list[Number]]:
    y = [math.nan if value is None else float(value) for value in trace.get("y", ())]
    x = trace.get("x")
    return [float(i) for i in range(len(y))] if x is None else [float(value) for value in x], y


def _apart(ticks: Sequence[tuple[Number, str]], transform: Any) -> list[tuple[Number, str]]:
    """The ticks of an upright axis that stand 12 pixels apart; the first and the last stay."""
    heights = [float(transform.transform((1, value))[1]) for value, _ in ticks]
    kept: list[int] = []
    for i in [0, *range(len(ticks) - 1, 0, -1)] if ticks else ():
        if all(abs(heights[i] - heights[j]) >= 12 for j in kept):
            kept.append(i)
    return [ticks[i] for i in sorted(kept)]


def _dash(line: Any, of: Mapping[str, Any]) -> None:
    if of.get("dash") in _DASHES:
        line.set_dashes(_DASHES[of["dash"]])


def _hex(color: str) -> str:
    """A colour of plotly's, of which matplotlib does not know "rgb(1, 2, 3)", without its opacity."""
    kind, _, rest = color.partition("(")
    if kind not in ("rgb", "rgba"):
        return color
    return "#" + "".join(f"{round(float(channel)):02x}" for channel in rest.rstrip(") ").split(",")[:3])
