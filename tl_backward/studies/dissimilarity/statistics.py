"""Statistics over a handful of models: means over training seeds, and whether two groups of models part.

The latter compares dissimilarities within groups with those between, beside groups drawn at random.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.bootstrap import Interval

MOST_EXACT = 20_000
"""Ways to split the models up to which all are taken; beyond, so many are drawn."""


def over_seeds(values: Float[Tensor, "seed *cell"], *, level: float = 0.95) -> Interval:
    """Mean over seeds and Student's t interval, mean +- t_{n-1} s / sqrt(n), cell by cell; NaNs are left out.

    A percentile bootstrap, as `tl_backward._support.bootstrap` takes over examples, is too narrow for a handful of
    seeds. Fewer than two have no interval: its bounds are NaN.
    """
    flat = values.detach().double().cpu()
    there = ~flat.isnan()
    n: Int[Tensor, "*cell"] = there.sum(0)
    mean = flat.nan_to_num(0.0).sum(0) / n
    squares = torch.where(there, flat - mean, 0.0).square().sum(0)
    error = torch.where(n > 1, (squares / (n - 1).clamp(min=1) / n.clamp(min=1)).sqrt(), math.nan)
    quantile = _students_t((1 + level) / 2, (n - 1).clamp(min=1))
    return Interval(mean, mean - quantile * error, mean + quantile * error, n)


@dataclass(frozen=True, eq=False)
class GroupGap:
    """Mean dissimilarity between two groups minus that within them, cell by cell, and what other splits give."""

    within: Float[Tensor, "*cell"]
    """Mean over ordered pairs of different models of one group."""
    between: Float[Tensor, "*cell"]
    """Mean over ordered pairs across the groups."""
    low: Float[Tensor, "*cell"]
    """95 % interval of the gap: delete-one-model jackknife, Student's t."""
    high: Float[Tensor, "*cell"]
    permuted: Float[Tensor, "split *cell"]
    """The gap for every split of the models into groups of these sizes, the real one among them."""
    exact: bool
    """Whether those are all splits, not a draw of them."""

    @property
    def gap(self) -> Float[Tensor, "*cell"]:
        """Between minus within: above 0 where the groups part."""
        return self.between - self.within

    @property
    def p(self) -> Float[Tensor, "*cell"]:
        """Share of splits whose gap is at least the real one's: a one-sided permutation test."""
        reach = self.permuted >= self.gap - 1e-12 * self.gap.abs()
        return reach.double().mean(0) if self.exact else (reach.sum(0) + 1).double() / (len(reach) + 1)


def group_gap(
    dissimilarities: Float[Tensor, "model model *cell"], group: Bool[Tensor, "model"], *, seed: int = 0
) -> GroupGap:
    """How much further apart models of different groups are than models of one.

    Args:
        dissimilarities: of model i (a head) and j (a tail); the diagonal is not read.
        group: which models are in the second group.
        seed: of the draw, where there are too many splits to take all.

    Raises:
        ValueError: a group of fewer than two models.
    """
    n, chosen = len(group), int(group.sum())
    if not 2 <= chosen <= n - 2:
        raise ValueError(
            f"Expected at least two models in each group, got {n - chosen} and {chosen} of {n}; there is nothing "
            "within a group of one to compare with."
        )
    cells = dissimilarities.double().reshape(n * n, -1)
    within, between = _means(cells, group[None])
    left_out = torch.stack([_gap_without(dissimilarities.double(), group, torch.arange(n) != one) for one in range(n)])
    error = ((left_out - left_out.nanmean(0)).square().nansum(0) * (n - 1) / n).sqrt()
    splits, exact = _splits(n, chosen, seed)
    permuted_within, permuted_between = _means(cells, splits)
    half = _students_t(0.975, torch.tensor(n - 1)) * error
    gap, shape = (between - within)[0], dissimilarities.shape[2:]
    return GroupGap(
        within[0].reshape(shape),
        between[0].reshape(shape),
        (gap - half).reshape(shape),
        (gap + half).reshape(shape),
        (permuted_between - permuted_within).reshape(len(splits), *shape),
        exact,
    )


def _means(cells: Float[Tensor, "pair cell"], groups: Bool[Tensor, "split model"]) -> tuple[Tensor, Tensor]:
    """Means within and between groups, [split, cell]."""
    same, own = groups[:, :, None] == groups[:, None, :], torch.eye(groups.shape[1], dtype=torch.bool)
    filled = cells.masked_fill(own.reshape(-1, 1), 0)  # the diagonal may be NaN
    within, between = (
        mask.flatten(1).double() @ filled / mask.flatten(1).sum(1, keepdim=True) for mask in (same & ~own, ~same)
    )
    return within, between


def _gap_without(dissimilarities: Tensor, group: Tensor, kept: Tensor) -> Float[Tensor, "cell"]:
    within, between = _means(dissimilarities[kept][:, kept].reshape(int(kept.sum()) ** 2, -1), group[None, kept])
    return (between - within)[0]


def _splits(n: int, chosen: int, seed: int) -> tuple[Bool[Tensor, "split model"], bool]:
    exact, generator = math.comb(n, chosen) <= MOST_EXACT, torch.Generator().manual_seed(seed)
    drawn = (torch.randperm(n, generator=generator)[:chosen].tolist() for _ in range(2000))
    members = torch.tensor(list(combinations(range(n), chosen) if exact else drawn))
    return torch.zeros(len(members), n, dtype=torch.bool).scatter_(1, members, True), exact


def _students_t(level: float, degrees: Int[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    """Quantiles of Student's t distribution."""
    from scipy.stats import t

    return torch.as_tensor(t.ppf(level, degrees.numpy()), dtype=torch.float64)
