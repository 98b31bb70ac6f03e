"""Column means and centred products X'Y, accumulated in float64.

Two ways to the same numbers. Exact: every operation in float64. Fast, for large float32 inputs: each block of rows is
shifted by the column means (else a mean of 1,000 leaves three digits), multiplied in float32, and added up in float64;
rows of massive norm are multiplied in float64, because a float32 product rounds relative to its largest rows.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Multiply-adds below which float64 costs nothing that anyone would notice.
_SMALL = 2**28
_ROWS = 2048
# Blocks whose products are added up in float32 before they join the float64 sum.
_BLOCKS = 4
# Width of the panels of a symmetric product of which only the upper triangle is computed.
_PANEL = 128
# A row this many times the median norm of its block is massive.
_MASSIVE = 8.0


@dataclass(frozen=True)
class Products:
    """Centred products of two sample matrices, float64."""

    xy: Float[Tensor, "d1 d2"]
    """X'Y."""
    xx: Float[Tensor, "d1 d1"] | None
    """X'X, where asked for."""
    yy: Float[Tensor, "d2 d2"] | None
    """Y'Y, where asked for."""
    x_squares: Float[Tensor, " sample"]
    """|x_i|^2 of each centred row."""
    y_squares: Float[Tensor, " sample"]
    """|y_i|^2 of each centred row."""


def exact_is_cheap(x: Tensor, y: Tensor) -> bool:
    """Whether float64 throughout is what to use: float64 inputs, or a product so small that it is free."""
    return x.dtype == torch.float64 or y.dtype == torch.float64 or x.shape[0] * x.shape[1] * y.shape[1] <= _SMALL


def centred(x: Float[Tensor, "sample d"]) -> Float[Tensor, "sample d"]:
    """X less its column means, float64."""
    x = x.double()
    return x - x.mean(0)


def in_range(x: Float[Tensor, "sample d"]) -> Float[Tensor, "sample d"]:
    """X, where its fourth powers are float64 numbers; else X in a unit, a power of two, in which they are.

    For what no scale changes. Those of float32 numbers always are.
    """
    most = float(x.abs().amax()) if x.dtype == torch.float64 else 1.0
    return x if 2.0**-100 < most < 2.0**100 else x / 2.0 ** math.floor(math.log2(most))


def upper_gram(x: Float[Tensor, "sample d"]) -> Float[Tensor, "d d"]:
    """The upper triangle of X'X; what lies below it means nothing."""
    out = x.new_zeros(x.shape[1], x.shape[1])
    _add_gram(out, x)
    return out


def centred_products(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, exact: bool, grams: bool = True
) -> Products:
    """X'Y (and X'X, Y'Y) of the centred matrices, in blocks of rows.

    Args:
        x: [sample, d1].
        y: [sample, d2].
        exact: float64 throughout, rather than float32 blocks added up in float64.
        grams: also X'X and Y'Y.
    """
    work = torch.float64 if exact else torch.float32
    n, sides = x.shape[0], (x, y)
    means = [_column_means(side, work) for side in sides]
    buffers = [side.new_empty(min(n, _ROWS), side.shape[1], dtype=work) for side in sides]
    squares = [side.new_empty(n, dtype=torch.float64) for side in sides]
    xy = _Sum((x.shape[1], y.shape[1]), x.device, work)
    own = [_Sum((side.shape[1],) * 2, x.device, work, symmetric=True) for side in sides] if grams else []
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        blocks = [buffer[: rows.stop - start] for buffer in buffers]
        for side, mean, block in zip(sides, means, blocks, strict=True):
            torch.sub(side[rows], mean, out=block)
        norms = [torch.linalg.vector_norm(block, dim=1) for block in blocks]
        massive = None if exact else _massive_rows(norms)
        norms = [norm.double() for norm in norms]
        if massive is not None:
            large = [block[massive].double() for block in blocks]
            for block, norm, values in zip(blocks, norms, large, strict=True):
                block[massive] = 0
                norm[massive] = torch.linalg.vector_norm(values, dim=1)
            xy.add_exactly(*large)
            for total, values in zip(own, large, strict=False):
                total.add_exactly(values, values)
        for square, norm in zip(squares, norms, strict=True):
            square[rows] = norm.square_()
        xy.add(*blocks)
        for total, block in zip(own, blocks, strict=False):
            total.add(block, block)
    xx, yy = (total.value() for total in own) if grams else (None, None)
    return Products(xy.value(), xx, yy, squares[0], squares[1])


class _Sum:
    """A running A'B: a few blocks' products in the working dtype, their sum in float64."""

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, work: torch.dtype, symmetric: bool = False
    ) -> None:
        self.total = torch.zeros(shape, dtype=torch.float64, device=device)
        self.part = self.total if work == torch.float64 else torch.zeros(shape, dtype=work, device=device)
        self.symmetric, self.pending = symmetric, 0

    def add(self, a: Tensor, b: Tensor) -> None:
        if self.symmetric:
            _add_gram(self.part, a)
        else:
            self.part.addmm_(a.T, b)
        self.pending += 1
        if self.pending == _BLOCKS:
            self._carry()

    def add_exactly(self, a: Tensor, b: Tensor) -> None:
        self.total.addmm_(a.T, b)

    def value(self) -> Tensor:
        self._carry()
        return _mirror(self.total) if self.symmetric else self.total

    def _carry(self) -> None:
        if self.pending and self.part is not self.total:
            self.total.add_(self.part)
            self.part.zero_()
        self.pending = 0


def _column_means(x: Tensor, work: torch.dtype) -> Tensor:
    """Column means as products with ones, the fastest pass over X; a shift need not be the mean to the last digit."""
    if work == torch.float64:
        return x.mean(0, dtype=work)
    ones, total = x.new_ones(1, _ROWS), torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for block in x.split(_ROWS):
        total += (ones[:, : len(block)] @ block)[0]
    return (total / x.shape[0]).to(work)


def _add_gram(out: Tensor, a: Tensor) -> None:
    """Add A'A to the upper triangle of `out` (and to whatever below it shares a panel)."""
    for start in range(0, a.shape[1], _PANEL):
        out[start : start + _PANEL, start:].addmm_(a[:, start : start + _PANEL].T, a[:, start:])


def _mirror(upper: Tensor) -> Tensor:
    return upper.triu() + upper.triu(1).T


def _massive_rows(norms: list[Tensor]) -> Tensor | None:
    """Rows of a block, by index, whose norm on either side dwarfs the block's; None where there are none."""
    if all(norm.max() <= _MASSIVE * norm.min() for norm in norms):
        return None
    massive = torch.zeros_like(norms[0], dtype=torch.bool)
    for norm in norms:
        massive |= norm > _MASSIVE * norm.median()
    return massive.nonzero()[:, 0] if massive.any() else None
