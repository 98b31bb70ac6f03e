"""The plan of a comparison, made before it runs: measures, places, and whether sums or samples fit in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tl_backward._support.processes import process
from tl_backward._support.saved import Saved
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity._rows import buffer_bytes
from tl_backward.dissimilarity.measures.registry import ADDITIVE, Measure, get_measure, measure_name
from tl_backward.dissimilarity.minibatch import TILE_BYTES
from tl_backward.dissimilarity.options import Estimator, RunOptions, SampleOptions
from tl_backward.dissimilarity.statistics import planned_bytes
from tl_backward.dissimilarity.tokens import count_tokens
from tl_backward.model.place import Places
from tl_backward.text.data import TextData
from tl_backward.text.options import TextOptions

Layers: TypeAlias = int | Sequence[int] | None
Models: TypeAlias = tuple[TransformerLensModel, TransformerLensModel]

N_PERMUTED = 512  # samples whose Gram matrices are permuted: their cost is the square of it, a layer
FAST = ("cka", "cka_debiased")  # permuted in Gram matrices
FEWEST_GROUPS = 8  # a jackknife over fewer has an error of its own of a third


@dataclass(frozen=True)
class Wanted:
    """The measures of one comparison, by how they are computed."""

    names: tuple[str, ...]
    estimator: Estimator
    additive: dict[str, Measure]
    """From sums; `cka` among them under the estimator "full"."""
    sampled: dict[str, Measure]
    """On a bounded sample."""

    @property
    def minibatch(self) -> bool:
        """Whether CKA is estimated batch by batch."""
        return "cka" in self.names and self.estimator != "full"

    @property
    def double(self) -> bool:
        """Whether the sums are to be multiplied in float64."""
        return any(measure.double for measure in self.additive.values())

    def n_held(self, options: RunOptions) -> int:
        """How many samples to keep in memory."""
        if self.sampled or (options.permutations and any(name not in FAST for name in self.names)):
            return options.sample_size
        return min(options.sample_size, N_PERMUTED)


def find_measures(measures: str | Sequence[str], options: RunOptions) -> Wanted:
    """Look measures up, and refuse before the run what one of them would refuse after it.

    Raises:
        ImportError: a measure's package is not installed.
        ValueError: an unknown measure (the nearest are named), or more samples than a measure takes.
    """
    asked = (measures,) if isinstance(measures, str) else measures
    names = tuple(dict.fromkeys(measure_name(name) for name in asked))  # one asked for twice is computed once
    if not names:
        raise ValueError("Expected at least one measure, got none; for example measures=('cka',).")
    additive, sampled = {}, {}
    for name in names:
        if name != "cka":
            (additive if name in ADDITIVE else sampled)[name] = get_measure(name)
        elif options.estimator == "full":
            additive[name] = get_measure(name)
    for name, measure in sampled.items():
        if measure.package is not None and find_spec(measure.package) is None:
            raise ImportError(
                f"Expected the package {measure.package} for {name}, but it is not installed; install "
                f"tl-backward[{measure.extra}], or choose another measure."
            )
        if measure.most is not None and options.sample_size > measure.most:
            raise ValueError(
                f"Expected sample_size of at most {measure.most} for {name}, whose cost grows with its cube, got "
                f"{options.sample_size}; pass a smaller one, such as 100."
            )
    return Wanted(names, options.estimator, additive, sampled)


@dataclass(frozen=True)
class MemoryPlan(Saved):
    """Bytes that a comparison holds beside the models and one batch."""

    route: Literal["sums", "gram", "batches"]
    """"sums": the products of all layers, over any number of samples; "gram": the samples themselves, fewer than a
    layer is wide, and products of their size; "batches": HSICs of batches alone."""
    n_groups: int
    """Groups of batches that the jackknife leaves out in turn; 0 for none."""
    parts: dict[str, int]
    """Bytes by what they are for."""

    @property
    def bytes(self) -> int:
        """The total of `parts`."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        lines = [f"{what:<44} {size / 1e6:>10.1f} MB" for what, size in self.parts.items()]
        return "\n".join([*lines, f"{f'all, by the route {self.route!r}':<44} {self.bytes / 1e6:>10.1f} MB"])


