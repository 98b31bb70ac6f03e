"""Ranks by layer on an axis that spreads out both of its ends."""

import math
from collections.abc import Sequence

from tl_backward._support.html import Number
from tl_backward.render.figures import Curve, Drawing, Numbers, curves_drawing, plot_text


def rank_height(rank: Number, d_vocab: int) -> float:
    """Place a rank on the axis, at the log odds of a word standing below it: 0 is highest, NaN stays NaN.

    Near the top this falls as -log(rank), near the bottom as log(d_vocab - rank), so that both ends get as
    much room as a logarithmic axis gives to one.
    """
    return math.log((d_vocab - rank - 0.5) / (rank + 0.5))


def rank_ticks(d_vocab: int) -> list[tuple[int, str]]:
    """List (rank, label) at both ends, at powers of ten from both, and in the middle."""
    bottom, middle = d_vocab - 1, (d_vocab - 1) // 2
    powers = [10**power for power in range(0, 9) if 10**power < d_vocab / 5]
    between = [*powers, *([middle] if middle > 0 else []), *(bottom - power for power in reversed(powers))]
    ends = {bottom: f"{bottom} (bottom)"} if bottom > 0 else {}
    return list(({0: "0 (top)"} | {rank: f"{rank}" for rank in between} | ends).items())


def _heights(ranks: Numbers, d_vocab: int) -> list[float]:
    return [rank_height(float(rank), d_vocab) for rank in ranks]


def _band(line: Curve, d_vocab: int) -> tuple[list[float] | None, list[float] | None]:
    """The band's edges on the axis; the lower one has the higher ranks. None where a bound is not known."""
    if line.low is None or line.high is None:
        return None, None
    low, high = _heights(line.high, d_vocab), _heights(line.low, d_vocab)
    return (None, None) if any(map(math.isnan, (*low, *high))) else (low, high)


def rank_curves(
    lines: Sequence[Curve],
    *,
    d_vocab: int,
    x: Sequence[Number],
    title: str,
    x_title: str = "layer",
    y_title: str = "rank (0 = largest logit)",
) -> Drawing:
    """Draw ranks (0, the largest logit, on top; `d_vocab` - 1 below) over layers, both ends spread out.

    NaN leaves a gap; exact ranks on hover.
    """
    ranks = [[float(value) for value in line.values] for line in lines]
    drawn = [Curve(line.name, _heights(line.values, d_vocab), line.control_of, *_band(line, d_vocab)) for line in lines]
    figure = curves_drawing(drawn, title=title, x_title=x_title, y_title=y_title, x=list(x))
    named = [trace for trace in figure["data"] if "name" in trace]  # beside them the bands
    for trace, values in zip(named, ranks, strict=True):
        trace["customdata"] = ["none" if math.isnan(rank) else f"{int(rank)}" for rank in values]
        trace["hovertemplate"] = f"rank %{{customdata}} at {plot_text(x_title)} %{{x}}"
    ticks = rank_ticks(d_vocab)
    edge = rank_height(0, d_vocab) * 1.06
    figure["layout"]["meta"]["value"] = "rank %{customdata}"
    figure["layout"]["yaxis"] |= {
        "tickvals": [rank_height(rank, d_vocab) for rank, _ in ticks],
        "ticktext": [label for _, label in ticks],
        "range": [-edge, edge],
        "autorange": False,
        "zeroline": False,
    }
    return figure
