"""One weight's gradients in few numbers: entries of P^T (dL/dW) Q, from the factors, by bases of x and of delta.

P and Q are the leading eigenvectors of the second moments of x and delta over a sample (PCA, not centred; each delta is
divided by its example's |dL/dW|), and of their pairs those are kept whose eigenvalues have the largest products: a
rectangle of as many would spend half of itself on pairs of two small ones. Or both are Gaussian, all pairs kept. Inner
products of what is kept stand for the gradients' own; of orthonormal bases they are those of the parts inside. The
largest products lead: the first entries alone tell most examples from those that a query is about.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward.gradients.gram import ExampleRows

ProjectionKind: TypeAlias = Literal["pca", "random"]

_LEADING = 1 / 4
"""Of the entries: with more a first look takes longer, with fewer more examples are left for a second."""


@dataclass(frozen=True)
class Projection:
    """The bases of one weight, with the second moments of x and delta in them."""

    inputs: Float[Tensor, "d_in p"]
    deltas: Float[Tensor, "d_out q"]
    entries: Int[Tensor, "entry"]
    """The pairs that are kept: i q + j for direction i of the inputs and j of the deltas, largest products first;
    where all pairs are, in rising order."""
    input_moments: Float[Tensor, "p p"]
    """E[x x^T] over rows of the sample, in the basis."""
    delta_moments: Float[Tensor, "q q"]

    @property
    def n_entries(self) -> int:
        """How many numbers a gradient becomes."""
        return len(self.entries)

    @property
    def n_leading(self) -> int:
        """How many of them lead; all where no pair was left out, as of Gaussian ones, which have no order."""
        return self.n_entries if self.n_entries == self._n_pairs else max(1, int(_LEADING * self.n_entries))

    def of(self, rows: ExampleRows, norms: Float[Tensor, "example"] | None = None) -> Float[Tensor, "example entry"]:
        """The entries of P^T (dL/dW) Q of each example: its rows are projected, and no gradient is formed.

        Args:
            rows: of the gradients.
            norms: what each gradient is divided by, 0 where that is 0; None for nothing.
        """
        x, d = rows.inputs.to(rows.dtype), rows.deltas.to(rows.dtype)
        x, d = x @ self.inputs.to(x), d @ self.deltas.to(d)
        if norms is not None:  # in float64, in which no norm is too small to be divided by
            scale = inverse(norms).to(d.device)
            d = (d * scale.repeat_interleave(rows.counts)[:, None]).to(d.dtype)
        found = ExampleRows(x, d, rows.counts).gradients(slice(None), slice(None)).reshape(-1, self._n_pairs)
        return found if self.n_entries == self._n_pairs else found.index_select(1, self.entries.to(found.device))

    @property
    def _n_pairs(self) -> int:
        return self.inputs.shape[1] * self.deltas.shape[1]

    def damped(self, projected: Float[Tensor, "example entry"], damping: float) -> Float[Tensor, "example entry"]:
        """(A + a I)^-1 G (B + b I)^-1 of projected gradients G, with the moments A of x and B of delta (K-FAC).

        a and b are `damping` times the mean eigenvalue of A and of B; what is not kept of G is 0.
        """
        p, q = self.inputs.shape[1], self.deltas.shape[1]
        found = torch.zeros(len(projected), p * q, dtype=torch.float64)
        found[:, self.entries] = projected.double()
        found = found.reshape(-1, p, q)
        found = torch.linalg.solve(_damped(self.input_moments, damping), found)
        found = torch.linalg.solve(_damped(self.delta_moments, damping), found.transpose(1, 2)).transpose(1, 2)
        return found.flatten(1)[:, self.entries].to(projected.dtype)


class Moments:
    """Sums of x x^T and delta delta^T over the rows of a sample, and of the latter with unit gradients' deltas.

    Cosines are of unit gradients: without that the few examples with the largest losses would choose the directions.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        self.inputs, self.deltas, self.units = (torch.zeros(d, d, dtype=torch.float64) for d in (d_in, d_out, d_out))
        self.n = 0

    def add(self, rows: ExampleRows, norms: Float[Tensor, "example"]) -> None:
        """Add those of some examples, and the norms of their gradients."""
        x, d = rows.inputs.to(rows.dtype), rows.deltas.to(rows.dtype)
        unit = (d * inverse(norms).to(d.device).repeat_interleave(rows.counts)[:, None]).to(d.dtype)
        for sums, each in ((self.inputs, x), (self.deltas, d), (self.units, unit)):
            sums += (each.T @ each).cpu()
        self.n += len(d)

    def projection(self, n_entries: int, kind: ProjectionKind, generator: torch.Generator) -> Projection:
        """Bases with at most so many pairs kept, drawn or learnt from these moments."""
        d_in, d_out = len(self.inputs), len(self.deltas)
        if kind == "random":
            p = min(d_in, max(1, int(n_entries**0.5)))
            q = min(d_out, max(1, n_entries // p))
            x, d = (torch.randn(d, k, generator=generator) / k**0.5 for d, k in ((d_in, p), (d_out, q)))
            return self._in(x, d, torch.arange(p * q))
        (of_x, x), (of_d, d) = (_spectrum(each, n_entries) for each in (self.inputs, self.units))
        first = (of_x[:, None] * of_d).flatten().argsort(descending=True, stable=True)[:n_entries]
        i, j = first // len(of_d), first % len(of_d)
        p, q = int(i.max()) + 1, int(j.max()) + 1
        x, d = (each.float().contiguous() for each in (x[:, :p], d[:, :q]))
        entries = i * q + j
        return self._in(x, d, entries.sort().values if len(entries) == p * q else entries)

    def _in(self, inputs: Tensor, deltas: Tensor, entries: Tensor) -> Projection:
        bases = ((self.inputs, inputs.double()), (self.deltas, deltas.double()))
        moments = (basis.T @ sums @ basis / max(1, self.n) for sums, basis in bases)
        return Projection(inputs, deltas, entries, *moments)


def inverse(norms: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 / norms, and 0 of 0."""
    return torch.where(norms > 0, 1 / norms, 0.0)


def _spectrum(moments: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The largest `n` eigenvalues, largest first, and their vectors: of n pairs none is of a later one."""
    values, vectors = torch.linalg.eigh(moments)
    return values.clamp(min=0).flip(0)[:n], vectors.flip(1)[:, :n]


def _damped(moments: Tensor, damping: float) -> Tensor:
    mean = moments.diagonal().mean().clamp(min=torch.finfo(moments.dtype).tiny)
    return moments + damping * mean * torch.eye(len(moments), dtype=moments.dtype)
