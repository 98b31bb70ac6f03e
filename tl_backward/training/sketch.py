"""The sum of many matrices in little memory: a linear sketch, from which its leading directions come back.

For A [m, n], a sum of gradients or a change of a weight, three products are kept (Tropp, Yurtsever, Udell and Cevher
2019, "Streaming low-rank matrix approximation with an application to scientific simulation"):

    Y = A Omega [m, s],  Z = Psi A [t, n],  C = Theta A [q, n]        with s = 2 r + 1, t = 2 s + 1, Gaussian

They are linear in A, so that summands are added as they come, in any order, by several processes, and a sum that was
interrupted goes on to the same bits. Q = orth(Y), X = (Psi Q)^+ Z, and A' = Q X, cut to rank r. Where A has rank <= s,
Q X is A exactly; else E |A - Q X|_F^2 <= (1 + s / (t - s - 1)) min_{k < s - 1} (1 + k / (s - k - 1))
sum_{j > k} sigma_j^2 (their theorem 5.1).
How far A' really is from A is measured, not bounded: |C - Theta A'|_F^2 / q has the expectation |A - A'|_F^2, with a
relative standard deviation of at most sqrt(2 / q). A sum that is smaller than its sketch is kept whole.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_CHECKS = 10
"""q: rows of Theta."""
_SMALL = 2**17
"""Up to how many entries a sum is kept whole anyway."""


class Approximation(NamedTuple):
    """A matrix A of low rank, U diag(S) V^T, and how much of the sum it stands for is missing in it."""

    U: Float[Tensor, "m r"]
    S: Float[Tensor, " r"]
    V: Float[Tensor, "n r"]
    norm: float
    """|A|_F of the whole sum: exact where it is kept whole, else estimated."""
    error: float
    """|A - U diag(S) V^T|_F: exact where the sum is kept whole, else estimated."""
    spectrum: Float[Tensor, " s"]
    """Singular values: all of a sum that is kept whole, else those that the sketch sees."""


def is_whole(shape: tuple[int, int], rank: int) -> bool:
    """Whether a sum of this shape is kept whole: it is small, or smaller than its sketch."""
    m, n = shape
    s, t = _sizes(rank)
    return m * n <= max(_SMALL, m * s + (t + _CHECKS) * n)


def _sizes(rank: int) -> tuple[int, int]:
    s = 2 * rank + 1
    return s, 2 * s + 1


@lru_cache(maxsize=64)
def _tests(shape: tuple[int, int], rank: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Omega [n, s], and Psi above Theta [t + q, m]; equal for equal arguments, on whatever device."""
    (m, n), (s, t) = shape, _sizes(rank)
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randn(n, s, generator=generator)
    left = torch.randn(t + _CHECKS, m, generator=generator)
    return omega.to(device), left.to(device)


