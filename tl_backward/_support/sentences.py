"""Sentences made of numbers: lists, layers, and what a control's draws allow one to say."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from statistics import mean, stdev
from typing import Literal

DRAWS_NEEDED = 5
"""Of a control, before anything is compared with it."""

NETWORKS = "untrained networks"


def listed(items: Sequence[str], last: str = "and") -> str:
    """Items as a sentence has them: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else "none"


def ranges(numbers: Iterable[int]) -> list[str]:
    """Numbers as runs: "0-3", "5"; a run of two is two items."""
    by_run = groupby(enumerate(sorted(numbers)), key=lambda each: each[1] - each[0])  # along a run, this stays
    runs = [[number for _, number in run] for _, run in by_run]
    return [
        part
        for run in runs
        for part in (map(str, run) if len(run) < 3 else [f"{run[0]}-{run[-1]}"])
    ]  # fmt: skip


def layers_text(chosen: Sequence[int], every: Sequence[int]) -> str:
    """Layers in words: "every layer", "layer 2", "layers 0-3 and 5", "no layer"."""
    if not chosen:
        return "no layer"
    if len(chosen) == len(every) > 1:
        return "every layer"
    return f"layer{'s' if len(chosen) > 1 else ''} {listed(ranges(chosen))}"


def count_text(n: int, what: str, plural: str = "") -> str:
    """A count with its noun: "1 prompt", "2 prompts"."""
    return f"{n:,} {what if n == 1 else plural or what + 's'}"


def percent(share: float) -> str:
    """A share as a whole percentage, such as "64 %"; one that only rounds to 0 or 100 says so."""
    if math.isnan(share):
        return "an unknown share"
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def two_digits(value: float) -> str:
    """A number with two significant digits."""
    return "unknown" if math.isnan(value) else f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"


def spread(values: Sequence[float], shown: Callable[[float], str] = two_digits) -> str:
    """Values from the smallest to the largest: "0.1 to 0.4", or the one that all of them are."""
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return "unknown"
    low, high = shown(known[0]), shown(known[-1])
    return low if low == high else f"{low} to {high}"


def beyond(value: float, draws: Sequence[float], *, level: float = 0.95) -> Literal["above", "below"] | None:
    """Whether a value lies outside of where one more draw would lie: `band`.

    None where it lies inside, and where nothing can be said: fewer than five draws, or a value that is not finite.
    """
    around = band(draws, level=level)
    if around is None or not math.isfinite(value) or around[0] <= value <= around[1]:
        return None
    return "above" if value > around[1] else "below"


def band(draws: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """Where one more draw would lie: mean +- t * s * sqrt(1 + 1/n), Student's t, and where the draws do.

    None where nothing can be said: fewer than five draws, or one that is not finite.
    """
    if len(draws) < DRAWS_NEEDED or not all(map(math.isfinite, draws)):
        return None
    middle = mean(draws)
    reach = _reach(middle, stdev(draws), len(draws), level)
    return min(middle - reach, *draws), max(middle + reach, *draws)


def differs(differences: Sequence[float]) -> bool:
    """Whether paired differences have a mean other than 0 at 95 %: |mean| > 1.96 s / sqrt(n).

    Never of fewer than five, nor of differences that are all the same, whose spread says nothing.
    """
    deviation = stdev(differences) if len(differences) >= DRAWS_NEEDED else 0.0
    return deviation > 0 and abs(mean(differences)) > 1.96 * deviation / math.sqrt(len(differences))


def beyond_moments(
    value: float, middle: float, deviation: float, n: int, *, level: float = 0.95
) -> Literal["above", "below"] | None:
    """`beyond` of n draws of which the mean and the standard deviation are known."""
    if n < DRAWS_NEEDED or not all(map(math.isfinite, (value, middle, deviation))):
        return None
    reach = _reach(middle, deviation, n, level)
    return None if abs(value - middle) <= reach else "above" if value > middle else "below"


def _reach(middle: float, deviation: float, n: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + level) / 2)) * deviation * math.sqrt(1 + 1 / n) + 1e-9 * max(1.0, abs(middle))


def no_comparison(n_draws: int, how: str, other: str = "an untrained network") -> str:
    """The end of a sentence that compares nothing: without a control, or with too few draws of it."""
    if n_draws == 0:
        return f"; no control was run, so {other} may do the same ({how} shows it)"
    draws = count_text(n_draws, "draw")
    return f"; its control has {draws}, too few to compare with ({how} makes {DRAWS_NEEDED})"


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two intervals (low, high) share a point; bounds that are not known count as if they did."""
    return any(map(math.isnan, (*a, *b))) or (a[0] <= b[1] and b[0] <= a[1])
