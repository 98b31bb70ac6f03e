"""Residual streams of many models at the same tokens, held in memory: for findings on small models and few texts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader


@dataclass(frozen=True, eq=False)
class Streams:
    """One model's streams after each layer."""

    rows: tuple[Float[Tensor, "sample d_model"], ...]
    """Layer by layer, in float64."""
    positions: Int[Tensor, "sample"]
    """Of each sample in its text."""


def streams(
    model: TransformerLensModel, tokens: Int[Tensor, "text pos"], *, exclude_first: bool = False, batch_size: int = 32
) -> Streams:
    """The residual stream after every layer at every token; rows without padding, as those of the zoo's training."""
    start = int(exclude_first)
    reader = PlaceReader(model, "resid_post")
    read: list[list[Tensor]] = []
    for part in tokens.split(batch_size):
        text, at = torch.ones(len(part), tokens.shape[1] - start).nonzero(as_tuple=True)
        read.append([rows.cpu().double() for rows in reader(part, text, at + start, lengths=None).values()])
    positions = torch.arange(start, tokens.shape[1]).repeat(len(tokens))
    return Streams(tuple(torch.cat(parts) for parts in zip(*read, strict=True)), positions)


def nearest_layer(layer: int, n_layers: int, n_other: int) -> int:
    """The layer of a model of `n_other` layers that lies nearest to the relative depth (layer + 1) / n_layers."""
    depth = (layer + 1) / n_layers
    return min(range(n_other), key=lambda other: abs((other + 1) / n_other - depth))
