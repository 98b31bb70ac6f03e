"""The maps from one model's residual stream to another's, and their least-squares solutions from sums."""

from typing import cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_backward._support.checks import check_choice
from tl_backward.dissimilarity.moments import PairSums
from tl_backward.dissimilarity.options import MapKind


class StitchMap(nn.Module):
    """phi(x): x itself; xQ with orthonormal rows or columns; xW; or xW + b; each after an extra LayerNorm if wanted."""

    def __init__(self, kind: MapKind, d_in: int, d_out: int, *, layer_norm: bool = False) -> None:
        super().__init__()
        check_choice("map", kind, get_args(MapKind))
        if kind == "identity" and d_in != d_out:
            raise ValueError(
                f"Expected models of one width for map='identity', got {d_in} and {d_out}; use 'orthogonal', 'affine'."
            )
        self.kind = kind
        self.norm = nn.LayerNorm(d_in) if layer_norm else None
        self.linear = None
        if kind != "identity":
            # Made without a draw from the global RNG: it is always set before it is used.
            self.linear = nn.utils.skip_init(nn.Linear, d_in, d_out, bias=kind == "affine")

    def __repr__(self) -> str:
        shape = "" if self.linear is None else f", {self.linear.in_features} -> {self.linear.out_features}"
        return f"StitchMap({self.kind!r}{shape}{', after a LayerNorm' if self.norm is not None else ''})"

    def forward(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_out"]:
        """Map activations of the front to the tail's."""
        x = x if self.norm is None else self.norm(x)
        return x if self.linear is None else self.linear(x)

    @property
    def weight(self) -> Float[Tensor, "d_in d_out"] | None:
        """W of xW, as TransformerLens writes it; None for the identity."""
        return None if self.linear is None else cast(Tensor, self.linear.weight).T

    @torch.no_grad()
    def set(self, weight: Float[Tensor, "d_in d_out"], bias: Float[Tensor, "d_out"] | None = None) -> None:
        """Take W, and b for an affine map."""
        linear = cast(nn.Linear, self.linear)
        linear.weight.copy_(weight.T)
        if linear.bias is not None:
            linear.bias.zero_() if bias is None else linear.bias.copy_(bias)

    def constrain(self) -> None:
        """From now on keep an orthogonal map orthogonal while it is trained."""
        if self.kind == "orthogonal" and self.linear is not None:
            weight = cast(Tensor, self.linear.weight).detach().clone()
            nn.utils.parametrizations.orthogonal(self.linear)
            self.linear.weight = weight

    def release(self) -> None:
        """Undo `constrain`, keeping the weight."""
        if self.linear is not None and hasattr(self.linear, "parametrizations"):
            nn.utils.parametrize.remove_parametrizations(self.linear, "weight")


def least_squares(
    kind: MapKind, pair: PairSums, ridge: float = 0.0
) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, "d_out"] | None]:
    """(W, b) that minimise the mean of |xW + b - y|^2 over the samples behind the sums, in closed form.

    "linear": (X'X + c)^+ X'Y of the samples as they are; "affine": the same of the centred ones, b from the means;
    "orthogonal": UV' of X'Y = USV' (Schoenemann 1966). c is `ridge` times the mean eigenvalue of X'X. Solved from
    orthonormal axes of the samples, with columns scaled to norm 1, so that one large activation costs no digits.
    """
    if kind == "orthogonal":
        u, _, vh = torch.linalg.svd(pair.uncentred(), full_matrices=False)
        return u @ vh, None
    if kind == "linear":
        turn, factor = pair.a.uncentred_axes
        inner = pair.a.all_axes.whitener.T @ pair.scatter()
        return _solve(factor, turn.T @ torch.cat([inner, pair.n**0.5 * pair.b.mean()[None]]), ridge), None
    axes = pair.a.axes
    weight = _solve(axes.factor, axes.whitener.T @ pair.scatter(), ridge)
    return weight, pair.b.mean() - pair.a.mean() @ weight


def _solve(
    factor: Float[Tensor, "rank d_in"], target: Float[Tensor, "rank d_out"], ridge: float
) -> Float[Tensor, "d_in d_out"]:
    """The smallest W that minimises |factor W - target|^2 + c |W|^2, c = ridge times the mean eigenvalue of X'X."""
    rank, width = factor.shape
    if ridge > 0:
        strength = (ridge * float(factor.square().sum()) / width) ** 0.5
        factor = torch.cat([factor, strength * torch.eye(width).to(factor)])
        target = torch.cat([target, target.new_zeros(width, target.shape[1])])
    norms = torch.linalg.vector_norm(factor, dim=0)
    scale = torch.where(norms > 0, 1 / norms, 0.0)
    u, values, vh = torch.linalg.svd(factor * scale, full_matrices=False)
    if rank < width and not ridge:
        u, values, vh = u[:, :rank], values[:rank], vh[:rank]
    weight = scale[:, None] * (vh.T @ ((u.T @ target) / values[:, None]))
    if rank == width or ridge > 0:
        return weight
    # of all solutions the smallest, in the units of the samples: the part in the span of the rows of `factor`
    rows = torch.linalg.qr(norms[:, None] * vh.T).Q
    return rows @ (rows.T @ weight)
