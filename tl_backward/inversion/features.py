"""What a preimage's texts have in common: stated features, tested against the task's prior or the exact preimage.

The feature consistency rate of InverseScope (Luo et al. 2025): the share of the preimage that keeps the query's value.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.html import Cell, table, visible_text
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import percent
from tl_backward._support.types import DataFrame
from tl_backward.inversion.preimage import Preimage
from tl_backward.text.token_strings import text_frame

Feature: TypeAlias = Callable[[str], object]
"""text -> anything that can be compared: a count, a letter, whether something holds."""

LEVEL = 0.95
Parsed = TypeVar("Parsed")


def feature_of(parse: Callable[[str], Parsed | None], feature: Callable[[Parsed], object]) -> Feature:
    """A feature of what a text says: `feature(parse(text))`, and None where it cannot be parsed."""

    def value(text: str) -> object:
        parsed = parse(text)
        return None if parsed is None else feature(parsed)

    return value


@dataclass(frozen=True)
class Rate(Saved):
    """A share with its Wilson interval (Wilson 1927)."""

    value: float
    """NaN over nothing."""
    low: float
    high: float
    n: float
    """Independent draws that it is worth; infinite where it is exact."""

    def __str__(self) -> str:
        interval = "" if math.isinf(self.n) else f" [{self.low:.3f}, {self.high:.3f}]"  # an exact rate needs none
        return f"{self.value:.3f}{interval}"

    @property
    def cell(self) -> Cell:
        """As tables show it, coloured by its value."""
        return Cell(str(self), value=None if math.isnan(self.value) else self.value)


@dataclass(frozen=True)
class FeatureConsistency(Saved):
    """How much of a preimage has the query's value of one feature."""

    feature: str
    query_value: object
    rate: Rate
    """Weighted share of the texts inside that have the query's value."""
    prior: Rate | None
    """Share of the prior's texts that have it; None where none were given."""

    def __repr__(self) -> str:
        beside = "" if self.prior is None else f", prior {self.prior}"
        return f"FeatureConsistency({visible_text(self.feature)} = {self.query_value!r:.40}: {self.rate}{beside})"

    def summary(self) -> str:
        """In one sentence: the share of the texts inside that have the query's value, beside that of others."""
        has = f"{percent(self.rate.value)} of the texts near it have the query's {visible_text(self.feature)}"
        if self.prior is None:
            return f"{has}, beside no others."
        apart = self.rate.low > self.prior.high or self.rate.high < self.prior.low
        clearly = "" if apart else ": no clear difference"
        return f"{has}, {percent(self.prior.value)} of others{clearly}."

    def to_frame(self) -> DataFrame:
        """One row, with the columns of `FeatureTable.to_frame`."""
        return text_frame([self._columns()])

    def _repr_html_(self) -> str:
        """The static table of one feature."""
        return FeatureTable((self,), self.summary())._repr_html_()

    def _columns(self) -> dict[str, object]:
        prior = self.prior
        return {
            "feature": self.feature,
            "query_value": self.query_value,
            "rate": self.rate.value,
            "low": self.rate.low,
            "high": self.rate.high,
            "n": self.rate.n,
            "prior": None if prior is None else prior.value,
            "prior_low": None if prior is None else prior.low,
            "prior_high": None if prior is None else prior.high,
            "bits": self.bits,
        }

    @property
    def bits(self) -> float:
        """How much knowing z says of the feature: KL in bits from the prior's rate to the preimage's.

        Negative where the query's value is rarer in the preimage than in the prior; rates of 0 and 1 are taken half a
        text away from the edge, and equal rates say nothing, however many texts each was counted in. The rate itself
        where there is no prior.
        """
        if self.prior is None or math.isnan(self.rate.value):
            return self.rate.value
        if self.rate.value == self.prior.value:
            return 0.0
        p, q = (_inward(rate) for rate in (self.rate, self.prior))
        kl = p * math.log2(p / q) + (1 - p) * math.log2((1 - p) / (1 - q))
        return math.copysign(kl, p - q)


