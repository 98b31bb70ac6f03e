"""Distances of any texts from a query, computed by the probed model itself."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion.activations import BATCH_SIZE, Samples, batches, progress
from tl_backward.inversion.distances import check_metric, distances
from tl_backward.inversion.positions import NOWHERE, find_positions
from tl_backward.inversion.query import Query
from tl_backward.text.encoded import Encoded

Match: TypeAlias = Literal["any", "same"]
"""Where a text may agree with the query. "any": at any of its tokens, D is the smallest over its positions (the paper's
definition); "same": at the query's own position alone, as the rule that was given finds it in that text."""


@dataclass(frozen=True)
class Scores:
    """How far each text is from the query."""

    distances: Float[Tensor, "text"]
    """float64; infinite where the text does not have the position."""
    best_positions: Int[Tensor, "text"]
    """Where the distance is the smallest; NOWHERE where there is none."""


def check_match(match: str) -> None:
    """Refuse anything but the two ways.

    Raises:
        ValueError: it is another.
    """
    if match not in get_args(Match):
        raise ValueError(f"Expected match to be one of {', '.join(get_args(Match))}, got {match!r}; choose one.")


def allowed_positions(texts: Encoded, query: Query, match: str) -> Int[Tensor, "text"] | None:
    """The one position that each text may agree at; None for all of them."""
    check_match(match)
    return None if match == "any" else find_positions(texts, query.rule)


class Scorer:
    """Distances of texts from one query by forward passes of the probed model, batch after batch."""

    def __init__(
        self,
        model: TransformerLensModel,
        query: Query,
        *,
        metric: str = "euclidean",
        match: str = "any",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Probe the query's site; see `preimage_of` for the options."""
        check_metric(metric)
        check_match(match)
        self.query, self.metric, self.match, self.batch_size = query, metric, match, batch_size
        self._reader = PlaceReader(model, query.site)

    def __call__(self, texts: Encoded, *, show_progress: bool = False) -> Scores:
        """Each text's distance, and where."""
        at = allowed_positions(texts, self.query, self.match)
        found = Scores(torch.full((len(texts),), torch.inf, dtype=torch.float64), torch.full((len(texts),), NOWHERE))
        parts = batches(texts, at, self.batch_size)
        for part in progress(parts, len(texts), self.batch_size, show_progress):
            values = self._reader(part.tokens, part.text, part.at)[self.query.site]
            each = distances(values, self.query.activation.to(values), self.metric).cpu()
            found.distances[part.index], found.best_positions[part.index] = smallest(part, each)
        return found


def smallest(part: Samples, each: Float[Tensor, "sample"]) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch"]]:
    """Each text's smallest distance among its samples, and the first position that has it."""
    if len(each) == len(part.index):
        return each, part.at
    grid = torch.full(part.tokens.shape, torch.inf, dtype=each.dtype)
    grid[part.text, part.at] = each
    best = grid.min(1)
    return best.values, best.indices
