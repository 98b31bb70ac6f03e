"""What an activation knows, in one sentence: the features that its preimage keeps and the prior does not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tl_backward._support.html import visible_text, visible_token
from tl_backward._support.sentences import count_text, listed, percent
from tl_backward.inversion.features import FeatureConsistency, FeatureTable
from tl_backward.inversion.preimage import Preimage
from tl_backward.model.place import Place
from tl_backward.text.token_strings import token_string

KEPT = 0.95
"""A share of texts from which on a feature counts as kept."""
_SITES, _FEATURES = 2, 4  # that a sentence names
_HABIT = "; a decoder's texts share its habits too, so that a search (method='search') may find less kept"


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
    n_distinct: int = 2
    """Different texts inside, as far as one differs from several: one shares all features with itself."""

    @classmethod
    def of(cls, preimage: Preimage, features: FeatureTable | None) -> "Known":
        """What the texts inside a preimage say."""
        p, inside = preimage, preimage.inside.nonzero().flatten().tolist()
        token = token_string(p.inputs.tokenizer, int(p.query.tokens[p.position]))
        n_distinct = len({p.texts[i] for i in inside})
        return cls(p.site, token, len(inside), len(p), features, p.method == "decoder", n_distinct)

    @property
    def bits(self) -> float:
        """How much the kept features tell together."""
        return sum((max(0.0, row.bits) for row in kept_features(self.features) if not math.isnan(row.bits)), 0.0)


def site_label(site: Place) -> str:
    """A site's name as short as a table's header wants it: "L1 resid_mid", "L0 result[3]"."""
    short = site.name.rpartition(".")[2].removeprefix("hook_")
    head = "" if site.head is None else f"[{site.head}]"
    return f"{short}{head}" if site.layer is None else f"L{site.layer} {short}{head}"


def known_sentence(found: Sequence[Known]) -> str:
    """The features that the most telling places keep, and which places those are.

    Args:
        found: the places.
    """
    if not found:
        return "No activation was asked about."
    first = min(found, key=lambda each: (not each.n_inside, each.n_distinct == 1, -each.bits))
    same = [known for known in found if _group(known) == _group(first)]
    at = f'At "{visible_token(first.token, 24)}", {_places(same)}'
    if not first.n_inside:
        return f"{at} cannot be read: no text comes near enough."
    if first.n_distinct == 1:
        return f"{at} cannot be read: one text alone comes near enough, and shares everything with itself."
    if first.features is not None and first.features.rows and not _asked(first.features):
        return f"{at} cannot be read: the query has none of the features that were asked about."
    rows = kept_features(first.features)
    if first.features is not None and not rows:
        do = "does" if len(same) == 1 else "do"
        return f"{at} {do} not keep any feature clearly more often than other texts have it."
    partly = "partly " if rows and rows[0].rate.value < KEPT else ""
    habit = _HABIT if any(known.by_decoder for known in same) else ""
    keeps = "keeps" if len(same) == 1 else "keep"
    return f"{at} {partly}{keeps} {_kept(first)}{_shares(same)}{habit}."


def _asked(features: FeatureTable) -> bool:
    """Whether the query has any of them."""
    return any(not math.isnan(row.rate.value) for row in features.rows)


def _group(known: Known) -> tuple[str, bool, bool, str]:
    return known.token, known.n_inside > 0, known.n_distinct == 1, _kept(known)


def _places(same: Sequence[Known]) -> str:
    names = [site_label(known.site) for known in same]
    return listed(names if len(names) <= _SITES else [*names[:_SITES], count_text(len(names) - _SITES, "other place")])


def _kept(known: Known) -> str:
    """The kept features by name."""
    if known.features is None:
        return "what the texts near it share"
    names = [visible_text(row.feature) for row in kept_features(known.features)]
    return listed([*names[:_FEATURES], *([f"{len(names) - _FEATURES} more"] if len(names) > _FEATURES else [])])


def _shares(places: Sequence[Known]) -> str:
    """In how many of the texts the kept features are, and in how many of others."""
    rows = [row for known in places for row in kept_features(known.features)]
    if not rows:
        return ""
    rates, priors = [row.rate.value for row in rows], [row.prior.value for row in rows if row.prior is not None]
    near = "a decoder's texts near it" if any(known.by_decoder for known in places) else "texts near it"
    own = percent(rates[0]) if len(set(rates)) == 1 else f"at least {math.floor(100 * min(rates))} %"
    if not priors:
        return f" (in {own} of {near}, beside no others)"
    others = percent(priors[0]) if len(set(priors)) == 1 else f"at most {math.ceil(100 * max(priors))} %"
    return f" (in {own} of {near}, {others} of others)"
