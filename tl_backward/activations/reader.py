"""PlaceReader: activations at places, one batch after another, one forward pass each up to the last block needed.

A pass is watched at chosen tokens of hook points, in both TransformerLens versions, and leaves no trace.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space.vectors import parameter_vectors
from tl_backward.model.guard import check_visitor, rng_untouched
from tl_backward.model.inputs import check_reads_text, without_cache
from tl_backward.model.place import Place, Places, resolve_places
from tl_backward.model.torch_hooks import as_shown, register_last
from tl_backward.text.asked import sees_both_ways

Heads: TypeAlias = Literal["flatten", "each"]

_SCORES = 2**21
"""Attention scores of a layer at a time on a CPU: fresh memory beyond 8 MiB costs more than the products."""
_NUMBERS, _TOKENS = 3 * 2**18, 512
"""Numbers of an MLP's hidden layer at a time on a CPU, for the same reason, but at least that many tokens."""


class PlaceReader:
    """Reads activations at places and chosen tokens, batch by batch; that the model has the places is checked once.

    Attributes:
        places: what is read, in order, each once.
        widths: how many numbers a token each place has.
    """

    def __init__(
        self,
        model: TransformerLensModel,
        places: Places,
        *,
        layers: int | Sequence[int] | None = None,
        heads: Heads = "flatten",
        which: str = "the model",
    ) -> None:
        """Resolve the places and probe them by a forward pass over a few tokens.

        Args:
            model: a HookedTransformer or TransformerBridge.
            places: see `resolve_places`.
            layers: those of short names; None for all.
            heads: "flatten" puts a place's heads side by side, "each" makes every head a place of its own.
            which: what messages call the model.

        Raises:
            ValueError: as for `resolve_places`, a place that never runs or holds no vector a token, one without heads
                of which each was asked for, or one with a position, as tokens are chosen batch by batch.
        """
        check_reads_text(model)
        self.model, self._which = model, which
        self.widths: dict[Place, int] = {}
        self._outputs: dict[Place, Tensor] = {}
        named = resolve_places(model, places, layers=layers, which=which)
        shapes = self._probe([place.read_at for place in named])
        for place in named:
            shape = shapes[place.read_at]
            if (heads == "each" or place.head is not None) and len(shape) != 2:
                raise ValueError(
                    f"Expected {place.name!r} of {which} to have heads for heads='each', got a value of shape "
                    f"{list(shape)} a token; use hook='z', 'q', 'k', 'v' or 'result'."
                )
            if place.position is not None:
                raise ValueError(
                    f"Expected a place without a position where tokens are chosen apart, got {str(place)!r}; leave "
                    "its position out."
                )
            each = heads == "each" and place.head is None
            for part in [replace(place, head=head) for head in range(shape[0])] if each else [place]:
                if part.is_result:
                    self._outputs[part] = parameter_vectors(model, "W_O", part.layer, part.head).vectors
                self.widths[part] = shape.numel() if part.head is None else shape[1]
        self.widths |= {place: output.shape[1] for place, output in self._outputs.items()}
        self.places = list(self.widths)
        self._watched = list(dict.fromkeys(place.read_at for place in self.places))

    def _probe(self, names: list[str]) -> dict[str, torch.Size]:
        """The shape of a token's value at each hook point."""
        n = 3 if self.model.cfg.n_heads == 2 else 2
        tokens = torch.zeros(1, min(n, self.model.cfg.n_ctx), dtype=torch.long, device=self.model.W_U.device)
        at = torch.arange(tokens.shape[1])
        with watch(self.model, names, torch.zeros_like(at), at) as seen:
            forward(self.model, tokens, last_layer(names))
        missing = [name for name in names if name not in seen]
        if missing:
            raise ValueError(
                f"Expected {missing[0]!r} of {self._which} to hold one vector a token, got something else or nothing "
                "in a forward pass (a pattern over pairs of tokens, a scale, or a flag such as use_attn_result that is "
                "off); choose another hook point."
            )
        return {name: seen[name].shape[1:] for name in names}

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the activations."""
        return self.model.W_U.dtype

    def __call__(
        self,
        tokens: Int[Tensor, "batch pos"],
        text: Int[Tensor, "sample"],
        at: Int[Tensor, "sample"],
        *,
        lengths: Int[Tensor, "batch"] | None,
        number: int | None = None,
    ) -> dict[Place, Float[Tensor, "sample _"]]:
        """Each place's activations at the tokens [text, at] of right-padded rows, in the model's dtype on its device.

        They are those of each text alone: a causal model does not see the padding behind a token, and is given no more
        than what is read; one that sees both ways is given texts of one length at a time, by `lengths` (None where
        nothing is padded). `number` is the batch's, for messages.

        Raises:
            ValueError: NaN or inf; the place is named.
            RuntimeError: a place did not run.
        """
        where = self._which if number is None else f"{self._which} in batch {number}"
        needed, alike = self._needed(tokens, text, at, lengths), sees_both_ways(self.model)
        scores = tokens_held = sys.maxsize
        if self.model.W_U.device.type == "cpu":
            scores = _SCORES // max(self.model.cfg.n_heads, 1)
            tokens_held = max(_TOKENS, _NUMBERS // (4 * self.model.cfg.d_model))
        passes = _passes(needed.tolist(), scores, tokens_held, alike=alike)
        if len(passes) == 1 and len(passes[0]) == len(tokens):
            return self._read(tokens[:, : int(needed.max())], text, at, where)
        found: dict[Place, Tensor] = {}
        for rows in passes:
            row_of = torch.full((len(tokens),), -1).index_put_((torch.tensor(rows),), torch.arange(len(rows)))
            mine = (row_of[text] >= 0).nonzero().flatten()
            part = tokens[rows, : int(needed[rows].max())]
            for place, value in self._read(part, row_of[text[mine]], at[mine], where).items():
                found.setdefault(place, value.new_empty(len(text), value.shape[1]))[mine.to(value.device)] = value
        return found

    def _needed(self, tokens: Tensor, text: Tensor, at: Tensor, lengths: Tensor | None) -> Int[Tensor, "batch"]:
        """How many tokens of each row the model is given; none of a row that is not asked about."""
        n, width = tokens.shape
        if not len(text):
            return torch.full((n,), width)
        if not sees_both_ways(self.model):
            return torch.zeros(n, dtype=torch.long).scatter_reduce(0, text, at + 1, "amax")
        asked = torch.zeros(n, dtype=torch.bool).index_fill(0, text, True)
        return torch.where(asked, width if lengths is None else lengths, 0)

    def _read(self, tokens: Tensor, text: Tensor, at: Tensor, where: str) -> dict[Place, Tensor]:
        with watch(self.model, self._watched, text, at) as seen:
            forward(self.model, tokens.to(self.model.W_U.device), last_layer(self._watched))
        return {place: self._checked(place, seen, where) for place in self.places}

    def _checked(self, place: Place, seen: dict[str, Tensor], where: str) -> Tensor:
        if place.read_at not in seen:
            raise RuntimeError(
                f"Expected {place.read_at!r} to run in every forward pass, but it did not in {where}; the model takes "
                "another way through these tokens, choose another hook point."
            )
        value = seen[place.read_at]
        value = value.flatten(1) if place.head is None else value[:, place.head]
        if place.is_result:
            value = value @ self._outputs[place].to(value)
        if not torch.isfinite(value).all():
            raise ValueError(
                f"Expected finite activations, got NaN or inf at {str(place)!r} of {where}; look upstream for an "
                "overflow, or leave those texts out."
            )
        return value


def _passes(needed: list[int], scores: int, tokens: int, *, alike: bool) -> list[list[int]]:
    """The rows of each forward pass, the shortest first, of one width if `alike`.

    Of rows * width at most `tokens`, and of rows * width^2 at most `scores`, but a row at least.
    """
    passes: list[list[int]] = []
    width = 0
    for row in sorted((row for row, length in enumerate(needed) if length), key=needed.__getitem__):
        fits = passes and (len(passes[-1]) + 1) * needed[row] <= min(tokens, scores / needed[row])
        if fits and (width == needed[row] or not alike):
            passes[-1].append(row)
        else:
            passes.append([row])
        width = needed[row]
    return [sorted(rows) for rows in passes]


class _AllRead(Exception):
    """What is left of a forward pass holds nothing that is read."""


@contextmanager
def watch(
    model: TransformerLensModel, names: Sequence[str], text: Int[Tensor, "sample"], at: Int[Tensor, "sample"]
) -> Iterator[dict[str, Tensor]]:
    """Within the context, a forward pass leaves its activations at the tokens [text, at] in the dict it gives.

    Values are what leaves the hook point after every user's hook, in TransformerLens's shape: [sample, ...]. The pass
    ends where the last block's MLP would run, if nothing is left to read.
    """
    activations: dict[str, Tensor] = {}
    shape = (0, 0)
    aliases: dict[nn.Module, list[str]] = {}
    for name in names:
        aliases.setdefault(model.hook_dict[name], []).append(name)

    def keeper(module: nn.Module, mine: list[str]):
        def keep(_: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            check_visitor(model)
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            value = as_shown(module, output)
            if value.ndim >= 3 and tuple(value.shape[:2]) == shape and value[0, 0].numel() > 1:
                activations.update(dict.fromkeys(mine, value.detach()[text.to(value.device), at.to(value.device)]))

        return keep

    def remember(_: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal shape
        tokens = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        shape = tuple(tokens.shape[:2])

    def stop(_: nn.Module, args: tuple) -> None:
        if activations.keys() == set(names):
            raise _AllRead

    last = last_layer(names)
    mlp = None if last is None else getattr(cast(Any, model).blocks[last - 1], "mlp", None)
    with suppress(_AllRead), ExitStack() as stack:
        stack.enter_context(rng_untouched(model))
        if mlp is not None:
            stack.callback(mlp.register_forward_pre_hook(stop).remove)
        stack.callback(_embedding(model).register_forward_pre_hook(remember, with_kwargs=True).remove)
        for module, mine in aliases.items():
            for handle in register_last(module, keeper(module, mine), with_kwargs=True):
                stack.callback(handle.remove)
        yield activations


def _embedding(model: TransformerLensModel) -> nn.Module:
    """The module that embeds the tokens, also where TransformerLens has no name for it."""
    own = cast(nn.Module, model)._modules.get("embed")
    return cast(Any, model).original_model.get_input_embeddings() if own is None else own


def forward(model: TransformerLensModel, tokens: Int[Tensor, "batch pos"], stop_at_layer: int | None) -> None:
    """Run a forward pass for its hooks alone: no gradients, no key-value cache, the global RNG untouched."""
    options: dict[str, object] = {"return_type": "logits", **without_cache(model)}
    if stop_at_layer is not None and stop_at_layer < model.cfg.n_layers:
        options["stop_at_layer"] = stop_at_layer
    with torch.no_grad(), rng_untouched(model), _padding_at_the_end():
        model(tokens, **options)


@contextmanager
def _padding_at_the_end() -> Iterator[None]:
    """Silence transformers' advice to pass a mask: tokens before right padding do not see it."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_such_advice)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_such_advice)


def _is_no_such_advice(record: logging.LogRecord) -> bool:
    return "since your input_ids may be padded" not in record.getMessage()


def last_layer(names: Sequence[str]) -> int | None:
    """The first block that need not run; None where something after the blocks is wanted."""
    if not all(name.startswith("blocks.") for name in names):
        return None
    return max(int(name.split(".")[1]) for name in names) + 1
