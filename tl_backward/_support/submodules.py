"""A package's modules as its attributes, imported when they are first used."""

from functools import partial
from importlib import import_module
from importlib.machinery import PathFinder
from sys import modules
from types import ModuleType


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


def offer_submodules(package: str) -> None:
    """Let a package's modules be asked for as its attributes; type checkers, which know them, are told nothing."""
    vars(modules[package])["__getattr__"] = partial(submodule, package)
