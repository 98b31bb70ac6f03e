"""What a comparison will hold, reckoned before it runs, and the way that takes less."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tl_backward.dissimilarity._rows import buffer_bytes
from tl_backward.dissimilarity.minibatch import TILE_BYTES
from tl_backward.dissimilarity.options import RunOptions
from tl_backward.dissimilarity.statistics import planned_bytes
from tl_backward.dissimilarity.wanted import Wanted

FEWEST_GROUPS = 8  # a jackknife over fewer has an error of its own of a third


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a comparison holds beside the models and one batch."""

    route: Literal["sums", "gram", "batches"]
    """"sums": the products of all layers, over any number of samples; "gram": the samples themselves, fewer than a
    layer is wide, and products of their size; "batches": HSICs of batches alone."""
    n_groups: int
    """Groups of batches that the jackknife leaves out in turn; 0 for none."""
    parts: dict[str, int]
    """Bytes by what they are for."""

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        lines = [f"{what:<44} {size / 1e6:>10.1f} MB" for what, size in self.parts.items()]
        return "\n".join([*lines, f"{f'all, by the route {self.route!r}':<44} {self.bytes / 1e6:>10.1f} MB"])


def plan_memory(
    widths_a: Sequence[int],
    widths_b: Sequence[int],
    wanted: Wanted,
    options: RunOptions,
    *,
    itemsize: int,
    n_samples: int | None,
) -> MemoryPlan:
    """Choose the route and how many groups there is room for.

    Args:
        widths_a: the width of each of A's layers.
        widths_b: the same of B.
        wanted: the measures. The Gram route needs those that may be taken in any orthonormal basis of each layer.
        options: how many groups are wanted, and how much memory there is.
        itemsize: bytes of an activation.
        n_samples: how many samples the data have at most, where that is known.

    Raises:
        ValueError: more than `options.max_memory` whichever way; the message says what would fit.
    """
    rows, max_memory = wanted.n_kept(options), options.max_memory
    rows = rows if n_samples is None else min(rows, n_samples)
    kept = {"bounded sample": 2 * rows * (sum(widths_a) + sum(widths_b)) * itemsize}
    if wanted.minibatch:
        kept["Gram matrices of a batch, in tiles"] = 2 * TILE_BYTES
    if not wanted.additive:
        return _refuse_or(MemoryPlan("batches", 0, kept), max_memory, None)

    def sums(groups: int) -> MemoryPlan:
        return _plan("sums", widths_a, widths_b, groups, itemsize, kept)

    def gram(groups: int) -> MemoryPlan:
        n = n_samples or 0
        narrow_a, narrow_b = ([min(width, n) for width in widths] for widths in (widths_a, widths_b))
        stored = {"samples, and their coordinates": 2 * 8 * n * (sum(widths_a) + sum(widths_b))}
        return _plan("gram", narrow_a, narrow_b, groups, 8, stored | kept)

    small = n_samples is not None and n_samples < max(*widths_a, *widths_b)
    routes = [sums, gram] if wanted.any_basis and small else [sums]
    best = min(routes, key=lambda route: route(options.jackknife).bytes)
    fewest = min(options.jackknife, FEWEST_GROUPS)
    for groups in range(options.jackknife, fewest - 1, -1):
        plan = best(groups)
        if plan.bytes <= max_memory:
            return plan
    return _refuse_or(best(fewest), max_memory, best(0))


def _plan(
    route: Literal["sums", "gram"],
    widths_a: Sequence[int],
    widths_b: Sequence[int],
    groups: int,
    itemsize: int,
    kept: dict[str, int],
) -> MemoryPlan:
    one = planned_bytes(widths_a, widths_b)
    parts = {"sums over all samples": one}
    if groups > 1:
        parts[f"the same for {groups} groups of batches"] = groups * one
    parts["rows that wait, one product"] = buffer_bytes(widths_a, widths_b, max(4, itemsize))
    return MemoryPlan(route, groups if groups > 1 else 0, parts | kept)


def _refuse_or(plan: MemoryPlan, max_memory: int, without: MemoryPlan | None) -> MemoryPlan:
    if plan.bytes <= max_memory:
        return plan
    instead = "use smaller batches, a smaller sample_size, or fewer layers"
    if without is not None and without.bytes <= max_memory:
        instead = f"pass jackknife=0, which takes {without.bytes / 1e9:.3g} GB, or compare fewer layers at a time"
    elif without is not None:
        instead = (
            f"compare fewer layers at a time (jackknife=0 alone would take {without.bytes / 1e9:.3g} GB), or use "
            "estimator='minibatch_ratio_of_means', which holds no sums"
        )
    raise ValueError(
        f"Expected a comparison within max_memory={max_memory / 1e9:.3g} GB, got one that needs "
        f"{plan.bytes / 1e9:.3g} GB; {instead}, or raise max_memory."
    )
