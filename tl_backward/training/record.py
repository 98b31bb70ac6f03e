"""What is kept of one watched weight: the sum of its gradients, their norms, and the tokens that contributed most."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tl_backward.training.largest import Largest
from tl_backward.training.sketch import Sketch
from tl_backward.weights import WeightSite
from tl_backward.weights.factors import GradientFactors


@dataclass
class Record:
    """The running summary of one weight; sums are of raw gradients, a descent step subtracts them."""

    site: WeightSite
    rank: int
    seed: int
    total: Sketch = field(init=False)
    """The gradients, weighted as they were added, as [d_in, d_out] matrices."""
    start: Sketch = field(init=False)
    """The weight itself when the watch began."""
    norms: list[float] = field(default_factory=list)
    """Of each gradient that was added, before it was weighted."""
    steps: list[int] = field(default_factory=list)
    """The step of each."""
    mean_input: Tensor | None = None
    """Sum over tokens of |delta_i| x_i: which way most inputs point, which gives directions their sign."""
    tokens: Largest = field(default_factory=list)
    examples: Largest = field(default_factory=list)
    n_bad: int = 0
    """Gradients that were not finite."""

    def __post_init__(self) -> None:
        """Sketch the weight as it is."""
        shape = matrix_shape(self.site)
        self.total, self.start = (Sketch(shape, self.rank, self.seed) for _ in range(2))
        with torch.no_grad():
            self.start.add(as_matrix(self.site, self.site.parameter.detach()).double())

    def add(self, stored: Tensor, step: int, scale: float = 1.0, unit: float = 1.0) -> None:
        """Add `scale` times a gradient in the parameter's layout, whose norm is noted in units of `unit`."""
        stored = stored.detach()
        norm = unit * self.site.norm_of(stored)
        self.norms.append(norm)
        self.steps.append(step)
        if math.isfinite(norm):
            self.total.add(as_matrix(self.site, stored), scale * unit)
        else:
            self.n_bad += 1

    def add_factors(self, factors: GradientFactors, scale: float) -> None:
        """Add a gradient by its factors."""
        if _is_plain(factors):
            self.total.add_product(*_rows(factors), scale)
        else:
            self.total.add(_from_tl(self.site, factors.gradient()), scale)

    def see(self, factors: GradientFactors) -> Tensor | None:
        """|x_i| |delta_i| of each token, [batch, pos]; notes which way inputs point. None where rows are no tokens."""
        if not _is_plain(factors):
            return None
        x, d = factors.inputs.detach(), factors.deltas.detach()
        x = x.to(_number(x))
        written = torch.linalg.vector_norm(d, dim=-1, dtype=_number(d))
        if self.mean_input is None:
            self.mean_input = x.new_zeros(x.shape[-1])
        dtype = self.mean_input.dtype
        self.mean_input.addmv_(x.flatten(0, 1).T.to(dtype), written.flatten().to(dtype))
        return torch.linalg.vector_norm(x, dim=-1).mul(written)


def matrix_shape(site: WeightSite) -> tuple[int, int]:
    """[d_in, d_out] of a weight; of experts all their matrices, one above the other."""
    d_in, d_out = site.layout.matrix_shape
    return (site.layout.shape[0] * d_in, d_out) if site.layout.experts else (d_in, d_out)


def as_matrix(site: WeightSite, stored: Tensor) -> Tensor:
    """A tensor in the parameter's own layout as the [d_in, d_out] matrix of the weight."""
    return _from_tl(site, site.layout.from_stored(stored))


def _from_tl(site: WeightSite, full: Tensor) -> Tensor:
    """From TransformerLens's shape."""
    return (full.transpose(0, 1) if site.layout.heads == "out" else full).reshape(matrix_shape(site))


def _is_plain(factors: GradientFactors) -> bool:
    """Whether rows are [batch, pos] tokens, each with one x and one delta."""
    return factors.origin is None and not factors.per_head and not factors.is_lookup


def _number(tensor: Tensor) -> torch.dtype:
    """The type that norms are taken in: half precision ends at 65,504, and knows no square of 1e-4."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _rows(factors: GradientFactors) -> tuple[Tensor, Tensor]:
    """Both sides of all tokens, [token, d_in] and [token, d_out]."""
    return factors.inputs.flatten(0, 1), factors.deltas.flatten(0, 1)
