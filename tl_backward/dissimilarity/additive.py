"""Measures that are functions of the sums over samples: exact over any amount of data, without keeping a sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity.moments import LayerSums, PairSums

SVCCA_VARIANCE = 0.99
GULP_RIDGE = 1e-2


@dataclass(frozen=True)
class AdditiveMeasure:
    """A measure of two layers that needs their sums alone."""

    name: str
    function: Callable[[PairSums], float]
    what: str
    """In words, with its source."""
    range: str
    null: Callable[[PairSums], float] | None = None
    """Its mean over all pairings of the samples, in closed form; None where none is known."""
    oracle: str = ""
    """The key of the reference that it reproduces; "" without one."""
    any_basis: bool = True
    """Whether it is the same in every orthonormal basis of each layer (and for layers of any width around them)."""
    double: bool = True
    """Whether the sums need float64 products: it inverts a covariance, or is the small difference of large numbers."""

    def __call__(self, pair: PairSums) -> float:
        """The measure of one pair."""
        return self.function(pair)


def cka_debiased(pair: PairSums) -> float:
    """HSIC_1(x, y) / sqrt(HSIC_1(x, x) HSIC_1(y, y)); zero on average where nothing corresponds."""
    return _ratio(pair.hsic(), pair.a.own_hsic, pair.b.own_hsic)


def cka_biased(pair: PairSums) -> float:
    """|X'Y|_F^2 / (|X'X|_F |Y'Y|_F), centred (Kornblith et al. 2019): grows with d / n where nothing corresponds."""
    norms = (float(torch.linalg.vector_norm(part.scatter()).square()) for part in (pair, pair.a, pair.b))
    return _ratio(*norms)


def cka_angular(pair: PairSums) -> float:
    """Arccos of biased CKA, in radians: a metric (Williams et al. 2021)."""
    return math.acos(min(1.0, max(-1.0, cka_biased(pair))))


def procrustes(pair: PairSums) -> float:
    """Min over rotations Q of |X - YQ|_F = sqrt(|X|^2 + |Y|^2 - 2 |X'Y|_*), centred; a metric."""
    return math.sqrt(max(0.0, pair.a.spread() + pair.b.spread() - 2 * _nuclear(pair)))


def procrustes_normalised(pair: PairSums) -> float:
    """Procrustes distance of X / |X| and Y / |Y|: sqrt(2 - 2 |X'Y|_* / (|X| |Y|)); a metric."""
    return math.sqrt(max(0.0, 2 - 2 * bures_similarity(pair)))


def shape_angular(pair: PairSums) -> float:
    """arccos(|X'Y|_* / (|X| |Y|)), in radians: the angular shape metric of Williams et al. 2021."""
    return math.acos(bures_similarity(pair))


def procrustes_squared(pair: PairSums) -> float:
    """|X|^2 + |Y|^2 - 2 |X'Y|_*, centred."""
    return procrustes(pair) ** 2


def procrustes_disparity(pair: PairSums) -> float:
    """1 - (|X'Y|_* / (|X| |Y|))^2: what is left of unit-norm Y after the best rotation and scale of X."""
    return 1 - bures_similarity(pair) ** 2


def bures_similarity(pair: PairSums) -> float:
    """|X'Y|_* / (|X| |Y|), the normalised Bures similarity of the Gram matrices."""
    return min(1.0, _nuclear(pair) / math.sqrt(pair.a.spread() * pair.b.spread()))


def cca(pair: PairSums) -> float:
    """Mean canonical correlation over min(rank X, rank Y) directions."""
    rho = _correlations(pair)
    return float(rho.mean())


def cca_squared(pair: PairSums) -> float:
    """Mean squared canonical correlation over min(rank X, rank Y) directions."""
    return float(_correlations(pair).square().mean())


def svcca(pair: PairSums) -> float:
    """Mean canonical correlation of the principal components that hold 99 % of each variance (Raghu et al. 2017)."""
    return float(_correlations(pair, SVCCA_VARIANCE).mean())


def pwcca(pair: PairSums) -> float:
    """sum_i a_i rho_i / sum_i a_i, a_i = sum_j |<h_i, x_j>| with h_i the i-th canonical variate (Morcos et al. 2018).

    <h_i, x_j> = (w_i' X'X)_j: the weights, too, follow from the sums. Not symmetric: x's side projects.
    """
    u, rho, _ = _canonical(pair)
    return _projected(pair.a, u, rho)


