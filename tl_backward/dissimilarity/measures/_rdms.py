"""Whether the same pairs of samples lie far apart: RSA, distance correlation, CKA with a Gaussian kernel.

Each side's RDM (representational dissimilarity matrix) holds the distances between its samples, or a kernel of them
(Kriegeskorte et al. 2008). It is computed tile by tile; only ranks need all pairs i < j in memory (n = 10,000: 5e7 of
them).
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.checks import check_choice
from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._matrices import in_range
from tl_backward.dissimilarity.measures._pairs import (
    DistanceName,
    Distances,
    Tile,
    condensed,
    normalised,
    pair_sums,
    tiles,
    upper_triangle,
)

# Values ranked at once: bounds the scratch of sorting.
_BUCKET = 2**21


@measure(minimum=3)
def rsa(
    x: Float[Tensor, "sample d1"],
    y: Float[Tensor, "sample d2"],
    *,
    distance: DistanceName = "euclidean",
    comparison: Literal["spearman", "pearson", "cosine"] = "spearman",
) -> Float[Tensor, ""]:
    """Representational similarity analysis: how well the two RDMs agree over all pairs of samples i < j.

    A similarity in [-1, 1] ([0, 1] for the cosine of distances); no metric. Unchanged by rotation and one scale of
    either side, and by a shift for Euclidean distances; correlation distance (1 - Pearson's r over a sample's neurons)
    is unchanged by one scale of each sample instead, and by rotation and shifts NOT at all.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        distance: "euclidean", "sqeuclidean", "correlation" or "cosine" (both 1 - similarity).
        comparison: "spearman" (average ranks), "pearson" or "cosine" of the two lists of distances.
    """
    check_choice("distance", distance, get_args(DistanceName))
    check_choice("comparison", comparison, ("spearman", "pearson", "cosine"))
    if comparison == "spearman":
        return _spearman(x, y, distance)
    a, b = Distances.of(in_range(x), distance), Distances.of(in_range(y), distance)
    sums = pair_sums(len(a), a.tile, b.tile, x.device)
    inner, own_a, own_b = sums.ab, sums.aa, sums.bb
    if comparison == "pearson":
        pairs, total_a, total_b = sums.n * (sums.n - 1), sums.a.sum(), sums.b.sum()
        inner = inner - total_a * total_b / pairs
        own_a, own_b = own_a - total_a.square() / pairs, own_b - total_b.square() / pairs
    return normalised(inner, own_a, own_b, sums.aa, sums.bb)


@measure(minimum=2)
def rsm_difference(
    x: Float[Tensor, "sample d1"],
    y: Float[Tensor, "sample d2"],
    *,
    distance: DistanceName = "euclidean",
    norm: Literal["frobenius", "spectral"] = "frobenius",
) -> Float[Tensor, ""]:
    """The norm |D(X) - D(Y)| of the difference between the full n x n distance matrices (Shahbazi et al. 2021; ReSi).

    A metric in [0, inf), in the units of the activations; up to rotation and a shift for Euclidean distances. The
    Frobenius norm over the upper triangle, which some packages return, is this one's over sqrt 2.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        distance: "euclidean", "sqeuclidean", "correlation" or "cosine".
        norm: "frobenius", tile by tile; or "spectral", the largest |eigenvalue|, which holds n x n numbers.
    """
    check_choice("distance", distance, get_args(DistanceName))
    check_choice("norm", norm, ("frobenius", "spectral"))
    a, b = Distances.of(x, distance), Distances.of(y, distance)
    n = len(a)
    if norm == "spectral":
        everything = slice(0, n)
        return torch.linalg.eigvalsh(a.tile(everything, everything) - b.tile(everything, everything)).abs().amax()
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows, columns in tiles(n):
        squares = a.tile(rows, columns).sub_(b.tile(rows, columns)).square_()
        square = rows.stop - rows.start
        total += squares[:, :square].sum() + 2 * squares[:, square:].sum()
    return total.sqrt()


def _spearman(x: Tensor, y: Tensor, distance: DistanceName) -> Float[Tensor, ""]:
    """Pearson's correlation of average ranks; X's ranks are held, Y's are used as they come.

    Euclidean distances are ranked by their squares: those of whole numbers are whole, and tie where they are equal.
    """
    distance = "sqeuclidean" if distance == "euclidean" else distance
    pairs = len(x) * (len(x) - 1) // 2
    held = torch.empty(pairs, dtype=torch.int32 if 2 * pairs < 2**31 else torch.int64, device=x.device)
    middle = pairs + 1  # ranks are doubled, to stay whole: their mean is pairs + 1
    sums = torch.zeros(3, dtype=torch.float64, device=x.device)
    for at, ranks in _doubled_ranks(*condensed(x, distance)):
        held[at] = (ranks - middle).to(held.dtype)
        sums[1] += (ranks - middle).double().square().sum()
    for at, ranks in _doubled_ranks(*condensed(y, distance)):
        from_middle = (ranks - middle).double()
        sums[0] += from_middle @ held[at].double()
        sums[2] += from_middle.square().sum()
    return normalised(*sums, *torch.zeros_like(sums[:2]))


def _doubled_ranks(values: Tensor, near: float = 0.0) -> Iterator[tuple[Int[Tensor, " some"], Int[Tensor, " some"]]]:
    """Positions and twice their average ranks (from 1), a range of values at a time.

    Float64 values tie with the next where that is no more than `near` of itself away: what is one number in exact
    arithmetic may come out as several. (Float32 ones are rounded to fewer digits than are wrong.)

    Ranges are cut at quantiles of a part of the values, so each sort is small; ties never straddle two ranges. Values
    are distances, none negative: as whole numbers their bits are in the same order, and sort several times faster.
    """
    as_whole = torch.int64 if values.dtype == torch.float64 else torch.int32
    buckets = min(values.numel() // _BUCKET, 120)
    step = max(1, values.numel() // 2**16)
    near = near if values.dtype == torch.float64 else 0.0
    cuts = _cuts(values[::step].sort().values, max(buckets, 1), near)
    of = torch.empty(values.shape, dtype=torch.int8, device=values.device)
    for start in range(0, values.numel(), _BUCKET):
        here = slice(start, start + _BUCKET)
        of[here] = torch.bucketize(values[here], cuts, right=True)
    before = 0
    for bucket in range(len(cuts) + 1):
        at = (of == bucket).nonzero()[:, 0]
        ordered, order = values[at].abs_().view(as_whole).sort()  # abs: -0 and 0 tie
        counts = _runs(ordered.view(values.dtype), near)
        last = counts.cumsum(0) + before
        ranks = torch.empty_like(order)
        ranks[order] = (2 * last - counts + 1).repeat_interleave(counts)  # first + last = (last - count + 1) + last
        yield at, ranks
        before += at.numel()


def _cuts(ordered: Tensor, buckets: int, near: float) -> Tensor:
    """Values that cut the range into `buckets`, nearly equally full; none within a run of ties."""
    at = torch.arange(1, buckets, device=ordered.device) * len(ordered) // buckets
    starts = (ordered[1:] > ordered[:-1] * (1 + 4 * near)).nonzero()[:, 0] + 1
    if not len(starts):
        return ordered[:0]
    at = starts[torch.searchsorted(starts, at).clamp(max=len(starts) - 1)].unique()
    return ordered[at] if not near else (ordered[at - 1] + ordered[at]) / 2


def _runs(ordered: Tensor, near: float) -> Int[Tensor, " run"]:
    """How long the runs of ties are."""
    if not near:
        return torch.unique_consecutive(ordered, return_counts=True)[1]
    ends = (ordered[1:] > ordered[:-1] * (1 + near)).nonzero()[:, 0] + 1
    return torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(ordered))]).diff()


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
    middle = [index for index in ((n * n - 1) // 2, n * n // 2) if index >= n]  # below are zeros
    return sum(float(pairs.kthvalue((index - n) // 2 + 1).values) for index in middle) / 2
