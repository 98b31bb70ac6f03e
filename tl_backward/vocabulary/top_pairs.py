"""The k largest entries of a product of two thin matrices, exactly, without ever holding the product.

For factors `left` [n_rows, d] and `right` [n_cols, d] the product left @ right.T has n_rows n_cols entries: 2.5 billion
for a head of GPT-2 read over its vocabulary. It is computed tile by tile in a buffer that fits the cache, rows and
columns sorted by norm, against a running threshold t, the k-th best value so far. A tile is left out where
Cauchy-Schwarz allows no entry above t: max|l| max|r| < t (and where it repeats one entry that cannot matter). Tensors
only: no model.

What the tiles compute in their own precision only nominates: an entry within twice the product's rounding error of t is
computed again in float64, one dot product at a time, and ranked by that. So the result is that of float64 arithmetic,
and the same whatever the tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.html import frame_table
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.types import DataFrame, typed

Mask: TypeAlias = tuple[Bool[Tensor, "n_rows"] | None, Bool[Tensor, "n_cols"] | None]

TILE = (512, 1024)
"""Rows and columns of a tile on a CPU: 2 MiB in float32, about a core's second-level cache."""

GPU_TILE = (1024, 2048)

_SCRATCH = 2**19  # numbers of a factor taken to float64 at once


@dataclass(frozen=True, repr=False, eq=False)
class TopPairs(Saved):
    """The k largest (or smallest) entries of left @ right.T, best first; ties by row, then column."""

    values: Float[Tensor, " k"]
    """The entries, computed in float64 and rounded to float32 (float64 for float64 factors)."""
    rows: Int[Tensor, " k"]
    """Their rows: indices into `left`."""
    cols: Int[Tensor, " k"]
    """Their columns: indices into `right`."""
    largest: bool
    """Whether these are the largest entries, or the smallest."""
    n_tiles: int
    """Tiles that the product was divided into."""
    n_skipped: int
    """Tiles that the bound proved to hold nothing of interest, so that they were never computed."""

    def __repr__(self) -> str:
        what = "largest" if self.largest else "smallest"
        return f"TopPairs({len(self.values)} {what} entries, {self.n_skipped} of {self.n_tiles} tiles skipped)"

    def to_frame(self) -> DataFrame:
        """One row a pair, best first: value, row, col."""
        import pandas

        return pandas.DataFrame({name: getattr(self, f"{name}s").tolist() for name in ("value", "row", "col")})

    def _repr_html_(self) -> str:
        """A static table of the first 20 pairs."""
        return frame_table(self.to_frame().head(20), caption=repr(self))


@public
@typed
def top_pairs(
    left: Float[Tensor, "..."],
    right: Float[Tensor, "..."],
    k: int,
    *,
    largest: bool = True,
    exclude_same: bool = False,
    mask: Mask | None = None,
    show_progress: bool = True,
) -> TopPairs:
    """Find the k largest entries of left @ right.T exactly, in bounded memory, on the device of the factors.

    Entries are compared as float64 dot products, equal ones by row and then column, so the result does not depend on
    how the work was divided. Above the factors and the result it takes less than 256 MiB.

    Args:
        left: [n_rows, d], float32, float64, or half precision (multiplied in float32, exact in the inputs).
        right: [n_cols, d], of the same dtype and on the same device.
        k: how many pairs to find.
        largest: whether to find the largest entries; otherwise the smallest (most negative), smallest first.
        exclude_same: leave out the entries whose row and column have the same index.
        mask: (row_mask, col_mask), booleans [n_rows] and [n_cols], either may be None: only pairs of a kept row and a
            kept column count.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; NaN, inf, or values whose products overflow; k larger
            than the number of pairs that may be chosen.

    Examples:
        >>> left, right = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
        >>> tlb.top_pairs(left, right, 2).to_frame().values.tolist()  # value, row, column
        [[3.0, 0.0, 1.0], [2.0, 1.0, 1.0]]
    """
    _check_factors(left, right)
    left, right = left.detach(), right.detach()
    row_mask, col_mask = (None, None) if mask is None else mask
    with torch.no_grad():
        sides = (_Side.of(left, row_mask, "left"), _Side.of(right, col_mask, "right"))
        _check_pairs(k, *sides, exclude_same, torch.promote_types(left.dtype, torch.float32))
        return _Search(left, right, k, largest, exclude_same, *sides).run(show_progress)