def pwcca_y(pair: PairSums) -> float:
    """PWCCA with the weights from y's side."""
    _, rho, v = _canonical(pair)
    return _projected(pair.b, v, rho)


def linear_regression(pair: PairSums) -> float:
    """Share of y's variance that least squares predicts from x, in sample."""
    whitener = _whitener(pair.a)
    return min(1.0, float(torch.linalg.vector_norm(whitener.T @ pair.scatter()).square()) / pair.b.spread())


def linear_regression_y_to_x(pair: PairSums) -> float:
    """Share of x's variance that least squares predicts from y, in sample."""
    whitener = _whitener(pair.b)
    return min(1.0, float(torch.linalg.vector_norm(pair.scatter() @ whitener).square()) / pair.a.spread())


def gulp(pair: PairSums) -> float:
    """GULP distance (Boix-Adsera et al. 2022), the root: how far ridge predictions from x and from y can differ.

    With C = X'X / |X|^2, i.e. covariances of unit trace, and ridge 0.01 added to their inverses.
    """
    products, scales = [], [layer.spread() for layer in (pair.a, pair.b)]
    for layer, scale in zip((pair.a, pair.b), scales, strict=True):
        covariance = layer.scatter() / scale
        inverse = torch.linalg.inv(covariance + GULP_RIDGE * torch.eye(len(covariance)).to(covariance))
        products.append((inverse @ covariance, inverse))
    (own_a, left), (own_b, right) = products
    cross = pair.scatter() / math.sqrt(scales[0] * scales[1])
    own = float((own_a * own_a.T).sum() + (own_b * own_b.T).sum())
    return math.sqrt(max(0.0, own - 2 * float((left @ cross @ right * cross).sum())))


def gulp_squared(pair: PairSums) -> float:
    """The square of `gulp`, as the paper's estimator returns it."""
    return gulp(pair) ** 2


def eigenspace_overlap(pair: PairSums) -> float:
    """|U'V|_F^2 / max(d1, d2), U and V the column spaces of X and Y, not centred (May et al. 2019)."""
    left, right = (_whitened(*layer.uncentred_spectrum()) for layer in (pair.a, pair.b))
    overlap = left.T @ pair.uncentred() @ right
    return float(torch.linalg.vector_norm(overlap).square()) / max(pair.cross.shape)


def _biased_null(pair: PairSums) -> float:
    """tr(K) tr(L) / ((n-1) |K| |L|), the mean over all pairings."""
    norms = [float(torch.linalg.vector_norm(part.scatter())) for part in (pair.a, pair.b)]
    return pair.a.spread() * pair.b.spread() / (pair.n - 1) / (norms[0] * norms[1])


def _squared_null(pair: PairSums) -> float:
    """max(rank X, rank Y) / (n-1): the trace of two projections' product over all pairings."""
    return max(_rank(pair.a), _rank(pair.b)) / (pair.n - 1)


