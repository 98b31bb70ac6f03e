"""Euclidean norms without overflow or underflow: vectors are scaled by their largest entry before squaring."""

import torch
from jaxtyping import Float
from torch import Tensor


def lengths(vectors: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead"]:
    """Euclidean norm of each vector, in float32 at least, without overflow or underflow in between.

    Squares of 1e-25 or 1e25 are no float32 numbers, and a length of 65,520 is no float16 number.
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    unit = largest(vectors)
    unit = torch.where(unit.isinf(), 1, unit)
    return torch.linalg.vector_norm(vectors / unit, dim=-1) * unit[..., 0]


def units(vectors: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
    """Vectors scaled to norm 1, however small or large they were; zero vectors stay zero."""
    vectors = vectors / largest(vectors)
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, torch.ones_like(norms))


def largest(vectors: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead 1"]:
    """The largest |v_i| of each vector; 1 for a vector of zeros."""
    if not vectors.shape[-1]:
        return vectors.new_ones(*vectors.shape[:-1], 1)
    most = vectors.abs().amax(-1, keepdim=True)
    return torch.where(most > 0, most, torch.ones_like(most))
