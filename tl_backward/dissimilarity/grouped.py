"""The same sums apart for groups of batches, for the jackknife: leave one group out, and see what changes."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity._storage import load_tensors, save_tensors
from tl_backward.dissimilarity.moments import PairSums
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
        if not len(x[0]):
            self.n_batches = max(self.n_batches, batch + 1)
            return
        self._make_room(batch + 1)
        group = batch >> self.level
        if group not in self.groups:
            self.groups[group] = self._empty if self._empty is not None else self._latest.new()
            self._empty = None
        self._latest = self.groups[group]
        self._latest.update(x, y)
        self.n_batches = max(self.n_batches, batch + 1)

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
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        device = self._latest.sum_a.device
        seen = torch.tensor([self.n_batches], device=device)
        distributed.all_reduce(seen, distributed.ReduceOp.MAX)
        self._make_room(int(seen))
        self.n_batches = int(seen)
        present = torch.zeros(self.max_groups, dtype=torch.int64, device=device)
        present[sorted(self.groups)] = 1
        distributed.all_reduce(present)
        for number in present.nonzero().flatten().tolist():
            group = self.groups.get(number) or self._latest.new()
            group.reduce()
            self.groups[number] = group

    def total(self) -> CovarianceStatistics:
        """The sums over all groups; where there is but one, that one itself."""
        groups = [self.groups[number] for number in sorted(self.groups)]
        if len(groups) <= 1:
            return groups[0] if groups else self._latest
        total = groups[0].copy()
        for group in groups[1:]:
            total += group
        return total

    def left_out(self, total: CovarianceStatistics, layer_a: int, layer_b: int) -> Iterator[PairSums]:
        """One pair's sums without each group in turn; nothing where there are fewer than two groups."""
        whole = total.pair(layer_a, layer_b)
        if len(self.groups) < 2:
            return
        for number in sorted(self.groups):
            group = self.groups[number]
            if not (torch.equal(group.shift_a, total.shift_a) and torch.equal(group.shift_b, total.shift_b)):
                group.move(total.shift_a, total.shift_b)
            yield whole - group.pair(layer_a, layer_b)

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write everything to safetensors, atomically, with `metadata` beside it."""
        groups = {number: group for number, group in self.groups.items()}
        tensors = {f"{number}.{name}": t for number, group in groups.items() for name, t in group.tensors().items()}
        state = {
            "version": 1,
            "max_groups": self.max_groups,
            "level": self.level,
            "n_batches": self.n_batches,
            "groups": {str(number): group.metadata() for number, group in groups.items()},
        }
        save_tensors(path, tensors, {"grouped_statistics": json.dumps(state), **(metadata or {})})

    def restore(self, path: str | Path) -> dict[str, str]:
        """Take over what `save` wrote; returns the metadata that was saved beside it.

        Raises:
            ValueError: not such a file, or of other layers or groups.
        """
        tensors, metadata = load_tensors(path, str(self._latest.sum_a.device))
        if "grouped_statistics" not in metadata:
            raise ValueError(
                f"Expected a checkpoint of compare, got {str(path)!r}; it holds no such statistics, choose another "
                "file."
            )
        state = json.loads(metadata["grouped_statistics"])
        widths = [list(self._latest.widths_a), list(self._latest.widths_b)]
        for saved in state["groups"].values():
            if [saved["widths_a"], saved["widths_b"]] != widths or state["max_groups"] != self.max_groups:
                raise ValueError(
                    f"Expected a checkpoint of layers of widths {widths[0]} and {widths[1]} in at most "
                    f"{self.max_groups} groups, got {saved['widths_a']}, {saved['widths_b']} and "
                    f"{state['max_groups']}; resume with the options of the run that was interrupted."
                )
        self.level, self.n_batches = state["level"], state["n_batches"]
        self.groups = {}
        for number, saved in state["groups"].items():
            prefix = f"{number}."
            parts = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.groups[int(number)] = CovarianceStatistics.restore(parts, saved)
        if self.groups:
            self._empty, self._latest = None, self.groups[max(self.groups)]
        return metadata


def jackknife(values: Float[Tensor, "group *lead"]) -> Float[Tensor, "*lead"]:
    """Standard error from the values without each of G groups: sqrt((G-1)/G sum_g (v_g - mean v)^2).

    NaN where there are fewer than two groups.
    """
    groups = len(values)
    if groups < 2:
        return torch.full(values.shape[1:], math.nan, dtype=values.dtype)
    return (values - values.mean(0)).square().sum(0).mul((groups - 1) / groups).sqrt()


def left_out_values(
    function: Callable[[PairSums], float], grouped: GroupedStatistics, total: CovarianceStatistics, i: int, j: int
) -> Float[Tensor, "group"]:
    """A measure of one pair of layers without each group in turn."""
    return torch.tensor([function(pair) for pair in grouped.left_out(total, i, j)], dtype=torch.float64)
