"""Representational similarity analysis: whether the same pairs of samples lie far apart (Kriegeskorte et al. 2008).

Each side's RDM holds the distances between its samples; measures compare the pairs i < j. RDMs are computed tile by
tile; only ranks need all pairs in memory (n = 10,000: 5e7 of them).
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.checks import check_choice
from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._pairs import (
    DISTANCES,
    DistanceName,
    Distances,
    condensed,
    normalised,
    pair_sums,
    tiles,
)
from tl_backward.dissimilarity.measures._products import in_range

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
    check_choice("distance", distance, DISTANCES)
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
    check_choice("distance", distance, DISTANCES)
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
    bounds = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(ordered))])
    return bounds.diff()
