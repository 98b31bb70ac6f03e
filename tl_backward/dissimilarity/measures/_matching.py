"""Neuron against neuron: distances and similarities under the best permutation, or one-to-many (Li et al. 2016)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward.dissimilarity.measures._inputs import measure
from tl_backward.dissimilarity.measures._products import centred


@measure(minimum=2)
def permutation_procrustes(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], *, center: bool = True
) -> Float[Tensor, ""]:
    """Procrustes distance over permutations: min_P |XP - Y|_F, the narrower side widened by zero neurons.

    The best P solves the linear assignment problem on X'Y (scipy's). A metric in [0, inf), in the units of the
    activations, up to an order of the neurons (and a shift, where centred) (Williams et al. 2021).

    Args:
        x: [sample, d1].
        y: [sample, d2].
        center: subtract each neuron's mean first.
    """
    x, y = (centred(side) if center else side.double() for side in (x, y))
    width = max(x.shape[1], y.shape[1])
    x, y = (torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in (x, y))
    rows, columns = _assignment(x.T @ y)
    return torch.linalg.matrix_norm(x[:, rows] - y[:, columns])


@measure(minimum=3)
def hard_match(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Mean correlation of neurons matched one to one: max over matchings of sum_i r(x_i, y_m(i)) / min(d1, d2).

    r is Pearson's correlation over samples (Li et al. 2016, sec. 3.1), 0 for a constant neuron. A similarity in
    [-1, 1]; no metric. Unchanged by the order of neurons, and by a shift and a positive scale of each.
    """
    correlation = _correlations(x, y)
    return correlation[_assignment(correlation)].mean()


@measure(minimum=3)
def soft_match(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Mean correlation of each neuron's best partner: (mean_i max_j r(x_i, y_j) + mean_j max_i r(x_i, y_j)) / 2.

    r is Pearson's correlation over samples (Li et al. 2016, sec. 3.2), 0 for a constant neuron; one neuron may be the
    partner of many. A similarity in [-1, 1]; no metric. Unchanged by the order of neurons, and by a shift and a
    positive scale of each.
    """
    correlation = _correlations(x, y)
    return (correlation.amax(0).mean() + correlation.amax(1).mean()) / 2


def _assignment(gain: Float[Tensor, "d1 d2"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """The one-to-one matching of rows with columns of the largest total gain."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
    return torch.from_numpy(rows).to(gain.device), torch.from_numpy(columns).to(gain.device)


def _correlations(x: Tensor, y: Tensor) -> Float[Tensor, "d1 d2"]:
    return (_standardised(x).T @ _standardised(y)).clamp(-1, 1)


def _standardised(x: Tensor) -> Tensor:
    """Centred columns of norm 1; a column that varies by no more than its own rounding is 0."""
    values = centred(x)
    norms = torch.linalg.vector_norm(values, dim=0)
    noise = 4 * torch.finfo(x.dtype).eps * x.shape[0] ** 0.5 * x.abs().amax(0).double()
    return values * torch.where(norms > noise, 1 / norms, 0.0)
