"""Distances between samples, tile by tile, and the sums over pairs that compare two sets of them; float64."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.warnings import warn_user

DistanceName: TypeAlias = Literal["euclidean", "sqeuclidean", "correlation", "cosine"]
# Bytes of one tile of distances.
_TILE = 2**25
# Squared distances below this part of |x_i|^2 + |x_j|^2 are computed from x_i - x_j itself.
_CLOSE = 2**-3
# Samples that differ by no more than this many eps of their norms are equal, but for rounding.
_SAME = 8
# Distances further apart than this part of themselves are never taken for one.
_MOST_NEAR = 1e-12
# Numbers computed at once for those.
_ENTRIES = 2**21


@dataclass(frozen=True)
class Distances:
    """The n x n distances of one side's samples, computed a tile at a time."""

    features: Float[Tensor, "sample d"]
    """What the distances are between: centred, or rows of norm 1."""
    squares: Float[Tensor, " sample"]
    """|features_i|^2."""
    name: DistanceName
    same: Float[Tensor, " sample"] | None = None
    """|x_i|^2 (8 eps)^2: samples no further apart, squared, than the sum of theirs are equal, but for rounding."""
    exact: bool = False
    """Whether every squared distance is free of rounding, so that what ties in the data ties here."""
    near: float = 0.0
    """Squared distances that differ by no more than this part of themselves may be one number, but for rounding."""

    @classmethod
    def of(cls, x: Float[Tensor, "sample d"], name: DistanceName) -> "Distances":
        """Prepare the distances between the rows of X."""
        same, exact, near = None, False, 0.0
        if name in ("euclidean", "sqeuclidean"):
            features = x.double() - near_mean(x)
            exact = few_bits(features)
            same = torch.linalg.vector_norm(x.double(), dim=1).mul_(_SAME * torch.finfo(x.dtype).eps).square_()
            if not exact:  # the samples were rounded too, which counts for more where they lie far from 0
                far = float(torch.linalg.vector_norm(x.double()) / torch.linalg.vector_norm(features))
                near = min(_MOST_NEAR, 32 * torch.finfo(torch.float64).eps * x.shape[1] ** 0.5 * max(1.0, far))
        else:
            features = x.double()
            if name == "correlation":  # one minus Pearson's, over a sample's neurons
                features = features - features.mean(1, keepdim=True)
            norms = torch.linalg.vector_norm(features, dim=1)
            # zero up to their own rounding: their angle with others is undefined
            lost = norms <= 4 * torch.finfo(x.dtype).eps * x.shape[1] ** 0.5 * x.abs().amax(1).double()
            if lost.any():
                warn_user(
                    f"Expected every sample to have a direction, got {int(lost.sum())} without one; their {name} with "
                    "any other sample is taken to be 0 (distance 1)."
                )
            features = features * torch.where(lost, 0.0, 1 / norms)[:, None]
        return cls(features, features.square().sum(1), name, same, exact, near)

    def __len__(self) -> int:
        return self.features.shape[0]

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "row column"]:
        """Distances between two ranges of samples; 0, not rounding noise, between equal ones.

        Euclidean ones are within 1e-14 sqrt(d) of themselves, those of samples that are nearly equal too.
        """
        inner = self.features[rows] @ self.features[columns].T
        sums = self.squares[rows, None] + self.squares[columns]
        if self.name in ("correlation", "cosine"):
            # 1 - similarity is known to 1e-15 at best: to 1.4e-14 it is the same for pairs that tie
            out = inner.neg_().add_(1).mul_(2**46).round_().mul_(2**-46)
            return out.masked_fill_(out <= sums.mul_(16 * torch.finfo(torch.float64).eps), 0)
        out = inner.mul_(-2).add_(sums)
        if not self.exact:
            close = (out < sums.mul_(_CLOSE)).nonzero()
            for some in close.split(max(1, _ENTRIES // self.features.shape[1])):
                i, j = some.unbind(1)
                squared = (self.features[rows][i] - self.features[columns][j]).square_().sum(1)
                if self.same is not None:
                    squared.masked_fill_(squared <= self.same[rows][i] + self.same[columns][j], 0)
                out[i, j] = squared
        return out.sqrt_() if self.name == "euclidean" else out


def tiles(n: int) -> Iterator[tuple[slice, slice]]:
    """Ranges (rows, columns) that cover the n x n pairs (i, j) with j >= the first row of i's range, once each."""
    start = 0
    while start < n:
        stop = min(n, start + max(1, _TILE // (8 * (n - start))))
        yield slice(start, stop), slice(start, n)
        start = stop


Tile: TypeAlias = Callable[[slice, slice], Tensor]


class InnerProducts(NamedTuple):
    """Sums over all ordered pairs i != j of two symmetric n x n matrices A and B."""

    n: int
    ab: Float[Tensor, ""]
    aa: Float[Tensor, ""]
    bb: Float[Tensor, ""]
    a: Float[Tensor, " sample"]
    """Row sums of A without its diagonal."""
    b: Float[Tensor, " sample"]
    """Row sums of B without its diagonal."""

    def centred(self, diagonal: float) -> tuple[Tensor, Tensor, Tensor]:
        """<HAH, HBH>, <HAH, HAH>, <HBH, HBH> with H = I - 11'/n, where both diagonals are constant."""
        n = self.n

        def inner(ab: Tensor, a: Tensor, b: Tensor) -> Tensor:
            a, b = a + diagonal, b + diagonal
            return ab + n * diagonal**2 - 2 / n * (a @ b) + a.sum() * b.sum() / n**2

        return inner(self.ab, self.a, self.b), inner(self.aa, self.a, self.a), inner(self.bb, self.b, self.b)

    def unbiased(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same by U-centring (Szekely & Rizzo 2014; HSIC1 of Song et al. 2012), without 1 / (n (n - 3))."""
        n = self.n

        def inner(ab: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return ab + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b)

        return inner(self.ab, self.a, self.b), inner(self.aa, self.a, self.a), inner(self.bb, self.b, self.b)


def pair_sums(n: int, a_tile: Tile, b_tile: Tile, device: torch.device) -> InnerProducts:
    """Sums over the pairs of two symmetric matrices that are given tile by tile; their diagonals are left out."""
    inner = torch.zeros(3, dtype=torch.float64, device=device)
    sums = torch.zeros(2, n, dtype=torch.float64, device=device)
    for rows, columns in tiles(n):
        square = rows.stop - rows.start
        a, b = a_tile(rows, columns), b_tile(rows, columns)
        for side, total in zip((a, b), sums, strict=True):
            side[:, :square].fill_diagonal_(0)
            total[rows] += side.sum(1)
            total[rows.stop :] += side[:, square:].sum(0)
        for index, (one, other) in enumerate(((a, b), (a, a), (b, b))):
            # the square holds each of its pairs twice, what lies right of it once
            inner[index] += torch.sum(one[:, :square] * other[:, :square]) + 2 * torch.sum(
                one[:, square:] * other[:, square:]
            )
    return InnerProducts(n, inner[0], inner[1], inner[2], sums[0], sums[1])


def near_mean(x: Float[Tensor, "sample d"]) -> Float[Tensor, " d"]:
    """A point of few bits near the mean, float64: without it, whole numbers stay whole or nearly so.

    Each column's mean is rounded to a power of two below its deviation: the rest is less than half of that.
    """
    x = x.double()
    grid = torch.exp2(x.std(0).clamp(min=torch.finfo(x.dtype).tiny).log2().floor())
    return torch.where((x == x[0]).all(0), x[0], (x.mean(0) / grid).round() * grid)


def few_bits(features: Float[Tensor, "sample d"], dtype: torch.dtype = torch.float64) -> bool:
    """Whether a dtype has room for all bits of products of rows, and of sums of squares of their differences."""
    room = 25 if dtype == torch.float64 else 11
    most = float(features.abs().amax())
    if not 0 < most < 2.0**500:
        return most == 0
    unit = 2.0 ** (math.ceil(math.log2(2 * most * features.shape[1] ** 0.5)) - room)
    return unit > 0 and all(torch.equal(rows, rows.round()) for rows in (features / unit).split(_ENTRIES))


def condensed(x: Float[Tensor, "sample d"], name: DistanceName) -> tuple[Float[Tensor, " pair"], float]:
    """Distances of all pairs i < j, row by row, in X's dtype; and how near those are that are to tie (`near`).

    Pairs of equal samples tie exactly: a matrix product rounds equal rows differently in different places, so each
    distance between distinct samples is computed once. Squared Euclidean ones have a unit in which none overflows.
    """
    distinct, index = torch.unique(x, dim=0, return_inverse=True)
    n, m = len(x), len(distinct)
    once, near = _condensed(x if m == n else distinct, name, x.dtype)
    if m == n:
        return once, near
    out = x.new_empty(n * (n - 1) // 2)
    done = 0
    for row in range(n - 1):
        first, second = torch.minimum(index[row], index[row + 1 :]), torch.maximum(index[row], index[row + 1 :])
        at = first * (2 * m - first - 3) // 2 + second - 1
        out[done : done + n - 1 - row] = torch.where(first == second, 0.0, once[at.clamp(0, max(len(once) - 1, 0))])
        done += n - 1 - row
    return out, near


def _condensed(x: Tensor, name: DistanceName, dtype: torch.dtype) -> tuple[Tensor, float]:
    distances = Distances.of(x, name)
    if name == "sqeuclidean" and (most := float(distances.features.abs().amax())) > 0:
        unit = 2.0 ** math.floor(math.log2(most))
        same = None if distances.same is None else distances.same / unit / unit
        scaled = distances.features / unit
        distances = replace(distances, features=scaled, squares=scaled.square().sum(1), same=same)
    return upper_triangle(distances, dtype), distances.near


def upper_triangle(distances: Distances, dtype: torch.dtype) -> Tensor:
    n = len(distances)
    out = torch.empty(n * (n - 1) // 2, dtype=dtype, device=distances.features.device)
    done = 0
    for rows, columns in tiles(n):
        tile = distances.tile(rows, columns)
        for i in range(rows.stop - rows.start):
            length = tile.shape[1] - i - 1
            out[done : done + length] = tile[i, i + 1 :]
            done += length
    return out


def normalised(inner: Tensor, own_a: Tensor, own_b: Tensor, floor_a: Tensor, floor_b: Tensor) -> Float[Tensor, ""]:
    """<A, B> / sqrt(<A, A> <B, B>); 0 with a warning where a side's <A, A> is no more than its rounding error.

    Args:
        inner: <A, B>, of what is left of two n x n matrices after centring.
        own_a: <A, A>.
        own_b: <B, B>.
        floor_a: <A, A> before centring, whose last digits are the rounding error.
        floor_b: <B, B> before centring.
    """
    noise = 64 * torch.finfo(torch.float64).eps
    if own_a > noise * floor_a and own_b > noise * floor_b:
        return (inner / (own_a.sqrt() * own_b.sqrt())).clamp(-1, 1)
    warn_user(
        "Expected samples whose distances or similarities differ from pair to pair, got a side where they are all "
        "equal; the measure is 0 / 0 and 0 is returned."
    )
    return torch.zeros_like(inner)
