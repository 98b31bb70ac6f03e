"""The sums of one layer and of one pair of layers, and what follows from them."""

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LayerSums:
    """Sums over the n samples x (shifted) of one layer, in float64."""

    n: int
    shift: Float[Tensor, "d"]
    sum: Float[Tensor, "d"]
    """sum x."""
    square: Float[Tensor, ""]
    """sum |x|^2."""
    within: Float[Tensor, "d d"]
    """sum xx'."""
    quartic: Float[Tensor, ""]
    """sum |x|^4."""
    cubic: Float[Tensor, "d"]
    """sum |x|^2 x."""
    tolerance: float
    """An eigenvalue below this share of the largest is rounding, no direction."""

    def __sub__(self, other: "LayerSums") -> "LayerSums":
        """Without the samples of `other`, which has the same shift."""
        names = [field.name for field in fields(self) if field.name not in ("shift", "tolerance")]
        return LayerSums(
            shift=self.shift,
            tolerance=self.tolerance,
            **{name: getattr(self, name) - getattr(other, name) for name in names},
        )

    def scatter(self) -> Float[Tensor, "d d"]:
        """X'X of the centred samples."""
        return torch.addr(self.within, self.sum, self.sum, alpha=-1 / self.n)

    def mean(self) -> Float[Tensor, "d"]:
        """The samples' mean, without the shift."""
        return self.shift + self.sum / self.n

    def spread(self) -> float:
        """|X|^2 of the centred samples: the trace of their Gram matrix."""
        return float(self.square - self.sum.dot(self.sum) / self.n)

    def uncentred(self) -> Float[Tensor, "d d"]:
        """X'X of the samples as they are, with their mean and without the shift."""
        moved = self.within + torch.outer(self.sum, self.shift) + torch.outer(self.shift, self.sum)
        return moved.addr_(self.shift, self.shift, alpha=self.n)

    @cached_property
    def spectrum(self) -> tuple[Float[Tensor, "rank"], Float[Tensor, "d rank"]]:
        """Eigenvalues of the scatter, largest first, and eigenvectors; its null space is left out."""
        return _directions(self.scatter(), self.tolerance)

    def uncentred_spectrum(self) -> tuple[Float[Tensor, "rank"], Float[Tensor, "d rank"]]:
        """The same of X'X with the mean in it, whose rounding is still that of the spread around the mean."""
        matrix, spread = self.uncentred(), float(self.spectrum[0][0])
        scale = float(torch.linalg.vector_norm(matrix))
        return _directions(matrix, max(self.tolerance * spread / scale, 1e-13))

    @cached_property
    def own_hsic(self) -> float:
        """The unbiased HSIC of the layer with itself."""
        return _song(
            self.n, self.within, self.sum, self.sum, self.square, self.square, self.quartic, self.cubic, self.cubic
        )

    def move_(self, delta: Float[Tensor, "d"]) -> None:
        """Rewrite the sums in place for x + delta."""
        n, d2, ds = self.n, delta.dot(delta), delta.dot(self.sum)
        square = self.square + 2 * ds + n * d2
        shifted = self.within @ delta
        self.quartic.add_(4 * delta.dot(self.cubic) + 2 * d2 * self.square + 4 * delta.dot(shifted))
        self.quartic.add_(4 * d2 * ds + n * d2 * d2)
        self.cubic.add_(2 * shifted + d2 * self.sum + square * delta)
        self.within.addr_(self.sum, delta).addr_(delta, self.sum + n * delta)
        self.square.copy_(square)
        self.sum.add_(delta, alpha=n)


@dataclass(frozen=True, eq=False, repr=False)
class PairSums:
    """Sums over the n samples (x, y) of two layers, in float64."""

    a: LayerSums
    b: LayerSums
    cross: Float[Tensor, "d1 d2"]
    """sum xy'."""
    square_cross: Float[Tensor, ""]
    """sum |x|^2 |y|^2."""
    weighted_a: Float[Tensor, "d1"]
    """sum |y|^2 x."""
    weighted_b: Float[Tensor, "d2"]
    """sum |x|^2 y."""

    @property
    def n(self) -> int:
        """Samples."""
        return self.a.n

    def scatter(self) -> Float[Tensor, "d1 d2"]:
        """X'Y of the centred samples."""
        return torch.addr(self.cross, self.a.sum, self.b.sum, alpha=-1 / self.n)

    def uncentred(self) -> Float[Tensor, "d1 d2"]:
        """X'Y of the samples as they are, with their means and without the shifts."""
        a, b = self.a, self.b
        moved = self.cross + torch.outer(a.sum, b.shift) + torch.outer(a.shift, b.sum)
        return moved.addr_(a.shift, b.shift, alpha=self.n)

    def hsic(self) -> float:
        """The unbiased HSIC of the two layers: zero on average over all pairings of the samples."""
        a, b = self.a, self.b
        return _song(
            self.n, self.cross, a.sum, b.sum, a.square, b.square, self.square_cross, self.weighted_a, self.weighted_b
        )

    def moved_cross(
        self, delta: Float[Tensor, "d1"], epsilon: Float[Tensor, "d2"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "d1"], Float[Tensor, "d2"]]:
        """(square_cross, weighted_a, weighted_b) for x + delta and y + epsilon."""
        a, b, n = self.a, self.b, self.n
        d2, e2, ds, es = delta.dot(delta), epsilon.dot(epsilon), delta.dot(a.sum), epsilon.dot(b.sum)
        square_a, square_b = a.square + 2 * ds + n * d2, b.square + 2 * es + n * e2
        right, left = self.cross @ epsilon, delta @ self.cross
        square_cross = self.square_cross + 2 * epsilon.dot(self.weighted_b) + 2 * delta.dot(self.weighted_a)
        square_cross += e2 * (a.square + 2 * ds) + d2 * (b.square + 2 * es) + 4 * delta.dot(right) + n * d2 * e2
        weighted_a = self.weighted_a + 2 * right + e2 * a.sum + square_b * delta
        weighted_b = self.weighted_b + 2 * left + d2 * b.sum + square_a * epsilon
        return square_cross, weighted_a, weighted_b


def _directions(
    scatter: Float[Tensor, "d d"], tolerance: float
) -> tuple[Float[Tensor, "rank"], Float[Tensor, "d rank"]]:
    """Eigenvalues, largest first, and eigenvectors of a scatter matrix, without its null space."""
    values, vectors = torch.linalg.eigh(scatter)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = values > tolerance * values[0]
    return values[keep], vectors[:, keep]


def _song(
    n: int,
    cross: Tensor,
    sum_x: Tensor,
    sum_y: Tensor,
    square_x: Tensor,
    square_y: Tensor,
    square_cross: Tensor,
    weighted_x: Tensor,
    weighted_y: Tensor,
) -> float:
    """HSIC_1 of Song et al. 2012, eq. 5, from the sums.

    With K~ and L~ the Gram matrices without their diagonals it is

    [tr(K~L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1] / (n(n-3)),

    where row i of K~1 is x_i'sum(x) - |x_i|^2. Adding a vector to every x changes nothing.
    """
    trace = torch.linalg.vector_norm(cross).square() - square_cross
    ones_x, ones_y = sum_x.dot(sum_x) - square_x, sum_y.dot(sum_y) - square_y
    both = sum_x.dot(cross @ sum_y) - sum_x.dot(weighted_x) - sum_y.dot(weighted_y) + square_cross
    return float((trace + ones_x * ones_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3)))
