"""The query: one token of one text, its activation, and how far others are from it (Huang et al. 2024, sec. 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import check_choice, short
from tl_backward._support.lengths import largest, lengths
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.types import Prompt, TransformerLensModel, typed
from tl_backward.activations import PlaceReader
from tl_backward.inversion.activations import Samples, batches, collect_at
from tl_backward.inversion.options import TEXTS, Closeness, Metric, check_text_options
from tl_backward.inversion.positions import NOWHERE, Position, find_position, find_positions
from tl_backward.model.place import Place, PlaceLike, resolve_place
from tl_backward.text.encoded import Encoded, Inputs, encode
from tl_backward.text.ids import ARRAYS, as_ids, as_prompt
from tl_backward.text.options import TextOptions

QueryLike: TypeAlias = Prompt

_HELD = 2**26
"""Numbers of all places' activations that a batch of texts holds (256 MB in float32)."""


@dataclass(frozen=True, repr=False, eq=False)
class Query(Saved):
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


@public
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
        query: a text, or its tokens [pos], as a tensor, an array or a list.
        site: see `resolve_place`.
        position: see `positions.Position`.
        prepend_bos: as TransformerLens means it, for text.

    Raises:
        TypeError: something else than a text, its tokens or a `Query`.
        ValueError: a position outside the text, a site that the model lacks, an activation of zero norm or not finite.

    Examples:
        >>> query = tlb.inversion.read_query(model, "Anna Berg lives in", ("resid_post", 1), -1)
        >>> query.activation.shape
        torch.Size([128])
    """
    if isinstance(query, Query):
        return query
    ids = as_prompt(query)
    row = as_ids(ids) if isinstance(ids, ARRAYS) else None
    if not isinstance(query, str) and (row is None or not row.ndim or row.numel() != row.shape[-1]):
        raise TypeError(
            f"Expected a query as a text, its tokens [pos] or a Query, got {short(query)}; the order is "
            "(model, query, site, position, inputs)."
        )
    texts = encode(model, [str(query)] if row is None else row.reshape(1, -1), prepend_bos=prepend_bos)
    resolved = resolve_place(model, site)
    at = find_position(texts, position)
    (value,) = collect_at(model, texts, resolved, torch.tensor([at]))[resolved]
    check_query(value)
    return Query(texts.text(0), torch.tensor(texts.row(0)), resolved, at, position, value)


@public
@typed
def distances(
    values: Float[Tensor, "*sample d"], query: Float[Tensor, "d"], metric: Metric = "euclidean"
) -> Float[Tensor, "*sample"]:
    """D(z, z') of each activation z' from the query's z, in float64.

    "euclidean": |z - z'| / |z|, relative to the query's norm as in the paper, so not symmetric. "cosine":
    1 - z.z' / (|z| |z'|), in [0, 2]; 1 where z' is exactly zero.

    Raises:
        ValueError: an unknown metric, or a query of zero norm, from which nothing has a distance.

    Examples:
        >>> z = torch.tensor([3.0, 4.0])
        >>> tlb.inversion.distances(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), z).tolist()  # relative to |z|
        [0.0, 1.0]
    """
    check_choice("metric", metric, get_args(Metric))
    check_query(query)
    z, others = query.double(), values.double()
    if metric == "euclidean":
        return lengths(others - z) / lengths(z)
    z, others = z / largest(z), others / largest(others)
    norms = torch.linalg.vector_norm(others, dim=-1)
    inner = others @ z / torch.linalg.vector_norm(z)
    return torch.where(norms > 0, 1 - inner / norms, 1.0).clamp(0, 2)


def check_query(query: Float[Tensor, "d"]) -> None:
    """Refuse an activation that distances cannot be taken from.

    Raises:
        ValueError: its norm is zero, or it is not finite.
    """
    if not torch.isfinite(query).all():
        raise ValueError("Expected a finite query activation, got NaN or inf; look upstream for an overflow.")
    if not query.any():
        raise ValueError(
            "Expected a query activation of non-zero norm, got zeros, from which no relative distance is defined; "
            "choose another site or position."
        )


@dataclass(frozen=True)
class Scores:
    """How far each text is from the query."""

    distances: Float[Tensor, "text"]
    """float64; infinite where the text does not have the position."""
    best_positions: Int[Tensor, "text"]
    """Where the distance is the smallest; NOWHERE where there is none."""

    def __getitem__(self, chosen: Int[Tensor, "chosen"] | Bool[Tensor, "text"]) -> "Scores":
        """Those of some of the texts."""
        return Scores(self.distances[chosen], self.best_positions[chosen])

    def share_within(self, epsilon: float) -> float:
        """Share of all scored texts with a distance of at most epsilon."""
        return float((self.distances <= epsilon).double().mean())


def score(
    reader: PlaceReader,
    texts: Encoded,
    queries: Sequence[Query],
    closeness: Closeness,
    batch_size: int,
    *,
    show_progress: bool = False,
) -> list[Scores]:
    """Each text's distance from each query, and where, in one pass of the probed model over the texts."""
    n = len(texts)
    every = [Scores(torch.full((n,), torch.inf, dtype=torch.float64), torch.full((n,), NOWHERE)) for _ in queries]
    allowed = [None if closeness.match == "any" else find_positions(texts, query.rule) for query in queries]
    slots = [at for at in allowed if at is not None]
    where = torch.stack(slots, 1).unique(dim=1) if len(slots) == len(queries) else None
    per_text = (texts.tokens if where is None else where).shape[1] * sum(reader.widths.values())
    fitting = min(batch_size, max(1, _HELD // max(1, per_text)))
    for part in batches(texts, where, fitting, show_progress=show_progress):
        values = reader(part.tokens, part.text, part.at, lengths=part.lengths)
        for query, scores, at in zip(queries, every, allowed, strict=True):
            value = values[query.site]
            each = distances(value, query.activation.to(value), closeness.metric).cpu()
            if at is not None:
                each = torch.where(part.at == at[part.index[part.text]], each, torch.inf)
            scores.distances[part.index], best = _smallest(part, each)
            scores.best_positions[part.index] = best if at is None else at[part.index]
    return every


class Scorer:
    """Distances of texts from one query by forward passes of the probed model, batch after batch."""

    def __init__(
        self,
        model: TransformerLensModel,
        query: QueryLike | Query,
        site: PlaceLike,
        position: Position,
        epsilon: float | Closeness,
        text_options: TextOptions = TEXTS,
    ) -> None:
        """Read the query and probe its site; see `preimage_of` for the options."""
        check_text_options(text_options)
        self.closeness = Closeness.of(epsilon)
        self.query = read_query(model, query, site, position, prepend_bos=text_options.prepend_bos)
        self._text_options, self._reader = text_options, PlaceReader(model, self.query.site)

    def __call__(self, inputs: Inputs, *, show_progress: bool = False) -> tuple[Encoded, Scores]:
        """Inputs as the model reads them, each one's distance, and where."""
        texts = encode(self._reader.model, inputs, prepend_bos=self._text_options.prepend_bos)
        (scores,) = score(
            self._reader, texts, [self.query], self.closeness, self._text_options.batch_size,
            show_progress=show_progress,
        )  # fmt: skip
        return texts, scores


def _smallest(part: Samples, each: Float[Tensor, "sample"]) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch"]]:
    """Each text's smallest distance among its samples, and the first position that has it."""
    if len(each) == len(part.index):
        return each, part.at
    grid = torch.full(part.tokens.shape, torch.inf, dtype=each.dtype)
    grid[part.text, part.at] = each
    return grid.min(1)