@dataclass(frozen=True, repr=False)
class FeatureTable(Saved):
    """Many features of one preimage, the most telling first."""

    rows: tuple[FeatureConsistency, ...]
    title: str

    def __repr__(self) -> str:
        best = ", ".join(f"{visible_text(row.feature)} {row.rate.value:.3f}" for row in self.rows[:3])
        return f"FeatureTable({len(self.rows)} features, first {best})"

    def summary(self) -> str:
        """The sentence of the feature that is most telling."""
        return self.rows[0].summary() if self.rows else "No feature was asked about."

    def __getitem__(self, feature: str) -> FeatureConsistency:
        found = next((row for row in self.rows if row.feature == feature), None)
        if found is None:
            raise KeyError(
                f"Expected one of the features {', '.join(row.feature for row in self.rows)}, got {feature!r}."
            )
        return found

    def to_frame(self) -> DataFrame:
        """One row a feature: value of the query, rate, low, high, n, prior, prior_low, prior_high, bits."""
        return text_frame(row._columns() for row in self.rows)

    def _repr_html_(self) -> str:
        """A static table, coloured by the rate."""
        rows = [
            [
                str(row.query_value),
                row.rate.cell,
                "" if row.prior is None else str(row.prior),
                row.bits,
            ]
            for row in self.rows
        ]
        return table(
            ["query's value", "share that keeps it", "prior's share", "bits"], rows,
            row_names=[row.feature for row in self.rows], caption=self.title, corner="feature", bound=1.0, limit=30,
        )  # fmt: skip


@public
def feature_consistency(
    preimage: Preimage,
    feature: Feature,
    *,
    prior: Iterable[str] | None = None,
    name: str | None = None,
    level: float = LEVEL,
) -> FeatureConsistency:
    """The rate at which the texts inside share the query's value of a feature: sum_i w_i [f(x_i) = f(query)].

    Args:
        preimage: any; an enumerated one's rate is exact.
        feature: text -> value, compared with ==.
        prior: texts drawn from the task without looking at z; their rate is what the preimage's is beside.
        name: what it is called; None for the function's own name.
        level: of confidence of the Wilson intervals, taken over the effective sample size. A search's is that of the
            distance: a feature that changes more slowly along the chains has a wider interval than is shown.

    Raises:
        ValueError: the feature raises (the text is named), or a level outside (0, 1).

    Examples:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> p = tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool)
        >>> tlb.inversion.feature_consistency(p, lambda text: text[-2], prior=pool, name="query letter").rate.value
        1.0
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected a confidence level between 0 and 1, got {level}; {LEVEL} is usual.")
    called = name if name is not None else getattr(feature, "__name__", "feature")
    wanted = evaluate(feature, preimage.query.text, called)
    hits = torch.zeros(len(preimage), dtype=torch.float64)
    for index in preimage.weights.nonzero().flatten().tolist():
        hits[index] = float(evaluate(feature, preimage.texts[index], called) == wanted)
    n = math.inf if preimage.method == "enumeration" else preimage.diagnostics.effective_sample_size
    rate = _rate(hits, preimage.weights, n, level)
    if prior is None:
        return FeatureConsistency(called, wanted, rate, None)
    drawn = torch.tensor([float(evaluate(feature, text, called) == wanted) for text in prior], dtype=torch.float64)
    shares = torch.full_like(drawn, 1 / max(1, len(drawn)))
    return FeatureConsistency(called, wanted, rate, _rate(drawn, shares, float(len(drawn)), level))


@public
def common_features(
    preimage: Preimage,
    features: Mapping[str, Feature],
    *,
    prior: Iterable[str] | None = None,
    level: float = LEVEL,
) -> FeatureTable:
    """`feature_consistency` of many hypotheses, ranked by `FeatureConsistency.bits`.

    Raises:
        TypeError: anything but a mapping of features.
        ValueError: no features, or one that raises (it and the text are named).

    Examples:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> p = tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool)
        >>> len(tlb.inversion.common_features(p, {"letter": lambda text: text[-2], "length": len}, prior=pool).rows)
        2
    """
    if not isinstance(features, Mapping):
        raise TypeError(
            f"Expected features as {{name: function of a text}}, got {type(features).__name__}; "
            "for example {'length': len}."
        )
    if not features:
        raise ValueError("Expected at least one feature, got none; pass {name: function of a text}.")
    texts = None if prior is None else list(prior)
    rows = [feature_consistency(preimage, f, prior=texts, name=name, level=level) for name, f in features.items()]
    rows.sort(key=lambda row: -math.inf if math.isnan(row.bits) else row.bits, reverse=True)
    return FeatureTable(tuple(rows), repr(preimage))


def evaluate(feature: Feature, text: str, name: str) -> object:
    """A feature of a text.

    Raises:
        ValueError: the function raises; the feature and the text are named.
    """
    try:
        return feature(text)
    except Exception as error:
        raise ValueError(
            f"Expected the feature {name!r} to give a value, got {type(error).__name__}: {error} for the text "
            f"{text!r:.80}; return None where it has none, or pass valid=... so that such texts have no weight."
        ) from error


def wilson(share: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Bounds of a share's Wilson interval over `n` draws; (0, 1) over none."""
    if math.isinf(n):
        return share, share
    if not n > 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _rate(hits: Float[Tensor, "text"], weights: Float[Tensor, "text"], n: float, level: float) -> Rate:
    if not weights.any():
        return Rate(math.nan, 0.0, 1.0, 0.0)
    share = min(1.0, max(0.0, float((hits * weights).sum())))
    return Rate(share, *wilson(share, n, level), n)


