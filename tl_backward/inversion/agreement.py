"""How near a sampled preimage comes to the exact one, where that can be enumerated."""

from collections.abc import Mapping
from dataclasses import replace

from tl_backward.inversion.features import Feature, evaluate
from tl_backward.inversion.preimage import Preimage


def compare_with_exact(preimage: Preimage, exact: Preimage, features: Mapping[str, Feature] | None = None) -> Preimage:
    """The same preimage with its recall, and each feature's total variation, in the diagnostics.

    Recall is the share of the exact preimage's distinct inputs that were found. TV(f) = 1/2 sum_v |P(f = v) -
    P_exact(f = v)|, in [0, 1], each text counted by its weight. Inputs are compared as tokens.

    Raises:
        ValueError: `exact` is not an enumeration of the same query within the same epsilon; or a feature raises.
    """
    _check_same_question(preimage, exact)
    sought, found = _inputs(exact), _inputs(preimage)
    recall = len(sought & found) / len(sought) if sought else None
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


def _check_same_question(preimage: Preimage, exact: Preimage) -> None:
    def question(of: Preimage) -> tuple:
        return (of.site, of.position, of.query.tokens.tolist(), of.epsilon, of.metric, of.match)

    if exact.method != "enumeration" or question(preimage) != question(exact):
        raise ValueError(
            f"Expected the enumerated preimage of the same question, got {exact!r} beside {preimage!r}; compute it "
            "with enumerate_preimage at the same site, position, epsilon, metric and match."
        )
