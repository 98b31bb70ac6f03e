"""Whether the two vectors of a neuron, or of a head's component, name the same tokens (Dar et al. 2022, sec. 4)."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.checks import check_head
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import table
from tl_backward._support.types import DataFrame, TransformerLensModel, typed
from tl_backward.embedding_space.embedding import Embedding
from tl_backward.embedding_space.options import OLD_KEYWORDS, VectorOptions
from tl_backward.embedding_space.projection import top_tokens
from tl_backward.embedding_space.vectors import (
    PAIRED_WEIGHTS,
    ParameterVectors,
    parameter_vectors,
    per_query_head,
    query_heads,
)

PairKind: TypeAlias = Literal["KV", "GV", "VO", "QK"]


@dataclass(frozen=True, repr=False, eq=False)
class RelatedPairs:
    """Jaccard indices |A & B| / |A | B| of the top-k token sets of pairs of vectors, beside two controls."""

    weights: tuple[str, str]
    """Full names of the two weights."""
    k: int
    heads: Int[Tensor, " pair"] | None
    """The head of each pair; None for neurons."""
    index: Int[Tensor, " pair"]
    """The neuron, or the component of d_head."""
    aligned: Float[Tensor, " pair"]
    """Of the two vectors that belong together; 0 where one is exactly zero."""
    shuffled: Float[Tensor, " pair"]
    """Of the first vector and the second one of another pair, drawn at random."""
    gaussian: Float[Tensor, " pair"]
    """Of two independent Gaussian vectors through the same embedding: W_U alone makes tokens go together."""

    def __repr__(self) -> str:
        means = ", ".join(f"{name} {float(getattr(self, name).mean()):.4f}" for name in _CONDITIONS)
        return f"RelatedPairs({self.weights[0]} and {self.weights[1]}, {len(self.index)} pairs, k={self.k}: {means})"

    def summary(self) -> DataFrame:
        """For aligned, shuffled and gaussian: mean, its standard error, median and largest."""
        import pandas

        rows = {}
        for name in _CONDITIONS:
            values = getattr(self, name)
            rows[name] = {
                "mean": float(values.mean()),
                "standard error": float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan"),
                "median": float(values.quantile(0.5)),
                "largest": float(values.max()),
            }
        return pandas.DataFrame.from_dict(rows, orient="index")

    def to_frame(self) -> DataFrame:
        """One row a pair: head (where there are), index, aligned, shuffled, gaussian."""
        import pandas

        columns = {} if self.heads is None else {"head": self.heads.tolist()}
        columns["index"] = self.index.tolist()
        return pandas.DataFrame(columns | {name: getattr(self, name).tolist() for name in _CONDITIONS})

    def _repr_html_(self) -> str:
        """A static table of the summary."""
        summary = self.summary()
        caption = f"{' and '.join(self.weights)}: Jaccard index of the top {self.k} tokens, {len(self.index)} pairs"
        return table(list(summary), summary.to_numpy().tolist(), row_names=list(summary.index), caption=caption)


_CONDITIONS = ("aligned", "shuffled", "gaussian")


@old_keywords(OLD_KEYWORDS, vector_options=VectorOptions)
@typed
def related_pairs(
    model: TransformerLensModel,
    kind: PairKind,
    layer: int,
    *,
    head: int | None = None,
    k: int = 100,
    vector_options: VectorOptions = VectorOptions(),
    seed: int = 0,
    show_progress: bool = True,
) -> RelatedPairs:
    """Compare the top-k tokens of vectors that belong together by construction.

    "KV": a neuron's key (W_in) and value (W_out); "GV": its gate (W_gate) and value, in gated MLPs; "VO", "QK": the
    same component of a head's W_V and W_O, or W_Q and W_K. A shuffled pairing alone misleads as a control: W_U is
    clustered, so that any two vectors share tokens. Gaussian vectors show how many.

    Args:
        model: a HookedTransformer or TransformerBridge.
        kind: see above.
        layer: the block; negative counts from the end.
        head: one attention head; None for all. In grouped-query attention the shared W_K and W_V pair with every head.
        k: size of the token sets.
        vector_options: how vectors are read in words.
        seed: of the shuffle and the Gaussian vectors; the global RNG is left alone.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: an unknown kind, a layer without these weights, k larger than the number of tokens left.
        IndexError: a layer or head out of range.

    Example:
        >>> r = tlb.embedding_space.related_pairs(model, "KV", 2, seed=0)
        >>> bool(r.to_frame()["aligned"].mean() > r.to_frame()["shuffled"].mean())
        True
    """
    if kind not in get_args(PairKind):
        raise ValueError(
            f"Expected kind to be one of {', '.join(get_args(PairKind))}, got {kind!r}; these are the pairs that "
            "weights form."
        )
    sides = [per_query_head(model, parameter_vectors(model, weight, layer)) for weight in PAIRED_WEIGHTS[kind]]
    if head is not None:
        sides = [_of_head(model, side, head) for side in sides]
    with torch.no_grad():
        embedding = Embedding.of(model, vector_options.inverse, vector_options.fold_ln)
        mask = vector_options.mask(model)
        vectors = [embedding.prepared(side) for side in sides]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(vectors[0]), generator=generator)
        noise = embedding.folded(torch.randn(2, *vectors[0].shape, generator=generator).to(vectors[0]))
        first, second, *controls = (
            top_tokens(embedding, side, k, mask, show_progress=show_progress).top_ids for side in (*vectors, *noise)
        )
        return RelatedPairs(
            weights=(sides[0].name, sides[1].name),
            k=k,
            heads=sides[0].heads,
            index=sides[0].index,
            aligned=jaccard(first, second),
            shuffled=jaccard(first, second[order.to(second.device)]),
            gaussian=jaccard(*controls),
        )


def _of_head(model: TransformerLensModel, side: ParameterVectors, head: int) -> ParameterVectors:
    """The vectors of one head."""
    if side.heads is None:
        raise ValueError(f"Expected no head for {side.name!r}, whose pairs are neurons, got head={head}; leave it out.")
    chosen = side.heads == check_head(head, query_heads(model, side.name))
    vectors = side.vectors[chosen.to(side.vectors.device)]
    return replace(side, vectors=vectors, heads=side.heads[chosen], index=side.index[chosen])


def jaccard(first: Int[Tensor, "n k"], second: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """|A & B| / |A | B| of sets of ids, row by row; ids of -1 are in no set."""
    both = torch.cat([first, second], dim=1).sort(dim=1).values
    shared = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(1) * (first >= 0).any(1) * (second >= 0).any(1)
    size = (first >= 0).sum(1) + (second >= 0).sum(1)
    return shared / (size - shared).clamp(min=1)