def _inward(rate: Rate) -> float:
    edge = 0.5 / (min(rate.n, 1e6) + 1)
    return min(max(rate.value, edge), 1 - edge)


@public
def compare_with_exact(preimage: Preimage, exact: Preimage, features: Mapping[str, Feature] | None = None) -> Preimage:
    """The same preimage with its recall, and each feature's total variation, in the diagnostics.

    Recall is the share of the exact preimage's distinct inputs that were found. TV(f) = 1/2 sum_v |P(f = v) -
    P_exact(f = v)|, in [0, 1], each text counted by its weight. Inputs are compared as tokens.

    Raises:
        ValueError: `exact` is not an enumeration of the same query within the same epsilon; or a feature raises.
    """
    if exact.method != "enumeration" or _question(preimage) != _question(exact):
        raise ValueError(
            f"Expected the enumerated preimage of the same question, got {exact!r} beside {preimage!r}; compute it "
            "with enumerate_preimage at the same site, position, epsilon, metric and match."
        )
    every, own = _inputs(exact), _inputs(preimage)
    recall = len(every & own) / len(every) if every else None
    variation = {
        name: total_variation(marginal(preimage, feature, name), marginal(exact, feature, name))
        for name, feature in (features or {}).items()
    }
    return replace(preimage, diagnostics=replace(preimage.diagnostics, recall=recall, total_variation=variation))


def marginal(preimage: Preimage, feature: Feature, name: str = "feature") -> Mapping[object, float]:
    """A feature's distribution over the texts inside, by weight; values must be hashable.

    Raises:
        ValueError: the feature raises.
    """
    shares: dict[object, float] = {}
    for index in preimage.weights.nonzero().flatten().tolist():
        value = evaluate(feature, preimage.inputs.text(index), name)
        shares[value] = shares.get(value, 0.0) + float(preimage.weights[index])
    return shares


def total_variation(p: Mapping[object, float], q: Mapping[object, float]) -> float:
    """1/2 sum_v |p(v) - q(v)|; 1 where one of them is empty."""
    if not p or not q:
        return 1.0
    return sum(abs(p.get(value, 0.0) - q.get(value, 0.0)) for value in {*p, *q}) / 2


def _inputs(preimage: Preimage) -> set[tuple[int, ...]]:
    return {tuple(preimage.inputs.row(index)) for index in preimage.weights.nonzero().flatten().tolist()}


def _question(of: Preimage) -> tuple:
    return of.site, of.position, of.query.tokens.tolist(), of.epsilon, of.metric, of.match
