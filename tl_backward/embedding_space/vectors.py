"""The vectors that a weight is made of, and the embedding that carries them to words (Dar et al. 2022, sec. 3).

A weight's vectors are its rows or columns on the side of the residual stream.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor

from tl_backward._support.checks import all_finite, check_head, check_layers
from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space.options import Inverse
from tl_backward.model.checks import check_model, check_one_device
from tl_backward.model.head import Head
from tl_backward.model.inputs import check_reads_text
from tl_backward.weights import WeightSite, select_sites, weight_sites
from tl_backward.weights.blocks import blocks_of

Role: TypeAlias = Literal["read", "write", "scale"]

PairKind: TypeAlias = Literal["KV", "GV", "VO", "QK"]
PAIRED_WEIGHTS = {"KV": ("W_in", "W_out"), "GV": ("W_gate", "W_out"), "VO": ("W_V", "W_O"), "QK": ("W_Q", "W_K")}
"""The two weights whose vectors belong together: a neuron's key and value, or gate and value; a head's two sides."""


def pair_name(name: PairKind | Literal["OV"]) -> PairKind:
    """The name of a pair in any case, "OV" for "VO"; what names none as it is."""
    upper = str(name).upper()
    return cast("PairKind", "VO" if upper == "OV" else upper if upper in PAIRED_WEIGHTS else name)


_TILE = 4096  # columns of W_U taken to a wider dtype at once
_READERS = ("W_in", "W_gate", "W_Q", "W_Q_gate", "W_K", "W_V", "W_U")
_WRITERS = ("W_out", "W_O", "W_E", "W_pos", "b_out", "b_O")
_NORMS = ("ln1", "ln1_post", "ln2", "ln2_post", "ln_final")


@dataclass(frozen=True)
class ParameterVectors:
    """The vectors of one weight: its rows or columns on the side of the residual stream."""

    name: str
    """The weight's name, or what was given instead of one."""
    layer: int | None
    role: Role
    """Whether the weight reads the residual stream, writes to it, or (a norm's) scales it."""
    vectors: Tensor
    """[n, d_model]."""
    heads: Tensor | None
    """[n]: the stored head of each vector; None where the weight has no heads."""
    index: Tensor
    """[n]: the vector's index in its weight, or in its head."""
    norm: str | None
    """The name of the norm that the weight reads through."""


