"""Orthonormal bases, ranks and nuclear norms, in float64."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity.axes import rounding_noise
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

    Columns are scaled to norm 1 before the rank is decided: whether a direction is there does not depend on the units
    of a column. A direction counts where its singular value then exceeds what rounding X's entries to their dtype can
    make of nothing (`rounding_noise`; a column that varies by no more than 4 eps of its norm is constant), plus
    float64's own error. By QR first, so that the condition number is never squared.
    """
    n = x.shape[0]
    values = x.double()
    eps = torch.finfo(x.dtype).eps
    whole = torch.linalg.vector_norm(values, dim=0)
    norms = whole
    if center:
        values = values - values.mean(0)
        norms = torch.linalg.vector_norm(values, dim=0)
        norms = torch.where(norms > 4 * eps * whole, norms, 0.0)
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    u, shares, vh = _thin_svd(values * inverse)
    noise = rounding_noise(eps, n, (whole * inverse).square())
    keep = shares > noise + 8 * torch.finfo(torch.float64).eps * max(values.shape) ** 0.5 * shares[0]
    turn, s, vh = torch.linalg.svd(shares[keep, None] * vh[keep] * norms, full_matrices=False)
    return Basis(u[:, keep] @ turn, s, vh)


def principal(x: Float[Tensor, "sample d"]) -> Basis:
    """The thin SVD of centred X in its own units, float64, for what weighs directions by their variance."""
    values = x.double()
    u, s, vh = _thin_svd(values - values.mean(0))
    keep = s > 8 * torch.finfo(torch.float64).eps * max(values.shape) ** 0.5 * s[0]
    return Basis(u[:, keep], s[keep], vh[keep])


def _thin_svd(values: Float[Tensor, "sample d"]) -> tuple[Tensor, Tensor, Tensor]:
    if values.shape[0] >= values.shape[1]:
        q, r = torch.linalg.qr(values)
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        return q @ u, s, vh
    q, r = torch.linalg.qr(values.T)
    u, s, vh = torch.linalg.svd(r.T, full_matrices=False)
    return u, s, vh @ q.T


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
