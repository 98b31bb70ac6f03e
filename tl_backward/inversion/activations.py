"""Activations at places in many texts, read in batches of texts of similar length."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import check_at_least_one
from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel, typed
from tl_backward.activations import PlaceReader
from tl_backward.inversion.positions import NOWHERE, find_positions
from tl_backward.model.place import Place, Places, resolve_places
from tl_backward.text.encoded import Encoded, encode
from tl_backward.text.ids import as_ids
from tl_backward.text.prompts import Batch

BATCH_SIZE = 256


@dataclass(frozen=True)
class Samples:
    """Tokens of a batch of texts at which activations are read, one a sample."""

    index: Int[Tensor, "batch"]
    """Which texts the batch is of."""
    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, "batch"]
    text: Int[Tensor, "sample"]
    """The row of the batch that each sample is from."""
    at: Int[Tensor, "sample"]
    """Its position."""


def batches(
    texts: Encoded,
    at: Int[Tensor, "text"] | Int[Tensor, "text slot"] | None,
    batch_size: int,
    *,
    show_progress: bool = False,
) -> Iterator[Samples]:
    """Batches of texts of similar length, with the tokens to read in each; a progress bar after one second.

    `at` is one or several positions a text, NOWHERE is passed over; None for every real token.

    Raises:
        ValueError: batch_size < 1.
    """
    check_at_least_one("batch_size", batch_size, f"{BATCH_SIZE} is the default")
    slots = None if at is None else at.reshape(len(at), -1)
    needed = texts.lengths if slots is None else slots.amax(1) + 1
    order = needed.argsort(stable=True)
    order = order[needed[order] > 0]
    parts = order.split(batch_size) if len(order) else ()
    for index in tqdm(parts, desc="activations", unit="batch", disable=not show_progress, delay=1):
        part = texts.select(index)
        text, where = (part.mask if slots is None else slots[index] != NOWHERE).nonzero(as_tuple=True)
        yield Samples(index, part.tokens, part.lengths, text, where if slots is None else slots[index][text, where])


@public
@typed
def collect(
    model: TransformerLensModel,
    tokens: Integer[Tensor, "batch pos"],
    sites: Places,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    batch_size: int = BATCH_SIZE,
    show_progress: bool = True,
) -> dict[Place, Float[Tensor, "batch ..."]]:
    """Activations of every token at each site, on the CPU, in the model's dtype.

    Rows are read from position 0 whichever side they are padded on, so that each text's activations are those it has
    alone. The model runs in batches of like lengths up to the last block that any site needs, without gradients,
    caches or a trace.

    Args:
        model: a HookedTransformer or TransformerBridge.
        tokens: as the model reads them, BOS and all.
        sites: one or a list; see `resolve_place`.
        mask: True at real tokens; None where none is padding.
        batch_size: texts a forward pass.
        show_progress: draw a progress bar if it takes longer than a second.

    Returns:
        Each site's activations where `tokens` has them, zeros at padding: use the mask. Of a `Place` with a position
        [batch, d].

    Raises:
        ValueError: a site that the model lacks or that holds no vector a token, a row that is empty or longer than
            n_ctx, activations that are not finite.
    """
    places, tokens = resolve_places(model, sites), as_ids(tokens)
    reader = PlaceReader(model, [replace(place, position=None) for place in places])
    real = torch.ones(tokens.shape, dtype=torch.bool) if mask is None else mask.cpu()
    if not real.any(1).all():
        raise ValueError(f"Expected a real token in every row, got none in row {int(real.any(1).int().argmin())}.")
    texts = encode(model, Batch(tokens.cpu(), real))
    values = {site: torch.zeros(*tokens.shape, width, dtype=reader.dtype) for site, width in reader.widths.items()}
    columns = torch.zeros(texts.tokens.shape, dtype=torch.long)  # where each token came from
    columns[texts.mask] = real.nonzero()[:, 1]
    for part in batches(texts, None, batch_size, show_progress=show_progress):
        rows = part.index[part.text]
        for site, value in reader(part.tokens, part.text, part.at, lengths=part.lengths).items():
            values[site][rows, columns[rows, part.at]] = value.to(values[site])
    return {place: _at(values[replace(place, position=None)], place.position, texts, columns) for place in places}


def _at(values: Tensor, position: int | None, texts: Encoded, columns: Int[Tensor, "text pos"]) -> Tensor:
    """A place's values at its own position; all of them where it has none."""
    if position is None:
        return values
    at = find_positions(texts, position)
    if (at == NOWHERE).any():
        row = int(at.argmin())
        raise ValueError(
            f"Expected a token at position {position} in every row, got row {row} of {int(texts.lengths[row])} tokens; "
            "leave it out, or choose another position."
        )
    rows = torch.arange(len(texts))
    return values[rows, columns[rows, at]]


def collect_at(
    model: TransformerLensModel,
    texts: Encoded,
    sites: Places,
    at: Int[Tensor, "text"],
    *,
    batch_size: int = BATCH_SIZE,
    show_progress: bool = True,
) -> dict[Place, Float[Tensor, "text _"]]:
    """Activations at one position of each text (`find_positions`), on the CPU; zeros for texts where it is negative."""
    reader = PlaceReader(model, sites)
    values = {site: torch.zeros(len(texts), width, dtype=reader.dtype) for site, width in reader.widths.items()}
    for part in batches(texts, at, batch_size, show_progress=show_progress):
        for site, value in reader(part.tokens, part.text, part.at, lengths=part.lengths).items():
            values[site][part.index] = value.to(values[site])
    return values
