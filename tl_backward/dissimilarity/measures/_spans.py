"""What two sets of neurons span: canonical correlations (CCA, SVCCA, PWCCA), linear prediction, GULP, overlap.

With centred X = Ux Sx Vx' and Y = Uy Sy Vy' cut to their numerical ranks, the canonical correlations rho are the
singular values of Ux' Uy: the cosines of the angles between the two spans.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_choice
from tl_backward._support.warnings import warn_user
from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._matrices import (
    Basis,
    basis,
    centred,
    centred_products,
    components,
    descending,
    exact_is_cheap,
    gram_distance,
    principal,
    upper_gram,
)

# Correlations that differ by less are tied: what separates their variates is rounding.
_TIED = 1e-8
# Where the smallest variance kept is this small a part of the largest, float32 products no longer resolve it.
_RESOLVED = 1e-6
# Below this part of the largest value it can have, a squared difference is computed from the difference itself.
_CLOSE = 1e-4


def warn_if_saturated(a: Basis, b: Basis, n: int, what: str = "every canonical correlation") -> None:
    """Warn where the number is a matter of counting dimensions, not of the representations."""
    rank = max(a.rank, b.rank)
    if rank >= n - 1:
        warn_user(
            f"Expected more samples than dimensions, got {n} samples that span rank {rank}: {what} is 1 whatever the "
            "representations; use many more samples, or a measure without whitening (cka_biased, procrustes)."
        )


@measure(minimum=3)
def cca(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, mean: Literal["rho", "rho2", "yanai"] = "rho"
) -> Float[Tensor, ""]:
    """Mean canonical correlation: sum_i rho_i / k with k = min(rank X, rank Y) (Raghu et al. 2017).

    A similarity in [0, 1]; no metric. Unchanged by any invertible linear map and a shift of either side. Identically 1
    once either side spans all n - 1 dimensions of n centred samples.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        mean: "rho"; "rho2" for sum rho_i^2 / k (Pillai's trace over k); "yanai" for
            sum rho_i^2 / sqrt(rank X rank Y), the cosine between the two projections.

    Warns:
        UserWarning: either side spans n - 1 dimensions, which makes the value 1 whatever the representations.
    """
    check_choice("mean", mean, ("rho", "rho2", "yanai"))
    a, b = basis(x), basis(y)
    warn_if_saturated(a, b, x.shape[0])
    return mean_correlation(torch.linalg.svdvals(a.u.T @ b.u).clamp(max=1), a.rank, b.rank, mean)


@measure(minimum=3)
def svcca(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, variance: float = 0.99) -> Float[Tensor, ""]:
    """Singular vector CCA: the mean canonical correlation of leading principal components (Raghu et al. 2017).

    Each side keeps its fewest leading components with at least `variance` of its total variance (kx and ky of them);
    the value is sum rho_i / min(kx, ky). A similarity in [0, 1]; no metric. Unchanged by rotation, one scale and a
    shift of either side.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        variance: the part of the total variance to keep, in (0, 1].

    Warns:
        UserWarning: a side keeps n - 1 components, which makes the value 1 whatever the representations.
    """
    if not 0 < variance <= 1:
        raise ValueError(f"Expected 0 < variance <= 1, got {variance}; 0.99 is the usual choice.")
    if not exact_is_cheap(x, y) and x.shape[0] > max(x.shape[1], y.shape[1]):
        fast = _svcca_from_products(x, y, variance)
        if fast is not None:
            return fast
    a, b = (principal(side).leading(variance) for side in (x, y))
    warn_if_saturated(a, b, x.shape[0])
    return torch.linalg.svdvals(a.u.T @ b.u).clamp(max=1).mean()


@measure(minimum=3)
def pwcca(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, weights: Literal["x", "y"] = "x"
) -> Float[Tensor, ""]:
    """Projection-weighted CCA: sum_i a_i rho_i / sum_i a_i with a_i = sum_j |<h_i, x_j>| (Morcos et al. 2018, eq. 2).

    h_i is X's i-th canonical variate (unit norm), x_j its j-th centred neuron: directions count by how much of X they
    carry. A similarity in [0, 1]; neither symmetric nor a metric. Unchanged by any invertible linear map of the other
    side, by one scale of this side, and by shifts.

    Undefined where canonical correlations tie but not all of them: the variates of tied ones are any turn of each
    other, and sum_j |<h_i, x_j>| is not the same for all turns. One of the values is returned, with a warning. Where
    d1 + d2 > n - 1 that is always so, for d1 + d2 - (n - 1) correlations are then 1.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        weights: the side whose neurons weigh the correlations.

    Warns:
        UserWarning: correlations tie; or either side spans n - 1 dimensions, which makes the value 1 whatever the
            representations.
    """
    check_choice("weights", weights, ("x", "y"))
    own, other = (basis(side) for side in ((x, y) if weights == "x" else (y, x)))
    warn_if_saturated(own, other, x.shape[0])
    turn, rho, _ = torch.linalg.svd(own.u.T @ other.u, full_matrices=False)
    return projection_weighted(turn, rho.clamp(max=1), own.s[:, None] * own.vh)


def mean_correlation(
    rho: Float[Tensor, " least_rank"], rank_a: int, rank_b: int, mean: Literal["rho", "rho2", "yanai"]
) -> Float[Tensor, ""]:
    """The mean of canonical correlations in each of the three ways."""
    if mean == "rho":
        return rho.mean()
    return rho.square().mean() if mean == "rho2" else rho.square().sum() / (rank_a * rank_b) ** 0.5


def projection_weighted(
    turn: Float[Tensor, "rank k"], rho: Float[Tensor, " k"], factor: Float[Tensor, "rank d"]
) -> Float[Tensor, ""]:
    """sum_i a_i rho_i / sum_i a_i, a_i = sum_j |<h_i, x_j>| with h = Q turn and Q'X = `factor`."""
    weight = (turn.T @ factor).abs().sum(1)
    _warn_of_ties(rho, weight)
    return (weight * rho).sum() / weight.sum()


def _warn_of_ties(rho: Tensor, weight: Tensor) -> None:
    """Warn where tied correlations leave the choice of their variates, and so their weights, to rounding."""
    tied = (rho[:-1] - rho[1:] <= _TIED) & (weight[:-1] + weight[1:] > 0)
    if tied.any() and rho[0] - rho[-1] > _TIED:
        after = tied & torch.cat([tied.new_zeros(1), tied[:-1]])
        where = float(rho[:-1][tied & ~after][0])
        warn_user(
            f"Expected canonical correlations that differ, got {int(tied.sum()) + int((tied & ~after).sum())} of "
            f"{len(rho)} in ties (such as {where:.6g}): any turn of tied variates is as good, and PWCCA differs "
            "between them, so that this value is one of many; use cca, or more samples if the correlations are 1."
        )


def _svcca_from_products(x: Tensor, y: Tensor, variance: float) -> Tensor | None:
    """SVCCA from X'X, Y'Y and X'Y; None where float32 products do not resolve the smallest component kept."""
    products = centred_products(x, y, exact=False)
    whiten = []
    for own in products.grams:
        variances, axes = descending(own)
        variances = variances.clamp(min=0)
        keep = components(variances, variance)
        if variances[keep - 1] < _RESOLVED * variances[0] or keep >= x.shape[0] - 1:
            return None
        whiten.append(axes[:, :keep] / variances[:keep].sqrt())
    cross = whiten[0].T @ products.xy @ whiten[1]
    narrow = cross if cross.shape[0] >= cross.shape[1] else cross.T
    return torch.linalg.eigvalsh(upper_gram(narrow), UPLO="U").clamp(0, 1).sqrt().mean()


@measure(minimum=3)
def linear_regression(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, direction: Literal["x_to_y", "y_to_x"] = "x_to_y"
) -> Float[Tensor, ""]:
    """In-sample R^2 of least squares with an intercept: |Ux' Y|_F^2 / |Y|_F^2, Ux an orthonormal basis of centred X.

    The part of Y's variance, over all neurons together, that a linear map of X explains (Kornblith et al. 2019,
    table 1; "y_to_x" is the variance of X that Y explains). A similarity in [0, 1]; neither symmetric nor a metric.
    Unchanged by any invertible linear map of the predictors, by rotation and one scale of what is predicted, and by
    shifts. Not cross-validated: about d1 / n for unrelated samples.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        direction: which side predicts which.

    Warns:
        UserWarning: the predictors span n - 1 dimensions, which makes R^2 1 whatever the representations.
    """
    check_choice("direction", direction, ("x_to_y", "y_to_x"))
    source, target = (x, y) if direction == "x_to_y" else (y, x)
    predictors, target = basis(source), centred(target)
    warn_if_saturated(predictors, predictors, x.shape[0], "the R^2 of a linear fit")
    return (torch.linalg.matrix_norm(predictors.u.T @ target) / torch.linalg.matrix_norm(target)).square().clamp(max=1)


@measure(minimum=3)
def gulp(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, regularization: float = 1e-2
) -> Float[Tensor, ""]:
    """GULP distance: how far ridge predictors on X and on Y can differ, over all targets (Boix-Adsera et al. 2022).

    With both sides centred and scaled to tr(X'X / n) = 1, and Hx = X (X'X / n + lambda I)^-1 X' / n the ridge hat
    matrix, the distance is |Hx - Hy|_F. A metric for each lambda, in [0, sqrt(rank X + rank Y)), up to rotation, one
    scale and a shift (for lambda = 0 up to every invertible linear map, where X'X's inverse is a pseudo-inverse).

    Args:
        x: [sample, d1].
        y: [sample, d2].
        regularization: lambda >= 0, in units of the total variance.
    """
    return _gulp(x, y, regularization)


@measure(minimum=3)
def gulp_squared(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, regularization: float = 1e-2
) -> Float[Tensor, ""]:
    """The square of `gulp`, as the paper's estimator and most packages return it: no metric itself.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        regularization: lambda >= 0, in units of the total variance.
    """
    return _gulp(x, y, regularization).square()


@measure(minimum=2)
def eigenspace_overlap(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Eigenspace overlap score |Ux' Uy|_F^2 / max(d1, d2), Ux an orthonormal basis of X's columns (May et al. 2019).

    Not centred, as in the paper: the mean is one of the directions. A similarity in [0, 1], 1 only where both sides
    span the same max(d1, d2) dimensions, so at most n / max(d1, d2); no metric. Unchanged by any invertible linear map
    of either side.
    """
    a, b = basis(x, center=False), basis(y, center=False)
    return torch.linalg.matrix_norm(a.u.T @ b.u).square().div(max(x.shape[1], y.shape[1])).clamp(max=1)


def _gulp(x: Tensor, y: Tensor, regularization: float) -> Tensor:
    if not regularization >= 0:
        raise ValueError(f"Expected regularization >= 0, got {regularization}; 0 compares unregularised predictors.")
    halves, own = [], torch.zeros((), dtype=torch.float64, device=x.device)
    for side in (principal(x), principal(y)) if regularization else (basis(x), basis(y)):
        shares = ridge_shares(side.s.square(), regularization)
        halves.append(side.u * shares.sqrt())  # Hx = half half'
        own += shares.square().sum()
    a, b = halves
    squared = own - 2 * torch.linalg.matrix_norm(a.T @ b).square()
    return squared.sqrt() if squared > _CLOSE * own else gram_distance(a, b)


def ridge_shares(variances: Float[Tensor, " rank"], regularization: float) -> Float[Tensor, " rank"]:
    """Eigenvalues of the ridge hat matrix, v / (v + lambda), the variances v scaled to sum to 1."""
    variances = variances / variances.sum()
    return variances / (variances + regularization)
