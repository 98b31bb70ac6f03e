"""What an activation knows, in one sentence: the features that its preimage keeps and the prior does not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tl_backward._support.html import visible_text, visible_token
from tl_backward._support.sentences import count_text, listed, percent, spread
from tl_backward.inversion.features import FeatureConsistency, FeatureTable
from tl_backward.model.place import Place

KEPT = 0.95
"""A share of texts from which on a feature counts as kept."""
_MOST = 2  # groups of places in a sentence
_SITES = 3  # of a group, by name
_FEATURES = 4


def kept_features(features: FeatureTable | None) -> list[FeatureConsistency]:
    """Features retained more often than by chance (interval above the prior's), most informative first.

    Where none is, the one that is kept most.
    """
    rows = () if features is None else features.rows
    known = [row for row in rows if not math.isnan(row.rate.value)]
    telling = [row for row in known if row.prior is None or row.rate.low > row.prior.high]
    kept = [row for row in telling if row.rate.value >= KEPT]
    return kept or sorted(telling, key=lambda row: row.rate.value, reverse=True)[:1]


@dataclass(frozen=True)
class Known:
    """What one site at one position keeps."""

    site: Place
    token: str
    """The query's token there, raw."""
    n_inside: int
    n: int
    features: FeatureTable | None
    by_decoder: bool = False

    @property
    def bits(self) -> float:
        """How much the kept features tell together."""
        return sum((max(0.0, row.bits) for row in kept_features(self.features) if not math.isnan(row.bits)), 0.0)


def site_label(site: Place) -> str:
    """A site's name as short as a table's header wants it: "L1 resid_mid", "L0 result[3]"."""
    short = site.name.rpartition(".")[2].removeprefix("hook_")
    head = "" if site.head is None else f"[{site.head}]"
    return f"{short}{head}" if site.layer is None else f"L{site.layer} {short}{head}"


def known_sentence(found: Sequence[Known], epsilon: float) -> str:
    """What the places keep, the most telling first, those that keep the same together.

    Args:
        found: the places.
        epsilon: how near counts as the same activation.
    """
    groups: dict[tuple[str, str], list[Known]] = {}
    for known in sorted(found, key=lambda each: -each.bits):
        groups.setdefault((known.token, _kept(known)), []).append(known)
    told = [_clause(token, kept, places) for (token, kept), places in list(groups.items())[:_MOST]]
    more = sum(map(len, list(groups.values())[_MOST:]))
    rest = f"; {count_text(more, 'other place')} less" if more else ""
    habit = ", among a decoder's samples, whose habits they share" if any(each.by_decoder for each in found) else ""
    if not told:
        return "No activation was asked about."
    return f"At {'; at '.join(told)}{rest} (texts within {epsilon:g}{habit})."


def _clause(token: str, kept: str, places: Sequence[Known]) -> str:
    names = [site_label(known.site) for known in places]
    named = names if len(names) <= _SITES else [*names[:_SITES], f"{len(names) - _SITES} more"]
    at, one = f'"{visible_token(token, 24)}" {listed(named)}', len(names) == 1
    if not any(known.n_inside for known in places):
        return f"{at} {kept}"
    if kept.startswith("any"):
        return f"{at} {'does' if one else 'do'} not keep {kept}"
    rows = kept_features(places[0].features)
    partly = "partly " if rows and rows[0].rate.value < KEPT else ""
    return f"{at} {partly}{'keeps' if one else 'keep'} {kept}{_shares(places)}"


def _kept(known: Known) -> str:
    """The kept features by name."""
    if not known.n_inside:
        return "cannot be read: no text comes near enough"
    if known.features is None:
        return "what the texts near it share"
    rows = kept_features(known.features)
    if not rows:
        return "any feature more often than other texts have it"
    names = [visible_text(row.feature) for row in rows[:_FEATURES]]
    return listed([*names, *([f"{len(rows) - _FEATURES} more"] if len(rows) > _FEATURES else [])])


def _shares(places: Sequence[Known]) -> str:
    """In how many of the texts the kept features are, and in how many of others."""
    rows = [row for known in places for row in kept_features(known.features)]
    if not rows:
        return ""
    own = spread([row.rate.value for row in rows], percent)
    priors = [row.prior.value for row in rows if row.prior is not None]
    beside = f", {spread(priors, percent)} of others" if priors else ", beside no others"
    return f" (in {own} of the texts near it{beside})"
