"""Helpers for torch hooks: a hook that always runs last, copies without hooks, TransformerLens's tensor shapes."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass
class _MoveToEnd:
    """Forward pre-hook: make another forward hook of the module the last (an object, so that it can be pickled)."""

    hook_id: int

    def __call__(self, module: nn.Module, args: tuple) -> None:
        cast(OrderedDict, module._forward_hooks).move_to_end(self.hook_id)


def register_last(module: nn.Module, hook: Callable, *, with_kwargs: bool = False) -> list[RemovableHandle]:
    """Register a forward hook that runs after all others, those that are added later too."""
    handle = module.register_forward_hook(hook, with_kwargs=with_kwargs)
    return [handle, module.register_forward_pre_hook(_MoveToEnd(handle.id))]


def as_shown(point: nn.Module, value: Tensor) -> Tensor:
    """A value at a hook point in the shape in which TransformerLens's own hooks see it.

    A TransformerBridge's conversion notes the shape of every tensor for the way back and never forgets one.
    """
    conversion = getattr(point, "hook_conversion", None)
    if conversion is None:
        return value
    try:
        return conversion.convert(value)
    finally:
        forget = getattr(conversion, "clear_state", None)
        if forget is not None:
            forget(id(value))


def without_hooks(module: nn.Module) -> nn.Module:
    """A structural copy that shares parameters, buffers and configuration but carries no hook, TransformerLens's too.

    Calling the model's own final norm would run, and be changed by, whatever the user attached to it.
    """
    clone, state = object.__new__(type(module)), vars(module)
    held = (name for name in state if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")))
    none = {name: type(state[name])() for name in held if isinstance(state[name], dict | list)}
    children = {name: child if child is None else without_hooks(child) for name, child in module._modules.items()}
    vars(clone).update(state | none | {"_modules": children})
    return clone
