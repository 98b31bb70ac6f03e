"""The query: one token of one text, and its activation."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.inversion.activations import collect_at
from tl_backward.inversion.distances import check_query
from tl_backward.inversion.positions import Position, find_position, find_positions
from tl_backward.model.place import Place, PlaceLike, resolve_place
from tl_backward.text.encoded import encode

QueryLike: TypeAlias = str | Int[Tensor, "pos"]


@dataclass(frozen=True, repr=False, eq=False)
class Query:
    """What an activation's preimage is asked of."""

    text: str
    tokens: Int[Tensor, "pos"]
    """As the model reads it, BOS and all."""
    site: Place
    position: int
    """Index of the token whose activation it is."""
    rule: Position
    """The position as it was given."""
    activation: Float[Tensor, "d"]
    """z, on the CPU."""

    def __repr__(self) -> str:
        return f"Query({self.text!r:.60}, {self.site}, position {self.position})"


def read_query(
    model: TransformerLensModel,
    query: "QueryLike | Query",
    site: PlaceLike,
    position: Position,
    *,
    prepend_bos: bool | None = None,
) -> Query:
    """One token's activation at a site; a `Query` is given back as it is.

    Args:
        model: a HookedTransformer or TransformerBridge.
        query: a text, or its tokens [pos].
        site: see `resolve_place`.
        position: see `positions.Position`.
        prepend_bos: as TransformerLens means it, for text.

    Raises:
        TypeError: something else than a text, its tokens or a `Query`.
        ValueError: a position outside the text, a site that the model lacks, an activation of zero norm or not finite.

    Example:
        >>> query = tlb.inversion.read_query(model, "Anna Berg lives in", ("resid_post", 1), -1)
        >>> query.activation.shape
        torch.Size([128])
    """
    if isinstance(query, Query):
        return query
    if not (isinstance(query, str) or hasattr(query, "shape")):
        raise TypeError(
            f"Expected a query as a text, its tokens [pos] or a Query, got {type(query).__name__}; the order is "
            "(model, query, site, position, inputs)."
        )
    texts = encode(model, [query] if isinstance(query, str) else query.reshape(1, -1), prepend_bos=prepend_bos)
    resolved = resolve_place(model, site)
    at = find_position(texts, position)
    (value,) = collect_at(model, texts, resolved, find_positions(texts, at))[resolved]
    check_query(value)
    return Query(texts.text(0), torch.tensor(texts.row(0)), resolved, at, position, value)
