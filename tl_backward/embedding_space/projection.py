"""Parameters read in words: each vector of a weight projected to the vocabulary (Dar et al. 2022, sec. 3)."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import all_finite, check_k
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, table, visible_token
from tl_backward._support.lengths import lengths
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import count_text, listed
from tl_backward._support.types import DataFrame, Tokenizer, TransformerLensModel, typed
from tl_backward.embedding_space.options import OLD_KEYWORDS, VectorOptions
from tl_backward.embedding_space.vectors import Embedding, ParameterVectors, Role, parameter_vectors
from tl_backward.model.checks import check_model, check_one_device
from tl_backward.text.token_strings import token_strings
from tl_backward.vocabulary.extremes import Extremes, extremes, placed

Side: TypeAlias = Literal["read", "write"]

_SHOWN = 30  # vectors in the table of a notebook


@dataclass(frozen=True, repr=False, eq=False)
class Projection(Saved):
    """The vectors of one weight in words; `vector` runs over the weight's vectors, head by head where it has heads.

    A vector that is exactly zero says nothing: it is marked in `is_zero`, its ids are -1, its scores 0, its tokens "".
    """

    weight: str
    """The weight's full name, or "tensor"."""
    side: Role
    """"read" (compared with the residual stream), "write" (added to it) or "scale" (a norm's)."""
    heads: Int[Tensor, " vector"] | None
    """The stored head of each vector (a key/value head in grouped-query attention); None where there are none."""
    index: Int[Tensor, " vector"]
    """Its index in the weight or the head: a neuron, a component of d_head, a position, a token."""
    top_ids: Int[Tensor, "vector k"]
    """Tokens with the largest scores, largest first."""
    top_scores: Float[Tensor, "vector k"]
    bottom_ids: Int[Tensor, "vector k"]
    """Tokens with the smallest scores, smallest first."""
    bottom_scores: Float[Tensor, "vector k"]
    norm: Float[Tensor, " vector"]
    """Euclidean norm of each vector as it is stored."""
    is_zero: Bool[Tensor, " vector"]
    """Whether the vector is exactly zero."""
    n_tokens: int
    """Tokens that the extremes were taken over."""
    tokenizer: Tokenizer | None = field(default=None)
    """Decodes ids; None shows them as [id]."""

    @property
    def top_tokens(self) -> list[list[str]]:
        """Strings of `top_ids`."""
        return token_strings(self.tokenizer, self.top_ids)

    @property
    def bottom_tokens(self) -> list[list[str]]:
        """Strings of `bottom_ids`."""
        return token_strings(self.tokenizer, self.bottom_ids)

    def vector_names(self) -> list[str]:
        """Each vector by its place: "17", or "head 2, 17"."""
        heads = [None] * len(self) if self.heads is None else self.heads.tolist()
        return [f"{i}" if h is None else f"head {h}, {i}" for h, i in zip(heads, self.index.tolist(), strict=True)]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, vectors: int | slice | list[int] | Tensor) -> "Projection":
        """Some of the vectors, as one would index them; an int gives a projection of one."""
        vectors = [vectors] if isinstance(vectors, int) else vectors
        vectors = vectors.cpu() if isinstance(vectors, Tensor) else vectors
        tensors = {name: value[vectors] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def __repr__(self) -> str:
        k = self.top_ids.shape[1]
        return f"Projection({self.weight!r}, {self.side}, {len(self)} vectors, k={k} of {self.n_tokens} tokens)"

    def summary(self) -> str:
        """In one sentence: the longest vector's first words, with nothing beside them; see `parameter_coherence`."""
        if not len(self) or bool(self.is_zero.all()):
            return f"All vectors of {self.weight} are zero, and say nothing in words."
        longest = self[int(self.norm.argmax())]
        words = [visible_token(word, 24) for word in longest.top_tokens[0][:3]]
        which = f"the longest, {longest.vector_names()[0]}," if len(self) > 1 else "it"
        vectors = f"{self.weight}'s {count_text(len(self), 'vector')}"
        return f"Of {vectors} {which} says {listed(words)}, with no control beside it."

    def to_frame(self) -> DataFrame:
        """One row a vector: head (where there are), index, norm, and top and bottom tokens and scores as lists."""
        import pandas

        columns = {} if self.heads is None else {"head": self.heads.tolist()}
        return pandas.DataFrame(
            columns
            | {
                "index": self.index.tolist(),
                "norm": self.norm.tolist(),
                "top_tokens": self.top_tokens,
                "top_scores": self.top_scores.tolist(),
                "bottom_tokens": self.bottom_tokens,
                "bottom_scores": self.bottom_scores.tolist(),
            }
        )

    def _repr_html_(self) -> str:
        """A static table of the longest vectors: index, norm, top and bottom tokens, scores on hover."""
        longest = self.norm.float().argsort(descending=True, stable=True)[:_SHOWN]
        shown, k = self[longest], min(5, self.top_ids.shape[1])
        rows = [
            [norm, *(_cell(*pair) for pair in zip(top[:k], above[:k], strict=True)),
             *(_cell(*pair) for pair in zip(bottom[:k], below[:k], strict=True))]
            for norm, top, above, bottom, below in zip(
                shown.norm.tolist(), shown.top_tokens, shown.top_scores.tolist(), shown.bottom_tokens,
                shown.bottom_scores.tolist(), strict=True,
            )
        ]  # fmt: skip
        caption = repr(self) + (f"; the {_SHOWN} longest" if len(self) > _SHOWN else "")
        columns = ["norm", *[f"top {i}" for i in range(k)], *[f"bottom {i}" for i in range(k)]]
        return table(columns, rows, row_names=shown.vector_names(), caption=caption, corner="vector")


@public
@old_keywords(OLD_KEYWORDS, vector_options=VectorOptions)
@typed
def project_parameter(
    model: TransformerLensModel,
    weight: str | Float[Tensor, "..."],
    layer: int | None = None,
    *,
    head: int | None = None,
    k: int = 10,
    side: Side | None = None,
    vector_options: VectorOptions = VectorOptions(),
    show_progress: bool = True,
) -> Projection:
    """Read every vector of a weight in words, without any data: scores = v E, with E = W_U (Dar et al. 2022, sec. 3).

    Weights that write to the residual stream (rows of W_out, W_O, W_E, W_pos; b_out, b_O) are v E. Those that read it
    (columns of W_in, W_gate, W_Q, W_K, W_V, W_U) are v E'^T, where E' is a right inverse of E: x . v = (x E)(v E'^T)^T.
    Norm weights (ln1.w; biases ln1.b) are v E.

    The embedding: E' = E^T is the paper's choice, no inverse at all but more interpretable than one (its appendix);
    `inverse="pinv"` takes the pseudo-inverse. The paper leaves the norms out. `fold_ln=True` reads a model as if each
    norm's weight (and LayerNorm's centring) had been folded into the matrices that read from it, the unembedding
    too, as TransformerLens's fold_ln does; on a folded model it changes nothing. Norms after a block (Gemma's
    ln1_post) and norm weights themselves are never folded.

    Args:
        model: a HookedTransformer or TransformerBridge, folded or not.
        weight: TransformerLens's name, short ("W_out") or full; or a tensor [..., d_model] in the residual stream's
            basis, such as the difference of two models' parameters.
        layer: the block; None where a name says it, for weights outside the blocks, and for tensors.
        head: one attention head; None for all that are stored. In grouped-query attention W_K and W_V of a head are
            those of its group.
        k: how many top and bottom tokens to keep.
        side: for a tensor, whether it is read with ("read") or written ("write", the default).
        vector_options: how vectors are read in words; see above.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: a weight without a d_model side, unknown or not finite; a layer, head or side that does not apply; k
            larger than the number of tokens left, or none left; parameters on several devices.
        IndexError: a layer or head out of range.

    Examples:
        >>> p = tlb.project_parameter(model, "W_out", 2, k=3)
        >>> p
        Projection('blocks.2.mlp.W_out', write, 512 vectors, k=3 of 425 tokens)
        >>> p[202].top_tokens
        [[' employer', ' native', ' mother']]
    """
    check_model(model)
    check_one_device(model)
    if isinstance(weight, Tensor):
        of = _tensor_vectors(model, weight, layer, head, side)
    elif side is not None:
        raise ValueError(f"Expected no side for {weight!r}, whose own is known, got side={side!r}; leave it out.")
    else:
        of = parameter_vectors(model, weight, layer, head)
    with torch.no_grad():
        embedding = Embedding.of(model, vector_options.inverse, vector_options.fold_ln)
        mask = vector_options.mask(model)
        found = top_tokens(embedding, embedding.prepared(of), k, mask, show_progress=show_progress)
        return Projection(
            weight=of.name,
            side=of.role,
            heads=of.heads,
            index=of.index,
            top_ids=found.top[1],
            top_scores=found.top[0],
            bottom_ids=found.bottom[1],
            bottom_scores=found.bottom[0],
            norm=lengths(of.vectors),
            is_zero=found.top[1][:, 0] < 0,
            n_tokens=model.W_U.shape[1] if mask is None else int(mask.sum()),
            tokenizer=getattr(model, "tokenizer", None),
        )


def top_tokens(
    embedding: Embedding, vectors: Tensor, k: int, mask: Tensor | None, *, show_progress: bool = False
) -> Extremes:
    """Extremes of prepared vectors [n, d_model] among the tokens of a mask; zero vectors get ids -1 and values 0."""
    check_choice(k, embedding, mask)
    said = vectors.bool().any(-1).nonzero().flatten()
    columns = None if mask is None else mask.nonzero().flatten()
    found = extremes(
        vectors[said].to(embedding.matrix.dtype), embedding.matrix, k, columns=columns, show_progress=show_progress
    )
    of_all, (top, top_ids), (bottom, bottom_ids) = partial(placed, said, vectors.shape[:1]), found.top, found.bottom
    return Extremes((of_all(top, 0), of_all(top_ids, -1)), (of_all(bottom, 0), of_all(bottom_ids, -1)), found.ranks)


def check_choice(k: int, embedding: Embedding, mask: Tensor | None) -> None:
    """Check that there are at least k tokens to choose from, of the vocabulary or of those that a mask leaves."""
    n_tokens = embedding.matrix.shape[1] if mask is None else int(mask.sum())
    if mask is None:
        check_k(k, n_tokens)
    elif not 1 <= k <= n_tokens:
        raise ValueError(f"Expected 1 <= k <= {n_tokens} (the tokens that the filters leave), got k={k}; choose less.")


def _tensor_vectors(
    model: TransformerLensModel, tensor: Tensor, layer: int | None, head: int | None, side: Side | None
) -> ParameterVectors:
    """A tensor [..., d_model] that the user gave, as the vectors of a weight."""
    d_model = model.cfg.d_model
    if layer is not None or head is not None:
        raise ValueError(
            f"Expected neither layer nor head with a tensor, got layer={layer}, head={head}; slice the tensor instead."
        )
    if side not in (None, *get_args(Side)):
        raise ValueError(f"Expected side to be 'read' or 'write', got {side!r}; a change to the stream is written.")
    if not tensor.ndim or tensor.shape[-1] != d_model:
        raise ValueError(
            f"Expected vectors [..., d_model={d_model}], got shape {list(tensor.shape)}; transpose a matrix whose "
            "d_model axis is not the last, as W_in's."
        )
    if not all_finite(tensor):
        raise ValueError("Expected finite weights, got NaN or inf in the tensor; look upstream for an overflow.")
    vectors = tensor.detach().reshape(-1, d_model)
    return ParameterVectors("tensor", None, side or "write", vectors, None, torch.arange(len(vectors)), None)


def _cell(token: str, score: float) -> Cell:
    return Cell(token or "—", title=(visible_token(token), f"score {score:.4g}"), value=score if token else None)
