"""What a comparison will read, measure and hold, decided before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity._processes import process
from tl_backward.dissimilarity.activations import labels
from tl_backward.dissimilarity.memory import MemoryPlan, plan_memory
from tl_backward.dissimilarity.options import RunOptions, SampleOptions
from tl_backward.dissimilarity.reading import Reading, reading_of
from tl_backward.dissimilarity.tokens import count_tokens
from tl_backward.dissimilarity.wanted import Wanted, find_measures
from tl_backward.model.place import Places
from tl_backward.text.data import TextData
from tl_backward.text.options import TextOptions

Layers: TypeAlias = int | Sequence[int] | None
Models: TypeAlias = tuple[TransformerLensModel, TransformerLensModel]


@dataclass(frozen=True)
class Plan:
    """Everything about one comparison but its data."""

    readers: tuple[PlaceReader, PlaceReader]
    """Of A's places and of B's."""
    labels: tuple[tuple[str, ...], tuple[str, ...]]
    """What A's and B's places are called."""
    wanted: Wanted
    reading: Reading
    n_batches: int | None
    options: RunOptions
    memory: MemoryPlan
    n_kept: int
    """Samples that are kept: all of them by the Gram route."""
    dtype: torch.dtype
    """Of the samples that are kept."""
    device: torch.device
    """Where sums and samples are held."""

    @property
    def widths(self) -> tuple[list[int], list[int]]:
        """How wide A's and B's places are."""
        a, b = (list(reader.widths.values()) for reader in self.readers)
        return a, b

    def place(self, index: int) -> str:
        """What messages call one of A's places, or of B's after them."""
        named = [(place, side) for side, reader in zip("AB", self.readers, strict=True) for place in reader.places]
        return f"{str(named[index][0])!r} of model {named[index][1]}"


def plan_comparison(
    models: Models,
    data: TextData,
    hook: Places,
    layers: tuple[Layers, Layers],
    measures: str | Sequence[str],
    text: TextOptions,
    sample: SampleOptions,
    options: RunOptions,
) -> Plan:
    """Look everything up, and choose the route that takes less memory.

    Raises:
        ValueError: an unknown measure, hook point or layer; more memory than allowed.
    """
    wanted = find_measures(measures, options)
    reading = reading_of(text, sample)
    hooks = (hook, hook if sample.hook_b is None else sample.hook_b)
    a, b = (
        PlaceReader(model, places, layers=some, heads=sample.heads, which=f"model {side}")
        for model, places, some, side in zip(models, hooks, layers, "AB", strict=True)
    )
    dtype = torch.promote_types(*(model.W_U.dtype for model in models))
    n_samples = None
    if process()[1] == 1:
        n_samples = _most_samples(models, data, reading, max(*a.widths.values(), *b.widths.values()))
    memory = plan_memory(
        list(a.widths.values()), list(b.widths.values()), wanted, options,
        itemsize=8 if wanted.double else dtype.itemsize, n_samples=n_samples,
    )  # fmt: skip
    kept = (n_samples or 0) if memory.route == "gram" else wanted.n_kept(options)
    device = models[0].W_U.device
    device = device if device.type != "mps" else torch.device("cpu")  # which has no float64
    named = tuple(labels(a, hooks[0])), tuple(labels(b, hooks[1]))
    return Plan((a, b), named, wanted, reading, text.n_batches, options, memory, kept, dtype, device)


def _most_samples(models: Models, data: TextData, reading: Reading, width: int) -> int | None:
    """How many samples the data give at most, where that is known and may be fewer than a layer is wide."""
    if isinstance(data, Tensor) and data.numel():
        texts, tokens = data.numel() // data.shape[-1], data.numel()
        return texts if reading.sample != "token" else tokens
    if not isinstance(data, list | tuple) or not 0 < len(data) < width:
        return None
    if not all(isinstance(item, str) and item for item in data):
        return None
    if reading.sample != "token":
        return len(data)
    return sum(min(count_tokens(model, text, reading) for model in models) for text in data)
