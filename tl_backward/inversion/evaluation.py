"""How good a decoder is: the share of its samples that the probed model itself puts inside the preimage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.types import DataFrame
from tl_backward.activations import PlaceReader
from tl_backward.inversion.activations import batches
from tl_backward.inversion.network import BATCH_SIZE, DecoderNetwork
from tl_backward.inversion.positions import NOWHERE, Position, find_each
from tl_backward.inversion.stream import widened
from tl_backward.text.encoded import Encoded, encode_rows
from tl_backward.text.token_strings import text_frame


@dataclass(frozen=True, eq=False)
class Queries:
    """Activations to be decoded, some of each site and position."""

    reader: PlaceReader
    """Reads the sites that the activations are of."""
    positions: Sequence[Position] | None
    """Where they were read; None for a token of each text drawn at random."""
    activations: Float[Tensor, "query d_site"]
    sites: Int[Tensor, "query"]
    slots: Int[Tensor, "query"]
    """Which of the positions each is of."""


@dataclass(frozen=True, repr=False, eq=False)
class DecoderRates:
    """Shares of samples, one a site and position; NaN where no text has the position."""

    sites: tuple[str, ...]
    positions: tuple[str, ...]
    inside: Float[Tensor, "site slot"]
    """Within epsilon of the query at any of their positions."""
    well_formed: Float[Tensor, "site slot"] | None
    """That the task's predicate accepts."""
    chance: Float[Tensor, "site slot"] | None
    """Within epsilon of the query though drawn without looking at it: other texts of the data."""

    def __repr__(self) -> str:
        return f"DecoderRates({len(self.sites)} sites x {len(self.positions)} positions, mean {self.mean:.3f} inside)"

    @property
    def mean(self) -> float:
        """The mean share inside over sites and positions."""
        return float(self.inside.nanmean())

    def to_frame(self) -> DataFrame:
        """One row a site and position."""
        rates = {"inside": self.inside, "chance": self.chance, "well_formed": self.well_formed}
        known = {name: values.tolist() for name, values in rates.items() if values is not None}
        return text_frame(
            {"site": site, "position": position, **{name: values[i][j] for name, values in known.items()}}
            for i, site in enumerate(self.sites)
            for j, position in enumerate(self.positions)
        )


def read_queries(
    reader: PlaceReader, texts: Encoded, positions: Sequence[Position] | None, d_site: int, *, seed: int = 0
) -> Queries:
    """Every text's activation at every site and position; without positions, at one token of each drawn at random.

    Raises:
        ValueError: no text has any of the positions.
    """
    at = find_each(texts, positions, generator=torch.Generator().manual_seed(seed))
    text, slot = (at != NOWHERE).nonzero(as_tuple=True)
    rows = []
    for part in torch.arange(len(text)).split(BATCH_SIZE):
        rows_read, where = text[part], at[text[part], slot[part]]
        values = reader(texts.tokens[rows_read], torch.arange(len(part)), where, lengths=texts.lengths[rows_read])
        rows.append([widened(value, d_site).cpu() for value in values.values()])
    read = [torch.cat(column) for column in zip(*rows, strict=True)]
    sites = torch.arange(len(read)).repeat_interleave(len(text))
    return Queries(reader, positions, torch.cat(read), sites, slot.repeat(len(read)))


def nearest_distances(queries: Queries, texts: Encoded) -> Float[Tensor, "query"]:
    """D(z, f(x)) of each query and its own text, the smallest over the text's positions (euclidean, relative)."""
    smallest = torch.full((len(texts),), torch.inf, dtype=torch.float64)
    for part in batches(texts, None, BATCH_SIZE):
        values = queries.reader(part.tokens, part.text, part.at, lengths=part.lengths)
        which = part.index[part.text]
        for number, value in enumerate(values.values()):
            rows = (queries.sites[which] == number).nonzero()[:, 0]
            z = queries.activations[which[rows], : value.shape[1]].double()
            error = torch.linalg.vector_norm(value[rows].cpu().double() - z, dim=-1)
            smallest.scatter_reduce_(0, which[rows], error / torch.linalg.vector_norm(z, dim=-1), "amin")
    return smallest


def decoder_rates(
    network: DecoderNetwork,
    queries: Queries,
    start: Sequence[int],
    *,
    n: int,
    epsilon: float,
    valid: Callable[[str], bool] | None = None,
    others: Encoded | None = None,
    seed: int = 0,
) -> DecoderRates:
    """Draw `n` texts for each query at T = 1 and see where they land; `others` are texts for the chance rate."""
    reader, positions = queries.reader, queries.positions
    repeated = (part.repeat_interleave(n, 0) for part in (queries.activations, queries.sites, queries.slots))
    many = Queries(reader, positions, *repeated)
    names = ("any",) if positions is None else tuple(str(rule) for rule in positions)
    texts = encode_rows(reader.model, network.draw(many.activations, many.sites, start, seed=seed))
    group, shape = many.sites * len(names) + many.slots, (len(reader.places), len(names))
    inside = _means(nearest_distances(many, texts) <= epsilon, group, shape)
    well_formed = (
        None if valid is None else _means(torch.tensor([bool(valid(text)) for text in texts.texts]), group, shape)
    )
    chance = None
    if others is not None:
        index = torch.randint(len(others), group.shape, generator=torch.Generator().manual_seed(seed))
        chance = _means(nearest_distances(many, others.select(index)) <= epsilon, group, shape)
    return DecoderRates(tuple(map(str, reader.places)), names, inside, well_formed, chance)


def _means(values: Tensor, group: Int[Tensor, "sample"], shape: tuple[int, int]) -> Float[Tensor, "site slot"]:
    n = shape[0] * shape[1]
    total = torch.bincount(group, weights=values.double(), minlength=n)
    return (total / torch.bincount(group, minlength=n)).reshape(shape)
