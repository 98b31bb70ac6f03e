"""How a vector is read in words: one set of options, wherever a parameter is projected on the vocabulary."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from jaxtyping import Bool
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space.filters import Filters, TokenList, token_mask

Inverse: TypeAlias = Literal["transpose", "pinv"]
Source: TypeAlias = Literal["W_U", "W_E"]

OLD_KEYWORDS = {name: f"vector_options.{name}" for name in ("inverse", "fold_ln", "tokens", "filters")}
"""What functions took one by one before 0.2.0."""


@dataclass(frozen=True)
class VectorOptions:
    """How vectors of the residual stream are read in words.

    Attributes:
        inverse: of the embedding, for weights that read the stream: "transpose" (the paper's choice) or "pinv".
        fold_ln: read as if each norm's weight (and LayerNorm's centring) were folded into what reads from it.
        tokens: the only tokens to consider: ids, or texts of one token each; None for all.
        filters: which tokens to consider, by name or predicate; see `tl_backward.embedding_space.token_mask`.

    Raises:
        ValueError: another inverse.
    """

    inverse: Inverse = "transpose"
    fold_ln: bool = False
    tokens: TokenList | None = None
    filters: Filters = ()

    def __post_init__(self) -> None:
        if self.inverse not in get_args(Inverse):
            raise ValueError(f"Expected inverse 'transpose' or 'pinv', got {self.inverse!r}; choose one of them.")

    def mask(self, model: TransformerLensModel) -> Bool[Tensor, " d_vocab"] | None:
        """The tokens to consider; None for all."""
        return token_mask(model, tokens=self.tokens, filters=self.filters)


@dataclass(frozen=True)
class PairOptions:
    """Which pairs of tokens of a head are wanted.

    Attributes:
        largest: the largest scores; otherwise the smallest.
        exclude_same: leave out pairs of a token with itself.
        offset: for QK in models with rotary embeddings: the key stands this many positions before the query. None is
            the paper's W_Q W_K^T, which knows no positions.
        source: where e comes from: "W_U" (the paper's), or "W_E", the input embedding as it is, which is what the
            first layer reads (Elhage et al. 2021); `inverse` then has no effect.

    Raises:
        ValueError: another source.
    """

    largest: bool = True
    exclude_same: bool = False
    offset: int | None = None
    source: Source = "W_U"

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"Expected source to be 'W_U' or 'W_E', got {self.source!r}; W_U is the paper's choice.")