@dataclass(frozen=True)
class _Side:
    """A factor's rows that take part, largest norm first."""

    order: Tensor
    """Indices of the kept rows."""
    norms: Tensor
    """Their norms, float64, descending."""
    place: Tensor
    """Where each of the factor's rows stands in `order`; -1 if it is not kept."""

    @staticmethod
    def of(factor: Tensor, mask: Tensor | None, name: str) -> "_Side":
        if mask is not None and mask.shape != factor.shape[:1]:
            raise ValueError(
                f"Expected a mask of {len(factor)} booleans for {name}, got {list(mask.shape)}; give one a row of it."
            )
        rows = torch.arange(len(factor), device=factor.device)
        rows = rows if mask is None else rows[mask.to(factor.device)]
        norms = _norms(factor)
        if not torch.isfinite(norms).all():
            raise ValueError(f"Expected finite factors, got NaN or inf in {name}; look upstream for an overflow.")
        norms, order = norms[rows].sort(descending=True, stable=True)
        place = torch.full((len(factor),), -1, device=factor.device)
        place[rows[order]] = torch.arange(len(rows), device=factor.device)
        return _Side(rows[order], norms, place)

    def blocks(self, factor: Tensor, size: int) -> "list[_Block]":
        """Consecutive parts of `order`."""
        blocks, tops = [], self.norms[::size].tolist()
        for i, part in enumerate(self.order.split(size)):
            rows = factor[part]
            all_equal = torch.equal(rows[0], rows[-1]) and bool((rows == rows[0]).all())
            blocks.append(_Block(slice(i * size, i * size + len(part)), tops[i], int(part.min()), all_equal))
        return blocks


@dataclass(frozen=True)
class _Block:
    """Some rows of a factor, side by side in the order of their norms."""

    places: slice
    """Where in that order."""
    norm: float
    """The largest norm."""
    first: int
    """The smallest index."""
    all_equal: bool
    """Whether they are the same row over and over."""


