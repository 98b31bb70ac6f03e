"""Neuron against neuron: distances and similarities under the best permutation, or one-to-many (Li et al. 2016)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward.dissimilarity.measures._inputs import measure, required
from tl_backward.dissimilarity.measures._matrices import centred, widened


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
    means = [side.double().mean(0) for side in (x, y)]
    a, b = centred(x), centred(y)
    costs = pair_costs(a.T @ b, a.square().sum(0), b.square().sum(0))
    if not center:
        costs = costs + len(x) * mean_costs(*means)
    rows, columns = assignment(-costs)
    a, b = (widened(side, len(costs)) for side in (a, b))
    total = (a[:, rows] - b[:, columns]).square().sum()
    if not center:
        total = total + len(x) * mean_costs(*means)[rows, columns].sum()
    return total.sqrt()


def pair_costs(
    cross: Float[Tensor, "d1 d2"], squares_x: Float[Tensor, " d1"], squares_y: Float[Tensor, " d2"]
) -> Float[Tensor, "d d"]:
    """|x_i - y_j|^2 of all pairs of neurons, from X'Y and the diagonals of X'X and Y'Y; zeros widen the narrower."""
    d = max(cross.shape)
    left, right, both = widened(squares_x, d), widened(squares_y, d), cross.new_zeros(d, d)
    both[: cross.shape[0], : cross.shape[1]] = cross
    return (left[:, None] + right - 2 * both).clamp(min=0)


def mean_costs(mean_x: Float[Tensor, " d1"], mean_y: Float[Tensor, " d2"]) -> Float[Tensor, "d d"]:
    """Squared differences of the means of all pairs of neurons, apart: they may dwarf what varies."""
    d = max(len(mean_x), len(mean_y))
    return (widened(mean_x, d)[:, None] - widened(mean_y, d)).square()


@measure(minimum=3)
def hard_match(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Mean correlation of neurons matched one to one: max over matchings of sum_i r(x_i, y_m(i)) / min(d1, d2).

    r is Pearson's correlation over samples (Li et al. 2016, sec. 3.1), 0 for a constant neuron. A similarity in
    [-1, 1]; no metric. Unchanged by the order of neurons, and by a shift and a positive scale of each.
    """
    return one_to_one(_correlations(x, y))


@measure(minimum=3)
def soft_match(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Mean correlation of each neuron's best partner: (mean_i max_j r(x_i, y_j) + mean_j max_i r(x_i, y_j)) / 2.

    r is Pearson's correlation over samples (Li et al. 2016, sec. 3.2), 0 for a constant neuron; one neuron may be the
    partner of many. A similarity in [-1, 1]; no metric. Unchanged by the order of neurons, and by a shift and a
    positive scale of each.

    This is NOT the soft matching distance of Khosla & Williams (2024), in which each neuron has a fixed share of mass
    to give: `soft_match_transport`.
    """
    return one_to_many(_correlations(x, y))


@measure(minimum=2)
def soft_match_transport(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Soft matching distance, sqrt(min_T sum_ij T_ij |x_i - y_j|^2), T >= 0 with row sums 1/d1, column sums 1/d2.

    (Khosla & Williams 2024, eq. 5.) x_i and y_j are centred neurons, and T moves the mass of the one side's onto the
    other's: the Wasserstein distance of order 2 between them. A metric in [0, inf), in the units of the activations,
    up to the order of neurons, their number where each is repeated as often, and a shift; for d1 = d2 = d it is
    `permutation_procrustes` / sqrt(d).

    The transport problem is solved exactly by POT, of the extra `transport`, in about d^3 operations.

    Args:
        x: [sample, d1].
        y: [sample, d2].

    Raises:
        ImportError: POT is not installed.
    """
    solver = required("ot", "ot (POT)", "soft_match_transport", "transport", " (hard_match, soft_match)")
    x, y = centred(x), centred(y)
    costs = (x.square().sum(0)[:, None] + y.square().sum(0) - 2 * x.T @ y).clamp(min=0)
    plan = solver.emd([], [], costs.cpu().numpy(), numItermax=10_000_000)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for i, j in torch.from_numpy(plan).nonzero().tolist():
        total += plan[i, j] * (x[:, i] - y[:, j]).square().sum()
    return total.sqrt()


def one_to_one(correlation: Float[Tensor, "d1 d2"]) -> Float[Tensor, ""]:
    """The mean correlation under the best one-to-one matching of rows with columns."""
    return correlation[assignment(correlation)].mean()


def one_to_many(correlation: Float[Tensor, "d1 d2"]) -> Float[Tensor, ""]:
    """The mean over both sides' neurons of the largest correlation with any of the other's."""
    return (correlation.amax(0).mean() + correlation.amax(1).mean()) / 2


def assignment(gain: Float[Tensor, "d1 d2"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
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
    noise = 4 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.double(), dim=0)
    return values * torch.where(norms > noise, 1 / norms, 0.0)
