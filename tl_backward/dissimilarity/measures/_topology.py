"""Topology: where one cloud of samples hangs together and the other does not, at any scale."""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity.measures._inputs import measure, required
from tl_backward.dissimilarity.measures._pairs import Distances

RTD_MOST = 300  # samples: the complex has up to 4.5 million simplices there, and takes 5 seconds
_QUANTILE = 0.9


@measure(minimum=3)
def rtd(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, ""]:
    """Representation topology divergence (Barannikov et al. 2022, ICML): the length of both cross-barcodes' bars.

    With w, v the Euclidean distances of both sides, each over its 0.9 quantile, and R_a the Vietoris-Rips complex at
    scale a, one direction is the integral over a of dim H_1(R_a(min(w, v)), R_a(w)): how many clusters of w at that
    scale v joins, and loops it adds. The mean of both directions is returned. A distance in [0, inf), 0 for equal
    distances, no metric; it grows with the number of samples. Unchanged by rotation, one scale and a shift of either
    side.

    Persistent homology is gudhi's, of the extra `topology`. At most 300 samples, for time and memory grow with their
    cube (0.1 s for 100, 5 s for 300, a direction).

    Args:
        x: [sample, d1].
        y: [sample, d2].

    Raises:
        ImportError: gudhi is not installed.
        ValueError: more than 300 samples.
    """
    if len(x) > RTD_MOST:
        raise ValueError(
            f"Expected at most {RTD_MOST} samples for rtd, whose cost grows with their cube, got {len(x)}; pass a "
            "sample of the rows (in compare, sample_size=100)."
        )
    w, v = _scaled_distances(x), _scaled_distances(y)
    return torch.tensor((_cross_bars(w, v) + _cross_bars(v, w)) / 2, dtype=torch.float64)


def _scaled_distances(x: Tensor) -> Float[Tensor, "sample sample"]:
    everything = slice(0, len(x))
    distances = Distances.of(x, "euclidean").tile(everything, everything).cpu()
    distances = torch.maximum(distances, distances.T)  # the same to the last digit both ways
    pairs = distances[tuple(torch.triu_indices(len(x), len(x), 1))]
    scale = torch.quantile(pairs, _QUANTILE)
    return distances / (scale if scale > 0 else pairs.max())


def _cross_bars(w: Float[Tensor, "sample sample"], v: Float[Tensor, "sample sample"]) -> float:
    """Total length of the bars of H_1 of the mapping cone of R(w) in R(min(w, v)).

    A flag complex with that homology (the paper's section 2): every sample twice, at distances w among the first
    copies, min(w, v) among the second, w from the first copy of i to the second of j >= i alone, and an apex at
    distance 0 from all first copies.
    """
    n = len(w)
    top = float(torch.maximum(w, v).max())
    cone = torch.full((2 * n + 1, 2 * n + 1), 2 * top, dtype=torch.float64)
    first, second = slice(0, n), slice(n, 2 * n)
    cone[first, first], cone[second, second] = w, torch.minimum(w, v)
    cone[first, second] = torch.where(torch.ones(n, n, dtype=torch.bool).triu(), w, 2 * top)
    cone[second, first] = cone[first, second].T
    cone[2 * n, first] = cone[first, 2 * n] = 0
    cone.fill_diagonal_(0)
    gudhi = required("gudhi", "gudhi", "rtd", "topology")
    tree = gudhi.RipsComplex(distance_matrix=cone.numpy(), max_edge_length=top).create_simplex_tree(max_dimension=1)
    tree.collapse_edges()
    tree.expansion(2)
    tree.compute_persistence()
    bars = torch.as_tensor(tree.persistence_intervals_in_dimension(1), dtype=torch.float64).reshape(-1, 2)
    return float((bars[:, 1] - bars[:, 0]).sum())
