"""Which vectors a Backward Lens projects: inputs of weights that read the stream, VJPs of those that write to it."""

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from tl_backward._support.types import NamesFilter, TransformerLensModel
from tl_backward.gradients.cache import GradientCache
from tl_backward.model.head import Head
from tl_backward.weights import WeightSites
from tl_backward.weights.blocks import Part, blocks_of, stack_name

Side: TypeAlias = Literal["inputs", "deltas"]
Source: TypeAlias = tuple[Side | Literal["point"], str]

_IMPRINTS = ("W_Q", "W_K", "W_V", "W_in", "W_gate")  # read the residual stream: their inputs are read in words
_SHIFTS = ("W_O", "W_out")  # write to it: their VJPs are
_ADAPTER = re.compile(r"\.(?:(?:q|k|v|in|gate)\.(W_lora_A|lora_A\.W_\w+)|(?:o|out)\.(W_lora_B|lora_B\.W_\w+))$")
"""Of low-rank adapters, the half that reads the stream and the half that writes to it."""


def side_in_stream(name: str, writers: Container[str]) -> Side | None:
    """Which of a weight's factors lies in the residual stream: "inputs" (imprint) or "deltas" (shift).

    Args:
        name: the weight's full name.
        writers: full names of weights that write to the stream under other names than TransformerLens's.
    """
    short, adapter = name.rpartition(".")[2], _ADAPTER.search(name)
    if adapter is not None:
        return "inputs" if adapter[1] else "deltas"
    if short in _IMPRINTS and name not in writers:
        return "inputs"
    return "deltas" if short in _SHIFTS or name in writers else None


@dataclass(frozen=True)
class Reading:
    """For each readout and layer, the vectors of a lens: a weight's inputs or VJPs, or the gradient at a hook point."""

    sides: dict[str, dict[int, Source]]
    weights: list[str]
    """Weights whose factors are needed, some named twice."""
    points: list[str]
    """Hook points whose gradients are."""
    experts: dict[int, Part]
    """The mixtures, by layer."""
    kinds: dict[int, str]
    """What each layer is made of."""

    def sources(self) -> dict[str, dict[int, str]]:
        """For each readout and layer, the weight or the hook point that is read, by name."""
        return {of: {layer: name for layer, (_, name) in layers.items()} for of, layers in self.sides.items()}


def what_to_read(model: TransformerLensModel, sites: WeightSites, layers: list[int], attention: bool) -> Reading:
    """Choose for each block the weights whose inputs and VJPs lie in the residual stream.

    Raises:
        ValueError: a layer without an MLP, experts or a mixer, unless its attention is to be read.
    """
    blocks = blocks_of(model, sites, Head.of(model).d_model)
    reading = Reading({}, [], [], {}, {})
    for layer in layers:
        block = blocks.get(layer)
        reading.kinds[layer] = "" if block is None else block.kind
        main = None if block is None else block.main
        if main is None and not attention:
            if any(blocks[other].main is not None for other in layers if other in blocks):
                continue  # a hybrid: attention alone here, what can be read in other layers
            raise ValueError(
                f"Expected an MLP, experts or a mixer in layer {layer}, but there is "
                f"{'nothing to capture' if block is None or block.mixing is None else 'attention alone'}"
                f"{_why_none(sites, layer)}; pass attention=True to read W_V and W_O instead."
            )
        mixing = block.mixing if block is not None and attention and block.mixing is not main else None
        for prefix, part in (("", main), ("attn_", mixing)):
            if part is None:
                continue
            written: Source = ("deltas", part.writer) if part.writer else ("point", part.point)
            read: Source = ("inputs", part.reader)
            for of, source in (("imprint", read), ("shift", written)):
                reading.sides.setdefault(f"{prefix}{of}", {})[layer] = source
                (reading.points if source[0] == "point" else reading.weights).append(source[1])
            if part.kind == "MLP":
                reading.weights.extend(name for name in (f"{part.component}.W_gate",) if name in sites)
            elif part.kind == "experts":
                reading.weights.extend(part.weights)
                reading.experts[layer] = part
    return reading


def _why_none(sites: WeightSites, layer: int) -> str:
    stem = f"{stack_name(sites)}.{layer}."
    reason = next((why for name, why in sites.missing.items() if name.startswith(stem)), "")
    return f" ({reason.rstrip('.')})" if reason else ""


def vectors_read(cache: GradientCache, reading: Reading) -> list[Tensor]:
    """The vectors of each readout and layer, in order, each [batch, pos, d_model]."""
    vectors = []
    for layers in reading.sides.values():
        for side, name in layers.values():
            if side == "point" and name not in cache:
                why = cache.missing.get(name, "it was not kept.")
                raise ValueError(f"Expected a gradient at {name}, where the block writes, but {why}")
            read = cache[name] if side == "point" else getattr(cache.factors[name], side)
            if read.shape[:2] != cache.tokens.shape:
                raise ValueError(
                    f"Expected one input a token for {name}, got {list(read.shape)} for tokens "
                    f"{list(cache.tokens.shape)}: it is used several times in a pass, by a module that blocks share or "
                    "under split_qkv_input or ungroup_grouped_query_attention (turn these off); its factors are in "
                    "run_with_gradient_cache."
                )
            vectors.append(read.mean(2) if read.ndim == 4 else read)
    return vectors


def with_points(names_filter: NamesFilter, points: list[str]) -> NamesFilter:
    """`names_filter` with further hook points added."""
    if not points or names_filter is None:
        return names_filter
    if callable(names_filter):
        return lambda name: name in points or names_filter(name)
    return [*([names_filter] if isinstance(names_filter, str) else names_filter), *points]
