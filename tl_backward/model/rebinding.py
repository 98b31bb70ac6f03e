"""Repairs deep copies of models: functions whose closures still refer to the original are bound to the copy."""

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType, NoneType
from typing import cast
from weakref import CallableProxyType, ProxyType, proxy, ref

import torch
from torch import Tensor, nn

from tl_backward.model.modules import roots

_PLAIN = (
    str,
    bytes,
    int,
    float,
    complex,
    type,
    ModuleType,
    torch.dtype,
    torch.device,
    torch.Generator,
    Tensor,
    NoneType,
)
"""What holds nothing that a copy could share."""
_WEAK = (ref, ProxyType, CallableProxyType)
_KEPT = (FunctionType, MethodType, partial, *_WEAK)
"""What `deepcopy` takes as it is."""


class Rebinding:
    """After ``clone = deepcopy(original, memo)``: references from the clone to the original are replaced.

    TransformerLens (encoder-decoder blocks, the hooks behind use_split_qkv_input and use_hook_mlp_in) and SAELens put
    functions in place that hold a module, its bound method or a weak reference to it in their closure. `deepcopy` takes
    a function as it is, so the clone would run the original's parts: hooks fire there, its residual stream is read
    there, and a backward pass writes the original's ``.grad``.
    """

    def __init__(self, original: nn.Module, memo: dict[int, object], shared: list[object]) -> None:
        """`shared`: what clone and original have in common on purpose."""
        self.memo = memo
        self.functions: dict[int, FunctionType] = {}
        self.cells: dict[int, CellType] = {}
        self.shared = {id(value) for value in shared}
        self.parts = {id(part) for module in roots(original) for part in (*module.modules(), *module.parameters())}

    def rebind(self, value: object) -> object:
        """`value`, a function or in one, with the clone's parts for the original's; itself where it has none."""
        if id(value) in self.memo and id(value) not in self.shared:
            return self.memo[id(value)]
        if type(value) is FunctionType:  # a weak proxy claims its object's class
            return self._function(value)
        parts, build = _taken_apart(value)
        copies = [self.rebind(part) for part in parts]
        return build(*copies) if any(copy is not part for copy, part in zip(copies, parts, strict=True)) else value

    def _function(self, function: FunctionType) -> FunctionType:
        """A function of the same code whose closure and defaults are the clone's."""
        if id(function) in self.functions:
            return self.functions[id(function)]
        if not _reaches(function, self.parts):
            return function
        cells = tuple(self.cells.setdefault(id(cell), CellType()) for cell in function.__closure__ or ())
        copy = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
        self.functions[id(function)] = copy  # before its cells, which may hold the function itself
        for name in ("__kwdefaults__", "__qualname__", "__doc__", "__module__", "__annotations__"):
            setattr(copy, name, getattr(function, name))
        for old, new in zip(function.__closure__ or (), cells, strict=True):
            if _filled(old) and not _filled(new):
                new.cell_contents = self.rebind(old.cell_contents)
        copy.__defaults__ = cast("tuple | None", self.rebind(function.__defaults__))
        copy.__kwdefaults__ = cast("dict | None", self.rebind(function.__kwdefaults__))
        copy.__dict__.update(cast(dict, self.rebind(dict(function.__dict__))))
        return copy

    def apply(self, clone: nn.Module) -> None:
        """Rebind every function that a module of the clone, or an object that it holds, keeps.

        Raises:
            ValueError: something of the original is still within reach.
        """
        seen, waiting = set(self.shared), cast("list[object]", roots(clone))
        while waiting:
            value = waiting.pop()
            if id(value) in seen or isinstance(value, (*_KEPT, *_PLAIN)):
                continue
            seen.add(id(value))
            held = cast("dict | list", value if isinstance(value, dict | list) else getattr(value, "__dict__", {}))
            places = range(len(held)) if isinstance(held, list) else list(held)
            for place in places:
                old = held[place]
                new = self.rebind(old) if isinstance(old, (*_KEPT, tuple)) else old
                if new is not old:
                    held[place] = new
                waiting.append(new)
            if isinstance(value, tuple | set | frozenset):
                waiting.extend(value)
        self._check(clone)

    def _check(self, clone: nn.Module) -> None:
        names = {id(module): name for root in roots(clone) for name, module in root.named_modules()}
        for module in (module for root in roots(clone) for module in root.modules()):
            path = _reaches(module, self.parts, stop=names.keys() | self.shared)
            if path:
                raise ValueError(
                    "Expected a model whose copy computes with its own weights, got one whose "
                    f"{(names[id(module)] + path).lstrip('.')} leads from the copy to the original; take off what "
                    "replaced it."
                )


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None or True
    except ValueError:  # a variable that is assigned later
        return False


def _behind(value: object) -> object:
    """The object behind a weak reference; None where it is gone."""
    if isinstance(value, ref):
        return value()
    try:
        return value.__init__.__self__  # a proxy has no way to tell, but its object's methods have
    except (ReferenceError, AttributeError):
        return None


def _taken_apart(value: object) -> tuple[list[object], Callable[..., object]]:
    """The parts of a container or a value that `deepcopy` shares, and a function that rebuilds it from others."""
    if type(value) in _WEAK:
        return [_behind(value)], ref if type(value) is ref else proxy
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__], MethodType
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords], lambda function, args, named: partial(function, *args, **named)
    if type(value) is dict:
        return list(value.values()), lambda *parts: dict(zip(value, parts, strict=True))
    if type(value) in (list, tuple):
        held = cast("list | tuple", value)
        return list(held), lambda *parts: type(held)(parts)
    return [], type(value)


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """The objects that an object holds, each with the expression that reaches it."""
    if type(value) in _WEAK:
        yield "", _behind(value)
    elif isinstance(value, MethodType):
        yield from ((".__self__", value.__self__), ("", value.__func__))
    elif isinstance(value, partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if _filled(cell):
                yield f"'s {name}", cell.cell_contents
        yield from (("'s defaults", value.__defaults__), ("'s defaults", value.__kwdefaults__), ("", value.__dict__))
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]" if isinstance(key, str | int) else "", part) for key, part in list(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (("", part) for part in list(value))
    else:
        yield from ((f".{name}", part) for name, part in list(getattr(value, "__dict__", {}).items()))


def _reaches(start: object, targets: set[int], stop: AbstractSet[int] = frozenset()) -> str:
    """The expression by which one of `targets` is reached from `start`, "" for none; `stop` is not entered."""
    seen = {id(start), *stop}
    waiting = [(start, "")]
    while waiting:
        value, path = waiting.pop()
        for name, part in _parts(value):
            if id(part) in targets:
                return path + name
            if id(part) not in seen and not isinstance(part, _PLAIN):
                seen.add(id(part))
                waiting.append((part, path + name))
    return ""
