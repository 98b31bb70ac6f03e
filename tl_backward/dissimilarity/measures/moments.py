"""The sums of one layer and of one pair of layers, and what follows from them: axes, ranks, correlations, alignment.

Whether a direction is there does not depend on the units of a column, and the rounding of X'X is a share of each
column's own size: so columns are scaled to norm 1 before the eigendecomposition.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.warnings import warn_user
from tl_backward.dissimilarity.measures._cka import Alignment, hsic1
from tl_backward.dissimilarity.measures._matrices import descending, rounding_noise

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
        """The axes whose eigenvalue is above the tolerance, and above `least`."""
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
    eps_rows: float
    """eps of the rows' dtype: directions that rounding them could have made do not count."""
    eps_products: float
    """eps of their products' dtype."""
    accumulated: Float[Tensor, "d"]
    """The diagonal of the largest `within` that these sums were part of: their rounding is a share of it."""
    name: str = ""
    """What warnings call the layer; "" where they are to stay silent."""
    _checked: list[bool] = field(default_factory=list)
    """Whether its rank has been looked at."""

    def __sub__(self, other: "LayerSums") -> "LayerSums":
        """Without the samples of `other`, which has the same shift."""
        return LayerSums(
            shift=self.shift,
            eps_rows=self.eps_rows,
            eps_products=self.eps_products,
            accumulated=self.accumulated,
            n=self.n - other.n,
            sum=self.sum - other.sum,
            square=self.square - other.square,
            within=self.within - other.within,
            quartic=self.quartic - other.quartic,
            cubic=self.cubic - other.cubic,
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

    @cached_property
    def gram_square(self) -> Float[Tensor, ""]:
        """|X'X|_F^2 of the centred samples."""
        mean = self.sum / self.n
        return (
            torch.linalg.vector_norm(self.within).square()
            - 2 * self.n * mean.dot(self.within @ mean)
            + (self.n * mean.dot(mean)).square()
        )

    @cached_property
    def centred_quartic(self) -> Float[Tensor, ""]:
        """The sum of |x|^4 of the centred samples."""
        return self._moved_quartic(-self.sum / self.n)

    @property
    def own_hsic(self) -> float:
        """The unbiased HSIC of the layer with itself."""
        traces = [torch.tensor(self.spread())] * 2
        return float(hsic1(self.n, self.gram_square, self.centred_quartic, *traces)) / (self.n * (self.n - 3))

    @cached_property
    def spreads(self) -> Float[Tensor, "d"]:
        """|x_j|^2 of each centred column."""
        return (self.within.diagonal() - self.sum.square() / self.n).clamp(min=0)

    @cached_property
    def norms(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """Norms of the columns, centred (0 where a column varies by no more than rounding) and as they are."""
        spread = self.spreads
        whole = spread + self.n * self.mean().square()
        least = torch.maximum(16 * self.eps_rows**2 * whole, 4 * self.eps_products * self.accumulated)
        return torch.where(spread > least, spread, 0.0).sqrt(), whole.sqrt()

    @cached_property
    def spectrum(self) -> tuple[Float[Tensor, "rank"], Float[Tensor, "d rank"]]:
        """Eigenvalues of the scatter in the layer's own units, largest first, and eigenvectors.

        For what weighs directions by their variance; without those that are only rounding.
        """
        values, vectors = descending(self.scatter())
        keep = values > len(vectors) * self.eps_products * values[0]
        return values[keep], vectors[:, keep]

    @cached_property
    def axes(self) -> Axes:
        """An orthonormal basis of what the centred samples span, as far as rows and sums show it."""
        self._check_rank()
        return self._scaled.axes(self._least)

    @cached_property
    def all_axes(self) -> Axes:
        """As `axes`, with directions too that may be no more than rounding of the rows."""
        self._check_rank()
        norms = torch.where(self.spreads > 4 * self.eps_products * self.accumulated, self.spreads, 0.0).sqrt()
        if torch.equal(norms > 0, self.norms[0] > 0):
            return self._scaled.axes()
        return ScaledScatter(self.scatter(), norms, self.accumulated, self.eps_products).axes()

    @cached_property
    def uncentred_axes(self) -> tuple[Float[Tensor, "more rank"], Float[Tensor, "rank d"]]:
        """T and F with [Q e] T an orthonormal basis of the samples as they are, and F its product with them.

        Q is that of `all_axes` and e constant: X = [Q e] [Q'X; sqrt(n) mean'], exact whatever the mean.
        """
        whole = self.norms[1]
        stacked = torch.cat([self.all_axes.factor, self.n**0.5 * self.mean()[None]])
        turn, shares, vh = torch.linalg.svd(torch.where(whole > 0, stacked / whole, 0.0), full_matrices=False)
        noise = rounding_noise(self.eps_rows, self.n, (whole > 0).double())
        keep = shares > noise + 8 * torch.finfo(shares.dtype).eps * len(whole) ** 0.5 * shares[0]
        return turn[:, keep], shares[keep, None] * vh[keep] * whole

    @cached_property
    def _scaled(self) -> ScaledScatter:
        return ScaledScatter(self.scatter(), self.norms[0], self.accumulated, self.eps_products)

    @cached_property
    def _least(self) -> float:
        """What rounding the rows makes of an eigenvalue of the scaled scatter that is 0."""
        return rounding_noise(self.eps_rows, self.n, (self.norms[1] * self._scaled.inverse).square()) ** 2

    def _check_rank(self) -> None:
        """Warn once where directions may be lost in the rounding of the sums, or are known to few digits."""
        if not self.name or self._checked:
            return
        self._checked.append(True)
        lost, poor = self._scaled.doubts(self._least, self.n - 1)
        if lost or poor:
            rank = self._scaled.axes(self._least).rank
            warn_user(
                f"Expected directions that the sums resolve, got {self.name} ({len(self.sum)} wide, {self.n} samples) "
                f"with rank {rank}, of which {poor} are known to few digits, and up to {lost} more that may be lost "
                "to rounding, unless they are exactly collinear: measures of spans count such directions in full; "
                "leave columns out, or use a measure that weighs directions by variance (cka_biased, procrustes)."
            )

    def _moved_quartic(self, delta: Float[Tensor, "d"]) -> Float[Tensor, ""]:
        """The sum of |x + delta|^4."""
        n, d2, ds = self.n, delta.dot(delta), delta.dot(self.sum)
        moved = self.quartic + 4 * delta.dot(self.cubic) + 2 * d2 * self.square + 4 * delta.dot(self.within @ delta)
        return moved + 4 * d2 * ds + n * d2 * d2

    def move_(self, delta: Float[Tensor, "d"]) -> None:
        """Rewrite the sums in place for x + delta."""
        n, d2, ds = self.n, delta.dot(delta), delta.dot(self.sum)
        square = self.square + 2 * ds + n * d2
        self.quartic.copy_(self._moved_quartic(delta))
        self.cubic.add_(2 * (self.within @ delta) + d2 * self.sum + square * delta)
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
        own = self.alignment
        return float(hsic1(self.n, own.kl, own.diagonals, own.trace_k, own.trace_l)) / (self.n * (self.n - 3))

    @cached_property
    def alignment(self) -> Alignment:
        """The inner products of the centred Gram matrices, and of their diagonals."""
        a, b, n = self.a, self.b, self.n
        mean_a, mean_b = a.sum / n, b.sum / n
        between = mean_a.dot(self.cross @ mean_b)
        a2, b2 = mean_a.dot(mean_a), mean_b.dot(mean_b)
        traces = a.square - n * a2, b.square - n * b2
        if any(trace > 0 and not 2.0**-480 < trace < 2.0**480 for trace in traces):
            raise ValueError(
                f"Expected activations whose fourth powers float64 holds, got layers with sums of squares "
                f"{float(traces[0]):.3g} and {float(traces[1]):.3g}; divide them by a number."
            )
        inner = torch.linalg.vector_norm(self.cross).square() - 2 * n * between + n * n * a2 * b2
        diagonals = self.square_cross - 2 * mean_b.dot(self.weighted_b) - 2 * mean_a.dot(self.weighted_a)
        diagonals = diagonals + b2 * (a.square - 2 * n * a2) + a2 * (b.square - 2 * n * b2) + 4 * between + n * a2 * b2
        return Alignment(
            n=n,
            kl=inner,
            kk=a.gram_square,
            ll=b.gram_square,
            diagonals=diagonals,
            diagonals_k=a.centred_quartic,
            diagonals_l=b.centred_quartic,
            trace_k=traces[0],
            trace_l=traces[1],
        )

    @cached_property
    def core(self) -> Float[Tensor, "rank_a rank_b"]:
        """Q'P of orthonormal bases Q, P of what the two layers span: its singular values are their correlations."""
        return self.a.axes.whitener.T @ self.scatter() @ self.b.axes.whitener

    @cached_property
    def correlations(self) -> Float[Tensor, "least_rank"]:
        """Canonical correlations, largest first."""
        return torch.linalg.svdvals(self.core).clamp(max=1)

    @cached_property
    def canonical(self) -> tuple[Float[Tensor, "rank_a k"], Float[Tensor, "k"], Float[Tensor, "k rank_b"]]:
        """The canonical variates' directions among A's axes, their correlations, and the directions among B's."""
        turn_a, rho, turn_b = torch.linalg.svd(self.core, full_matrices=False)
        return turn_a, rho.clamp(max=1), turn_b

    @cached_property
    def nuclear(self) -> Float[Tensor, ""]:
        """|X'Y|_* of the centred samples."""
        return torch.linalg.svdvals(self.scatter()).sum()

    @cached_property
    def unit_distance(self) -> Float[Tensor, ""]:
        """Squared Procrustes distance of X / |X| and Y / |Y|, centred: 2 - 2 |X'Y|_* / (|X| |Y|)."""
        return (2 - 2 * self.nuclear / math.sqrt(self.a.spread()) / math.sqrt(self.b.spread())).clamp(min=0)

    @cached_property
    def neuron_correlations(self) -> Float[Tensor, "d1 d2"]:
        """Pearson's, of every neuron with every other; 0 for one that never varies."""
        left, right = (torch.where(layer.norms[0] > 0, 1 / layer.norms[0], 0.0) for layer in (self.a, self.b))
        return (left[:, None] * self.scatter() * right).clamp(-1, 1)

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
