"""A heat map as SVG: squares, their values on hover, and a bar of colours."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tl_backward._support.html import UNKNOWN, Number
from tl_backward.render.canvas import FONT, TICK, Canvas, hex_color, wrapped
from tl_backward.render.plotly_texts import filler, number, plain, text_width, title_of
from tl_backward.render.svg import TICKS, Hit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_NARROW = 480
"""Pixels from which on a picture scrolls on a telephone: the colours' bar then lies above it, where it is seen."""


class HeatMapPicture(Canvas):
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
        self.lies = False

    def size(self) -> tuple[Number, Number]:
        """Width and height of the axes."""
        n, m = len(self.x_labels), len(self.y_labels)
        cell = 44 if n <= 6 else 32 if n <= 12 else 22 if n <= 60 else 14
        row = 24 if m <= 16 else 16 if m <= 40 else 13
        return max(cell * n, 150.0), max(row * m, 76.0)

    def right(self, high: Number) -> Number:
        """Room beside them, for the bar of colours where it stands there."""
        upright = 30 + self.bar_labels_width() + 15 * len(self.bar_title(high)) + 8
        self.lies = self.left + self.size()[0] + upright > _NARROW
        return 10 if self.lies else upright

    def above(self) -> Number:
        """Room above them, for the bar that lies there."""
        return 22 * (self.lies and self.heat.get("showscale", True))

    def bar_labels(self) -> list[str]:
        """The colour bar's ends and middle."""
        low, high, _ = self.scale()
        return [number(value, 3) for value in (low, (low + high) / 2, high)]

    def bar_labels_width(self) -> Number:
        """Of the longest of its labels."""
        return max(map(text_width, self.bar_labels()))

    def bar_title(self, high: Number) -> list[str]:
        """The colour bar's title in lines as long as it is high."""
        return wrapped(title_of(self.heat.get("colorbar") or {}), high)

    def draw(self, axes: "Axes") -> None:
        """Draw the squares, and what marks some of them."""
        n, m = len(self.x_labels), len(self.y_labels)
        for i, trace in enumerate(trace for trace in self.traces if trace is not self.heat):
            self.draw_trace(axes, trace, i / 99)
        axes.set_xlim(-0.5, n - 0.5)
        axes.set_ylim(-0.5, m - 0.5)
        self.set_ticks(axes.xaxis, range(n), self.x_labels, 0)
        self.set_ticks(axes.yaxis, range(m), self.y_labels, 0)
        axes.spines[:].set(color=TICKS, linewidth=0.8)  # a square of 0 is as white as the page
        if self.heat.get("showscale", True):
            self.draw_bar()

    def scale(self) -> tuple[Number, Number, Any]:
        """The ends of the scale and its colours."""
        from matplotlib.colors import LinearSegmentedColormap

        known = [value for row in self.values for value in row if math.isfinite(value)] or [0.0]
        low, high = self.heat.get("zmin"), self.heat.get("zmax")
        low, high = min(known) if low is None else float(low), max(known) if high is None else float(high)
        scale = self.heat.get("colorscale") or ((0, "#fff"), (1, "#2166ac"))
        stops = [(share, hex_color(color)) for share, color in scale]
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
        """The colour bar to the right or above: the scale, its ends and, to the right, its middle, its title."""
        left, bottom, wide, tall = self.edges
        if self.lies:
            (low, _, high), y = self.bar_labels(), bottom + tall + 6
            x = 8 + text_width(low)
            self.draw_scale(x, y, 120, 12)
            self.write(4, y + 2, low, TICK)
            self.write(x + 124, y + 2, f"{high}  {plain(title_of(self.heat.get('colorbar') or {}))}".strip(), TICK)
            return
        x = left + wide + 10
        self.draw_scale(x, bottom, 14, tall)
        for i, label in enumerate(self.bar_labels()):
            self.write(x + 20, bottom + i * (tall / 2 - 4), label, TICK)
        for i, line in enumerate(self.bar_title(tall)):
            self.write(
                x + 36 + self.bar_labels_width() + 15 * i, bottom + tall / 2, line, FONT, ha="center", rotation=90
            )

    def draw_scale(self, x: Number, y: Number, wide: Number, tall: Number) -> None:
        """The colours of the scale in a frame, along the longer side."""
        from matplotlib.patches import Rectangle

        colors, n, lies = self.scale()[2], 32, wide > tall
        for step in range(n):
            more = step < n - 1
            place = (x + wide * step / n, y) if lies else (x, y + tall * step / n)
            size = (wide / n + more, tall) if lies else (wide, tall / n + more)
            self.figure.add_artist(Rectangle(place, *size, fc=colors((step + 0.5) / n), lw=0, transform=None))
        frame = Rectangle((x, y), wide, tall, fill=False, edgecolor=TICKS, linewidth=0.8, transform=None)
        self.figure.add_artist(frame)
