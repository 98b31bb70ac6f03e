"""Measures as functions of the sums over samples: exact over any amount of data, without keeping a sample.

Each is the formula of the measure of that name on tensors, with its options, and with what the formula needs
(`PairSums`) taken from sums; `formula` makes those that need one attribute of it alone. Those of spans (correlations,
prediction) rest on axes of columns scaled to norm 1; those that depend on variance stay in the layers' own units.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity.measures._matching import assignment, mean_costs, pair_costs
from tl_backward.dissimilarity.measures._matrices import components
from tl_backward.dissimilarity.measures._shape import angle, mixed_sizes
from tl_backward.dissimilarity.measures._spans import mean_correlation, projection_weighted, ridge_shares
from tl_backward.dissimilarity.measures.moments import LayerSums, PairSums

SVCCA_VARIANCE = 0.99
GULP_RIDGE = 1e-2
PARTIAL = 0.5


def formula(function: Callable[..., Float[Tensor, ""]], what: str) -> Callable[[PairSums], float]:
    """The measure function(pair.what): of an attribute of `PairSums` that the measure on tensors computes from them."""

    def measure(pair: PairSums) -> float:
        return float(function(getattr(pair, what)))

    return measure


def cka_angular(pair: PairSums) -> float:
    """Arccos of biased CKA, in radians: a metric (Williams et al. 2021)."""
    return math.acos(min(1.0, max(-1.0, float(pair.alignment.biased()))))


def procrustes(pair: PairSums) -> float:
    """Min over rotations Q of |X - YQ|_F = sqrt(|X|^2 + |Y|^2 - 2 |X'Y|_*), centred; a metric."""
    return math.sqrt(procrustes_squared(pair))


def procrustes_squared(pair: PairSums) -> float:
    """|X|^2 + |Y|^2 - 2 |X'Y|_*, centred."""
    return max(0.0, pair.a.spread() + pair.b.spread() - 2 * float(pair.nuclear))


def shape_partial(pair: PairSums) -> float:
    """The angular shape metric after partial whitening, X (alpha I + (1 - alpha) (X'X)^-1/2), alpha = 0.5."""
    (turn_a, a), (turn_b, b) = pair.a.axes.principal, pair.b.axes.principal
    a, b = mixed_sizes(a, PARTIAL), mixed_sizes(b, PARTIAL)
    reached = torch.linalg.svdvals(a[:, None] * (turn_a.T @ pair.core @ turn_b) * b).sum()
    return float(angle((2 - 2 * reached / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))).clamp(min=0)))


def cca(pair: PairSums, mean: Literal["rho", "rho2", "yanai"] = "rho") -> float:
    """Mean canonical correlation, or squared one ("rho2"), over min(rank X, rank Y) directions.

    "yanai": the sum of squared ones over sqrt(rank X rank Y), the cosine between the projections.
    """
    return float(mean_correlation(pair.correlations, pair.a.axes.rank, pair.b.axes.rank, mean))


def svcca(pair: PairSums) -> float:
    """Mean canonical correlation of the principal components that hold 99 % of each variance (Raghu et al. 2017)."""
    left, right = _leading(pair.a), _leading(pair.b)
    return float(torch.linalg.svdvals(left.T @ pair.scatter() @ right).clamp(max=1).mean())


def pwcca(pair: PairSums, weights: Literal["x", "y"] = "x") -> float:
    """sum_i a_i rho_i / sum_i a_i, a_i = sum_j |<h_i, x_j>| with h_i the i-th canonical variate (Morcos et al. 2018).

    With h = Q t in orthonormal axes Q of X, <h_i, x_j> = (t_i' Q'X)_j: the weights, too, follow from the sums. Not
    symmetric: the side of the weights projects.
    """
    turn_a, rho, turn_b = pair.canonical
    turn, layer = (turn_a, pair.a) if weights == "x" else (turn_b.T, pair.b)
    return float(projection_weighted(turn, rho, layer.axes.factor))


