"""Exclusive, unobserved use of a model: one thread at a time, hooks off, its state restored at the end."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.modules import every_module
from tl_backward.model.torch_hooks import Passing

_LOCK = Lock()
_VISITORS: "WeakKeyDictionary[TransformerLensModel, int]" = WeakKeyDictionary()
"""Which thread is at work on a model: it put hooks on it, edits it, or runs it while neither may happen."""
_FORKED: "WeakSet[TransformerLensModel]" = WeakSet()
"""Models whose visitor gives the global random state back already."""
_HOOKS = tuple(
    name
    for name in vars(nn.Module())
    if name.endswith(("forward_hooks", "forward_pre_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
)
"""Where a module holds the hooks of its forward pass."""


def check_visitor(model: TransformerLensModel) -> None:
    """Refuse use of a model while another thread uses it.

    Raises:
        RuntimeError: it does.
    """
    if _VISITORS.get(model, get_ident()) != get_ident():
        raise RuntimeError(
            "Expected one thread at a time to use a model, got a second one while the first is at work on it (its "
            "hooks would see both); give each thread a model of its own, or take a lock."
        )


@contextmanager
def visiting(model: TransformerLensModel) -> Iterator[None]:
    """Context in which the model belongs to this thread (reentrant).

    Raises:
        RuntimeError: another thread's visit has not ended.
    """
    with _LOCK:
        check_visitor(model)
        begins = model not in _VISITORS
        _VISITORS[model] = get_ident()
    try:
        yield
    finally:
        if begins:
            with _LOCK:
                del _VISITORS[model]


@contextmanager
def rng_untouched(model: TransformerLensModel) -> Iterator[None]:
    """Context with exclusive use of the model that restores the random state after dropout has drawn from it."""
    with visiting(model):
        if model in _FORKED:
            yield
            return
        _FORKED.add(model)
        # To look at every parameter takes a fair part of a small model's pass.
        held = model.parameters() if torch.cuda.is_initialized() else ()
        devices = {p.device.index for p in held if p.device.type == "cuda"}
        try:
            with torch.random.fork_rng(devices=sorted(index for index in devices if index is not None)):
                yield
        finally:
            _FORKED.discard(model)


@contextmanager
def hooks_off(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which the modules have no hooks; hooks registered inside are removed at its end."""
    removed = []
    try:
        for state in map(vars, modules):
            hooks = {name: state[name] for name in _HOOKS if state.get(name)}
            if type(state.get("forward")) is Passing:
                hooks["forward"] = state.pop("forward")
            removed.append((state, hooks))
            state.update({name: OrderedDict() for name, value in hooks.items() if isinstance(value, dict)})
        yield
    finally:
        for state, hooks in reversed(removed):  # a module that is named twice gets its own back last
            for name in _HOOKS:
                if isinstance(state.get(name), dict):
                    state[name].clear()
            state.update(hooks)


@contextmanager
def unobserved(model: TransformerLensModel) -> Iterator[None]:
    """Within the context the model has no hooks (see `hooks_off`), is in eval mode and records no gradient."""
    modules = every_module(model)
    modes = [(vars(module), module.training) for module in modules]
    with rng_untouched(model), torch.no_grad(), hooks_off(modules):
        try:
            for state, _ in modes:
                state["training"] = False
            yield
        finally:
            for state, training in modes:
                state["training"] = training
