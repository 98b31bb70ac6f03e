"""What a set of samples spans, from the sums of their products: axes, ranks, and what rounding leaves of them.

Whether a direction is there does not depend on the units of a column, and the rounding of X'X is a share of each
column's own size: so columns are scaled to norm 1 before the eigendecomposition.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

_POOR = 1000.0  # a direction below this many times the tolerance is known to three digits or fewer
_USUAL = 1 / 16  # of the tolerance: what rounding usually makes of an eigenvalue that is 0


@dataclass(frozen=True, eq=False, repr=False)
class Axes:
    """An orthonormal basis Q = XW of what centred samples X span, without the samples."""

    whitener: Float[Tensor, "d rank"]
    """W with W'X'XW = 1."""
    factor: Float[Tensor, "rank d"]
    """Q'X: X in these axes."""

    @property
    def rank(self) -> int:
        """How many dimensions the samples span."""
        return len(self.factor)

    @cached_property
    def principal(self) -> tuple[Float[Tensor, "rank rank"], Float[Tensor, "rank"]]:
        """The turn to X's principal axes, and its singular values along them, largest first."""
        turn, values, _ = torch.linalg.svd(self.factor, full_matrices=False)
        return turn, values


class ScaledScatter:
    """The eigendecomposition of X'X of centred samples, each column scaled to norm 1 (0 for one that never varies)."""

    def __init__(
        self,
        scatter: Float[Tensor, "d d"],
        norms: Float[Tensor, "d"],
        accumulated: Float[Tensor, "d"],
        eps: float,
    ) -> None:
        self.norms = norms
        self.inverse = torch.where(norms > 0, 1 / norms, 0.0)
        self.shares, self.vectors = descending(scatter * self.inverse[:, None] * self.inverse)
        self.tolerance = 4 * eps * max(1.0, float((accumulated * self.inverse.square()).sum()))
        """What rounding may make of an eigenvalue that is 0: 4 d eps, more where what was added up was larger."""

    def axes(self, least: float = 0.0) -> Axes:
        """Those whose eigenvalue is above the tolerance, and above `least`."""
        keep = self.shares > max(self.tolerance, least)
        roots, vectors = self.shares[keep].sqrt(), self.vectors[:, keep]
        return Axes(self.inverse[:, None] * vectors / roots, roots[:, None] * vectors.T * self.norms)

    def doubts(self, least: float, most: int) -> tuple[int, int]:
        """How many more directions there may be than the tolerance shows, and how many of those are poorly known.

        Args:
            least: eigenvalues that the rounding of the rows themselves makes; below it there is no direction to lose.
            most: how many directions there can be.
        """
        seen = self.shares > max(self.tolerance, least)
        poor = int((seen & (self.shares <= _POOR * self.tolerance)).sum())
        if least < self.tolerance * 2**-10:  # a direction that the rows show may be anywhere below the tolerance
            return max(0, min(most, int((self.norms > 0).sum())) - int(seen.sum())), poor
        between = (self.shares <= self.tolerance) & (self.shares > max(least, _USUAL * self.tolerance))
        return int(between.sum()), poor


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
