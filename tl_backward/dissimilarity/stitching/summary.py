"""What stitches between two models cost, in one sentence, beside stitches of a model to itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tl_backward._support.sentences import overlap


@dataclass(frozen=True)
class Cost:
    """One stitch's penalty in nats a token, and that of the tail's own head left at the same depth."""

    head: int
    tail: int
    nats: float
    interval: tuple[float, float]
    own: float = math.nan
    own_interval: tuple[float, float] = (math.nan, math.nan)


def stitches_sentence(costs: dict[tuple[str, str], Sequence[Cost]]) -> str:
    """The cheapest stitch of each direction between the models: (head's name, tail's name) -> its stitches."""
    parts = [_part(head, tail, each) for (head, tail), each in costs.items()]
    return f"At least, {'; '.join(part for part in parts if part)}." if any(parts) else "No stitch has a finite cost."


def _part(head: str, tail: str, costs: Sequence[Cost]) -> str:
    known = [each for each in costs if math.isfinite(each.nats)]
    if not known:
        return ""
    best = min(known, key=lambda each: each.nats)
    said = f"{head} to layer {best.head} with {tail} after layer {best.tail} costs {best.nats:.2g} nats a token"
    if math.isnan(best.own):
        return f"{said}, with no stitch of {tail} to itself to compare with"
    if overlap(best.interval, best.own_interval):
        return f"{said}, no clear difference from {tail}'s own head"
    return f"{said}, where {tail}'s own head costs {best.own:.2g}"
