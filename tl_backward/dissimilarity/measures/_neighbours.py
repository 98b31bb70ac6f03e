"""Do the same samples have the same nearest neighbours? Overlap of k-NN sets, and alignment restricted to them.

The n x n similarities exist one tile at a time. Neighbours exclude the sample itself. Ties go to the sample that comes
first: those of equal samples always; others where similarities are free of rounding, which Euclidean distances and
inner products of whole numbers (of any numbers of few bits) are, as they stand. A cosine, and an inner product about
the mean, is rounded, and samples that tie by it in exact arithmetic may come in any order.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import check_choice
from tl_backward._support.warnings import warn_user
from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._matrices import exact_is_cheap
from tl_backward.dissimilarity.measures._pairs import few_bits, near_mean

Metric: TypeAlias = Literal["cosine", "inner_product", "euclidean"]
# Samples whose neighbours are sought at once, and samples among which: one tile.
_ROWS, _COLUMNS = 512, 16384


def nearest_neighbours(
    x: Float[Tensor, "sample d"], *, k: int = 10, metric: Metric = "cosine", center: bool = False
) -> Int[Tensor, "sample k"]:
    """Each sample's k nearest other samples, nearest first.

    Large float32 inputs are compared in float32, after centring (which changes no ranking but keeps the digits that a
    large mean would take); all others in float64.

    Args:
        x: [sample, d].
        k: how many, below n - 1.
        metric: "cosine" and "inner_product" similarity, or "euclidean" distance.
        center: subtract the mean sample first (Euclidean neighbours do not change).

    Raises:
        ValueError: k is not in [1, n - 2].
    """
    n = x.shape[0]
    if not 1 <= k <= n - 2:
        raise ValueError(
            f"Expected 1 <= k <= n - 2 = {n - 2}, got k={k}; with more, every other sample is a neighbour."
        )
    check_choice("metric", metric, get_args(Metric))
    distinct, index = (x, None) if _ties_are_exact(x, metric, center) else torch.unique(x, dim=0, return_inverse=True)
    if index is None or len(distinct) == n:
        best = _nearest(x, min(k + 1, n), metric, center, x.mean(0, dtype=torch.float64))
    else:
        best = _nearest(distinct, min(k + 1, len(distinct)), metric, center, x.mean(0, dtype=torch.float64))
        best = _members(best, index, k + 1)
    # the sample itself is among the k + 1 best, or else the last of them is one too many
    others = best != torch.arange(n, device=x.device)[:, None]
    others[:, -1] &= ~others.all(1)
    return best[others].view(n, k)


@measure(minimum=3)
def mutual_knn(
    x: Float[Tensor, "sample d1"],
    y: Float[Tensor, "sample d2"],
    *,
    k: int = 10,
    metric: Metric = "cosine",
    center: bool = False,
) -> Float[Tensor, ""]:
    """Mutual k-NN alignment: the mean over samples of |N_x(i) & N_y(i)| / k (Huh et al. 2024, sec. 2).

    A similarity in [0, 1], about k / (n - 1) for unrelated samples; no metric. Unchanged by rotation and one scale of
    either side; by a shift only for Euclidean neighbours or where centred.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        k: neighbours of each sample, itself left out.
        metric: what nearest means (the paper: "inner_product" of rows of norm 1, which is "cosine"). Ties go to the
            sample that comes first; by "cosine" only between equal samples, for it is rounded.
        center: subtract each side's mean sample first.
    """
    return _shared(x, y, k, metric, center).double().mean() / k


@measure(minimum=3)
def jaccard(
    x: Float[Tensor, "sample d1"],
    y: Float[Tensor, "sample d2"],
    *,
    k: int = 10,
    metric: Metric = "cosine",
    center: bool = False,
) -> Float[Tensor, ""]:
    """Mean Jaccard index of neighbourhoods: the mean of |N_x(i) & N_y(i)| / |N_x(i) | N_y(i)| (Wang et al. 2022).

    A similarity in [0, 1]; 1 minus it is a metric, up to what keeps all neighbourhoods. Invariances as `mutual_knn`.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        k: neighbours of each sample, itself left out.
        metric: what nearest means.
        center: subtract each side's mean sample first.
    """
    shared = _shared(x, y, k, metric, center).double()
    return (shared / (2 * k - shared)).mean()


@measure(minimum=3)
def second_order_cosine(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, k: int = 10
) -> Float[Tensor, ""]:
    """Mean cosine between a sample's similarities to its neighbours on both sides (Hamilton et al. 2016).

    For each i the vectors of cos(x_i, x_j) and cos(y_i, y_j) over j in N_x(i) | N_y(i) are compared by their cosine. A
    similarity in [-1, 1]; no metric. Unchanged by rotation and one scale of either side.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        k: neighbours of each sample by cosine, itself left out.
    """
    a, b = (nearest_neighbours(side, k=k) for side in (x, y))
    union = torch.cat([a, b], dim=1)
    fresh = torch.cat([torch.ones_like(a, dtype=torch.bool), ~_also_in(b, a)], dim=1)
    to_x, to_y = (_similarities(_unit(side), union) * fresh for side in (x, y))
    scale = to_x.norm(dim=1) * to_y.norm(dim=1)
    return torch.where(scale > 0, (to_x * to_y).sum(1) / scale, 0.0).clamp(-1, 1).mean()


@measure(minimum=4)
def cknna(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, k: int = 10, metric: Metric = "cosine"
) -> Float[Tensor, ""]:
    """Centred kernel nearest-neighbour alignment: debiased CKA of similarities kept only between shared neighbours.

    K_ij = <x_i, x_j> and L_ij = <y_i, y_j> count where j is among the k neighbours of i on BOTH sides, and HSIC is Song
    et al.'s U-statistic of the two masked matrices; divided by the roots of the same for (K, K) and (L, L) (Huh et al.
    2024, appendix A, as their released code computes it). A similarity, 1 for identical neighbourhoods and
    similarities; no metric, and not quite symmetric, since neighbourhood is not. Unchanged by rotation and one scale
    of either side.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        k: neighbours of each sample, itself left out.
        metric: "cosine" (rows scaled to norm 1, as the paper does) or "inner_product".
    """
    check_choice("metric", metric, ("cosine", "inner_product"))
    near = [nearest_neighbours(side, k=k, metric=metric) for side in (x, y)]
    values = [_unit(side) if metric == "cosine" else side.double() for side in (x, y)]
    own = [_MaskedGram(ids, _similarities(side, ids)) for ids, side in zip(near, values, strict=True)]
    shared = _also_in(near[0], near[1])
    both = [_MaskedGram(near[0], _similarities(side, near[0]) * shared) for side in values]
    scale = own[0].hsic(own[0]).clamp(min=0).sqrt() * own[1].hsic(own[1]).clamp(min=0).sqrt()
    if scale > 0:
        return both[0].hsic(both[1]) / scale
    warn_user(
        "Expected neighbours whose similarities differ, got a side where they do not; CKNNA is 0 / 0, 0 is returned."
    )
    return torch.zeros_like(scale)


@dataclass(frozen=True)
class _MaskedGram:
    """A sparse n x n matrix: row i holds values at its neighbours' columns, and 0 elsewhere."""

    ids: Int[Tensor, "sample k"]
    values: Float[Tensor, "sample k"]

    def hsic(self, other: "_MaskedGram") -> Float[Tensor, ""]:
        """Song et al.'s U-statistic of two masked matrices A and B, which need not be symmetric."""
        n = len(self.ids)
        columns = self.values.new_zeros(n).index_add_(0, self.ids.flatten(), self.values.flatten())  # 1'A
        rows = other.values.sum(1)  # B1
        mutual = other.ids[self.ids] == torch.arange(n, device=self.ids.device)[:, None, None]  # i among j's neighbours
        trace = (self.values[..., None] * other.values[self.ids] * mutual).sum()  # of AB
        centring = columns.sum() * rows.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (columns @ rows)
        return (trace + centring) / (n * (n - 3))


