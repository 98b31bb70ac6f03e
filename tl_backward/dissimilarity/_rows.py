"""Shifted rows of all layers side by side, gathered until there are enough to multiply, and multiplied tile by tile."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tl_backward.dissimilarity.statistics import CovarianceStatistics

BUFFER = 200_000_000  # bytes of rows that are multiplied at once: adding up in float64 costs as much as few rows do
ROWS = 4096  # and no more of them than this
TILE = 768  # columns of A and of B that are multiplied at once: narrow layers are stacked, wide ones are cut
BLOCK = 256  # only blocks on and above the diagonal of the symmetric sum xx' are multiplied


def parts(widths: Sequence[int]) -> list[slice]:
    """Each layer's columns where all layers stand side by side."""
    ends = torch.tensor([0, *widths]).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def matrices(flat: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Views of each layer's square matrix in the vector that holds them all."""
    sizes = [width**2 for width in widths]
    return [part.view(width, width) for part, width in zip(flat.split(sizes), widths, strict=True)]


def buffer_bytes(widths_a: Sequence[int], widths_b: Sequence[int], itemsize: int) -> int:
    """Bytes of the rows that wait to be multiplied, and of one product."""
    total = sum(widths_a) + sum(widths_b)
    return itemsize * (_buffer_rows(total, itemsize) * total + TILE * TILE)


def _buffer_rows(width: int, itemsize: int) -> int:
    return max(1, min(ROWS, BUFFER // (width * itemsize)))


class RowBuffer:
    """Shifted rows side by side, gathered until there are enough to multiply at once."""

    def __init__(self, owner: "CovarianceStatistics", dtype: torch.dtype) -> None:
        self.owner, self.dtype, self.filled = owner, dtype, 0
        self.size = _buffer_rows(sum(owner.widths_a) + sum(owner.widths_b), dtype.itemsize)
        self.sides: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        for side, widths in (("a", owner.widths_a), ("b", owner.widths_b)):
            self.sides[side] = torch.empty(self.size, sum(widths), dtype=dtype, device=owner.sum_a.device)
            self.squares[side] = self.sides[side].new_empty(self.size, len(widths), dtype=torch.float64)
        self.product = torch.empty(TILE * TILE, dtype=dtype, device=owner.sum_a.device)

    def add(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> None:
        """Copy rows in, and multiply whenever the buffer is full."""
        done = 0
        while done < len(x[0]):
            take = min(len(x[0]) - done, self.size - self.filled)
            for side, rows, shift in (("a", x, self.owner.shift_a), ("b", y, self.owner.shift_b)):
                shift = shift.to(self.dtype)
                for layer, at in enumerate(parts(getattr(self.owner, f"widths_{side}"))):
                    into = self.sides[side][self.filled : self.filled + take, at]
                    torch.sub(rows[layer][done : done + take].to(into), shift[at], out=into)
                    square = torch.linalg.vector_norm(into, dim=1, dtype=torch.float64).square_()
                    self.squares[side][self.filled : self.filled + take, layer] = square
                    if not torch.isfinite(square).all():
                        bad = ~torch.isfinite(rows[layer]).all(1)
                        raise ValueError(
                            f"Expected finite activations, got NaN or inf in row {int(bad.int().argmax())} of layer "
                            f"{layer} of {side.upper()}; look upstream for an overflow."
                        )
            self.filled += take
            done += take
            if self.filled == self.size:
                self.flush()

    def flush(self) -> None:
        """Multiply what is there and add it to the owner's sums."""
        n, self.filled = self.filled, 0
        if not n:
            return
        owner = self.owner
        a, b = self.sides["a"][:n], self.sides["b"][:n]
        squares_a, squares_b = self.squares["a"][:n], self.squares["b"][:n]
        ones = a.new_ones(n)
        for start in range(0, a.shape[1], TILE):
            for first in range(0, b.shape[1], TILE):
                self._accumulate(owner.cross, a, b, slice(start, start + TILE), slice(first, first + TILE))
        owner.square_cross.addmm_(squares_a.T, squares_b)
        owner.weighted_a.add_(squares_b.T.to(a.dtype) @ a)
        owner.weighted_b.add_(squares_a.T.to(a.dtype) @ b)
        for side, x, squares in (("a", a, squares_a), ("b", b, squares_b)):
            getattr(owner, f"square_{side}").add_(squares.sum(0))
            getattr(owner, f"quartic_{side}").add_(squares.square().sum(0))
            getattr(owner, f"sum_{side}").add_(x.T @ ones)
            widths = owner.widths_a if side == "a" else owner.widths_b
            squared = matrices(getattr(owner, f"within_{side}"), widths)
            for layer, at in enumerate(parts(widths)):
                block, within = x[:, at], squared[layer]
                for start in range(0, block.shape[1], BLOCK):
                    for first in range(start, block.shape[1], TILE):
                        rows, columns = slice(start, start + BLOCK), slice(first, first + TILE)
                        self._accumulate(within, block, block, rows, columns)
                getattr(owner, f"cubic_{side}")[at] += block.T @ squares[:, layer].to(x.dtype)
        owner._n += n
        owner._mirrored = False

    def _accumulate(self, into: Tensor, a: Tensor, b: Tensor, rows: slice, columns: slice) -> None:
        """Add one tile of a'b, while the cache still holds it."""
        left, right = a[:, rows].T, b[:, columns]
        product = self.product[: len(left) * right.shape[1]].view(len(left), right.shape[1])
        into[rows, columns].add_(torch.mm(left, right, out=product))
