"""Orthonormal bases, ranks and nuclear norms, in float64."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity.measures._products import upper_gram


class Basis(NamedTuple):
    """A thin singular value decomposition U diag(S) V' of a sample matrix, cut to its numerical rank."""

    u: Float[Tensor, "sample rank"]
    s: Float[Tensor, " rank"]
    vh: Float[Tensor, "rank d"]

    @property
    def rank(self) -> int:
        """How many dimensions the samples span."""
        return self.s.numel()


def basis(x: Float[Tensor, "sample d"], *, center: bool = True) -> Basis:
    """The thin SVD of X (less its column means), float64, without directions that are only rounding noise.

    A direction counts where its singular value exceeds what rounding X's entries to their dtype can make of nothing:
    4 eps |X|_F (n^-1/2 + d^-1/2), |X|_F taken before centring, plus float64's own error. By QR first, so that the
    condition number is never squared.
    """
    n, d = x.shape
    values = x.double()
    size = torch.linalg.vector_norm(values)
    if center:
        values = values - values.mean(0)
    if n >= d:
        q, r = torch.linalg.qr(values)
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        u = q @ u
    else:
        q, r = torch.linalg.qr(values.T)
        u, s, vh = torch.linalg.svd(r.T, full_matrices=False)
        vh = vh @ q.T
    noise = 4 * torch.finfo(x.dtype).eps * size * (n**-0.5 + d**-0.5)
    rank = int((s > noise + 8 * torch.finfo(torch.float64).eps * max(n, d) ** 0.5 * s[0]).sum())
    return Basis(u[:, :rank], s[:rank], vh[:rank])


def nuclear_norm(c: Float[Tensor, "d1 d2"], *, exact: bool) -> Float[Tensor, ""]:
    """The sum of the singular values of C.

    Args:
        c: [d1, d2], float64.
        exact: by the singular values themselves; otherwise by the eigenvalues of C'C, in half the time, where each
            small singular value is off by up to 1e-8 of the largest (float32 data is no better).
    """
    if exact:
        return torch.linalg.svdvals(c).sum()
    narrow = c if c.shape[0] >= c.shape[1] else c.T
    return torch.linalg.eigvalsh(upper_gram(narrow), UPLO="U").clamp(min=0).sqrt().sum()


def gram_distance(a: Float[Tensor, "sample r1"], b: Float[Tensor, "sample r2"]) -> Float[Tensor, ""]:
    """|AA' - BB'|_F, to rounding error also where the two are nearly equal.

    With [A B] = QR both Gram matrices live in R's few dimensions, where the difference is taken entry by entry.
    """
    joint = torch.cat([a, b], dim=1)
    if joint.shape[1] < joint.shape[0]:
        joint = torch.linalg.qr(joint, mode="r").R
    a, b = joint[:, : a.shape[1]], joint[:, a.shape[1] :]
    return torch.linalg.matrix_norm(a @ a.T - b @ b.T)
