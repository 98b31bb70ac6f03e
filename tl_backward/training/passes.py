"""A training's own passes, listened to: x and delta of each watched weight, from its forward and its backward.

Nothing is computed twice and nothing is replaced: in a forward pass each x is kept by reference and each y's node of
the graph told to hand over dL/dy when the training's own backward comes through it. What is kept of a pass holds no
graph, so that one without a backward is freed with its logits.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import get_ident
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from tl_backward._support.types import TransformerLensModel
from tl_backward.gradients.edges import Written, delta_at
from tl_backward.gradients.recorder import Recorder
from tl_backward.model.inputs import has_decoder
from tl_backward.model.modules import root_of
from tl_backward.text.encoding import encode_read
from tl_backward.weights import WeightSite
from tl_backward.weights.factors import GradientFactors
from tl_backward.weights.token_rows import Shapes

_READ, _ANSWERED = ("input_ids", "tokens", "input", "inputs_embeds"), ("decoder_input_ids", "labels")
"""Arguments of a model's forward that say which tokens are read, and which a decoder beside an encoder reads."""


@dataclass
class Pass:
    """One forward pass of the training: what was recorded of it, without its graph."""

    recorder: Recorder
    tokens: Tensor | None
    """[batch, pos] that the model, or its encoder, reads; None where the pass is given none."""
    answered: Tensor | None
    """[batch, pos] that a decoder beside an encoder reads."""
    shapes: Shapes
    deltas: dict[int, Tensor] = field(default_factory=dict)
    """dL/dy by its entry, of the backward that runs."""
    entries: list[Written] = field(default_factory=list)

    def ids_of(self, site: WeightSite, shape: torch.Size) -> list[list[int]]:
        """The tokens that a weight's rows [batch, pos] belong to; [] where they are not known."""
        tokens = self.answered if site.name.startswith("decoder") else self.tokens
        return [] if tokens is None or tokens.shape != shape else tokens.tolist()

    def release(self) -> None:
        """Let go of all that was recorded."""
        for kept in (self.recorder.reads, self.recorder.writes, self.recorder.uses, self.recorder.sites, self.entries):
            kept.clear()
        self.deltas.clear()
        self.tokens = self.answered = None

    def factors(self, site: WeightSite) -> GradientFactors:
        """A weight's factors, once the backward pass is done."""
        return self.recorder.factors(site, self._every_delta, self.shapes)

    @cached_property
    def _every_delta(self) -> dict[int, Tensor]:
        return {id(entry): delta_at(entry, self.deltas.get(id(entry))) for entry in self.entries}


Finish = Callable[[list[Pass]], None]
"""Called at the end of each backward with the passes that it went through."""

_WATCHED: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()
"""Models that are watched."""