def _measures() -> list[AdditiveMeasure]:
    unit, half, positive, signed = "[0, 1]", "[0, pi/2]", "[0, inf)", "[-1, 1]"
    return [
        AdditiveMeasure(
            "cka_debiased", cka_debiased, "linear CKA with the unbiased HSIC (Song et al. 2012)", signed,
            lambda pair: 0.0, "cka_linear_song", double=False,
        ),
        AdditiveMeasure(
            "cka_biased", cka_biased, "linear CKA, biased (Kornblith et al. 2019)", unit, _biased_null,
            "cka_linear_biased", double=False,
        ),
        AdditiveMeasure(
            "cka_angular", cka_angular, "arccos of biased linear CKA", half, None, "cka_linear_biased_angular"
        ),
        AdditiveMeasure("cca", cca, "mean canonical correlation", unit, None, "cca_mean"),
        AdditiveMeasure(
            "cca_squared", cca_squared, "mean squared canonical correlation", unit, _squared_null,
            "cca_mean_sq(pillai/k)",
        ),
        AdditiveMeasure("svcca", svcca, "CCA of the components of 99 % of the variance", unit, None, "svcca_0.99_mean"),
        AdditiveMeasure("pwcca", pwcca, "projection-weighted CCA, from A", unit, None, "pwcca_X", any_basis=False),
        AdditiveMeasure("pwcca_y", pwcca_y, "projection-weighted CCA, from B", unit, None, "pwcca_Y", any_basis=False),
        AdditiveMeasure("procrustes", procrustes, "Procrustes distance, centred", positive, None, "procrustes_centred"),
        AdditiveMeasure(
            "procrustes_normalised", procrustes_normalised, "Procrustes distance of unit-norm layers", "[0, sqrt 2]",
            None, "procrustes_centred_normalised",
        ),
        AdditiveMeasure(
            "procrustes_squared", procrustes_squared, "squared Procrustes distance, centred", positive, None,
            "procrustes_squared_centred",
        ),
        AdditiveMeasure(
            "procrustes_disparity", procrustes_disparity, "Procrustes disparity", unit, None,
            "procrustes_disparity(1-nbs^2)",
        ),
        AdditiveMeasure(
            "bures_similarity", bures_similarity, "normalised Bures similarity", unit, None, "nbs(nuclear/fro fro)"
        ),
        AdditiveMeasure("shape_angular", shape_angular, "angular shape metric", half, None, "shape_angular"),
        AdditiveMeasure(
            "linear_regression", linear_regression, "share of B's variance predicted linearly from A", unit,
            lambda pair: _rank(pair.a) / (pair.n - 1), "r2_X_to_Y",
        ),
        AdditiveMeasure(
            "linear_regression_y_to_x", linear_regression_y_to_x, "share of A's variance predicted linearly from B",
            unit, lambda pair: _rank(pair.b) / (pair.n - 1), "r2_Y_to_X",
        ),
        AdditiveMeasure("gulp", gulp, "GULP distance at ridge 0.01", positive, None),
        AdditiveMeasure(
            "gulp_squared", gulp_squared, "squared GULP distance at ridge 0.01", positive, None, "gulp^2_1e-2"
        ),
        AdditiveMeasure(
            "eigenspace_overlap", eigenspace_overlap, "overlap of column spaces, not centred", unit, None,
            "eigenspace_overlap", any_basis=False,
        ),
    ]  # fmt: skip


ADDITIVE = MappingProxyType({measure.name: measure for measure in _measures()})
"""Measures by name; `compare` streams these and takes all others on a bounded sample."""


def _ratio(both: float, one: float, other: float) -> float:
    return both / math.sqrt(one * other) if one > 0 and other > 0 else 0.0


def _nuclear(pair: PairSums) -> float:
    return float(torch.linalg.svdvals(pair.scatter()).sum())


def _rank(layer: LayerSums) -> int:
    return len(layer.spectrum[0])


def _whitener(layer: LayerSums, variance: float = 1.0) -> Float[Tensor, "d rank"]:
    """W with W'SW = 1: onto the fewest principal components that hold `variance` of the trace (1: all there are)."""
    values, vectors = layer.spectrum
    if variance < 1:
        share = values.cumsum(0) / values.sum()
        kept = int((share < variance).sum()) + 1
        values, vectors = values[:kept], vectors[:, :kept]
    return _whitened(values, vectors)


def _whitened(values: Tensor, vectors: Tensor) -> Tensor:
    return vectors / values.sqrt()


def _canonical(pair: PairSums) -> tuple[Tensor, Tensor, Tensor]:
    """Directions of x's canonical variates, correlations, directions of y's."""
    left, right = _whitener(pair.a), _whitener(pair.b)
    u, rho, vh = torch.linalg.svd(left.T @ pair.scatter() @ right, full_matrices=False)
    return left @ u, rho.clamp(max=1), right @ vh.T


def _projected(layer: LayerSums, directions: Tensor, rho: Tensor) -> float:
    weights = (layer.scatter() @ directions).abs().sum(0)
    return float((weights * rho).sum() / weights.sum())


def _correlations(pair: PairSums, variance: float = 1.0) -> Tensor:
    """Canonical correlations, min(rank X, rank Y) of them."""
    left, right = _whitener(pair.a, variance), _whitener(pair.b, variance)
    return torch.linalg.svdvals(left.T @ pair.scatter() @ right).clamp(max=1)
