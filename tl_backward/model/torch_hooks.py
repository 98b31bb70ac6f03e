"""Helpers for torch hooks: a hook that always runs last, copies without hooks, TransformerLens's tensor shapes."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks
from torch.utils.hooks import RemovableHandle


@dataclass(eq=False)
class _MoveToEnd:
    """Forward pre-hook: make another forward hook of the module the last (an object, so that it can be pickled)."""

    hook_id: object

    def __call__(self, module: nn.Module, args: tuple) -> None:
        cast(OrderedDict, module._forward_hooks).move_to_end(self.hook_id)


def register_last(module: nn.Module, hook: Callable, *, with_kwargs: bool = False) -> list[RemovableHandle]:
    """Register a forward hook that runs after all others, those that are added later too."""
    handle = module.register_forward_hook(hook, with_kwargs=with_kwargs)
    return [handle, module.register_forward_pre_hook(_MoveToEnd(handle.id))]


class Passing:
    """The forward of a hook point for one pass: gives what passes to a hook that runs after all others.

    A module without hooks is called in a third of the time that torch takes for one with them.
    """

    __slots__ = ("_hook", "_hooks", "_point")

    def __init__(self, point: nn.Module, hook: Callable, hooks: "Hooks") -> None:
        self._point, self._hook, self._hooks = point, hook, hooks

    def __call__(self, x: object) -> object:
        """Pass x on, or what the hook puts in its place."""
        if self._point._forward_hooks or _global_forward_hooks:  # which torch looks for once this returns
            self._hooks.last(self._point, self._hook)
            return x
        y = self._hook(self._point, (x,), x)
        return x if y is None else y


class Hooks:
    """Forward hooks of many modules that come off together; each is its own key, without a handle of torch's."""

    def __init__(self) -> None:
        self._tables: list[tuple[dict, Callable | str]] = []
        self._movers: dict[Callable, _MoveToEnd] = {}

    def _add(self, hooks: dict, hook: Callable | str, value: object) -> None:
        self._tables.append((hooks, hook))  # first, so that an interrupt leaves none behind
        hooks[hook] = value

    def first_in(self, module: nn.Module, hook: Callable) -> None:
        """Add a pre-hook `hook(module, args)` that runs before all others that are there."""
        self._add(module._forward_pre_hooks, hook, hook)
        cast(OrderedDict, module._forward_pre_hooks).move_to_end(hook, last=False)

    def first_out(self, module: nn.Module, hook: Callable) -> None:
        """Add a hook `hook(module, args, output)` that runs before all others that are there."""
        self._add(module._forward_hooks, hook, hook)
        cast(OrderedDict, module._forward_hooks).move_to_end(hook, last=False)

    def last(self, module: nn.Module, hook: Callable, *, with_kwargs: bool = False) -> None:
        """Add a hook `hook(module, args, output)` that runs after all others, those that are added later too."""
        if hook not in self._movers:
            self._movers[hook] = _MoveToEnd(hook)
        self._add(module._forward_hooks, hook, hook)
        self._add(module._forward_pre_hooks, self._movers[hook], self._movers[hook])
        if with_kwargs:
            self._add(module._forward_hooks_with_kwargs, hook, True)

    def passing(self, point: nn.Module, hook: Callable) -> None:
        """Add a hook as `last` does, to a HookPoint."""
        if "forward" in vars(point) or not _passes_on(point):  # of the user's own
            self.last(point, hook)
        else:
            self._add(vars(point), "forward", Passing(point, hook, self))

    def remove(self) -> None:
        """Take all of them off."""
        for hooks, hook in self._tables:
            hooks.pop(hook, None)
        # A hook may hold what holds these: a pass would live until the cycle collector runs.
        self._tables.clear()
        self._movers.clear()


def _passes_on(point: nn.Module) -> bool:
    """Whether a hook point's class does with what passes what TransformerLens's own does: nothing."""
    forward = type(point).forward
    names = getattr(forward, "__module__", ""), getattr(forward, "__qualname__", "")
    return names == ("transformer_lens.hook_points", "HookPoint.forward")


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
