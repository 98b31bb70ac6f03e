"""How a vector is read in words: one set of options, wherever a parameter is projected on the vocabulary."""

from dataclasses import dataclass
from typing import Literal, get_args

from tl_backward.embedding_space.filters import Filters, TokenList

Inverse = Literal["transpose", "pinv"]


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
