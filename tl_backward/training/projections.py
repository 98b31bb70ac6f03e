"""One weight's gradients in few numbers: P^T (dL/dW) Q, from the factors, by bases of what it reads and writes.

P and Q are the leading eigenvectors of the second moments of x and delta over a sample (PCA, not centred), or Gaussian.
Inner products of what is kept stand for the gradients' own; of orthonormal bases they are those of the parts inside.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.gradients.gram import ExampleRows

ProjectionKind: TypeAlias = Literal["pca", "random"]


@dataclass(frozen=True)
class Projection:
    """The bases of one weight, with the second moments of x and delta in them."""

    inputs: Float[Tensor, "d_in p"]
    deltas: Float[Tensor, "d_out q"]
    input_moments: Float[Tensor, "p p"]
    """E[x x^T] over rows of the sample, in the basis."""
    delta_moments: Float[Tensor, "q q"]

    @property
    def n_entries(self) -> int:
        """How many numbers a gradient becomes."""
        return self.inputs.shape[1] * self.deltas.shape[1]

    def of(self, rows: ExampleRows, norms: Float[Tensor, "example"] | None = None) -> Float[Tensor, "example entry"]:
        """P^T (dL/dW) Q of each example, flat: its rows are projected, and no gradient is formed.

        Args:
            rows: of the gradients.
            norms: what each gradient is divided by, 0 where that is 0; None for nothing.
        """
        x, d = rows.inputs.to(rows.dtype), rows.deltas.to(rows.dtype)
        x, d = x @ self.inputs.to(x), d @ self.deltas.to(d)
        if norms is not None:  # in float64, in which no norm is too small to be divided by
            scale = inverse(norms).to(d.device)
            d = (d * scale.repeat_interleave(rows.counts)[:, None]).to(d.dtype)
        return ExampleRows(x, d, rows.counts).gradients(slice(None), slice(None))

    def damped(self, projected: Float[Tensor, "example entry"], damping: float) -> Float[Tensor, "example entry"]:
        """(A + a I)^-1 G (B + b I)^-1 of projected gradients G, with the moments A of x and B of delta (K-FAC).

        a and b are `damping` times the mean eigenvalue of A and of B.
        """
        p, q = self.inputs.shape[1], self.deltas.shape[1]
        found = projected.double().reshape(-1, p, q)
        found = torch.linalg.solve(_damped(self.input_moments, damping), found)
        found = torch.linalg.solve(_damped(self.delta_moments, damping), found.transpose(1, 2)).transpose(1, 2)
        return found.flatten(1).to(projected.dtype)


class Moments:
    """Sums of x x^T and delta delta^T over the rows of a sample."""

    def __init__(self, d_in: int, d_out: int) -> None:
        self.inputs, self.deltas = (torch.zeros(d, d, dtype=torch.float64) for d in (d_in, d_out))
        self.n = 0

    def add(self, rows: ExampleRows) -> None:
        """Add those of some examples."""
        x, d = rows.inputs.to(rows.dtype), rows.deltas.to(rows.dtype)
        self.inputs += (x.T @ x).cpu()
        self.deltas += (d.T @ d).cpu()
        self.n += len(d)

    def projection(self, n_entries: int, kind: ProjectionKind, generator: torch.Generator) -> Projection:
        """Bases of p and q vectors with p q <= n_entries, drawn or learnt from these moments."""
        d_in, d_out = len(self.inputs), len(self.deltas)
        if kind == "random":
            p = min(d_in, max(1, int(n_entries**0.5)))
            q = min(d_out, max(1, n_entries // p))
            drawn = (torch.randn(d, k, generator=generator) / k**0.5 for d, k in ((d_in, p), (d_out, q)))
            return self._in(*drawn)
        (of_x, x), (of_d, d) = (_spectrum(each) for each in (self.inputs, self.deltas))
        p, q = _shares(of_x, of_d, n_entries)
        return self._in(x[:, :p].float().contiguous(), d[:, :q].float().contiguous())

    def _in(self, inputs: Tensor, deltas: Tensor) -> Projection:
        bases = ((self.inputs, inputs.double()), (self.deltas, deltas.double()))
        return Projection(inputs, deltas, *(basis.T @ sums @ basis / max(1, self.n) for sums, basis in bases))


def inverse(norms: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 / norms, and 0 of 0."""
    return torch.where(norms > 0, 1 / norms, 0.0)


def _spectrum(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the energy in the first 1, 2, ... eigenvectors, and these, largest first."""
    values, vectors = torch.linalg.eigh(moments)
    shares = values.clamp(min=0).flip(0).cumsum(0)
    return shares / shares[-1].clamp(min=torch.finfo(shares.dtype).tiny), vectors.flip(1)


def _shares(of_x: Tensor, of_d: Tensor, n_entries: int) -> tuple[int, int]:
    """The p and q that keep most: the energy of x in p directions times that of delta in q."""
    p = torch.arange(1, min(len(of_x), n_entries) + 1)
    q = (n_entries // p).clamp(max=len(of_d))
    best = int((of_x[p - 1] * of_d[q - 1]).argmax())
    return int(p[best]), int(q[best])


def _damped(moments: Tensor, damping: float) -> Tensor:
    mean = moments.diagonal().mean().clamp(min=torch.finfo(moments.dtype).tiny)
    return moments + damping * mean * torch.eye(len(moments), dtype=moments.dtype)