def parameter_vectors(
    model: TransformerLensModel, weight: str, layer: int | None, head: int | None = None
) -> ParameterVectors:
    """Vectors of a weight by TransformerLens's name, the same in both kinds of model.

    Raises:
        ValueError: an unknown weight, one without a d_model side, not finite, or a layer or head that does not apply.
        IndexError: a layer or head out of range.
    """
    site = _site(model, weight, layer)
    role = _role(model, site)
    stored = _stored(model, site)
    if not all_finite(stored):
        raise ValueError(f"Expected finite weights, got NaN or inf in {site.name}; load or train the model anew.")
    if site.layout.heads is None or stored.ndim == 1:
        if head is not None:
            raise ValueError(f"Expected no head for {site.name!r}, which has none, got head={head}; leave it out.")
        vectors = stored.reshape(1, -1) if stored.ndim == 1 else stored.T if role == "read" else stored
        index = torch.arange(len(vectors))
        return ParameterVectors(site.name, site.layer, role, vectors, None, index, _norm_before(model, site))
    blocks = stored.transpose(1, 2) if role == "read" else stored  # [head_index, d_head, d_model]
    chosen = list(range(len(blocks)))
    if head is not None:
        n_heads = query_heads(model, site.name)
        chosen = [check_head(head, n_heads) * len(blocks) // n_heads]  # shared by a group of heads in GQA
    return ParameterVectors(
        name=site.name,
        layer=site.layer,
        role=role,
        vectors=blocks[chosen].reshape(-1, blocks.shape[2]),
        heads=torch.tensor(chosen).repeat_interleave(blocks.shape[1]),
        index=torch.arange(blocks.shape[1]).repeat(len(chosen)),
        norm=_norm_before(model, site),
    )


def per_query_head(model: TransformerLensModel, of: ParameterVectors) -> ParameterVectors:
    """Vectors of W_K or W_V once for each head that uses them; all others as they are."""
    if of.heads is None:
        return of
    d_head, n_heads = int((of.heads == of.heads[0]).sum()), query_heads(model, of.name)
    group = n_heads // (len(of.vectors) // d_head)
    return replace(
        of,
        vectors=of.vectors.reshape(-1, d_head, of.vectors.shape[1]).repeat_interleave(group, dim=0).flatten(0, 1),
        heads=torch.arange(n_heads).repeat_interleave(d_head),
        index=of.index.reshape(-1, d_head).repeat_interleave(group, dim=0).flatten(),
    )


def query_heads(model: TransformerLensModel, name: str) -> int:
    """How many heads the attention has that a weight belongs to: layers of one model may differ."""
    around = name.rsplit(".", 1)[0]
    of_queries = (weight_sites(model).get(f"{around}.{short}") for short in ("W_O", "W_Q"))
    counts = (site.layout.shape[0] for site in of_queries if site is not None and site.layout.heads is not None)
    return next(counts, model.cfg.n_heads)


def norm_weight(model: TransformerLensModel, name: str) -> Tensor | None:
    """What a norm multiplies by [d_model], by the name of its weight; None where it was folded away or never was."""
    sites = weight_sites(model)
    if name in sites:
        return _stored(model, sites[name])
    if name in sites.missing:
        raise ValueError(f"Expected a norm whose weight can be folded, got {name}, but {sites.missing[name]}")
    return None


def _site(model: TransformerLensModel, weight: str, layer: int | None) -> WeightSite:
    check_model(model)
    check_one_device(model)
    found = list(select_sites(weight_sites(model), weight).values())
    if layer is not None:
        layer = check_layers(layer, model.cfg.n_layers)[0]
        if all(site.layer is None for site in found):
            raise ValueError(f"Expected no layer for {weight!r}, which is in no block, got {layer}; leave it out.")
        found = [site for site in found if site.layer == layer]
    if len(found) == 1:
        return found[0]
    if layer is None:
        raise ValueError(
            f"Expected a layer for {weight!r}, which {len(found)} blocks have, got none; name one of them, such as "
            f"layer={found[0].layer}."
        )
    raise ValueError(f"Expected a layer with {weight!r}, got layer {layer}, which has none; see weight_sites(model).")


def _role(model: TransformerLensModel, site: WeightSite) -> Role:
    parts = site.name.split(".")
    if parts[-1] in _READERS:
        return "read"
    if parts[-1] in _WRITERS:
        return "write"
    if parts[-1] in ("w", "b") and (parts[-2] in _NORMS or parts[0] == "embed"):
        return "scale"
    if site.layout.experts:
        raise ValueError(
            f"Expected one matrix, got {site.name!r} of shape {list(site.layout.shape)}, one for each expert; pass one "
            f"as a tensor: weight_sites(model)[{site.name!r}].parameter[0] (transposed where d_model is not the last "
            "axis), with side='read' or 'write'."
        )
    return _role_of_matrix(model, site)


def _role_of_matrix(model: TransformerLensModel, site: WeightSite) -> Role:
    """The role of a matrix without a TransformerLens name: from its block's parts, or from which side is d_model wide.

    Widths tell nothing where the component is as wide inside as the stream (an attention's heads together, a mixer that
    does not expand): what reads d_model numbers there may read others than the stream's.
    """
    d_model, sites = model.cfg.d_model, weight_sites(model)
    blocks = blocks_of(model, sites, d_model).values()
    parts = [part for block in blocks for part in (block.main, block.mixing) if part and site.name in part.weights]
    for part in parts if site.kind == "matrix" else ():
        if site.name in (part.reader, part.writer):
            return "read" if site.name == part.reader else "write"
        inner = sites[part.writer].layout.shape[-2] if part.writer else 0
        sides = [width == d_model for width in site.layout.shape]
        if part.kind != "attention" and inner != d_model and sum(sides) == 1 and len(sides) == 2:
            return "read" if sides[0] else "write"
    where = "whose d_model may not be the stream's" if d_model in site.layout.shape else "none of it in the stream"
    raise ValueError(
        f"Expected a weight with a d_model side, got {site.name!r} of shape {list(site.layout.shape)}, "
        f"{where}; choose a matrix that reads or writes the stream, b_O, b_out or a norm, or pass vectors as a tensor."
    )


def _stored(model: TransformerLensModel, site: WeightSite) -> Tensor:
    """A parameter in TransformerLens's shape, with what an architecture applies to it: the same in both kinds."""
    if site.is_function and site.kind != "norm":
        raise ValueError(
            f"Expected a weight that is used as it is stored, got {site.name}, of which the model uses a function (a "
            "parametrization, a quantiser, pruning); make it permanent first (parametrize.remove_parametrizations, "
            "prune.remove, merge_and_unload)."
        )
    if site.kind == "parameter" and site.parameter.squeeze().ndim > 1:
        raise ValueError(
            f"Expected a matrix that the model multiplies by as it is stored, got {site.name} of shape "
            f"{list(site.parameter.shape)}, unpacked when it is used, or a kernel; pass vectors as a tensor."
        )
    if site.is_adapted:
        raise ValueError(
            f"Expected a weight that is all the model multiplies by, got {site.name}, to which an adapter adds; merge "
            "it before you boot the model (peft_model.merge_and_unload())."
        )
    parameter = site.layout.from_stored(site.parameter.detach())
    if site.kind == "norm" and getattr(model.cfg, "rmsnorm_uses_offset", False):
        return parameter + 1  # Gemma stores what is added to one
    return parameter if site.scale == 1 else parameter * site.scale  # and multiplies what it looked up


def _norm_before(model: TransformerLensModel, site: WeightSite) -> str | None:
    """The norm whose output a weight reads, by the name of its weight."""
    if site.name == "unembed.W_U":
        return "ln_final.w"
    if site.layer is None or site.name.rsplit(".", 1)[1] not in _READERS:
        return None
    has_own = f"blocks.{site.layer}.ln2.w" in weight_sites(model)  # a parallel MLP may share the attention's
    return f"blocks.{site.layer}.{'ln2' if '.mlp.' in site.name and has_own else 'ln1'}.w"


@dataclass(frozen=True)
class Embedding:
    """E [d_model, d_vocab], with what stands for its right inverse E'.

    A vector that is written to the stream is read as v E; one that the stream is compared with as v E'^T, because
    x . v = (x E)(v E'^T)^T. With E' = E^T that is v E too; with the pseudo-inverse it is v (E E^T)^+ E.
    """

    matrix: Tensor
    """W_U as the model uses it: as stored, or with the projection before it or the adapter on it."""
    model: TransformerLensModel
    fold_ln: bool
    scale: Tensor | None
    """With fold_ln, the weight of the final norm [d_model]."""
    center: bool
    """With fold_ln, whether the norms subtract the mean (LayerNorm)."""
    metric: Tensor | None
    """(E E^T)^+ [d_model, d_model] in float64 for the pseudo-inverse, else None."""

    @staticmethod
    def of(model: TransformerLensModel, inverse: Inverse, fold_ln: bool) -> "Embedding":
        """The model's embedding E = W_U, with the inverse and the folding that are asked for."""
        check_reads_text(model)
        if model.W_U.is_floating_point() and not all_finite(model.W_U.detach()):
            raise ValueError("Expected finite weights, got NaN or inf in unembed.W_U; load or train the model anew.")
        matrix = Head.of(model).matrix()
        scale = norm_weight(model, "ln_final.w") if fold_ln else None
        plain = Embedding(matrix, model, fold_ln, scale, fold_ln and _subtracts_mean(model), None)
        if inverse == "transpose":
            return plain
        gram = torch.zeros(len(matrix), len(matrix), dtype=torch.float64, device=matrix.device)
        for part in matrix.split(_TILE, dim=1):
            wide = part.double()
            gram.addmm_(wide, wide.T)
        fold = plain.folded(torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        # Directions that E does not span, but for rounding: centring leaves one.
        noise = max((len(gram) * torch.finfo(matrix.dtype).eps) ** 2, len(gram) * torch.finfo(gram.dtype).eps)
        return replace(plain, metric=torch.linalg.pinv(fold @ gram @ fold.T, hermitian=True, rtol=noise))

    def prepared(self, of: ParameterVectors) -> Tensor:
        """Vectors p such that p @ W_U are the scores of `of`, in float32 at least."""
        vectors = of.vectors.to(self.matrix.device)
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        if of.role == "scale":
            return vectors
        if self.fold_ln and of.norm is not None:
            gain = norm_weight(self.model, of.norm)
            vectors = self._centered(vectors if gain is None else vectors * gain.to(vectors))
        if of.role == "read" and self.metric is not None:
            vectors = (vectors.double() @ self.metric).to(vectors.dtype)
        return self.folded(vectors)

    @staticmethod
    def of_inputs(model: TransformerLensModel, fold_ln: bool) -> "Embedding":
        """The embedding that the first layer reads, W_E^T; no final norm comes between."""
        matrix, center = parameter_vectors(model, "W_E", None).vectors.T, fold_ln and _subtracts_mean(model)
        return Embedding(matrix, model, fold_ln, scale=None, center=center, metric=None)

    def factor(self, of: ParameterVectors) -> Tensor:
        """Scores of a few vectors over the whole vocabulary [d_vocab, n], in float32 at least."""
        vectors = self.prepared(of)
        scores = vectors.new_empty(self.matrix.shape[1], len(vectors))
        for part, out in zip(self.matrix.split(_TILE, dim=1), scores.split(_TILE), strict=True):
            torch.mm(part.T.to(vectors.dtype), vectors.T, out=out)
        return scores

    def tokens(self, ids: Tensor) -> Tensor:
        """Columns of E [..., d_model], in float32 at least."""
        columns = self.matrix.index_select(1, ids.flatten().to(self.matrix.device)).T.reshape(*ids.shape, -1)
        columns = columns.to(torch.promote_types(columns.dtype, torch.float32))
        return self._centered(columns if self.scale is None else columns * self.scale.to(columns))

    def mean_token(self) -> Tensor:
        """The mean column of E [d_model]."""
        total = torch.zeros(len(self.matrix), dtype=torch.float64, device=self.matrix.device)
        for part in self.matrix.split(_TILE, dim=1):
            total += part.double().sum(1)
        mean = (total / self.matrix.shape[1]).to(torch.promote_types(self.matrix.dtype, torch.float32))
        return self._centered(mean if self.scale is None else mean * self.scale.to(mean))

    def folded(self, vectors: Tensor) -> Tensor:
        """Vectors with the final norm's centring and weight applied, as the model does before W_U."""
        vectors = self._centered(vectors)
        return vectors if self.scale is None else vectors * self.scale.to(vectors)

    def _centered(self, vectors: Tensor) -> Tensor:
        return vectors - vectors.mean(-1, keepdim=True) if self.center else vectors


def _subtracts_mean(model: TransformerLensModel) -> bool:
    """Whether the model's norms are LayerNorms (folded ones are called LNPre)."""
    return str(getattr(model.cfg, "normalization_type", None)).startswith("LN")