def linear_regression(pair: PairSums, direction: Literal["x_to_y", "y_to_x"] = "x_to_y") -> float:
    """Share of y's variance that least squares predicts from x, or the other way round, in sample."""
    if direction == "x_to_y":
        projected, target = pair.a.axes.whitener.T @ pair.scatter(), pair.b
    else:
        projected, target = pair.scatter() @ pair.b.axes.whitener, pair.a
    return min(1.0, float(torch.linalg.vector_norm(projected).square()) / target.spread())


def gulp(pair: PairSums) -> float:
    """GULP distance (Boix-Adsera et al. 2022), the root: how far ridge predictions from x and from y can differ.

    With covariances of unit trace, and ridge 0.01 added to them.
    """
    return math.sqrt(gulp_squared(pair))


def gulp_squared(pair: PairSums, regularization: float = GULP_RIDGE) -> float:
    """The square of `gulp`, as the paper's estimator returns it; without a ridge rank X + rank Y - 2 sum rho_i^2."""
    if not regularization:
        return max(0.0, sum(pair.core.shape) - 2 * float(torch.linalg.vector_norm(pair.core).square()))
    halves, own = [], 0.0
    for layer in (pair.a, pair.b):
        values, vectors = layer.spectrum
        halves.append(vectors / (values + regularization * values.sum()).sqrt())
        own += float(ridge_shares(values, regularization).square().sum())
    both = halves[0].T @ pair.scatter() @ halves[1]
    return max(0.0, own - 2 * float(torch.linalg.vector_norm(both).square()))


def eigenspace_overlap(pair: PairSums) -> float:
    """|U'V|_F^2 / max(d1, d2), U and V the column spaces of X and Y, not centred (May et al. 2019)."""
    (left, _), (right, _) = pair.a.uncentred_axes, pair.b.uncentred_axes
    both = torch.block_diag(
        pair.a.all_axes.whitener.T @ pair.scatter() @ pair.b.all_axes.whitener, torch.ones(1, 1).to(left)
    )
    return min(1.0, float(torch.linalg.vector_norm(left.T @ both @ right).square()) / max(pair.cross.shape))


def permutation_procrustes(pair: PairSums, center: bool = True) -> float:
    """Min over permutations P of |XP - Y|_F, the narrower side widened by zero neurons; a metric."""
    costs = pair_costs(pair.scatter(), pair.a.spreads, pair.b.spreads)
    if not center:
        costs = costs + pair.n * mean_costs(pair.a.mean(), pair.b.mean())
    return float(costs[assignment(-costs)].sum().sqrt())


def biased_null(pair: PairSums) -> float:
    """Mean of `cka_biased` over all pairings of the samples: tr(K) tr(L) / ((n-1) |K| |L|)."""
    scale = float(pair.a.gram_square.sqrt() * pair.b.gram_square.sqrt())
    return pair.a.spread() * pair.b.spread() / (pair.n - 1) / scale


def debiased_null(pair: PairSums) -> float:
    """Mean of `cka_debiased` over all pairings of the samples: 0."""
    return 0.0


def cca_null(pair: PairSums, mean: Literal["rho2", "yanai"] = "rho2") -> float:
    """Mean of `cca` of squared correlations over all pairings of the samples: max(rank X, rank Y) / (n-1).

    From the mean trace of two projections' product. "yanai": sqrt(rank X rank Y) / (n-1).
    """
    ranks = pair.core.shape
    return (max(ranks) if mean == "rho2" else math.sqrt(math.prod(ranks))) / (pair.n - 1)


def regression_null(pair: PairSums, direction: Literal["x_to_y", "y_to_x"] = "x_to_y") -> float:
    """Mean of `linear_regression` over all pairings of the samples: the predictors' rank / (n-1)."""
    return (pair.a if direction == "x_to_y" else pair.b).axes.rank / (pair.n - 1)


def _leading(layer: LayerSums) -> Float[Tensor, "d leading"]:
    """W that takes the samples to unit norm along the principal components that hold 99 % of the variance."""
    values, vectors = layer.spectrum
    n = components(values, SVCCA_VARIANCE)
    return vectors[:, :n] / values[:n].sqrt()
