"""What was learnt of a model, kept for as long as the model stays what it was: its stamp tells.

Nothing is kept that may hold the model: modules and functions are referred to weakly.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import NoneType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.modules import is_hook_point, root_of, roots
from tl_backward.model.torch_hooks import Passing

Result = TypeVar("Result")


class Stamp:
    """What a model is made of; another one when its modules, parameters, data types, modes, flags or hooks are others.

    Two things are left out, since nothing that is learnt depends on them: `requires_grad`, and hooks at hook points.
    """

    def __init__(self, model: TransformerLensModel) -> None:
        seen: list[object] = [ref(root) for root in roots(model)]
        tensors: list[Tensor] = []
        configs: dict[int, object] = {}
        done: set[object] = set()
        stack: list = roots(model)
        while stack:
            module = stack.pop()
            if module in done:
                continue
            done.add(module)
            state = vars(module)
            children = state["_modules"]
            seen += (type(module), state.get("training"), *children)
            own = [child for child in children.values() if child is not None]
            if len(own) < len(children):
                seen.append([name for name, child in children.items() if child is None])
            # The reference is one object for as long as the module lives, and equals no later module's.
            seen += map(ref, own)
            stack += [child for child in own if not (is_hook_point(child) and _is_bare(vars(child)))]
            for held in (state["_parameters"], state["_buffers"]):
                for name, tensor in held.items() if held else ():
                    seen += (name, id(tensor))
                    if tensor is not None:
                        seen += (tensor.dtype, tensor.shape, _place(tensor))
                        tensors.append(tensor)
            if state["_forward_hooks"] or state["_forward_pre_hooks"]:
                hooks = (*state["_forward_hooks"].items(), *state["_forward_pre_hooks"].items())
                # By their numbers, which are given once; our own, of a pass that goes on, have none.
                seen += [key for key, hook in hooks if type(key) is int and not _is_theirs(hook)]
            if not state.keys().isdisjoint(_FURTHER):
                seen += [(name, _reference(state[name])) for name in _FURTHER if name in state]
            if "base_layer" in children:  # PEFT: which adapters are switched on
                seen.append(repr([getattr(module, name, None) for name in _ADAPTERS]))
            for name in ("cfg", "config"):
                if name in state:
                    configs[id(state[name])] = state[name]
        for owner in (model, root_of(model), *configs.values()):
            settings = getattr(owner, "__dict__", {})
            seen.append({name: value for name, value in settings.items() if type(value) in _PLAIN} | _PASSING)
        self.seen, self.tensors = seen, tensors

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stamp) and self.seen == other.seen


_FURTHER = ("forward", "_compiled_call_impl", "gradient_checkpointing", "_gradient_checkpointing_func")
"""Attributes with which a module computes otherwise than its class says."""
_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters")
_PLAIN = frozenset({bool, int, float, str, NoneType, torch.dtype, np.bool_})
"""What a setting is: an object that does not change."""
_PASSING = dict.fromkeys(("training", "context_level", "is_caching"))
"""Attributes of a model that are no settings, for other reasons noted or different within every pass."""


def _is_bare(state: dict) -> bool:
    """Whether a hook point is nothing more, as most are: it holds nothing, and computes nothing."""
    own = state.get("forward")
    return not (state["_modules"] or state["_parameters"]) and (own is None or type(own) is Passing)


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Where a tensor's numbers begin and how far apart they are; nothing for a subclass without storage."""
    try:
        return tensor.data_ptr(), *tensor.stride()
    except (RuntimeError, NotImplementedError):
        return ()


def _is_theirs(hook: Callable) -> bool:
    """Whether a library added a hook of its own in a first pass: to capture attention, outputs, a block's input."""
    return str(getattr(hook, "__module__", "")).startswith(("transformer_lens.", "transformers."))


def _reference(value: object) -> object:
    """A weak reference to a function; of what has none, and lives as long as its module, the identity."""
    try:
        return ref(value)
    except TypeError:
        return id(value)


_KEPT: "WeakKeyDictionary[TransformerLensModel, tuple[Stamp, dict[object, Any]]]" = WeakKeyDictionary()
_UNCHANGED: "WeakKeyDictionary[TransformerLensModel, dict[object, Any]]" = WeakKeyDictionary()
"""What is kept of models that nobody changes just now."""


def kept(model: TransformerLensModel) -> dict[object, Any]:
    """What was learnt of a model as it is now, by whatever name; nothing yet where it is no longer what it was."""
    if model in _UNCHANGED:
        return _UNCHANGED[model]
    now, known = Stamp(model), _KEPT.get(model)
    if known is None or known[0] != now:
        known = _KEPT[model] = (now, {})
    return known[1]


@contextmanager
def unchanged(model: TransformerLensModel) -> Iterator[None]:
    """Context in which no code runs that may change the model, so that it is looked at once."""
    known, begins = kept(model), model not in _UNCHANGED
    try:
        _UNCHANGED[model] = known
        yield
    finally:
        if begins:
            _UNCHANGED.pop(model, None)


def once(function: Callable[[TransformerLensModel], Result]) -> Callable[[TransformerLensModel], Result]:
    """A function of a model that runs once while the model stays the same; its result must not hold the model."""

    @wraps(function)
    def recalled(model: TransformerLensModel) -> Result:
        known = kept(model)
        if function not in known:
            known[function] = function(model)
        return known[function]

    return recalled