def plan_memory(
    widths_a: Sequence[int],
    widths_b: Sequence[int],
    wanted: Wanted,
    options: RunOptions,
    *,
    itemsize: int,
    n_samples: int | None,
) -> MemoryPlan:
    """Choose the route and how many groups there is room for.

    Args:
        widths_a: the width of each of A's layers.
        widths_b: the same of B.
        wanted: the measures. The Gram route needs those that may be taken in any orthonormal basis of each layer.
        options: how many groups are wanted, and how much memory there is.
        itemsize: bytes of an activation.
        n_samples: how many samples the data have at most, where that is known.

    Raises:
        ValueError: more than `options.max_memory` whichever way; the message says what would fit.
    """
    rows = wanted.n_held(options) if n_samples is None else min(wanted.n_held(options), n_samples)
    held = {"bounded sample": 2 * rows * (sum(widths_a) + sum(widths_b)) * itemsize}
    if wanted.minibatch:
        held["Gram matrices of a batch, in tiles"] = 2 * TILE_BYTES

    routes = [partial(_with_sums, "sums", widths_a, widths_b, itemsize, held)]
    # The Gram route takes coordinates of what the samples span, in which not every measure is the same.
    any_basis = all(measure.any_basis for measure in wanted.additive.values())
    if any_basis and n_samples is not None and n_samples < max(*widths_a, *widths_b):
        narrow_a, narrow_b = ([min(width, n_samples) for width in widths] for widths in (widths_a, widths_b))
        stored = {"samples, and their coordinates": 2 * 8 * n_samples * (sum(widths_a) + sum(widths_b))}
        routes.append(partial(_with_sums, "gram", narrow_a, narrow_b, 8, stored | held))
    cheapest = min(routes, key=lambda route: route(options.jackknife).bytes)
    best = cheapest if wanted.additive else lambda groups: MemoryPlan("batches", 0, held)
    fewest = min(options.jackknife, FEWEST_GROUPS)
    plan = best(fewest)
    for groups in range(options.jackknife, fewest - 1, -1):
        plan = best(groups)
        if plan.bytes <= options.max_memory:
            return plan
    without = best(0).bytes
    if not wanted.additive:
        instead = "use smaller batches, a smaller sample_size, or fewer layers"
    elif without <= options.max_memory:
        instead = f"pass jackknife=0, which takes {without / 1e9:.3g} GB, or compare fewer layers at a time"
    else:
        instead = (
            f"compare fewer layers at a time (jackknife=0 alone would take {without / 1e9:.3g} GB), or use "
            "estimator='minibatch_ratio_of_means', which holds no sums"
        )
    raise ValueError(
        f"Expected a comparison within max_memory={options.max_memory / 1e9:.3g} GB, got one that needs "
        f"{plan.bytes / 1e9:.3g} GB; {instead}, or raise max_memory."
    )


def _with_sums(
    route: Literal["sums", "gram"],
    widths_a: Sequence[int],
    widths_b: Sequence[int],
    itemsize: int,
    rest: dict[str, int],
    groups: int,
) -> MemoryPlan:
    one = planned_bytes(widths_a, widths_b)
    parts = {"sums over all samples": one}
    if groups > 1:
        parts[f"the same for {groups} groups of batches"] = groups * one
    parts["rows that wait, one product"] = buffer_bytes(widths_a, widths_b, max(4, itemsize))
    return MemoryPlan(route, groups if groups > 1 else 0, parts | rest)


@dataclass(frozen=True)
class Plan:
    """Everything about one comparison but its data."""

    readers: tuple[PlaceReader, PlaceReader]
    """Readers of A's and of B's activations."""
    labels: tuple[tuple[str, ...], tuple[str, ...]]
    """What A's and B's places are called."""
    wanted: Wanted
    text: TextOptions
    sample: SampleOptions
    options: RunOptions
    memory: MemoryPlan
    n_held: int
    """Samples that are held: all of them by the Gram route."""
    dtype: torch.dtype
    """Of the samples that are held."""
    device: torch.device
    """Where sums and samples are held."""

    def place(self, index: int) -> str:
        """The name in messages of the place with this index, counted over A's places and then B's."""
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
    """Resolve measures and places, and choose the route that takes less memory.

    Raises:
        ValueError: an unknown measure, hook point or layer; more memory than allowed.
    """
    wanted = find_measures(measures, options)
    hooks = (hook, hook if sample.hook_b is None else sample.hook_b)
    a, b = (
        PlaceReader(model, places, layers=some, heads=sample.heads, which=f"model {side}")
        for model, places, some, side in zip(models, hooks, layers, "AB", strict=True)
    )
    dtype = torch.promote_types(*(model.W_U.dtype for model in models))
    n_samples = None
    if process()[1] == 1:
        n_samples = _most_samples(
            models, data, text, sample.sample == "token", max(*a.widths.values(), *b.widths.values())
        )
    memory = plan_memory(
        list(a.widths.values()), list(b.widths.values()), wanted, options,
        itemsize=8 if wanted.double else dtype.itemsize, n_samples=n_samples,
    )  # fmt: skip
    n_held = (n_samples or 0) if memory.route == "gram" else wanted.n_held(options)
    device = models[0].W_U.device
    device = device if device.type != "mps" else torch.device("cpu")  # which has no float64
    labels = _labels(a, hooks[0]), _labels(b, hooks[1])
    return Plan((a, b), labels, wanted, text, sample, options, memory, n_held, dtype, device)


def _labels(reader: PlaceReader, places: Places) -> tuple[str, ...]:
    """What rows and columns are called: "L3", "L3H5" of a short name over layers, else hook points' full names."""
    short = isinstance(places, str) and places not in reader.model.hook_dict and not set(places) & set(".,")
    return tuple(
        (f"L{place.layer}" if short else place.name) + ("" if place.head is None else f"H{place.head}")
        for place in reader.places
    )


def _most_samples(models: Models, data: TextData, text: TextOptions, tokens: bool, width: int) -> int | None:
    """How many samples the data give at most, where that is known and may be fewer than a layer is wide."""
    if isinstance(data, Tensor) and data.numel():
        return data.numel() if tokens else data.numel() // data.shape[-1]
    if not isinstance(data, list | tuple) or not 0 < len(data) < width:
        return None
    texts = [item for item in data if isinstance(item, str) and item]
    if len(texts) < len(data):
        return None
    return sum(min(count_tokens(model, item, text) for model in models) for item in texts) if tokens else len(texts)
