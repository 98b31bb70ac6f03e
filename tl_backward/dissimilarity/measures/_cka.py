"""Centred kernel alignment with the linear kernel: biased, debiased, hollow, angular.

With centred X, Y and Gram matrices K = XX', L = YY', everything follows from three inner products and two diagonals:
<K, L> is |X'Y|_F^2, and K's row sums vanish, so the debiased forms need no n x n matrix either.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._matrices import (
    centred,
    centred_products,
    exact_is_cheap,
    gram_distance,
    in_range,
)
from tl_backward.dissimilarity.measures._pairs import normalised

# Below this 1 - CKA the angle is computed from the matrices' difference: arccos loses half the digits near 1.
_NEAR_ONE = 1e-3


@dataclass(frozen=True, eq=False)
class Alignment:
    """Inner products of the Gram matrices K and L of centred samples, from which all linear CKA follows; float64.

    Only their ratios are used, so each side may be in a unit of its own.
    """

    n: int
    """Samples."""
    kl: Float[Tensor, ""]
    """<K, L> = |X'Y|_F^2."""
    kk: Float[Tensor, ""]
    """<K, K>."""
    ll: Float[Tensor, ""]
    """<L, L>."""
    diagonals: Float[Tensor, ""]
    """sum_i K_ii L_ii = sum_i |x_i|^2 |y_i|^2."""
    diagonals_k: Float[Tensor, ""]
    """sum_i K_ii^2."""
    diagonals_l: Float[Tensor, ""]
    """sum_i L_ii^2."""
    trace_k: Float[Tensor, ""]
    trace_l: Float[Tensor, ""]

    def biased(self) -> Float[Tensor, ""]:
        """<K, L> / (|K| |L|)."""
        return (self.kl / (self.kk.sqrt() * self.ll.sqrt())).clamp(max=1)

    def hollow(self) -> Float[Tensor, ""]:
        """<K0, L0> / (|K0| |L0|), K0 and L0 being K and L with their diagonals set to 0."""
        own = self.kk - self.diagonals_k, self.ll - self.diagonals_l
        return normalised(self.kl - self.diagonals, *own, self.kk, self.ll)

    def debiased(self) -> Float[Tensor, ""]:
        """The ratio of U-statistics: HSIC1(K, L) / sqrt(HSIC1(K, K) HSIC1(L, L))."""
        inner = hsic1(self.n, self.kl, self.diagonals, self.trace_k, self.trace_l)
        own_k = hsic1(self.n, self.kk, self.diagonals_k, self.trace_k, self.trace_k)
        own_l = hsic1(self.n, self.ll, self.diagonals_l, self.trace_l, self.trace_l)
        return normalised(inner, own_k, own_l, self.kk, self.ll)


def hsic1(
    n: int,
    inner: Float[Tensor, ""],
    diagonals: Float[Tensor, ""],
    trace_k: Float[Tensor, ""],
    trace_l: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """HSIC1 of Song et al. 2012, eq. 5, times n (n - 3): with diagonals 0 the row sums are minus the diagonals."""
    return inner - diagonals + trace_k * trace_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonals


def alignment(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Alignment:
    """The inner products behind CKA, through features (n d^2), or through samples (n^2 d) where n < d."""
    x, y = in_range(x), in_range(y)
    if x.shape[0] < max(x.shape[1], y.shape[1]):
        x, y = centred(x), centred(y)
        gram_x, gram_y = x @ x.T, y @ y.T
        inner = [(gram_x * gram_y).sum(), (gram_x * gram_x).sum(), (gram_y * gram_y).sum()]
        k, q = gram_x.diagonal(), gram_y.diagonal()
    else:
        products = centred_products(x, y, exact=exact_is_cheap(x, y))
        inner = [torch.linalg.matrix_norm(matrix).square() for matrix in (products.xy, *products.grams)]
        k, q = products.x_squares, products.y_squares
    return Alignment(x.shape[0], inner[0], inner[1], inner[2], k @ q, k @ k, q @ q, k.sum(), q.sum())


@measure(minimum=3)
def cka_biased(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Linear centred kernel alignment, |X'Y|_F^2 / (|X'X|_F |Y'Y|_F) with X, Y centred (Kornblith et al. 2019, eq. 4).

    A similarity in [0, 1]; no metric (its arccos is: `cka_angular`). Unchanged by rotation, one scale and a shift of
    either side. Biased upwards: unrelated samples give about tr(K) tr(L) / ((n - 1) |K| |L|), not 0:
    `cka_debiased`.
    """
    return alignment(x, y).biased()


@measure(minimum=4)
def cka_debiased(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Debiased linear CKA, HSIC1(K, L) / sqrt(HSIC1(K, K) HSIC1(L, L)) (Song et al. 2012, eq. 5).

    HSIC1(K, L) n (n - 3) = <K0, L0> + (1'K0 1)(1'L0 1) / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K0 L0 1, where K0, L0 have
    their diagonals set to 0. Every term is a sum over samples, so the cost is that of `cka_biased`. A similarity in
    [-1, 1], 0 on average for unrelated samples; no metric. Unchanged by rotation, one scale and a shift of either side.
    """
    return alignment(x, y).debiased()


@measure(minimum=4)
def cka_hollow(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Linear CKA without the diagonals: <K0, L0> / (|K0| |L0|), K0 the centred K with its diagonal set to 0.

    (Lange et al. 2022.) What some packages call unbiased; it is not, though close to `cka_debiased`. A similarity in
    [-1, 1]; its arccos is a metric. Unchanged by rotation, one scale and a shift of either side.
    """
    return alignment(x, y).hollow()


@measure(minimum=3)
def cka_angular(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """The angle arccos(CKA) between centred Gram matrices, in radians (Williams et al. 2021).

    A metric in [0, pi/2], up to rotation, one scale and a shift, which leave it unchanged. Close to 0 it is computed
    as 2 arcsin(|K / |K| - L / |L|| / 2), which keeps the digits that arccos loses.
    """
    value = alignment(x, y).biased()
    if value < 1 - _NEAR_ONE:
        return torch.arccos(value)
    x, y = centred(in_range(x)), centred(in_range(y))
    return 2 * torch.arcsin(gram_distance(x / _gram_norm(x).sqrt(), y / _gram_norm(y).sqrt()) / 2)


def _gram_norm(x: Tensor) -> Tensor:
    narrow = x if x.shape[0] >= x.shape[1] else x.T
    return torch.linalg.matrix_norm(narrow.T @ narrow)
