"""Coherence: how alike the top tokens of a parameter vector are, beside Gaussian vectors in the same embedding."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, table, visible_token
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import listed
from tl_backward._support.streams import own_stream
from tl_backward._support.types import DataFrame, TransformerLensModel, typed
from tl_backward.embedding_space.options import OLD_KEYWORDS, VectorOptions
from tl_backward.embedding_space.projection import Projection, project_parameter, top_tokens
from tl_backward.embedding_space.summary import Above, coherence_sentence
from tl_backward.embedding_space.vectors import Embedding

_ROWS = 1024  # vectors whose tokens are compared at once
_SHOWN = 30  # vectors in the table of a notebook


@dataclass(frozen=True, repr=False, eq=False)
class Coherence(Saved):
    """Coherence of a weight's vectors: the mean cosine between the embeddings of their top tokens."""

    projection: Projection
    """The vectors in words."""
    score: Float[Tensor, " vector"]
    """Mean cosine over the pairs of each vector's top k tokens; NaN for a vector that is exactly zero."""
    gaussian: Float[Tensor, " draw"]
    """The same of Gaussian vectors through the same embedding: any direction's top tokens are somewhat alike."""

    @property
    def p(self) -> Float[Tensor, " vector"]:
        """Share of the Gaussian vectors, the vector itself counted among them, that are as coherent."""
        ranked = self.gaussian.sort().values
        as_coherent = len(ranked) - torch.searchsorted(ranked, self.score.nan_to_num(-2.0).contiguous())
        return (1 + as_coherent) / (1 + len(ranked))

    @property
    def order(self) -> Int[Tensor, " vector"]:
        """The vectors, most coherent first."""
        return self.score.nan_to_num(-2.0).argsort(descending=True, stable=True)

    @property
    def share_above(self) -> float:
        """Share of the vectors that are more coherent than 95 % of the Gaussian ones; by chance it is 0.05."""
        return float((self.score > self.gaussian.quantile(0.95)).float().mean())

    @property
    def above(self) -> Above:
        """How many vectors are more coherent than 95 % of the Gaussian ones; those that are zero are left out."""
        known = self.score[~self.score.isnan()]
        n_above = int((known > self.gaussian.quantile(0.95)).sum())
        return Above(self.projection.weight, n_above, len(known), len(self.gaussian))

    def summary(self) -> str:
        """In one sentence: how many vectors are coherent, beside chance, and what the most coherent one stands for."""
        words = self.projection[self.order[:1].cpu()].top_tokens[0][:3]
        return coherence_sentence(self.above, listed([visible_token(word, 24) for word in words]))

    def __repr__(self) -> str:
        return (
            f"Coherence({self.projection.weight!r}, {len(self.score)} vectors: "
            f"median {float(self.score.nanmedian()):.3f}, Gaussian {float(self.gaussian.median()):.3f}; "
            f"{self.share_above:.0%} above the Gaussian 95th percentile)"
        )

    def to_frame(self) -> DataFrame:
        """The projection's frame with coherence and p, most coherent first."""
        frame = self.projection.to_frame()
        frame.insert(0, "coherence", self.score.tolist())
        frame.insert(1, "p", self.p.tolist())
        return frame.iloc[self.order.tolist()].reset_index(drop=True)

    def _repr_html_(self) -> str:
        """A static table of the most coherent vectors and their top tokens."""
        best = self.order[:_SHOWN]
        shown, k = self.projection[best.cpu()], min(8, self.projection.top_ids.shape[1])
        rows = [
            [score, p, *map(Cell, tokens[:k])]
            for score, p, tokens in zip(self.score[best].tolist(), self.p[best].tolist(), shown.top_tokens, strict=True)
        ]
        columns = ["coherence", "p", *[f"top {i}" for i in range(k)]]
        return table(columns, rows, row_names=shown.vector_names(), caption=repr(self), corner="vector")


@public
@old_keywords(OLD_KEYWORDS, vector_options=VectorOptions)
@typed
def parameter_coherence(
    model: TransformerLensModel,
    weight: str,
    layer: int | None = None,
    *,
    head: int | None = None,
    k: int = 10,
    n_gaussian: int = 1000,
    vector_options: VectorOptions = VectorOptions(),
    seed: int = 0,
    show_progress: bool = True,
) -> Coherence:
    """Score how alike the top tokens of each vector of a weight are to each other.

    Coherence is the mean over pairs i != j of a vector's k top tokens of cos(e_i, e_j), where e are the columns of the
    embedding E (W_U, or LN-folded) less their mean over the vocabulary. The tokens at the top of any direction have
    something in common, if only the direction: Gaussian vectors through the same embedding say how much. Tokens that
    training never saw (a byte-fallback vocabulary's unused bytes) may share one embedding: `filters` leave them out.

    Args:
        model: a HookedTransformer or TransformerBridge.
        weight: as in `project_parameter`.
        layer: as in `project_parameter`.
        head: as in `project_parameter`.
        k: how many top tokens to compare, two or more.
        n_gaussian: Gaussian vectors.
        vector_options: how vectors are read in words.
        seed: of the Gaussian vectors; the global RNG is left alone.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: k below two, or what `project_parameter` refuses.
        IndexError: a layer or head out of range.

    Examples:
        >>> c = tlb.embedding_space.parameter_coherence(model, "W_out", 2, seed=0)
        >>> c.projection[int(c.order[0])].top_tokens[0][0]
        ' employer'
    """
    if k < 2 or n_gaussian < 1:
        raise ValueError(
            f"Expected k of 2 or more and n_gaussian of 1 or more, got {k} and {n_gaussian}; compare pairs."
        )
    projection = project_parameter(
        model, weight, layer, head=head, k=k, vector_options=vector_options, show_progress=show_progress
    )
    with torch.no_grad():
        embedding = Embedding.of(model, "transpose", vector_options.fold_ln)
        mask = vector_options.mask(model)
        noise = torch.randn(n_gaussian, len(embedding.matrix), generator=own_stream("Gaussian vectors", seed))
        noise = noise.to(embedding.matrix.device, torch.promote_types(embedding.matrix.dtype, torch.float32))
        drawn = top_tokens(embedding, embedding.folded(noise), k, mask, show_progress=show_progress).top[1]
        mean = embedding.mean_token()
        score = mean_cosine(embedding, mean, projection.top_ids).masked_fill(projection.is_zero, torch.nan)
        return Coherence(projection, score, mean_cosine(embedding, mean, drawn))


def mean_cosine(embedding: Embedding, mean: Tensor, ids: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Mean cosine over the pairs of each row of tokens: (|sum of unit vectors|^2 - k) / (k (k - 1))."""
    k, parts = ids.shape[1], []
    for some in ids.clamp(min=0).split(_ROWS):
        units = torch.nn.functional.normalize(embedding.tokens(some) - mean, dim=-1)
        parts.append((units.sum(1).square().sum(1) - units.square().sum((1, 2))) / (k * (k - 1)))
    return torch.cat(parts)
