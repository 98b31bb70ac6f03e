"""What a comparison's samples are at each place of one model: a batch's tokens, or the mean over each text's."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity.options import Sample
from tl_backward.dissimilarity.tokens import PairedTokens
from tl_backward.model.place import Places


def labels(reader: PlaceReader, places: Places) -> list[str]:
    """What rows and columns are called: "L3", "L3H5" of a short name over layers, else hook points' full names."""
    short = isinstance(places, str) and places not in reader.model.hook_dict and not set(places) & set(".,")
    return [
        (f"L{place.layer}" if short else place.name) + ("" if place.head is None else f"H{place.head}")
        for place in reader.places
    ]


def read_samples(
    reader: PlaceReader, pairs: PairedTokens, side: Literal["a", "b"], sample: Sample
) -> list[Float[Tensor, "sample _"]]:
    """Each place's activations at a batch's samples; see `PlaceReader`."""
    batch, at = (pairs.a, pairs.at_a) if side == "a" else (pairs.b, pairs.at_b)
    lengths = None if batch.mask is None else batch.mask.sum(1)
    values = reader(batch.tokens, pairs.text, at, lengths=lengths, number=pairs.number).values()
    return [_means(value, pairs.text) if sample == "mean" else value for value in values]


def _means(value: Tensor, text: Tensor) -> Tensor:
    """The mean over each text's samples, in order of the texts."""
    _, index, counts = torch.unique(text.to(value.device), return_inverse=True, return_counts=True)
    total = torch.zeros(len(counts), value.shape[1], dtype=torch.float64, device=value.device)
    total.index_add_(0, index, value.double())
    return (total / counts[:, None]).to(value.dtype)
