"""Distances of any texts from a query, computed by the probed model itself."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion.activations import Samples, batches, progress
from tl_backward.inversion.distances import distances
from tl_backward.inversion.options import TEXTS, Closeness, Match, check_text_options
from tl_backward.inversion.positions import NOWHERE, Position, find_positions
from tl_backward.inversion.query import Query, QueryLike, read_query
from tl_backward.model.place import PlaceLike
from tl_backward.text.encoded import Encoded, Inputs, encode
from tl_backward.text.options import TextOptions


@dataclass(frozen=True)
class Scores:
    """How far each text is from the query."""

    distances: Float[Tensor, "text"]
    """float64; infinite where the text does not have the position."""
    best_positions: Int[Tensor, "text"]
    """Where the distance is the smallest; NOWHERE where there is none."""


def allowed_positions(texts: Encoded, query: Query, match: Match) -> Int[Tensor, "text"] | None:
    """The one position that each text may agree at; None for all of them."""
    return None if match == "any" else find_positions(texts, query.rule)


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

    def encode(self, inputs: Inputs) -> Encoded:
        """Inputs as the model reads them."""
        return encode(self._reader.model, inputs, prepend_bos=self._text_options.prepend_bos)

    def __call__(self, texts: Encoded, *, show_progress: bool = False) -> Scores:
        """Each text's distance, and where."""
        at = allowed_positions(texts, self.query, self.closeness.match)
        found = Scores(torch.full((len(texts),), torch.inf, dtype=torch.float64), torch.full((len(texts),), NOWHERE))
        batch_size = self._text_options.batch_size
        for part in progress(batches(texts, at, batch_size), len(texts), batch_size, show_progress):
            values = self._reader(part.tokens, part.text, part.at, lengths=part.lengths)[self.query.site]
            each = distances(values, self.query.activation.to(values), self.closeness.metric).cpu()
            found.distances[part.index], found.best_positions[part.index] = smallest(part, each)
        return found

    def share_within(self, scores: Scores) -> float:
        """Of all texts that were scored."""
        return float((scores.distances <= self.closeness.epsilon).double().mean())


def smallest(part: Samples, each: Float[Tensor, "sample"]) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch"]]:
    """Each text's smallest distance among its samples, and the first position that has it."""
    if len(each) == len(part.index):
        return each, part.at
    grid = torch.full(part.tokens.shape, torch.inf, dtype=each.dtype)
    grid[part.text, part.at] = each
    best = grid.min(1)
    return best.values, best.indices