@dataclass
class Sketch:
    """A running sum of [m, n] matrices; see the file's first lines."""

    shape: tuple[int, int]
    rank: int
    seed: int = 0
    whole: Tensor | None = field(default=None, init=False)
    """The sum itself where it is kept whole."""
    right: Tensor | None = field(default=None, init=False)
    """Y [m, s]."""
    left: Tensor | None = field(default=None, init=False)
    """Z above C, [t + q, n]."""

    def __post_init__(self) -> None:
        """Choose how the sum is kept."""
        self._is_whole = is_whole(self.shape, self.rank)

    def add(self, matrix: Float[Tensor, "m n"], scale: float = 1.0) -> None:
        """Add `scale` times a matrix: 2 m n (s + t + q) operations, m n where the sum is kept whole."""
        matrix = matrix.detach()
        matrix = matrix.to(_wide(matrix))
        if self._is_whole:
            self._add("whole", matrix, scale)
            return
        omega, left = self._against(matrix)
        self._add("right", matrix @ omega, scale)
        self._add("left", left @ matrix, scale)

    def add_product(self, x: Float[Tensor, "token m"], d: Float[Tensor, "token n"], scale: float = 1.0) -> None:
        """Add scale x^T d without forming it: 2 tokens (m + n) (s + t + q) operations."""
        x, d = (side.detach().to(_wide(side)) for side in (x, d))
        if self._is_whole:
            self._add("whole", x.T @ d, scale)
            return
        omega, left = self._against(x)
        self._add("right", x.T @ (d @ omega), scale)
        self._add("left", (left @ x.T) @ d, scale)

    def _against(self, like: Tensor) -> tuple[Tensor, Tensor]:
        omega, left = _tests(self.shape, self.rank, self.seed, str(like.device))
        return omega.to(like.dtype), left.to(like.dtype)

    def _add(self, name: Literal["whole", "right", "left"], summand: Tensor, scale: float) -> None:
        known = getattr(self, name)
        if known is None:
            setattr(self, name, scale * summand)
        else:
            known.add_(summand, alpha=scale)

    def tensors(self) -> dict[str, Tensor]:
        """What is kept, by name."""
        return {name: each for name in ("whole", "right", "left") if (each := getattr(self, name)) is not None}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` gave."""
        for name in ("whole", "right", "left"):
            setattr(self, name, tensors.get(name))

    def copied(self) -> "Sketch":
        """The sum as it is now; what is added later is not in it."""
        copy = Sketch(self.shape, self.rank, self.seed)
        copy.load({name: each.clone() for name, each in self.tensors().items()})
        return copy

    def plus(self, other: "Sketch", scale: float = 1.0) -> "Sketch":
        """The sketch of this sum plus `scale` times another."""
        if (self.shape, self.rank, self.seed) != (other.shape, other.rank, other.seed):
            raise ValueError(
                f"Expected two sketches of one shape, rank and seed, got {(self.shape, self.rank, self.seed)} and "
                f"{(other.shape, other.rank, other.seed)}; watch both with the same options."
            )
        total = Sketch(self.shape, self.rank, self.seed)
        mine, theirs = self.tensors(), other.tensors()
        names = {*mine, *theirs}
        total.load(
            {
                name: mine[name] + scale * theirs[name].to(mine[name].device, mine[name].dtype)
                if name in mine and name in theirs
                else (mine[name] if name in mine else scale * theirs[name])
                for name in names
            }
        )
        return total

    def approximation(self) -> Approximation:
        """The sum's leading `rank` directions, computed in float64."""
        r = min(self.rank, *self.shape)
        kept = {name: each.double().cpu() for name, each in self.tensors().items()}
        if not kept:
            m, n = self.shape
            zero = torch.zeros(0, dtype=torch.float64)
            return Approximation(torch.zeros(m, 0).double(), zero, torch.zeros(n, 0).double(), 0.0, 0.0, zero)
        if "whole" in kept:
            u, s, vh = torch.linalg.svd(kept["whole"], full_matrices=False)
            error = float(s[r:].square().sum().sqrt())
            return Approximation(u[:, :r], s[:r], vh[:r].T, float(s.square().sum().sqrt()), error, s)
        q, x = self._factored(kept)
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        u, seen = q @ u, s
        u, s, v = u[:, :r], s[:r], vh[:r].T
        norm, error = self._checked(kept, u * s, v.T)
        return Approximation(u, s, v, norm, error, seen)

    def dense(self) -> Float[Tensor, "m n"]:
        """The sum, in float64: exactly where it is kept whole or has a rank of at most 2 r + 1, else Q X."""
        kept = {name: each.double().cpu() for name, each in self.tensors().items()}
        if not kept:
            return torch.zeros(self.shape, dtype=torch.float64)
        if "whole" in kept:
            return kept["whole"].clone()
        q, x = self._factored(kept)
        return q @ x

    def error(self) -> float:
        """How far `dense` is from the sum (Frobenius): 0 where it is kept whole, else estimated."""
        kept = {name: each.double().cpu() for name, each in self.tensors().items()}
        return 0.0 if "right" not in kept else self._checked(kept, *self._factored(kept))[1]

    def _factored(self, kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Q [m, s] and X [s, n]."""
        psi = _tests(self.shape, self.rank, self.seed, "cpu")[1].double()[:-_CHECKS]
        q = torch.linalg.qr(kept["right"]).Q
        return q, torch.linalg.lstsq(psi @ q, kept["left"][:-_CHECKS]).solution

    def _checked(self, kept: dict[str, Tensor], left: Tensor, right: Tensor) -> tuple[float, float]:
        """Estimates of |A| and of |A - left right|."""
        theta, checked = _tests(self.shape, self.rank, self.seed, "cpu")[1].double()[-_CHECKS:], kept["left"][-_CHECKS:]
        missing = checked - (theta @ left) @ right
        norm, error = (float(each.square().sum().div(_CHECKS).sqrt()) for each in (checked, missing))
        return norm, error


def _wide(tensor: Tensor) -> torch.dtype:
    """The type that sums are kept in: half precision would lose them."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