class _Search:
    """State of a search: the tiles, the threshold and the best pairs so far."""

    def __init__(
        self, left: Tensor, right: Tensor, k: int, largest: bool, exclude_same: bool, rows: _Side, cols: _Side
    ) -> None:
        self.left, self.right, self.rows, self.cols = left, right, rows, cols
        self.k, self.sign, self.exclude_same = k, 1.0 if largest else -1.0, exclude_same
        self.dtype = torch.promote_types(left.dtype, torch.float32)
        d, limits = left.shape[1], torch.finfo(self.dtype)
        # |computed - exact| <= rounding |l| |r| + underflow, for any order of summation (Higham 2002, sec. 3.1), twice:
        # once for the tile's product, once for the float64 one.
        self.rounding = 2 * (d + 8) * limits.eps + _reduced_precision(self.dtype)
        self.underflow = 2 * d * limits.tiny
        self.slack = 1 + 4 * (d + 8) * torch.finfo(torch.float64).eps
        self.best: list[tuple[Tensor, Tensor]] = []
        """Values and indices (row * n_cols + col) of the pairs that may be among the best."""
        self.n_best = 0
        self.threshold, self.last = -torch.inf, -1
        """The k-th best value so far and its index; nothing that is worse can matter."""

    def run(self, show_progress: bool) -> TopPairs:
        height, width = TILE if self.left.device.type == "cpu" else GPU_TILE
        row_blocks, col_blocks = self.rows.blocks(self.left, height), self.cols.blocks(self.right, width)
        n_tiles, computed = len(row_blocks) * len(col_blocks), 0
        tile = self.left.new_empty(height * width, dtype=self.dtype)
        l_block, r_block = (self.left.new_empty(n, self.left.shape[1], dtype=self.dtype) for n in (height, width))
        for rows in tqdm(row_blocks, disable=not show_progress, delay=1, leave=False, desc="pairs"):
            l_part = _gathered(self.left, self.rows.order[rows.places], l_block).mul_(self.sign)
            for cols in self._wanted(rows, col_blocks):
                r_part = _gathered(self.right, self.cols.order[cols.places], r_block)
                product = tile[: len(l_part) * len(r_part)].view(len(l_part), len(r_part))
                self._take(torch.mm(l_part, r_part.T, out=product), rows, cols)
                computed += 1
        self._prune()
        values, indices = self.best[0]
        rows, cols = indices // len(self.right), indices % len(self.right)
        return TopPairs((values * self.sign).to(self.dtype), rows, cols, self.sign > 0, n_tiles, n_tiles - computed)

    def _wanted(self, rows: _Block, col_blocks: list[_Block]) -> Iterator[_Block]:
        """Column blocks in which a block of rows may have an entry that matters."""
        for cols in col_blocks:
            bound = rows.norm * cols.norm * self.slack
            if bound < self.threshold:
                return  # the columns after these are shorter still
            if rows.all_equal and cols.all_equal:
                bound = self._exact(self.rows.order[rows.places][:1], self.cols.order[cols.places][:1]).item()
            first = rows.first * len(self.right) + cols.first
            if bound < self.threshold or (bound == self.threshold and first > self.last):
                continue  # smaller ones, or nothing but ties, and all of them come later
            yield cols

    def _take(self, tile: Tensor, rows: _Block, cols: _Block) -> None:
        """Add the entries of a tile that may be among the best."""
        if self.exclude_same:
            self._blank_same(tile, rows.places, cols.places)
        error = self.rounding * rows.norm * cols.norm + self.underflow
        cut = self.threshold
        if cut == -torch.inf and self.k < tile.numel():
            cut = tile.flatten().topk(self.k).values[-1].item()
        cut = max(cut - error, torch.finfo(self.dtype).min)  # what was blanked stays below it
        high = (tile.amax(1) >= cut).nonzero().flatten()
        if not len(high):
            return
        i, j = (tile[high] >= cut).nonzero().unbind(1)
        row, col = self.rows.order[rows.places][high[i]], self.cols.order[cols.places][j]
        values, indices = self._exact(row, col), row * len(self.right) + col
        better = (values > self.threshold) | ((values == self.threshold) & (indices < self.last))
        self.best.append((values[better], indices[better]))
        self.n_best += len(self.best[-1][0])
        if self.n_best > 2 * self.k or self.n_best >= self.k and self.threshold == -torch.inf:
            self._prune()

    def _blank_same(self, tile: Tensor, rows: slice, cols: slice) -> None:
        """Put -inf where row and column are the same index."""
        order = self.rows.order[rows]
        column = self.cols.place[order.clamp(max=len(self.right) - 1)].masked_fill(order >= len(self.right), -1)
        inside = ((column >= cols.start) & (column < cols.stop)).nonzero().flatten()
        tile[inside, column[inside] - cols.start] = -torch.inf

    def _exact(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries in float64: each a dot product of its own, so that its bits do not depend on the others."""
        size = max(1, _SCRATCH // max(1, self.left.shape[1]))
        parts = [
            (self.left[r].double() * self.right[c].double()).sum(1)
            for r, c in zip(rows.split(size), cols.split(size), strict=True)
        ]
        return torch.cat(parts).mul_(self.sign)

    def _prune(self) -> None:
        """Keep the k best, best first, and raise the threshold."""
        values, indices = (torch.cat(part) for part in zip(*self.best, strict=True))
        by_index = indices.argsort()
        best = by_index[values[by_index].argsort(descending=True, stable=True)][: self.k]
        self.best, self.n_best = [(values[best], indices[best])], len(best)
        if len(best) == self.k:
            self.threshold, self.last = values[best[-1]].item(), int(indices[best[-1]])


def _norms(factor: Tensor) -> Tensor:
    """Row norms in float64, without overflow or underflow; not finite where a row is not."""
    norms = factor.new_empty(len(factor), dtype=torch.float64)
    size = max(1, _SCRATCH // max(1, factor.shape[1]))
    for part, out in zip(factor.split(size), norms.split(size), strict=True):
        wide = part.double()
        scale = wide.abs().amax(1)
        scaled = wide / torch.where(scale > 0, scale, 1)[:, None]
        torch.mul(scaled.norm(dim=1), scale, out=out)
    return norms


def _gathered(factor: Tensor, rows: Tensor, block: Tensor) -> Tensor:
    """Rows of a factor in a buffer, in the buffer's dtype."""
    part = block[: len(rows)]
    if factor.dtype != block.dtype:
        return part.copy_(factor[rows])
    return torch.index_select(factor, 0, rows, out=part)


def _reduced_precision(dtype: torch.dtype) -> float:
    """Further relative error of a product where the user lets torch round float32 factors (TF32, bfloat16)."""
    try:
        full = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set through torch's newer, finer switches, some of them at least
        full = False
    return 0.0 if full else 4 * torch.finfo(torch.bfloat16).eps


def _check_factors(left: Tensor, right: Tensor) -> None:
    shapes = f"{list(left.shape)} and {list(right.shape)}"
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1] or not left.shape[1]:
        raise ValueError(
            f"Expected factors [n_rows, d] and [n_cols, d], got {shapes}; the entries are those of left @ right.T."
        )
    if left.dtype != right.dtype or left.device != right.device:
        raise ValueError(
            f"Expected factors of one dtype on one device, got {left.dtype} on {left.device} and {right.dtype} on "
            f"{right.device}; convert one of them."
        )


def _check_pairs(k: int, rows: _Side, cols: _Side, exclude_same: bool, dtype: torch.dtype) -> None:
    n_pairs = len(rows.order) * len(cols.order)
    if exclude_same:
        n = min(len(rows.place), len(cols.place))
        n_pairs -= int(((rows.place[:n] >= 0) & (cols.place[:n] >= 0)).sum())
    if not 1 <= k <= n_pairs:
        raise ValueError(
            f"Expected 1 <= k <= {n_pairs} (the pairs to choose from), got k={k}; choose a smaller k"
            f"{', or keep more rows and columns' if n_pairs < len(rows.place) * len(cols.place) else ''}."
        )
    if not float(rows.norms[0] * cols.norms[0]) < torch.finfo(dtype).max / 4:
        raise ValueError(
            f"Expected factors whose products fit {dtype}, got norms up to {float(rows.norms[0]):.3g} and "
            f"{float(cols.norms[0]):.3g}; scale one of them down."
        )
