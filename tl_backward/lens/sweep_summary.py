"""What a sweep found, in one sentence: the layer where a quantity stands out most, and the untrained control there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tl_backward._support.sentences import DRAWS_NEEDED, count_text, layers_text, overlap, two_digits

HOW = "control='random_init'"


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Stands:
    """One quantity along the layers."""

    what: str
    """In words: "the old answer's mean rank"."""
    layers: Sequence[int]
    own: Sequence[Mean]
    control: Sequence[Mean] | None
    smallest: bool
    """Whether small values are the finding, as of ranks at the top."""


def sweep_sentence(found: Stands | None, n_prompts: int, n_draws: int) -> str:
    """The layer where the quantity is most extreme, chosen so in the control too."""
    over = f"Over {count_text(n_prompts, 'prompt')}"
    if found is None or all(math.isnan(each.mean) for each in found.own):
        return f"{over} nothing was collected that has a mean."
    at = _extreme(found.own, found.smallest)
    own, layer = found.own[at], found.layers[at]
    end = "lowest" if found.smallest else "largest"
    means = [each.mean for each in found.own if not math.isnan(each.mean)]
    if max(means) == min(means) and len(means) > 1:
        where = "the same in every layer,"
    else:
        where = f"{end} in layer {layer}{_beside(found, at)}"
    first = f"{over} {found.what} is {where} {_shown(own)}"
    if found.control is None or all(math.isnan(each.mean) for each in found.control):
        return f"{first}; no control was run, so an untrained network may do the same ({HOW} shows it)."
    beside = found.control[_extreme(found.control, found.smallest)]
    if n_draws < DRAWS_NEEDED:
        return f"{first}; its control has {count_text(n_draws, 'draw')}, too few to compare with."
    if overlap((own.low, own.high), (beside.low, beside.high)):
        return f"{first}, which overlaps what untrained networks have in their best layer, {_shown(beside)}."
    return f"{first}, where untrained networks have {_shown(beside)} in their best layer."


def _extreme(means: Sequence[Mean], smallest: bool) -> int:
    known = [i for i, each in enumerate(means) if not math.isnan(each.mean)]
    return (min if smallest else max)(known, key=lambda i: means[i].mean)


def _beside(found: Stands, at: int) -> str:
    """The layers whose intervals overlap that of the most extreme one."""
    best, others = found.own[at], [i for i, each in enumerate(found.own) if i != at and not math.isnan(each.mean)]
    near = [found.layers[i] for i in others if overlap((best.low, best.high), (found.own[i].low, found.own[i].high))]
    if not near:
        return ","
    which = "any other layer" if len(near) == len(others) > 1 else layers_text(near, found.layers)
    return f", though not clearly {'lower' if found.smallest else 'larger'} than in {which}:"


def _shown(of: Mean) -> str:
    if math.isnan(of.low) or math.isnan(of.high):
        return two_digits(of.mean)
    return f"{two_digits(of.mean)} ({two_digits(of.low)} to {two_digits(of.high)})"