def _nearest(x: Tensor, k: int, metric: Metric, center: bool, mean: Tensor) -> Int[Tensor, "distinct k"]:
    """The k best of the rows of X for each of them, itself included, best first, ties by index."""
    features, bias = _comparable(x, metric, center, mean)
    n, width = x.shape[0], min(x.shape[0], _COLUMNS)
    wanted = min(k + 1, n)  # one more shows whether the last place is tied
    tile = features.new_empty(min(n, _ROWS) * width)
    best = torch.empty(n, k, dtype=torch.int64, device=x.device)
    for start in range(0, n, _ROWS):
        queries, parts = features[start : start + _ROWS], []
        for left in range(0, n, width):
            candidates = features[left : left + width]
            scores = tile[: len(queries) * len(candidates)].view(len(queries), len(candidates))
            torch.mm(queries, candidates.T, out=scores).add_(bias[left : left + width])
            values, ids = scores.topk(min(wanted, len(candidates)), dim=1)
            parts.append((values, ids + left))
        values, ids = (torch.cat(tiles, dim=1) for tiles in zip(*parts, strict=True))
        values, order = values.topk(wanted, dim=1)
        ids = ids.gather(1, order)
        tied = (values[:, k:] == values[:, k - 1 : k]).any(1).nonzero()[:, 0]
        here = best[start : start + len(queries)]
        here.copy_(_by_value(values[:, :k], ids[:, :k]))
        for some in tied.split(max(1, _ROWS * _COLUMNS // (8 * n))):
            order = (queries[some] @ features.T + bias).argsort(dim=1, descending=True, stable=True)
            here[some] = order[:, :k]
    return best


def _ties_are_exact(x: Tensor, metric: Metric, center: bool) -> bool:
    """Whether what ties in the data ties in `_nearest` too, of its own accord."""
    if metric == "cosine" or (center and metric == "inner_product"):
        return False
    rows = x.double()
    return few_bits(rows - near_mean(x) if metric == "euclidean" else rows, _working_dtype(x))


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if exact_is_cheap(x, x.T) else x.dtype


def _by_value(values: Tensor, ids: Tensor) -> Tensor:
    """The ids, best value first, equal values in the order of their ids."""
    ids, order = ids.sort(dim=1)
    return ids.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))