class Passes:
    """Hooks on the module that a pass calls, for as long as a training is watched."""

    def __init__(self, model: TransformerLensModel, sites: list[WeightSite], finish: Finish) -> None:
        self.model, self.sites, self._finish = model, sites, finish
        self._running: tuple[ExitStack, Pass] | None = None
        self._handles: list[RemovableHandle] = []
        self._fired: dict[int, Pass] = {}
        self._done: list[Pass] = []
        self.left_out: dict[str, str] = {}
        """Why, by the weight's name."""

    def open(self) -> None:
        """Begin to listen.

        Raises:
            ValueError: the model is watched already.
        """
        root = root_of(self.model)
        if root in _WATCHED:
            raise ValueError("Expected a model that nobody watches, got one that is watched already; leave that first.")
        _WATCHED[root] = get_ident()
        self._handles = [
            root.register_forward_pre_hook(_RootHook(self._enter), with_kwargs=True, prepend=True),
            root.register_forward_hook(_RootHook(self._leave), always_call=True),
        ]

    def close(self) -> None:
        """Take every hook off; nothing where `open` was refused."""
        if not self._handles:
            return
        _WATCHED.pop(root_of(self.model), None)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stop()
        self._forget()

    def _forget(self) -> None:
        """Let go of passes whose backward is over, or was broken off: whoever keeps a loss keeps its graph's hooks."""
        for seen in (*self._done, *self._fired.values()):
            seen.release()
        self._done.clear()
        self._fired.clear()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._stop()  # a pass that was broken off
        if not torch.is_grad_enabled() or _WATCHED.get(module) != get_ident():
            return
        self._forget()
        tokens, answered, shapes = self._read(args, kwargs)
        recorder = Recorder(self.model, own=False)
        seen = Pass(recorder, tokens, answered, shapes)
        stack = ExitStack()
        stack.callback(recorder.hooks.remove)
        self._running = (stack, seen)
        for site in self.sites:
            recorder.watch(site)
        stack.enter_context(recorder.watching(shapes or ((1, 1),)))

    def _read(self, args: tuple, kwargs: dict) -> tuple[Tensor | None, Tensor | None, Shapes]:
        """What a pass reads, what its decoder beside an encoder reads, and the shapes of both."""
        given = next((kwargs[name] for name in _READ if kwargs.get(name) is not None), args[0] if args else None)
        if isinstance(given, str | list):
            options = {"prepend_bos": kwargs["prepend_bos"]} if "prepend_bos" in kwargs else {}
            given = encode_read(self.model, given, **options)
        tokens = given if isinstance(given, Tensor) else None
        shapes = [] if tokens is None else [tuple(tokens.shape[:2]) if tokens.ndim > 1 else (1, *tokens.shape)]
        if tokens is not None:
            ids = tokens.dtype in (torch.int64, torch.int32) and tokens.ndim in (1, 2)
            tokens = tokens.detach().reshape(shapes[0]) if ids else None
        answered = None
        if has_decoder(self.model):
            found = [kwargs.get(name) for name in _ANSWERED]
            answered = found[0].detach() if isinstance(found[0], Tensor) else None
            shapes += [tuple(each.shape[:2]) for each in found if isinstance(each, Tensor)][:1]
        return tokens, answered, cast(Shapes, tuple(shapes))

    def _stop(self) -> Pass | None:
        if self._running is None:
            return None
        stack, seen = self._running
        self._running = None
        stack.close()
        return seen

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        seen = self._stop()
        if seen is None:
            return
        recorder = seen.recorder
        self._check(recorder)
        seen.entries = recorder.entries()
        for entry in seen.entries:
            edge, entry.edge = entry.edge, None  # the node holds the hook, which must not hold the node
            if edge is not None:
                edge.node.register_prehook(partial(self._fire, seen, id(entry), edge.output_nr))
        _forget_graph(recorder)

    def _check(self, recorder: Recorder) -> None:
        """Let go of weights that this pass did not use, and for good of those whose rows cannot be told."""
        for site in list(recorder.sites):
            if not recorder.has_run(site):
                recorder.sites.remove(site)
                continue
            try:
                recorder.check_site(site)
            except RuntimeError as error:
                recorder.sites.remove(site)
                self.sites.remove(site)
                self.left_out[site.name] = _frozen(site) or str(error)

    def _fire(self, seen: Pass, entry: int, output: int, gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[output]
        if gradient is None or not self._handles or not seen.entries:
            return
        if not self._fired:
            Variable._execution_engine.queue_callback(self._end)
        self._fired[id(seen)] = seen
        seen.deltas[entry] = gradient.detach()

    def _end(self) -> None:
        fired = list(self._fired.values())
        self._fired.clear()
        try:
            self._finish(fired)
        finally:
            for seen in fired:
                seen.deltas.clear()
                vars(seen).pop("_every_delta", None)
            self._done += fired  # another backward of the same graph may follow, until the next pass


def _frozen(site: WeightSite) -> str:
    frozen = not site.parameter.requires_grad
    return "it is frozen, and so is all that its input is computed from: no gradient passes there." if frozen else ""


def _forget_graph(recorder: Recorder) -> None:
    """Keep each x without what it was computed by; its version is counted on."""
    for key, seen in recorder.reads.items():
        recorder.reads[key] = [(x.detach(), version) for x, version in seen]
    for used in recorder.uses.values():
        for each in used:
            use = each.seen.use
            use.x, use.y = (None if use.x is None else use.x.detach()), None


class _RootHook:
    """A hook that a copy of the model, or a file of it, has without what it does."""

    def __init__(self, call: Callable[..., object] | None = None) -> None:
        self._call = call

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Do it."""
        return None if self._call is None else self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "_RootHook":
        return _RootHook()

    def __reduce__(self) -> tuple[type["_RootHook"], tuple]:
        return _RootHook, ()
