"""What a weight says in words, in one sentence: more than Gaussian vectors do, or no more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from tl_backward._support.sentences import DRAWS_NEEDED, count_text, listed, percent

_MOST_NAMED = 3
"""Matrices of one share; of more their number is said."""
CHANCE = 0.05
"""The share of any vectors that is above the 95th percentile of Gaussian ones."""


@dataclass(frozen=True)
class Above:
    """How many of a weight's vectors are more coherent than 95 % of Gaussian vectors."""

    name: str
    n_above: int
    n: int
    n_gaussian: int

    @property
    def share(self) -> float:
        """Of the vectors that are not zero; NaN of none."""
        return self.n_above / self.n if self.n else math.nan

    def is_more(self, *, among: int = 1) -> bool | None:
        """Whether that is more than by chance at 95 %, for the largest of `among`; None with too few Gaussian vectors.

        The two shares' errors are added: that of the vectors, and that of the percentile.
        """
        if self.n_gaussian < 4 * DRAWS_NEEDED or not self.n:
            return None
        error = math.sqrt(CHANCE * (1 - CHANCE) * (1 / self.n + 1 / self.n_gaussian))
        # Half a vector, so that one of few is no finding.
        return self.share - 0.5 / self.n > CHANCE + NormalDist().inv_cdf(1 - 0.025 / among) * error


def coherence_sentence(found: Above, best: str) -> str:
    """How many of one weight's vectors are coherent, and the words of the most coherent one."""
    vectors, than = count_text(found.n, "vector"), "more coherent than 95 % of Gaussian vectors"
    more = found.is_more()
    if not found.n:
        return f"All vectors of {found.name} are zero, and say nothing in words."
    first = f"Of {found.name}'s {vectors} {percent(found.share)} are {than}, where chance gives 5 %"
    if more is None:
        return f"{first}; {count_text(found.n_gaussian, 'Gaussian vector')} are too few to tell the two apart."
    if not more:
        return f"{first}: no clear sign that they stand for words."
    return f"{first}; the most coherent one stands for {best}."


def atlas_sentence(found: Sequence[Above]) -> str:
    """How many of a model's vectors are coherent, and which of its matrices have more such ones than by chance."""
    every = Above("", sum(each.n_above for each in found), sum(each.n for each in found), _fewest(found))
    known = [each for each in found if each.n]
    if not known:
        return "All vectors are zero, and say nothing in words."
    first = (
        f"Of {count_text(every.n, 'vector')} in {count_text(len(found), 'matrix', 'matrices')} {percent(every.share)} "
        "are more coherent than 95 % of Gaussian vectors, where chance gives 5 %"
    )
    more = every.is_more()
    if more is None:
        return f"{first}; so few Gaussian vectors cannot tell the two apart."
    clear = [each for each in known if each.is_more(among=len(known))]
    # Few vectors reach a large share by chance, so the most is sought among those that are clearly more.
    most = max((each.share for each in clear), default=math.nan)
    best = [each.name for each in clear if each.share == most]
    named = listed(best) if len(best) <= _MOST_NAMED else f"{len(best)} of them"
    if not more:
        return f"{first}: no clear sign that they stand for words" + (f", but for {named}." if clear else ".")
    if not clear:
        return f"{first}, in no one matrix clearly."
    if len(clear) == 1:
        return f"{first}, most in {named} ({percent(most)})."
    return f"{first}; {len(clear)} of the matrices have clearly more than that, {named} the most ({percent(most)})."


def _fewest(found: Sequence[Above]) -> int:
    return min((each.n_gaussian for each in found), default=0)
