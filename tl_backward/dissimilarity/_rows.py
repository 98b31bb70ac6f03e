"""Shifted rows of all layers side by side, gathered until there are enough to multiply, and multiplied tile by tile."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

BUFFER = 200_000_000  # bytes of rows multiplied at once: adding a product up in float64 costs as much as a few rows do
ROWS = 4096  # and no more of them than this
TILE = 768  # columns of A and of B that are multiplied at once: narrow layers are stacked, wide ones are cut
BLOCK = 192  # only blocks on and above the diagonal of the symmetric sum xx' are multiplied


def parts(widths: Sequence[int]) -> list[slice]:
    """Each layer's columns in a matrix that holds all layers side by side."""
    ends = torch.tensor([0, *widths]).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def matrices(flat: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Views [width, width] of each layer's matrix in the flat vector that holds them all."""
    sizes = [width**2 for width in widths]
    return [part.view(width, width) for part, width in zip(flat.split(sizes), widths, strict=True)]


def buffer_bytes(widths_a: Sequence[int], widths_b: Sequence[int], itemsize: int) -> int:
    """Bytes of a `RowBuffer`: its rows, and one product of two tiles."""
    total = sum(widths_a) + sum(widths_b)
    return itemsize * (_buffer_rows(total, itemsize) * total + TILE * TILE)


def _buffer_rows(width: int, itemsize: int) -> int:
    return max(1, min(ROWS, BUFFER // (width * itemsize)))


def tiles(widths: Sequence[int]) -> list[slice]:
    """Runs of columns that are multiplied together: whole layers up to TILE columns, or parts of a wider one."""
    runs: list[slice] = []
    for at in parts(widths):
        if runs and at.stop - runs[-1].start <= TILE:
            runs[-1] = slice(runs[-1].start, at.stop)
        else:
            runs += [slice(start, min(start + TILE, at.stop)) for start in range(at.start, at.stop, TILE)]
    return runs


class _Side:
    """One model's buffered rows, a contiguous matrix a tile, and which columns of which tiles hold each layer."""

    def __init__(self, widths: Sequence[int], size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.widths = widths
        self.tiles = tiles(widths)
        self.rows = [torch.empty(size, tile.stop - tile.start, dtype=dtype, device=device) for tile in self.tiles]
        self.squares = torch.empty(size, len(widths), dtype=torch.float64, device=device)
        self.pieces = [list(self._pieces(at)) for at in parts(widths)]

    def _pieces(self, layer: slice) -> Iterator[tuple[int, slice, slice]]:
        """(tile, columns within the tile, columns within the layer) of each part of a layer."""
        for number, tile in enumerate(self.tiles):
            start, stop = max(tile.start, layer.start), min(tile.stop, layer.stop)
            if start < stop:
                yield (
                    number, slice(start - tile.start, stop - tile.start), slice(start - layer.start, stop - layer.start)
                )  # fmt: skip


@runtime_checkable
class Sums(Protocol):
    """The sums that a `RowBuffer` adds its products to, such as `CovarianceStatistics`."""

    shift_a: Tensor
    shift_b: Tensor
    cross: Tensor
    square_cross: Tensor

    def added(self, n: int) -> None:
        """Count n more rows; of each symmetric sum xx', only entries on and above the diagonal hold them."""


class RowBuffer:
    """A buffer of both models' rows, whose products are added to the sums whenever it is full."""

    def __init__(
        self, widths_a: Sequence[int], widths_b: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype, self.filled = dtype, 0
        self.size = _buffer_rows(sum(widths_a) + sum(widths_b), dtype.itemsize)
        self.sides = {"a": _Side(widths_a, self.size, dtype, device), "b": _Side(widths_b, self.size, dtype, device)}
        self.product = torch.empty(TILE * TILE, dtype=dtype, device=device)

    def add(self, sums: Sums, x: Sequence[Tensor], y: Sequence[Tensor]) -> None:
        """Copy rows [sample, width], one tensor a layer, into the buffer; flush it whenever it is full."""
        done = 0
        while done < len(x[0]):
            take = min(len(x[0]) - done, self.size - self.filled)
            for side, rows in (("a", x), ("b", y)):
                shift = getattr(sums, f"shift_{side}").to(self.dtype)
                for layer, at in enumerate(parts(self.sides[side].widths)):
                    self._copy(side, layer, rows[layer][done : done + take], shift[at])
            self.filled += take
            done += take
            if self.filled == self.size:
                self.flush(sums)

    def _copy(self, side: str, layer: int, rows: Tensor, shift: Tensor) -> None:
        into, here = self.sides[side], slice(self.filled, self.filled + len(rows))
        square = torch.zeros(len(rows), dtype=torch.float64, device=shift.device)
        for tile, columns, own in into.pieces[layer]:
            part = into.rows[tile][here, columns]
            torch.sub(rows[:, own].to(part), shift[own], out=part)
            square += torch.linalg.vector_norm(part, dim=1, dtype=torch.float64).square_()
        if not torch.isfinite(square).all():
            bad = int((~torch.isfinite(rows).all(1)).int().argmax())
            raise ValueError(
                f"Expected finite activations, got NaN or inf in row {bad} of layer {layer} of {side.upper()}; look "
                "upstream for an overflow."
            )
        into.squares[here, layer] = square

    def flush(self, sums: Sums) -> None:
        """Add the products of the buffered rows to the sums, and empty the buffer."""
        n, self.filled = self.filled, 0
        if not n:
            return
        a, b = self.sides["a"], self.sides["b"]
        for left, at in zip(a.rows, a.tiles, strict=True):
            for right, columns in zip(b.rows, b.tiles, strict=True):
                self._accumulate(sums.cross[at, columns], left[:n], right[:n])
        sums.square_cross.addmm_(a.squares[:n].T, b.squares[:n])
        for side, own, other in (("a", a, b), ("b", b, a)):
            weights = other.squares[:n].T.to(self.dtype)
            squares = own.squares[:n]
            ones = weights.new_ones(n)
            for rows, at in zip(own.rows, own.tiles, strict=True):
                getattr(sums, f"weighted_{side}")[:, at].add_(weights @ rows[:n])
                getattr(sums, f"sum_{side}")[at].add_(rows[:n].T @ ones)
            getattr(sums, f"square_{side}").add_(squares.sum(0))
            getattr(sums, f"quartic_{side}").add_(squares.square().sum(0))
            self._within(sums, side, n)
        sums.added(n)

    def _within(self, sums: Sums, side: str, n: int) -> None:
        """Add x x' of each layer, on and above the diagonal, and |x|^2 x."""
        own = self.sides[side]
        squared = matrices(getattr(sums, f"within_{side}"), own.widths)
        for layer, at in enumerate(parts(own.widths)):
            weights = own.squares[:n, layer].to(self.dtype)
            cubic = getattr(sums, f"cubic_{side}")[at]
            for index, (tile, columns, place) in enumerate(own.pieces[layer]):
                rows = own.rows[tile][:n, columns]
                cubic[place].add_(rows.T @ weights)
                for start in range(0, rows.shape[1], BLOCK):
                    block = slice(place.start + start, place.start + min(start + BLOCK, rows.shape[1]))
                    into = squared[layer][block, place.start + start : place.stop]
                    self._accumulate(into, rows[:, start : start + BLOCK], rows[:, start:])
                for other, right, across in own.pieces[layer][index + 1 :]:
                    self._accumulate(squared[layer][place, across], rows, own.rows[other][:n, right])

    def _accumulate(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Add left'right to `into`: a product of one tile, which is still in the CPU's cache."""
        product = self.product[: into.numel()].view(into.shape)
        into.add_(torch.mm(left.T, right, out=product))