def _comparable(x: Tensor, metric: Metric, center: bool, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Features a and a bias b such that a_i . a_j + b_j ranks j for i as the metric does.

    For similarities of u: u_i . u_j = (u_i - m) . (u_j - m) + m . u_j up to what only i changes. For distances:
    -|a_i - a_j|^2 / 2 = a_i . a_j - |a_j|^2 / 2 likewise.
    """
    dtype = _working_dtype(x)
    features, bias = torch.empty_like(x, dtype=dtype), torch.empty(len(x), dtype=dtype, device=x.device)
    if metric != "cosine" and not (center and metric == "inner_product"):
        mean = near_mean(x)  # any point will do; about one of few bits, whole numbers keep their ties
    shift = mean if center or metric == "euclidean" else torch.zeros_like(mean)
    blocks = range(0, len(x), _ROWS)
    if metric == "cosine":
        middle = sum((_unit(x[i : i + _ROWS] - shift).sum(0) for i in blocks), torch.zeros_like(mean)) / len(x)
    else:
        middle = mean - shift
    for i in blocks:
        rows = x[i : i + _ROWS] - shift  # float64, as the mean is
        if metric == "cosine":
            rows = _unit(rows)
        moved = rows - middle
        features[i : i + _ROWS] = moved
        bias[i : i + _ROWS] = -moved.square().sum(1) / 2 if metric == "euclidean" else moved @ middle
    return features, bias


def _members(best: Tensor, index: Tensor, k: int) -> Int[Tensor, "sample k"]:
    """From the best distinct rows to the first k samples that have them, for every sample."""
    count = torch.bincount(index)
    start = count.cumsum(0) - count
    members = index.argsort(stable=True)  # samples in order of the distinct row they have, then of themselves
    sizes = count[best].clamp(max=k)  # more than k of one row are never needed
    ends = sizes.cumsum(1)
    place = torch.arange(k, device=best.device).expand(len(best), k).contiguous()
    group = torch.searchsorted(ends, place, right=True).clamp(max=best.shape[1] - 1)
    within = place - (ends - sizes).gather(1, group)
    chosen = members[(start[best.gather(1, group)] + within).clamp(max=len(members) - 1)]
    return chosen[index]


def _shared(x: Tensor, y: Tensor, k: int, metric: Metric, center: bool) -> Int[Tensor, " sample"]:
    """How many neighbours each sample has in common."""
    a, b = (nearest_neighbours(side, k=k, metric=metric, center=center) for side in (x, y))
    return _also_in(a, b).sum(1)


def _also_in(a: Int[Tensor, "sample k"], b: Int[Tensor, "sample k"]) -> Bool[Tensor, "sample k"]:
    """Which of the ids in each row of A are in the same row of B."""
    return torch.stack([(a[:, [column]] == b).any(1) for column in range(a.shape[1])], dim=1)


def _similarities(x: Float[Tensor, "sample d"], ids: Int[Tensor, "sample k"]) -> Float[Tensor, "sample k"]:
    """<x_i, x_j> for the listed j of every i."""
    return torch.stack([(x * x[column]).sum(1) for column in ids.unbind(1)], dim=1)


def _unit(x: Tensor) -> Tensor:
    """Rows of norm 1, float64; a zero row stays 0."""
    x = x.double()
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norms > 0, norms, 1.0)
