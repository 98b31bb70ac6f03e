"""Means over examples with bootstrap confidence intervals (Efron and Tibshirani 1993, ch. 13: percentile intervals)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BYTES = 1 << 26  # of resampling counts held at once


@dataclass(frozen=True)
class Interval:
    """A mean over examples and the bounds of its confidence interval; NaN where no example has a value."""

    mean: Float[Tensor, "*cell"]
    low: Float[Tensor, "*cell"]
    high: Float[Tensor, "*cell"]
    n: Int[Tensor, "*cell"]
    """Examples that have a value."""


def bootstrap(
    values: Float[Tensor, "item *cell"],
    *,
    groups: Int[Tensor, "item"] | None = None,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean over items of each cell, with a percentile bootstrap interval; NaNs are left out.

    Args:
        values: one row an item.
        groups: items that share something random (one draw of a control's weights): whole groups are resampled, then
            items within each, so that the interval covers both.
        level: of confidence.
        n_boot: resamples.
        seed: of the resampling; the global RNG is not touched.
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected a confidence level between 0 and 1, got {level}; 0.95 is usual.")
    flat = values.detach().double().reshape(len(values), values.shape[1:].numel()).cpu()
    there = (~flat.isnan()).double()
    filled = flat.nan_to_num(0.0)
    n = there.sum(0)
    mean = filled.sum(0) / n
    generator = torch.Generator().manual_seed(seed)
    resampled, rows = [], max(1, _BYTES // (8 * max(1, len(values))))
    for start in range(0, n_boot if len(values) else 0, rows):
        counts = _counts(min(rows, n_boot - start), len(values), groups, generator)
        resampled.append((counts @ filled) / (counts @ there))
    tail = (1 - level) / 2
    edges = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    bounds = torch.cat(resampled).nanquantile(edges, dim=0) if resampled else mean.new_full((2, len(mean)), torch.nan)
    low, high, mean = (side.reshape(values.shape[1:]) for side in (*bounds, mean))
    return Interval(mean, low, high, n.long().reshape(values.shape[1:]))


def _counts(n: int, n_items: int, groups: Tensor | None, generator: torch.Generator) -> Float[Tensor, "n n_items"]:
    """Resampling counts [n, n_items]: how often each item is drawn in each of `n` bootstrap resamples."""
    if groups is None:
        drawn = torch.randint(n_items, (n, n_items), generator=generator)
        return _tally(drawn, n_items)
    members = [(groups.cpu() == group).nonzero().flatten() for group in groups.unique().cpu()]
    counts = torch.zeros(n, n_items, dtype=torch.float64)
    for chosen in torch.randint(len(members), (len(members), n), generator=generator):
        for index, member in enumerate(members):
            rows = (chosen == index).nonzero().flatten()
            drawn = torch.randint(len(member), (len(rows), len(member)), generator=generator)
            counts[rows[:, None], member] += _tally(drawn, len(member))
    return counts


def _tally(drawn: Int[Tensor, "n drawn"], n_items: int) -> Float[Tensor, "n n_items"]:
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    return torch.zeros(len(drawn), n_items, dtype=torch.float64).scatter_add_(1, drawn, ones)
