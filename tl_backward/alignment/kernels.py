"""From one model's residual stream to another's, through the vocabulary they share (Dar et al. 2022, sec. 5)."""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel, typed
from tl_backward.alignment.vocabularies import TokenMap, shared_tokens
from tl_backward.embedding_space.vectors import Embedding

_TILE = 4096  # tokens taken to float64 at once


@public
@typed
def translation(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    *,
    fold_ln: bool = False,
    token_map: TokenMap | None = None,
) -> Float[Tensor, "d_model_a d_model_b"]:
    """Compute the kernel K = E_A E_B^+, which carries a row of A's residual stream into B's: x_B = x_A K.

    x_A is taken to the vocabulary by A's embedding E_A = W_U [d_model_a, d_vocab], and from there to the vector of B
    that comes closest to it in words (least squares), by the pseudo-inverse of B's. Where B is A in another basis, K is
    the change of basis, exactly. Computed in float64 from d_model x d_model matrices; in the dtype and on the device of
    B's W_U.

    Args:
        model_a: the model whose vectors are translated.
        model_b: the model into whose stream; of any width.
        fold_ln: read both embeddings with the final norm's weight and centring folded in, as in `project_parameter`.
        token_map: where vocabularies differ, which tokens are the same: see `token_map`.

    Raises:
        ValueError: vocabularies that differ and no map between them, weights that are not finite.

    Examples:
        >>> kernel = tlb.alignment.translation(model, model)
        >>> bool(torch.allclose(kernel, torch.eye(128), atol=1e-3))  # into itself
        True
    """
    tokens = shared_tokens(model_a, model_b, token_map)
    with torch.no_grad():
        a, b = (Embedding.of(model, "transpose", fold_ln) for model in (model_a, model_b))
        cross = gram(a.matrix, b.matrix, tokens.ids_a, tokens.ids_b)
        own = gram(b.matrix, b.matrix, tokens.ids_b, tokens.ids_b)
        fold_a, fold_b = fold_matrix(a), fold_matrix(b)
        # E^+ = E^T (E E^T)^+; directions that E does not span, but for rounding, stay zero: centring leaves one.
        noise = len(own) * max(len(own) * torch.finfo(b.matrix.dtype).eps ** 2, torch.finfo(torch.float64).eps)
        inverse = torch.linalg.pinv(fold_b @ own @ fold_b.T, hermitian=True, rtol=noise)
        return (fold_a.to(own.device) @ cross @ fold_b.T @ inverse).to(b.matrix)


@public
@typed
def random_kernel(
    kernel: Float[Tensor, "d_model_a d_model_b"], *, seed: int = 0
) -> Float[Tensor, "d_model_a d_model_b"]:
    """Make the control of a translation: a kernel of the same singular values in random directions (Haar).

    What survives it owes nothing to the vocabulary. The global RNG is left alone.

    Examples:
        >>> kernel = tlb.alignment.translation(model, model)
        >>> tlb.alignment.random_kernel(kernel, seed=0).shape
        torch.Size([128, 128])
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.linalg.svdvals(kernel.detach().double().cpu())
    left, right = (random_rotation(size, generator)[:, : len(values)] for size in kernel.shape)
    return ((left * values) @ right.T).to(kernel)


def random_rotation(d_model: int, generator: torch.Generator) -> Float[Tensor, "d_model d_model"]:
    """A random orthogonal matrix (Haar), in float64."""
    q, r = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def gram(left: Tensor, right: Tensor, ids_left: Tensor, ids_right: Tensor, *, center: bool = False) -> Tensor:
    """Sum over pairs of tokens of outer(left[:, i], right[:, j]), in float64, tile by tile.

    Args:
        left: [d_left, d_vocab].
        right: [d_right, d_vocab].
        ids_left: the first token of each pair.
        ids_right: the second.
        center: subtract each side's mean over its tokens, as a covariance does.
    """
    device = right.device
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=device)
    means = [_mean(side, ids) if center else None for side, ids in ((left, ids_left), (right, ids_right))]
    for some_left, some_right in zip(ids_left.split(_TILE), ids_right.split(_TILE), strict=True):
        parts = [_columns(left, some_left, means[0]).to(device), _columns(right, some_right, means[1])]
        total.addmm_(parts[0], parts[1].T)
    return total


def fold_matrix(embedding: Embedding) -> Tensor:
    """F [d_model, d_model] in float64 with v @ F = `embedding.folded(v)`: final norm's weight and centring."""
    matrix = embedding.matrix
    return embedding.folded(torch.eye(len(matrix), dtype=torch.float64, device=matrix.device))


def _columns(matrix: Tensor, ids: Tensor, mean: Tensor | None) -> Tensor:
    part = matrix.index_select(1, ids.to(matrix.device)).double()
    return part if mean is None else part.sub_(mean[:, None])


def _mean(matrix: Tensor, ids: Tensor) -> Tensor:
    total = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
    for some in ids.split(_TILE):
        total += _columns(matrix, some, None).sum(1)
    return total / len(ids)
