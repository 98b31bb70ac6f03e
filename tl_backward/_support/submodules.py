"""A package's modules, and names from them, as its attributes, imported when they are first used."""

from collections.abc import Mapping
from importlib import import_module
from importlib.machinery import PathFinder
from pkgutil import iter_modules
from sys import modules
from threading import RLock
from types import ModuleType

_IMPORTING = RLock()
"""Threads that import a module and its package at once may fail; no module of ours takes this lock while imported."""


def submodule(package: str, name: str) -> ModuleType:
    """A module of a package that is asked for as its attribute, imported now if it was not.

    A name that stands in `sys.modules` alone, as modules of the release before do, is no attribute.

    Raises:
        AttributeError: the package has no such module.

    Examples:
        >>> from tl_backward._support.submodules import submodule
        >>> submodule("tl_backward.text", "options").__name__
        'tl_backward.text.options'
    """
    full = f"{package}.{name}"
    if name.startswith("__") or PathFinder.find_spec(full, modules[package].__path__) is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return import_module(full)


def offer(package: str, names: Mapping[str, str | None] | None = None) -> None:
    """Let a package's modules be asked for as its attributes, and names, each of a module within `tl_backward`.

    A name of None is a module of the package that threads may ask for at once. `dir()` shows what there is to use:
    `__all__` and the names; without names the package's modules are, and are shown too. What the package's own code
    imports is not. Type checkers, which read what stands under TYPE_CHECKING, are told nothing.
    """
    table = names or {}

    def asked(name: str) -> object:
        if name not in table:
            return submodule(package, name)
        with _IMPORTING:
            module = table[name]
            if module is None:
                return submodule(package, name)
            return vars(modules[package]).setdefault(name, getattr(import_module(f"tl_backward.{module}"), name))

    def listed() -> list[str]:
        own = vars(modules[package])
        inside = iter_modules(own["__path__"]) if names is None else ()
        return sorted({*own.get("__all__", ()), *table, *(each.name for each in inside if each.name[0] != "_")})

    vars(modules[package]).update(__getattr__=asked, __dir__=listed)
