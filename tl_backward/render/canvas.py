"""One figure on its way to SVG: axes, grid, texts, lines, markers and the legend, drawn by matplotlib.

matplotlib places them. Texts it gets as stand-ins: it would measure them in a font of its own, warn of glyphs that font
lacks, and read TeX in a token. Whoever shows the picture sets them.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_backward._support.html import Number
from tl_backward.render.plotly_texts import plain, plain_lines, text_width, title_of
from tl_backward.render.svg import INK, PALETTE, TICKS, Hit, rewritten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLE, FONT, TICK = 14, 12, 11  # sizes of texts, pixels
_ROW = 20  # pixels of a line of the legend
_MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "x": "X", "star": "*",
    "cross": "P", "hexagon": "h",
}  # fmt: skip
_DASHES = {"dash": (4.0, 2.5), "dot": (1.2, 2.2), "longdash": (8.0, 3.0), "dashdot": (5.0, 2.0, 1.2, 2.0)}

Trace = Mapping[str, Any]


class Canvas:
    """One figure on its way to SVG; lengths are pixels, which are matplotlib's points."""

    def __init__(self, figure: Mapping[str, Any]) -> None:
        self.layout = figure["layout"]
        self.traces: list[Trace] = [trace for trace in figure["data"] if trace.get("visible", True) is True]
        self.x, self.y = self.layout.get("xaxis") or {}, self.layout.get("yaxis") or {}
        self.title = plain_lines(title_of(self.layout))
        self.x_labels = [plain(text) for text in self.x.get("ticktext") or ()]
        self.y_labels = [plain(text) for text in self.y.get("ticktext") or ()]
        self.texts: list[str] = []
        self.legend: list[list[Trace]] = []
        self.slanted = False
        self.left: Number = 0  # pixels of the axis to the left

    # What the two kinds say

    def size(self) -> tuple[Number, Number]:
        """Width and height between the axes."""
        raise NotImplementedError

    def right(self, high: Number) -> Number:
        """Pixels to the right of the axes."""
        raise NotImplementedError

    def above(self) -> Number:
        """Pixels between the title and the axes."""
        return 0

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
        y_title = wrapped(title_of(self.y), high)
        left = 12 + max(map(text_width, self.y_labels or ["0.0000"])) + 15 * len(y_title) + 5 * bool(y_title)
        self.left = left
        right = self.right(high)
        wide = max(wide, self.least() - left - right)
        self.slanted = self.x.get("tickangle") != 0 and _collide(self.x_labels, wide)
        labels = 8 + 0.87 * max(map(text_width, self.x_labels)) if self.slanted else 18
        self.legend = self.legend_rows(left + wide + right)
        below = labels + (24 if title_of(self.x) else 6) + _ROW * len(self.legend)
        above = self.above() + (10 + 19 * len(self.title) if any(self.title) else 8)
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
        self.write(left + wide / 2, _ROW * len(self.legend) + 7, plain(title_of(self.x)), FONT, ha="center")
        for i, line in enumerate(y_title):
            self.write(14 + 15 * i, below + high / 2, line, FONT, ha="center", rotation=90)
        return rewritten(self.figure, self.texts, self.hits(axes), label=" ".join(self.title))

    def least(self) -> Number:
        """Pixels that the picture has at least."""
        return 0

    def legend_rows(self, width: Number) -> list[list[Trace]]:
        """The traces that the legend names, in rows that fit."""
        named = [trace for trace in self.traces if trace.get("name") and trace.get("showlegend", True)]
        rows: list[list[Trace]] = []
        room = 0.0
        for trace in named if len(named) > 1 or self.layout.get("showlegend") else ():
            needed = text_width(plain(trace["name"]), FONT) + 52
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
        axis.set_tick_params(length=length, width=0.8, color=TICKS, labelsize=TICK, labelcolor=INK)

    # Lines and points

    def draw_trace(self, axes: "Axes", trace: Trace, order: Number) -> None:
        """One trace of lines, markers, texts, an area or bars."""
        x, y = points_of(trace)
        color, alpha, line = self.color(trace), trace.get("opacity", 1.0), trace.get("line") or {}
        mode = trace.get("mode") or "lines+markers"
        area = {"color": hex_color(trace.get("fillcolor") or color), "linewidth": 0, "zorder": 1}
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

    def marker(self, trace: Trace) -> dict[str, Any]:
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

    def color(self, trace: Trace) -> str:
        """A trace's colour: its line's, its markers', or the next of the palette."""
        given = (trace.get("line") or {}).get("color") or (trace.get("marker") or {}).get("color")
        return hex_color(given if isinstance(given, str) else PALETTE[self.traces.index(trace) % len(PALETTE)])

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
                self.write(x + 32, y, name, FONT)
                x += text_width(name, FONT) + 52


def wrapped(title: str, height: Number) -> list[str]:
    """An upright title in lines as long as the axes are high."""
    return textwrap.wrap(plain(title), max(int(height / 6.6), 12))


def _collide(labels: Sequence[str], width: Number) -> bool:
    """Whether labels side by side would run into each other."""
    return bool(labels) and max(map(text_width, labels)) > width / len(labels) - 5


def points_of(trace: Trace) -> tuple[list[Number], list[Number]]:
    """A trace's x, counted where it has none, and y; NaN where there is no value."""
    y = [math.nan if value is None else float(value) for value in trace.get("y", ())]
    x = trace.get("x")
    return [float(i) for i in range(len(y))] if x is None else [float(value) for value in x], y


def _dash(line: Any, of: Mapping[str, Any]) -> None:
    if of.get("dash") in _DASHES:
        line.set_dashes(_DASHES[of["dash"]])


def hex_color(color: str) -> str:
    """A colour of plotly's, of which matplotlib does not know "rgb(1, 2, 3)", without its opacity."""
    kind, _, rest = color.partition("(")
    if kind not in ("rgb", "rgba"):
        return color
    return "#" + "".join(f"{round(float(channel)):02x}" for channel in rest.rstrip(") ").split(",")[:3])
