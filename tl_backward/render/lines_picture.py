"""Lines, points and bars as SVG, with the values at each place along x on hover."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_backward._support.html import Number
from tl_backward.render.canvas import Canvas, Trace, points_of
from tl_backward.render.plotly_texts import filler, number, plain, text_width, title_of
from tl_backward.render.svg import CLEAR, LINES, TICKS, Hit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WIDTH = 440  # pixels of a figure that needs no more: a telephone's
_MOST_PLACES = 60  # along x that answer to a pointer; of more, each would be a few pixels wide


class LinesPicture(Canvas):
    """Lines, points, areas and bars on two axes."""

    def size(self) -> tuple[Number, Number]:
        """Width and height of the axes."""
        # Labels need 16 pixels each, slanted.
        return (320.0, 320.0) if self.y.get("scaleanchor") else (16.0 * len(self.x_labels), 200.0)

    def least(self) -> Number:
        """The least width of the whole."""
        return _WIDTH

    def right(self, high: Number) -> Number:
        """Room beside them, for names of points."""
        texts = [text_width(plain(text), 10) for trace in self.traces for text in (trace.get("text") or ())]
        return 16 + max(texts, default=0)

    def draw(self, axes: "Axes") -> None:
        """Draw every trace, later ones above."""
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
                  for *place, text in zip(*points_of(trace), trace.get("text") or (), strict=False)]  # fmt: skip
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

    def points(self, axes: "Axes", traces: Sequence[Trace]) -> list[Hit]:
        """A small square a point."""
        hits = []
        for trace in traces:
            custom, said = trace.get("customdata"), filler(trace.get("hovertemplate") or "%{x:.6g}, %{y:.6g}")
            for i, (x, y) in enumerate(zip(*points_of(trace), strict=True)):
                if math.isfinite(x) and math.isfinite(y):
                    at, height = axes.transData.transform((x, y)).tolist()
                    title = said({"x": x, "y": y, "customdata": "" if custom is None else custom[i]})
                    hits.append(Hit(at - 9, self.tall - height - 9, 18, 18, title, CLEAR))
        return hits

    def bands(self, axes: "Axes", traces: Sequence[Trace]) -> list[Hit]:
        """A band a place along x: its label, and a line a trace."""
        said = filler((self.layout.get("meta") or {}).get("value") or "%{y:.6g}")
        found: dict[Number, list[str]] = {}
        for trace in traces:
            name, custom = plain(trace.get("name")), trace.get("customdata")
            for i, (x, y) in enumerate(zip(*points_of(trace), strict=True)):
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


def _apart(ticks: Sequence[tuple[Number, str]], transform: Any) -> list[tuple[Number, str]]:
    """The ticks of an upright axis that stand 12 pixels apart; the first and the last stay."""
    heights = [float(transform.transform((1, value))[1]) for value, _ in ticks]
    kept: list[int] = []
    for i in [0, *range(len(ticks) - 1, 0, -1)] if ticks else ():
        if all(abs(heights[i] - heights[j]) >= 12 for j in kept):
            kept.append(i)
    return [ticks[i] for i in sorted(kept)]
