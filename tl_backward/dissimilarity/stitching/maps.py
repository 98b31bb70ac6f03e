"""The maps from one model's residual stream to another's, and their least-squares solutions from sums over texts."""

from collections.abc import Sequence
from typing import cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_backward._support.checks import check_choice
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.alignment.stitched import StitchedModel
from tl_backward.dissimilarity.measures.moments import PairSums
from tl_backward.dissimilarity.options import MapKind
from tl_backward.dissimilarity.statistics import CovarianceStatistics
from tl_backward.dissimilarity.stitching.penalty import TextBatch


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
        # Made without a draw from the global RNG: it is always set before it is used.
        self.linear = None if kind == "identity" else nn.utils.skip_init(nn.Linear, d_in, d_out, bias=kind == "affine")

    def __repr__(self) -> str:
        shape = "" if self.linear is None else f", {self.linear.in_features} -> {self.linear.out_features}"
        return f"StitchMap({self.kind!r}{shape}{', after a LayerNorm' if self.norm is not None else ''})"

    def forward(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_out"]:
        """Map the head's activations to the tail's."""
        x = x if self.norm is None else self.norm(x)
        return x if self.linear is None else self.linear(x)

    @property
    def weight(self) -> Float[Tensor, "d_in d_out"] | None:
        """W of xW, as TransformerLens writes it; None for the identity."""
        return None if self.linear is None else cast(Tensor, self.linear.weight).T

    @torch.no_grad()
    def set(self, weight: Float[Tensor, "d_in d_out"], bias: Float[Tensor, "d_out"] | None = None) -> None:
        """Set W, and b for an affine map (None: zeros)."""
        linear = cast(nn.Linear, self.linear)
        linear.weight.copy_(weight.T)
        if linear.bias is not None:
            linear.bias.zero_() if bias is None else linear.bias.copy_(bias)

    def constrain(self) -> None:
        """Parametrise an orthogonal map, so that training keeps it orthogonal."""
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


def fitted_stitches(
    kind: MapKind,
    model_a: TransformerLensModel,
    layers_a: Sequence[int],
    model_b: TransformerLensModel,
    layers_b: Sequence[int],
    batches: Sequence[TextBatch],
    *,
    exclude_first: bool,
    ridge: float,
    normed: bool,
    show_progress: bool,
) -> list[list[StitchedModel]]:
    """Stitched models [layer of A][layer of B], with least-squares maps from one pass over the texts.

    Maps are on the tail's device and in its dtype, but at least float32.
    """
    sums = (
        None
        if kind == "identity"
        else _residual_sums(model_a, layers_a, model_b, layers_b, batches, exclude_first, normed, show_progress)
    )
    width_a, weight_b = model_a.W_U.shape[0], model_b.W_U
    dtype = torch.promote_types(weight_b.dtype, torch.float32)

    def fitted(p: int, q: int) -> StitchMap:
        made = StitchMap(kind, width_a, weight_b.shape[0], layer_norm=normed).to(weight_b.device, dtype)
        if sums is not None:
            made.set(*least_squares(kind, sums.pair(p, q), ridge))
        return made

    return [
        [StitchedModel(model_a, i, model_b, j, fitted(p, q)) for q, j in enumerate(layers_b)]
        for p, i in enumerate(layers_a)
    ]


def _residual_sums(
    model_a: TransformerLensModel,
    layers_a: Sequence[int],
    model_b: TransformerLensModel,
    layers_b: Sequence[int],
    batches: Sequence[TextBatch],
    exclude_first: bool,
    normed: bool,
    show_progress: bool,
) -> CovarianceStatistics:
    """Sums over the real tokens of both residual streams, A's after a LayerNorm without weights if `normed`."""
    width_a, width_b = model_a.W_U.shape[0], model_b.W_U.shape[0]
    device = model_b.W_U.device if model_b.W_U.device.type != "mps" else "cpu"
    sums = CovarianceStatistics([width_a] * len(layers_a), [width_b] * len(layers_b), device=device)
    # A LayerNorm's output sums to 0: one direction less is no loss, and nothing in it is much larger than the rest.
    sums.names["a"] = ["" if normed else f"layer {layer} of A" for layer in layers_a]
    sums.names["b"] = [f"layer {layer} of B" for layer in layers_b]
    reader_a = PlaceReader(model_a, "resid_post", layers=layers_a, which="model A")
    reader_b = PlaceReader(model_b, "resid_post", layers=layers_b, which="model B")
    same = model_a is model_b and reader_a.places == reader_b.places
    readers = (reader_a,) if same else (reader_a, reader_b)
    for batch in tqdm(batches, desc="fit", unit="batch", disable=not show_progress or len(batches) < 20):
        mask = batch.mask.clone()
        mask[:, 0] &= not exclude_first
        text, at = mask.nonzero(as_tuple=True)
        lengths = batch.mask.sum(1)
        by_layer = [
            {place.layer: rows.to(device) for place, rows in reader(batch.tokens, text, at, lengths=lengths).items()}
            for reader in readers
        ]
        x = [by_layer[0][layer] for layer in layers_a]
        if normed:
            x = [torch.nn.functional.layer_norm(rows.double(), rows.shape[1:]).to(rows) for rows in x]
        sums.update(x, [by_layer[-1][layer] for layer in layers_b])
    return sums
