"""Shape distances: how far two clouds of points stay apart under the best rotation (Williams et al. 2021).

With centred X, Y and C = X'Y the best rotation is the polar factor of C, and what it reaches is C's nuclear norm
|C|_* (the sum of singular values). Different widths are made equal by zero columns, which changes neither.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._matrices import (
    basis,
    centred,
    centred_products,
    exact_is_cheap,
    nuclear_norm,
    widened,
)

# Below this part of |X|^2 + |Y|^2 the squared distance is a difference of nearly equal numbers: then it is computed
# from the aligned points instead. First for exact products, second for float32 ones.
_CLOSE, _CLOSE_FLOAT32 = 1e-4, 1e-2


def squared_procrustes(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, normalised: bool
) -> Float[Tensor, ""]:
    """Minimum over rotations Q of |XQ - Y|_F^2, centred, both sides scaled to norm 1 first where `normalised`."""
    exact = exact_is_cheap(x, y)
    if max(x.shape[1], y.shape[1]) > x.shape[0]:  # rotate into the span of the samples
        x, y, exact = _compact(x), _compact(y), True
    products = centred_products(x, y, exact=exact, grams=False)
    sizes = [squares.sum() for squares in (products.x_squares, products.y_squares)]
    reached = nuclear_norm(products.xy, exact=exact)
    if normalised:
        reached, sizes = reached / sizes[0].sqrt() / sizes[1].sqrt(), [torch.ones_like(reached)] * 2
    squared = sizes[0] + sizes[1] - 2 * reached
    if squared > (_CLOSE if exact else _CLOSE_FLOAT32) * (sizes[0] + sizes[1]):
        return squared
    return _aligned_difference(centred(x), centred(y), normalised)


@measure(minimum=2)
def procrustes(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Procrustes size-and-shape distance, min_Q |XQ - Y|_F = sqrt(|X|^2 + |Y|^2 - 2 |X'Y|_*) with X, Y centred.

    Q runs over rotations and reflections (Schoenemann 1966; Williams et al. 2021). A metric in [0, inf), in the units
    of the activations, up to rotation and a shift. Also the Bures distance between the Gram matrices XX' and YY'.
    """
    return squared_procrustes(x, y, normalised=False).sqrt()


@measure(minimum=2)
def procrustes_squared(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """The square of `procrustes`, which some packages call Procrustes: in [0, inf), no metric."""
    return squared_procrustes(x, y, normalised=False)


@measure(minimum=2)
def procrustes_normalised(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Procrustes distance after both sides are centred and scaled to |X|_F = |Y|_F = 1: sqrt(2 - 2 |X'Y|_*).

    A metric in [0, sqrt 2], up to rotation, one scale and a shift.
    """
    return squared_procrustes(x, y, normalised=True).sqrt()


@measure(minimum=2)
def procrustes_disparity(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """What is left of |Y|^2 = 1 when X may be rotated and scaled: 1 - |X'Y|_*^2 / (|X|^2 |Y|^2), centred.

    What `scipy.spatial.procrustes` returns, here for different widths too. In [0, 1]; no metric. Unchanged by rotation,
    one scale and a shift of either side.
    """
    return disparity(squared_procrustes(x, y, normalised=True))


@measure(minimum=2)
def shape_angular(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """The angular shape metric arccos(|X'Y|_* / (|X|_F |Y|_F)), centred, in radians (Williams et al. 2021, eq. 8).

    A metric in [0, pi/2], up to rotation, one scale and a shift.
    """
    return angle(squared_procrustes(x, y, normalised=True))


@measure(minimum=2)
def bures_similarity(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Normalised Bures similarity of K = XX' and L = YY', tr((K^1/2 L K^1/2)^1/2) / sqrt(tr K tr L), centred.

    The trace is |X'Y|_* (Tang et al. 2020; Harvey et al. 2024): the cosine of `shape_angular`. A similarity in [0, 1];
    no metric. Unchanged by rotation, one scale and a shift of either side. The Bures distance is `procrustes`.
    """
    return similarity(squared_procrustes(x, y, normalised=True))


@measure(minimum=3)
def shape_partial(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, alpha: float = 0.5
) -> Float[Tensor, ""]:
    """The angular shape metric after partial whitening: each centred X becomes X (alpha I + (1 - alpha) (X'X)^-1/2).

    (Williams et al. 2021, sec. 2.3.) alpha = 1 is `shape_angular`; alpha = 0 whitens fully and gives
    arccos(sum rho_i / sqrt(rank X rank Y)), rho the canonical correlations. The inverse is a pseudo-inverse: a
    direction without variance stays without. A metric in [0, pi/2] for each alpha, up to rotation and a shift (up to
    every invertible linear map for alpha = 0, one scale for alpha = 1; in between scale matters, since X is mixed with
    directions of norm 1).

    Args:
        x: [sample, d1].
        y: [sample, d2].
        alpha: how much of the original variances to keep, from 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"Expected 0 <= alpha <= 1, got {alpha}; 1 keeps the variances, 0 whitens them away.")
    mixed = [side.u * mixed_sizes(side.s, alpha) for side in (basis(x), basis(y))]
    return angle(squared_procrustes(mixed[0], mixed[1], normalised=True))


def mixed_sizes(values: Float[Tensor, " rank"], alpha: float) -> Float[Tensor, " rank"]:
    """Singular values after partial whitening, alpha s + (1 - alpha)."""
    return alpha * values + 1 - alpha


def similarity(squared: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The inner product of unit vectors at this squared distance."""
    return 1 - squared / 2


def disparity(squared: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1 - c^2, c the inner product of unit vectors at this squared distance."""
    return squared / 2 * (2 - squared / 2)


def angle(squared: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The angle between unit vectors at this squared distance, exact also near 0."""
    return (2 * torch.arcsin((squared.clamp(min=0) / 4).sqrt())).clamp(max=math.pi / 2)


def _compact(x: Tensor) -> Tensor:
    """Centred samples rotated into the n dimensions they span, float64."""
    x = centred(x)
    return torch.linalg.qr(x.T, mode="r").R.T if x.shape[1] > x.shape[0] else x


def _aligned_difference(x: Tensor, y: Tensor, normalised: bool) -> Tensor:
    """|XQ - Y|_F^2 from the aligned points themselves, float64."""
    if normalised:
        x, y = x / torch.linalg.matrix_norm(x), y / torch.linalg.matrix_norm(y)
    width = max(x.shape[1], y.shape[1])
    x, y = widened(x, width), widened(y, width)
    u, _, vh = torch.linalg.svd(x.T @ y)
    return (x @ (u @ vh) - y).square().sum()
