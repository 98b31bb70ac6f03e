"""Inner products of one weight's gradients between examples, from their factors, by the cheaper of two ways.

- By tokens: sum_ij (x_i.x_j)(delta_i.delta_j), which takes T_a T_b (d_in + d_out) multiplications a pair of examples.
- By entries: sum_pq (x_a^T delta_a)_pq (x_b^T delta_b)_pq, d_in d_out a pair, after T d_in d_out to form each gradient.
  They are formed for all examples at once, but only some rows of the weight at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.threads import n_threads, over_threads, steps

_BLOCK_BYTES = 12 << 20  # of the gradients' entries that are formed at a time
_TILE = (1024, 2048)  # tokens of a and of b whose products are held at a time
_MAX_SUMMED = 1 << 16  # entries that one float32 product sums, before float64 takes over
_FIXED_COST = 32  # of a pair of tokens: multiplying its two products and summing, in multiplications


@dataclass(frozen=True)
class ExampleRows:
    """A weight's factors, the rows of each example beside each other."""

    inputs: Float[Tensor, "n d_in"] | Int[Tensor, "n"]
    """x, or the row ids of an embedding."""
    deltas: Float[Tensor, "n d_out"]
    counts: Int[Tensor, "example"]
    """How many rows are each example's."""

    @classmethod
    def of(cls, inputs: Tensor, deltas: Tensor, owners: Int[Tensor, "n"], *, n_examples: int) -> "ExampleRows":
        """Rows of examples in any order, as `GradientFactors.active` gives them."""
        if len(owners) and bool((owners[1:] < owners[:-1]).any()):
            order = owners.argsort(stable=True)
            inputs, deltas = inputs.index_select(0, order), deltas.index_select(0, order)
        return cls(inputs, deltas, torch.bincount(owners, minlength=n_examples))

    def __getitem__(self, examples: slice) -> "ExampleRows":
        """Some of the examples, without copying."""
        kept = self.counts[examples]
        start = int(self.counts[: examples.start].sum()) if examples.start else 0
        rows = slice(start, start + int(kept.sum()))
        return ExampleRows(self.inputs[rows], self.deltas[rows], kept)

    def room(self, n: int) -> "ExampleRows":
        """No examples yet, and memory for n rows like these."""
        inputs, deltas = (side.new_empty(n, *side.shape[1:]) for side in (self.inputs, self.deltas))
        return ExampleRows(inputs, deltas, self.counts[:0])

    def has_room(self, other: "ExampleRows") -> bool:
        """Whether another's rows fit behind these."""
        return int(self.counts.sum()) + len(other.deltas) <= len(self.deltas)

    def followed_by(self, other: "ExampleRows") -> "ExampleRows":
        """These examples, and others whose rows are written behind these into the same memory."""
        start = int(self.counts.sum())
        for mine, its in ((self.inputs, other.inputs), (self.deltas, other.deltas)):
            mine[start : start + len(its)] = its
        return ExampleRows(self.inputs, self.deltas, torch.cat([self.counts, other.counts]))

    @property
    def row_bytes(self) -> int:
        """What the factors of one row take."""
        return sum(side.shape[1:].numel() * side.itemsize for side in (self.inputs, self.deltas))

    @property
    def dtype(self) -> torch.dtype:
        """What products are taken in: float64 where the factors are, float32 otherwise."""
        return torch.float64 if self.deltas.dtype == torch.float64 else torch.float32

    def owners(self) -> Int[Tensor, "n"]:
        """The example of each row."""
        return torch.arange(len(self.counts), device=self.counts.device).repeat_interleave(self.counts)

    def gradients(self, rows: slice, columns: slice) -> Float[Tensor, "example entry"]:
        """Some rows and columns of each example's gradient x^T delta, flat; those with as many rows are one product."""
        starts, found = self.counts.cumsum(0) - self.counts, None
        distinct = sorted(set(self.counts.tolist()))
        everyone = len(distinct) == 1
        for count in distinct:
            mine = slice(None) if everyone else (self.counts == count).nonzero().flatten()
            n, at = len(starts), slice(None)
            if isinstance(mine, Tensor):
                n, at = len(mine), (starts[mine, None] + torch.arange(count, device=mine.device)).flatten()
            x, d = (side[at].to(self.dtype) for side in (self.inputs[:, rows], self.deltas[:, columns]))
            x, d = (side.reshape(n, count, side.shape[1]) for side in (x, d))
            formed = torch.bmm(x.transpose(1, 2), d).flatten(1)
            if everyone:
                return formed
            found = formed.new_empty(len(self.counts), formed.shape[1]) if found is None else found
            found[mine] = formed
        return self.deltas.new_zeros(0, 0) if found is None else found


