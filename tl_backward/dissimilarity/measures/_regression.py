"""What linear predictors on one representation can say about the other, or about any target."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_choice
from tl_backward.dissimilarity.measures._cca import warn_if_saturated
from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._products import centred
from tl_backward.dissimilarity.measures._spectral import basis, gram_distance, principal

# Below this part of the largest value it can have, a squared difference is computed from the difference itself.
_CLOSE = 1e-4


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
