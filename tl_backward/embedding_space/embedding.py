"""The embedding that carries vectors of the residual stream to the vocabulary (Dar et al. 2022, sec. 3)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tl_backward._support.checks import all_finite
from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space.options import Inverse
from tl_backward.embedding_space.vectors import ParameterVectors, norm_weight, parameter_vectors
from tl_backward.model.head import Head
from tl_backward.model.inputs import check_reads_text

_TILE = 4096  # columns of W_U taken to a wider dtype at once


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
        """The model's own."""
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
        noise = len(gram) * torch.finfo(matrix.dtype).eps
        noise = max(noise**2, len(gram) * torch.finfo(gram.dtype).eps)
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
        table = parameter_vectors(model, "W_E", None).vectors.T
        return Embedding(table, model, fold_ln, None, fold_ln and _subtracts_mean(model), None)

    def factor(self, of: ParameterVectors) -> Tensor:
        """Scores of a few vectors over the whole vocabulary [d_vocab, n], in float32 at least."""
        vectors = self.prepared(of)
        found = vectors.new_empty(self.matrix.shape[1], len(vectors))
        for part, out in zip(self.matrix.split(_TILE, dim=1), found.split(_TILE), strict=True):
            torch.mm(part.T.to(vectors.dtype), vectors.T, out=out)
        return found

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
        """What the final norm's weight and centring make of vectors before they meet W_U."""
        vectors = self._centered(vectors)
        return vectors if self.scale is None else vectors * self.scale.to(vectors)

    def _centered(self, vectors: Tensor) -> Tensor:
        return vectors - vectors.mean(-1, keepdim=True) if self.center else vectors


def _subtracts_mean(model: TransformerLensModel) -> bool:
    """Whether the model's norms are LayerNorms (folded ones are called LNPre)."""
    return str(getattr(model.cfg, "normalization_type", None)).startswith("LN")