def inner_products(a: ExampleRows, b: ExampleRows) -> Float[Tensor, "a b"]:
    """<dL_a/dW, dL_b/dW> of every pair of examples, accumulated in float64; less work where `a is b`.

    Products are float32 unless the factors are float64: of the size |dL_a/dW| |dL_b/dW| some 1e-7 is rounding.
    """
    if a.inputs.is_floating_point() and _n_by_entries(a, b) < _n_by_tokens(a, b):
        return _by_entries(a, b)
    return _by_tokens(a, b)


def _n_by_tokens(a: ExampleRows, b: ExampleRows) -> float:
    width = a.inputs.shape[1] + a.deltas.shape[1] + _FIXED_COST
    return len(a.deltas) * len(b.deltas) * width / (2 if a is b else 1)


def _n_by_entries(a: ExampleRows, b: ExampleRows) -> int:
    n_formed = len(a.deltas) + (0 if a is b else len(b.deltas))
    return (len(a.counts) * len(b.counts) + 2 * n_formed) * a.inputs.shape[1] * a.deltas.shape[1]


def _by_entries(a: ExampleRows, b: ExampleRows) -> Float[Tensor, "a b"]:
    total = torch.zeros(len(a.counts), len(b.counts), dtype=torch.float64, device=a.deltas.device)
    for found in over_threads(partial(_block, a, b), _blocks(a, b), a.deltas.device):
        total += found
    return total


def _block(a: ExampleRows, b: ExampleRows, entries: tuple[slice, slice]) -> Float[Tensor, "a b"]:
    """What some rows and columns of the weight add: in a function of its own, so that they are gone when it ends."""
    one = a.gradients(*entries)
    return one @ (one if a is b else b.gradients(*entries)).T


def _blocks(a: ExampleRows, b: ExampleRows) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the weight whose entries, formed for every example, stay within bounds."""
    d_in, d_out = a.inputs.shape[1], a.deltas.shape[1]
    n_examples = len(a.counts) + (0 if a is b else len(b.counts))
    n_bytes = _BLOCK_BYTES // n_threads(a.deltas.device)
    entries = max(1, min(_MAX_SUMMED, n_bytes // (a.dtype.itemsize * max(1, n_examples))))
    n_columns = min(d_out, entries)
    n_rows = max(1, entries // n_columns)
    for row in range(0, d_in, n_rows):
        for column in range(0, d_out, n_columns):
            yield slice(row, row + n_rows), slice(column, column + n_columns)


def _by_tokens(a: ExampleRows, b: ExampleRows) -> Float[Tensor, "a b"]:
    total = torch.zeros(len(a.counts), len(b.counts), dtype=torch.float64, device=a.deltas.device)
    symmetric = a is b
    owner_a, owner_b = a.owners(), b.owners()
    # Of a symmetric matrix, what lies left of the diagonal stands right of it too, in its mirror image.
    tiles = (
        (rows, columns)
        for rows in steps(len(owner_a), _TILE[0])
        for columns in steps(len(owner_b), _TILE[1], start=rows.start if symmetric else 0)
    )

    def summed(tile: tuple[slice, slice]) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = tile
        products = a.deltas[rows].to(a.dtype) @ b.deltas[columns].to(a.dtype).T
        x, x2 = a.inputs[rows], b.inputs[columns]
        products *= x.to(a.dtype) @ x2.to(a.dtype).T if x.is_floating_point() else x[:, None] == x2
        if symmetric:
            products[:, rows.stop - columns.start if columns.start == rows.start else 0 :] *= 2
        mine, other = owner_a[rows], owner_b[columns]
        return mine, other, _summed(_summed(products, mine).T.contiguous(), other).T

    for mine, other, found in over_threads(summed, tiles, total.device):
        total[mine[0] : mine[-1] + 1, other[0] : other[-1] + 1] += found
    return (total + total.T) / 2 if symmetric else total


def _summed(rows: Tensor, owners: Int[Tensor, "n"]) -> Tensor:
    """The sum of each example's rows, from the first example that has some to the last."""
    first, last = int(owners[0]), int(owners[-1])
    return rows.new_zeros(last - first + 1, rows.shape[1]).index_add_(0, owners - first, rows)
