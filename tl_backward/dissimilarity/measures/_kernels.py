"""Nonlinear kernels: CKA with a Gaussian kernel, and distance correlation; sums over n x n pairs, tile by tile."""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._pairs import Distances, Tile, normalised, pair_sums, upper_triangle


@measure(minimum=4)
def cka_rbf(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, bandwidth: float = 1.0, debiased: bool = False
) -> Float[Tensor, ""]:
    """CKA with the Gaussian kernel exp(-|x_i - x_j|^2 / (2 sigma^2)), sigma = bandwidth x the median distance.

    sigma^2 is bandwidth^2 times the median of all n^2 squared distances, the n zeros of the diagonal included
    (Kornblith et al. 2019, sec. 2.3). HSIC(K, L) = <HKH, HLH>, or Song et al.'s U-statistic where debiased. A
    similarity in [0, 1] ([-1, 1] debiased); no metric. Unchanged by rotation, one scale and a shift of either side.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        bandwidth: sigma in units of the median distance.
        debiased: the U-statistic, 0 on average for unrelated samples.

    Raises:
        ValueError: half of all pairs of samples are equal, so the median distance is 0.
    """
    if not bandwidth > 0:
        raise ValueError(f"Expected bandwidth > 0, got {bandwidth}; 1.0 is the median distance itself.")
    a, b = (_gaussian(side, bandwidth, label) for side, label in ((x, "x"), (y, "y")))
    sums = pair_sums(x.shape[0], a, b, x.device)
    return normalised(*(sums.unbiased() if debiased else sums.centred(diagonal=1.0)), sums.aa, sums.bb)


@measure(minimum=3)
def distance_correlation(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Distance correlation, sqrt(<HAH, HBH> / (|HAH| |HBH|)), A and B Euclidean distances (Szekely et al. 2007).

    A similarity in [0, 1], 0 in the limit only for independent samples, but biased upwards for finite ones; no metric.
    Unchanged by rotation, one scale and a shift of either side.
    """
    return _dcor(x, y).sqrt()


@measure(minimum=3)
def distance_correlation_squared(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """The square of `distance_correlation`: biased CKA with the kernel -|x_i - x_j|.

    A similarity in [0, 1]; no metric.
    """
    return _dcor(x, y)


@measure(minimum=4)
def distance_correlation_debiased(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """The bias-corrected squared distance correlation, by U-centring both distance matrices (Szekely & Rizzo 2013).

    A similarity in [-1, 1], 0 on average for unrelated samples; no metric. Unchanged by rotation, one scale and a shift
    of either side.
    """
    a, b = Distances.of(x, "euclidean"), Distances.of(y, "euclidean")
    sums = pair_sums(len(a), a.tile, b.tile, x.device)
    return normalised(*sums.unbiased(), sums.aa, sums.bb)


def _dcor(x: Tensor, y: Tensor) -> Tensor:
    a, b = Distances.of(x, "euclidean"), Distances.of(y, "euclidean")
    sums = pair_sums(len(a), a.tile, b.tile, x.device)
    return normalised(*sums.centred(diagonal=0.0), sums.aa, sums.bb).clamp(min=0)


def _gaussian(x: Tensor, bandwidth: float, label: str) -> Tile:
    """Tiles of the Gaussian kernel of X."""
    distances = Distances.of(x, "sqeuclidean")
    median = _median_of_all(upper_triangle(distances, torch.float64), len(distances))
    if median == 0:
        raise ValueError(
            f"Expected most samples to differ, got {label} in which at least half of all pairs are equal, so the "
            "median distance is 0; leave duplicates out."
        )
    return lambda rows, columns: distances.tile(rows, columns).mul_(-1 / (2 * bandwidth**2 * median)).exp_()


def _median_of_all(pairs: Float[Tensor, " pair"], n: int) -> float:
    """The median of the n x n matrix that holds each of `pairs` twice and n zeros."""
    values = []
    for index in ((n * n - 1) // 2, n * n // 2):
        at = (index - n) // 2
        values.append(float(pairs.kthvalue(at + 1).values) if index >= n else 0.0)
    return sum(values) / 2
