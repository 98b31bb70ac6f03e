"""`CovarianceStatistics` of groups of batches apart, so that a jackknife can leave out one group at a time."""

import math
from collections.abc import Iterator
from functools import reduce
from operator import iadd

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.processes import greatest_of, several, sum_over
from tl_backward.dissimilarity.measures.moments import LayerSums, PairSums
from tl_backward.dissimilarity.statistics import CovarianceStatistics, Rows


class GroupedStatistics:
    """CovarianceStatistics of consecutive batches, one a group, at most `max_groups` of them.

    A group is one batch until there are more batches than groups; then neighbours are merged, so that a group is 2, 4,
    8, ... batches and memory stays bounded whatever the data's length. Which group a batch belongs to depends on its
    number alone, so that processes which share the batches out among them end with the groups of one.
    """

    def __init__(self, empty: CovarianceStatistics, max_groups: int) -> None:
        self.max_groups = max(1, max_groups)
        self.level = 0
        self.n_batches = 0
        self.groups: dict[int, CovarianceStatistics] = {}
        self._empty: CovarianceStatistics | None = empty
        self._latest = empty

    @property
    def n(self) -> int:
        """Samples seen."""
        return sum(group.n for group in self.groups.values())

    def update(self, batch: int, x: Rows, y: Rows) -> None:
        """Add the samples of a batch, by its number in the data."""
        self.n_batches = max(self.n_batches, batch + 1)
        if not len(x[0]):
            return
        self._make_room(batch + 1)
        group = batch >> self.level
        if group not in self.groups:
            self.groups[group] = self._empty if self._empty is not None else self._latest.new()
            self._empty = None
        self._latest = self.groups[group]
        self._latest.update(x, y)

    def _make_room(self, n_batches: int) -> None:
        while (n_batches - 1) >> self.level >= self.max_groups:
            self.level += 1
            merged: dict[int, CovarianceStatistics] = {}
            for number, group in sorted(self.groups.items()):
                if number >> 1 in merged:
                    merged[number >> 1] += group
                else:
                    merged[number >> 1] = group
            self.groups = merged

    def reduce(self) -> None:
        """Sum in place over all processes of torch.distributed; every one of them must call it."""
        if not several():
            return
        self.n_batches = int(greatest_of(self.n_batches))
        self._make_room(self.n_batches)
        present = torch.zeros(self.max_groups, dtype=torch.int64)
        present[sorted(self.groups)] = 1
        for number in sum_over(present).nonzero().flatten().tolist():
            group = self.groups.get(number) or self._latest.new()
            group.reduce()
            self.groups[number] = group

    def total(self) -> CovarianceStatistics:
        """The sums over all groups; where there is but one, that one itself."""
        groups = [self.groups[number] for number in sorted(self.groups)]
        if len(groups) <= 1:
            return groups[0] if groups else self._latest
        return reduce(iadd, groups[1:], groups[0].copy())

    def left_out(self, total: CovarianceStatistics) -> "Iterator[SumsView]":
        """The sums without each group in turn; nothing where there are fewer than two groups."""
        for number in sorted(self.groups) if len(self.groups) > 1 else []:
            group = self.groups[number]
            if not (torch.equal(group.shift_a, total.shift_a) and torch.equal(group.shift_b, total.shift_b)):
                group.move(total.shift_a, total.shift_b)
            yield SumsView(total, group)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        return {
            f"{number}.{name}": tensor
            for number, group in self.groups.items()
            for name, tensor in group.tensors().items()
        }

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps beside the tensors, and must find again."""
        return {
            "max_groups": self.max_groups,
            "level": self.level,
            "n_batches": self.n_batches,
            "groups": {str(number): group.metadata() for number, group in self.groups.items()},
        }

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Set the groups from what `tensors` and `state` returned."""
        self.level, self.n_batches = state["level"], state["n_batches"]
        self.groups = {}
        for number, saved in state["groups"].items():
            prefix = f"{number}."
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.groups[int(number)] = CovarianceStatistics.restore(own, saved)
        if self.groups:
            self._empty, self._latest = None, self.groups[max(self.groups)]


def jackknife(values: Float[Tensor, "group *lead"]) -> Float[Tensor, "*lead"]:
    """Standard error from the values without each of G groups: sqrt((G-1)/G sum_g (v_g - mean v)^2).

    NaN where there are fewer than two groups.
    """
    groups = len(values)
    if groups < 2:
        return torch.full(values.shape[1:], math.nan, dtype=values.dtype)
    return (values - values.mean(0)).square().sum(0).mul((groups - 1) / groups).sqrt()


class SumsView:
    """The sums over all samples, or over all but one group's; what follows from a layer's is computed once."""

    def __init__(self, total: CovarianceStatistics, without: CovarianceStatistics | None = None) -> None:
        self.total, self.without = total, without
        self._layers: dict[tuple[str, int], LayerSums] = {}

    def pair(self, layer_a: int, layer_b: int) -> PairSums:
        """The sums of one pair of layers."""
        whole = self.total.pair(layer_a, layer_b)
        part = None if self.without is None else self.without.pair(layer_a, layer_b)
        layers = []
        for side, layer in (("a", layer_a), ("b", layer_b)):
            if (side, layer) not in self._layers:
                mine = getattr(whole, side)
                self._layers[side, layer] = mine if part is None else mine - getattr(part, side)
            layers.append(self._layers[side, layer])
        names = ("cross", "square_cross", "weighted_a", "weighted_b")
        cross = {n: getattr(whole, n) if part is None else getattr(whole, n) - getattr(part, n) for n in names}
        return PairSums(a=layers[0], b=layers[1], **cross)
