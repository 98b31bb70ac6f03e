"""The tokens and examples that contributed most to each weight, kept over a whole training."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Contribution(NamedTuple):
    """One token of one example that wrote to a weight, ordered by how much."""

    norm: float
    """|x_i| |delta_i|: the norm of its own term of the gradient, in nats a unit of the weight."""
    step: int
    """The backward pass, counted from 0."""
    example: int
    """Its place in the batch."""
    position: int
    """The token's place in its text; of a whole example -1."""
    ids: tuple[int, ...]
    """The text's tokens; () where the pass reads none."""


Largest: TypeAlias = list[Contribution]
"""A heap, its least in front."""


def keep_largest(
    heaps: Sequence[tuple[Largest, Largest]], norms: Sequence[Tensor], n: int, step: int, ids: list[list[int]]
) -> None:
    """Put a pass's contributions to several weights into their heaps of (tokens, examples), of n at most.

    `norms` are [batch, pos]. All weights are looked at together: one by one it takes longer than a small model's pass.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for place, each in enumerate(norms):
        by_shape.setdefault(each.shape, []).append(place)
    for shape, places in by_shape.items():
        each = torch.stack([norms[place] for place in places])
        for which, values in enumerate((each.flatten(1), each.sum(2))):
            _keep([heaps[place][which] for place in places], values, n, step, ids, None if which else shape[1])


def _keep(
    heaps: list[Largest], norms: Tensor, n: int, step: int, ids: list[list[int]], n_positions: int | None
) -> None:
    floors = torch.tensor([heap[0].norm if len(heap) == n else 0.0 for heap in heaps], dtype=norms.dtype)
    floors = floors.to(norms.device)
    # Most passes have nothing larger for most weights, which the largest of each says. NaN is not <= either.
    rows = (~(norms.amax(1) <= floors)).nonzero().flatten()
    if not len(rows):
        return
    norms = norms[rows]
    values, where = torch.where(norms.isfinite(), norms, 0.0).topk(min(n, norms.shape[1]))
    above = (values > floors[rows, None]).nonzero().tolist()
    rows, values, where = rows.tolist(), values.tolist(), where.tolist()
    for row, column in above:
        place, heap = where[row][column], heaps[rows[row]]
        example, position = (place, -1) if n_positions is None else divmod(place, n_positions)
        text = tuple(ids[example]) if example < len(ids) else ()
        new = Contribution(values[row][column], step, example, position, text)
        (heapq.heappush if len(heap) < n else heapq.heappushpop)(heap, new)
