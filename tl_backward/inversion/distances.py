"""How far activations are from the query's (Huang et al. 2024, sec. 2)."""

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_choice
from tl_backward._support.lengths import largest, lengths
from tl_backward._support.types import typed
from tl_backward.inversion.options import Metric


def distances(
    values: Float[Tensor, "*sample d"], query: Float[Tensor, "d"], metric: Metric = "euclidean"
) -> Float[Tensor, "*sample"]:
    """D(z, z') of each activation z' from the query's z, in float64.

    "euclidean": |z - z'| / |z|, relative to the query's norm as in the paper, so not symmetric. "cosine":
    1 - z.z' / (|z| |z'|), in [0, 2]; 1 where z' is exactly zero.

    Raises:
        ValueError: an unknown metric, or a query of zero norm, from which nothing has a distance.

    Example:
        >>> z = torch.tensor([3.0, 4.0])
        >>> tlb.inversion.distances(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), z).tolist()  # relative to |z|
        [0.0, 1.0]
    """
    check_choice("metric", metric, get_args(Metric))
    return _distances(values, query, metric)


@typed
def _distances(
    values: Float[Tensor, "*sample d"], query: Float[Tensor, "d"], metric: Metric
) -> Float[Tensor, "*sample"]:
    check_query(query)
    z, others = query.double(), values.double()
    if metric == "euclidean":
        return lengths(others - z) / lengths(z)
    z, others = z / largest(z), others / largest(others)
    norms = torch.linalg.vector_norm(others, dim=-1)
    inner = others @ z / torch.linalg.vector_norm(z)
    return torch.where(norms > 0, 1 - inner / norms, 1.0).clamp(0, 2)


def check_query(query: Float[Tensor, "d"]) -> None:
    """Refuse an activation that distances cannot be taken from.

    Raises:
        ValueError: its norm is zero, or it is not finite.
    """
    if not torch.isfinite(query).all():
        raise ValueError("Expected a finite query activation, got NaN or inf; look upstream for an overflow.")
    if not query.any():
        raise ValueError(
            "Expected a query activation of non-zero norm, got zeros, from which no relative distance is defined; "
            "choose another site or position."
        )
