"""Training batches of a decoder: texts, and their activations at drawn sites and positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tl_backward._support.checks import check_integers
from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion.positions import NOWHERE, Position, find_each
from tl_backward.model.place import Place
from tl_backward.text.data import TextSource
from tl_backward.text.encoded import Encoded, encode

CHUNK, BLOCK = 32, 4
"""Batches whose texts are sorted by length together, so that little is padded; batches that share a forward pass."""
LAG = 2
"""New shares hold from this many batches after the step that computed them: one batch may be read ahead."""


@public
@dataclass(frozen=True)
class Drawing:
    """How training batches are drawn: their size, and how many sites and positions of each text."""

    batch_size: int = 64
    """Activations a batch, over all processes."""
    pairs: int = 4
    """Sites and positions drawn of each text, which share its forward pass."""
    no_information: float = 0.01
    """Share of activations that are replaced by the site's no-information activation."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse counts and seeds that are no integers."""
        check_integers(self, "batch_size", "pairs", "seed")


@dataclass(frozen=True, eq=False)
class Shares:
    """How often each site and position is drawn, from a batch on."""

    first: int
    weights: Float[Tensor, "site slot"]


class TrainingStream:
    """Batches for `DecoderNetwork.forward`, the same ones for the same seed and shares from wherever they start."""

    def __init__(
        self,
        model: TransformerLensModel,
        sites: Sequence[Place],
        positions: Sequence[Position] | None,
        source: TextSource,
        drawing: Drawing,
        null: Float[Tensor, "site d_site"],
        n_start: int,
    ) -> None:
        """Prepare to read `model`.

        Args:
            model: the probed model.
            sites: by the numbers that the decoder knows them under.
            positions: where activations are read; None for any token.
            source: the texts.
            drawing: batch size and the like.
            null: each site's no-information activation.
            n_start: tokens that every text begins with and the decoder is not shown.
        """
        self.reader, self.positions, self.source = PlaceReader(model, list(sites)), positions, source
        self.drawing, self.null, self.n_start = drawing, null, n_start
        slots = drawing.pairs if positions is None else len(positions)
        self.history = [Shares(0, torch.ones(len(sites), slots, dtype=torch.float64))]
        self.process, self.n_processes, self.first = 0, 1, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The part of this process in every batch, from number `first` on.

        Raises:
            ValueError: texts of which none has any of the positions.
        """
        per_batch = max(1, self.drawing.batch_size // self.n_processes // self.drawing.pairs)
        texts, number = iter(self.source), 0
        for chunk in count():
            # Every process reads all texts, which costs little, and runs the model on its own alone.
            drawn = list(islice(texts, CHUNK * per_batch * self.n_processes))[self.process :: self.n_processes]
            for block in self._blocks(chunk, drawn, BLOCK * per_batch):
                n = -(-len(block) // per_batch)
                if number + n > self.first:
                    yield from islice(self._batches(number, block, per_batch), max(0, self.first - number), None)
                number += n

    def _blocks(self, chunk: int, texts: list[str], size: int) -> Iterator[Encoded]:
        """Texts of like lengths together, in random order; those without the positions are left out."""
        encoded = encode(self.reader.model, texts)
        if self.positions is not None:
            encoded = encoded.select((find_each(encoded, self.positions) != NOWHERE).any(1).nonzero()[:, 0])
        parts = encoded.lengths.argsort(stable=True).split(size)
        for part in torch.randperm(len(parts), generator=self._generator(chunk, 0)).tolist():
            yield encoded.select(parts[part])

    def _batches(self, number: int, texts: Encoded, per_batch: int) -> Iterator[dict[str, Tensor]]:
        generator = self._generator(number, 1)
        texts = texts.select(torch.randperm(len(texts), generator=generator))
        at = find_each(texts, self.positions, n=self.drawing.pairs, generator=generator)
        text, slot = (at != NOWHERE).nonzero(as_tuple=True)
        values = list(self.reader(texts.tokens, text, at[text, slot], lengths=texts.lengths).values())
        index = torch.full(at.shape, -1)
        index[text, slot] = torch.arange(len(text))
        row, site, where = self._draw(number, at, generator)
        without = torch.rand(len(row), generator=generator) < self.drawing.no_information
        for first in range(0, len(texts), per_batch):
            own = (row >= first) & (row < first + per_batch)
            rows, sites = row[own], site[own]
            activations = self._gather(values, sites, index[rows, where[own]])
            activations = torch.where(without[own][:, None], self.null[sites].to(activations), activations)
            lengths = texts.lengths[rows] - self.n_start
            tokens = texts.tokens[rows, self.n_start : self.n_start + int(lengths.max())]
            yield {"activations": activations.cpu(), "sites": sites, "tokens": tokens, "lengths": lengths}

    def _draw(
        self, number: int, at: Int[Tensor, "text slot"], generator: torch.Generator
    ) -> tuple[Int[Tensor, "sample"], Int[Tensor, "sample"], Int[Tensor, "sample"]]:
        """Text, site and slot of each sample: `pairs` different ones of each text, by the shares."""
        weights = next(each.weights for each in reversed(self.history) if each.first <= number)
        open_to = (weights[None] * (at != NOWHERE)[:, None]).flatten(1)
        # Exponential races: the n earliest of a text are a draw without replacement (those without weight never start).
        races = torch.empty_like(open_to).exponential_(generator=generator) / open_to
        first = races.topk(min(self.drawing.pairs, weights.numel()), dim=1, largest=False)
        text, place = torch.isfinite(first.values).nonzero(as_tuple=True)
        pair = first.indices[text, place]
        return text, pair // weights.shape[1], pair % weights.shape[1]

    def _gather(
        self, values: list[Float[Tensor, "read _"]], site: Int[Tensor, "sample"], index: Int[Tensor, "sample"]
    ) -> Float[Tensor, "sample d_site"]:
        out = torch.zeros(len(site), self.null.shape[1], dtype=values[0].dtype, device=values[0].device)
        for number, value in enumerate(values):
            rows = (site == number).nonzero()[:, 0]
            out[rows, : value.shape[1]] = value[index[rows]]
        return out

    def _generator(self, number: int, purpose: int) -> torch.Generator:
        seed = ((self.drawing.seed * 1_000_003 + number) * 64 + self.process) * 2 + purpose
        return torch.Generator().manual_seed(seed % (1 << 63))


def widened(values: Float[Tensor, "... d"], width: int) -> Float[Tensor, "... width"]:
    """Vectors with zeros after them, up to the widest site's width."""
    return F.pad(values, (0, width - values.shape[-1]))
