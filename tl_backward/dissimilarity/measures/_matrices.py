"""Linear algebra of sample matrices, in float64: centred products X'Y, bases, ranks and norms.

Products come by two ways to the same numbers. Exact: in float64. Fast, for large float32 inputs: each block of rows is
shifted by the column means (else a mean of 1,000 leaves three digits), multiplied in float32, and added up in float64;
rows of massive norm are multiplied in float64, because a float32 product rounds relative to its largest rows.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

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
    grams: tuple[Float[Tensor, "_ _"], ...]
    """X'X and Y'Y, where asked for."""
    x_squares: Float[Tensor, " sample"]
    """|x_i|^2 of each centred row."""
    y_squares: Float[Tensor, " sample"]
    """|y_i|^2 of each centred row."""


def exact_is_cheap(x: Tensor, y: Tensor) -> bool:
    """Whether to compute in float64 throughout: for float64 inputs, and for products too small to cost anything."""
    return x.dtype == torch.float64 or y.dtype == torch.float64 or x.shape[0] * x.shape[1] * y.shape[1] <= _SMALL


def centred(x: Float[Tensor, "sample d"]) -> Float[Tensor, "sample d"]:
    """X less its column means, float64."""
    x = x.double()
    return x - x.mean(0)


def in_range(x: Float[Tensor, "sample d"]) -> Float[Tensor, "sample d"]:
    """X, divided by a power of two where its fourth powers would overflow or underflow float64.

    For measures that no scale changes. Fourth powers of float32 numbers never do.
    """
    most = float(x.abs().amax()) if x.dtype == torch.float64 else 1.0
    return x if 2.0**-100 < most < 2.0**100 else x / 2.0 ** math.floor(math.log2(most))


def widened(x: Float[Tensor, "*lead some"], width: int) -> Float[Tensor, "*lead width"]:
    """X padded on the right with columns of zeros."""
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))


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
    return Products(xy.value(), tuple(total.value() for total in own), squares[0], squares[1])


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
        return self.total.triu() + self.total.triu(1).T if self.symmetric else self.total

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


def _massive_rows(norms: list[Tensor]) -> Tensor | None:
    """Rows of a block, by index, whose norm on either side dwarfs the block's; None where there are none."""
    if all(norm.max() <= _MASSIVE * norm.min() for norm in norms):
        return None
    massive = torch.stack([norm > _MASSIVE * norm.median() for norm in norms]).any(0)
    return massive.nonzero()[:, 0] if massive.any() else None


class Basis(NamedTuple):
    """A thin singular value decomposition U diag(S) V' of a sample matrix, cut to its numerical rank."""

    u: Float[Tensor, "sample rank"]
    s: Float[Tensor, " rank"]
    vh: Float[Tensor, "rank d"]

    @property
    def rank(self) -> int:
        """How many dimensions the samples span."""
        return self.s.numel()

    def leading(self, part: float) -> "Basis":
        """Its fewest leading components with `part` of the variance."""
        keep = components(self.s.square(), part)
        return Basis(self.u[:, :keep], self.s[:keep], self.vh[:keep])


def components(variances: Float[Tensor, " rank"], part: float) -> int:
    """The fewest leading entries of `variances` (largest first) that sum to `part` of their total."""
    sums = variances.cumsum(0)
    # the last entry has it all, whatever rounding makes of part * total
    return min(int((sums < part * sums[-1]).sum()) + 1, variances.numel())


def basis(x: Float[Tensor, "sample d"], *, center: bool = True) -> Basis:
    """The thin SVD of X (less its column means), float64, without directions that are only rounding noise.

    Columns are scaled to norm 1 before the rank is decided: whether a direction is there does not depend on the units
    of a column. A direction counts where its singular value then exceeds what rounding X's entries to their dtype can
    make of nothing (`rounding_noise`; a column that varies by no more than 4 eps of its norm is constant), plus
    float64's own error. By QR first, so that the condition number is never squared.
    """
    n = x.shape[0]
    values = x.double()
    eps = torch.finfo(x.dtype).eps
    whole = torch.linalg.vector_norm(values, dim=0)
    norms = whole
    if center:
        values = values - values.mean(0)
        norms = torch.linalg.vector_norm(values, dim=0)
        norms = torch.where(norms > 4 * eps * whole, norms, 0.0)
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    u, shares, vh = _thin_svd(values * inverse)
    noise = rounding_noise(eps, n, (whole * inverse).square())
    keep = shares > noise + 8 * torch.finfo(torch.float64).eps * max(values.shape) ** 0.5 * shares[0]
    turn, s, vh = torch.linalg.svd(shares[keep, None] * vh[keep] * norms, full_matrices=False)
    return Basis(u[:, keep] @ turn, s, vh)


def principal(x: Float[Tensor, "sample d"]) -> Basis:
    """The thin SVD of centred X in its own units, float64, for what weighs directions by their variance."""
    values = x.double()
    u, s, vh = _thin_svd(values - values.mean(0))
    keep = s > 8 * torch.finfo(torch.float64).eps * max(values.shape) ** 0.5 * s[0]
    return Basis(u[:, keep], s[keep], vh[keep])


def _thin_svd(values: Float[Tensor, "sample d"]) -> tuple[Tensor, Tensor, Tensor]:
    if values.shape[0] >= values.shape[1]:
        q, r = torch.linalg.qr(values)
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        return q @ u, s, vh
    q, r = torch.linalg.qr(values.T)
    u, s, vh = torch.linalg.svd(r.T, full_matrices=False)
    return u, s, vh @ q.T


def nuclear_norm(c: Float[Tensor, "d1 d2"], *, exact: bool) -> Float[Tensor, ""]:
    """The sum of the singular values of C.

    Args:
        c: [d1, d2], float64.
        exact: by the singular values themselves; otherwise by the eigenvalues of C'C, in half the time, where each
            small singular value is off by up to 1e-8 of the largest (float32 data is no better).
    """
    if exact:
        return torch.linalg.svdvals(c).sum()
    narrow = c if c.shape[0] >= c.shape[1] else c.T
    return torch.linalg.eigvalsh(upper_gram(narrow), UPLO="U").clamp(min=0).sqrt().sum()


def gram_distance(a: Float[Tensor, "sample r1"], b: Float[Tensor, "sample r2"]) -> Float[Tensor, ""]:
    """|AA' - BB'|_F, to rounding error also where the two are nearly equal.

    With [A B] = QR both Gram matrices live in R's few dimensions, where the difference is taken entry by entry.
    """
    joint = torch.cat([a, b], dim=1)
    if joint.shape[1] < joint.shape[0]:
        joint = torch.linalg.qr(joint, mode="r").R
    a, b = joint[:, : a.shape[1]], joint[:, a.shape[1] :]
    return torch.linalg.matrix_norm(a @ a.T - b @ b.T)


def descending(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Eigenvalues of a symmetric matrix, largest first, and eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def rounding_noise(eps: float, n: int, sizes: Float[Tensor, "d"]) -> float:
    """The largest singular value that rounding the entries of an n x d matrix to a dtype can make of nothing.

    2 eps |X|_F (n^-1/2 + d^-1/2): entries off by eps / sqrt 12 of themselves at most (a random matrix of theirs has
    that norm), and as much again several times for the arithmetic behind them.

    Args:
        eps: of the dtype.
        n: samples.
        sizes: |column|^2 of the matrix; columns of 0 do not count.
    """
    width = int((sizes > 0).sum())
    return 2 * eps * float(sizes.sum()) ** 0.5 * (n**-0.5 + max(width, 1) ** -0.5)
