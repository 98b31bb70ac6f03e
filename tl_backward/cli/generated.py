"""Command-line options generated from Python signatures: names, types, defaults and help text are those of the API.

An option class's attributes and a function's parameters become `--batch-size` and the like; help is their docstring.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from tl_backward.cli import written
from tl_backward.cli.options import layers, numbers, positive

T = TypeVar("T")


def add_options(
    parser: "argparse._ActionsContainer",
    source: str | Callable[..., object],
    *names: str,
    words: Mapping[str, str] = {},
    **defaults: object,
) -> None:
    """One option for each named parameter of a function, or attribute of an option class (all where none is named).

    The source is named, as "tl_backward.lens.backward_lens.backward_lens", where help would have to wait for PyTorch if
    it were imported: what is written there is read. `default=value` gives a default that differs from the source's,
    `words` the help where a command has less to say, or more, than the docstring. A whole number is at least 1, but for
    those of `_ANY`.

    Raises:
        TypeError: an annotation that no text on a command line stands for.
    """
    named = isinstance(source, str)
    parameters = written.signature(source, names) if named else inspect.signature(inspect.unwrap(source)).parameters
    help_of = {**documented(source), **words}
    for name in names or parameters:
        default = defaults.get(name, parameters[name].default)
        how = _argument(name, parameters[name].annotation, default)
        shown = default is not None and default is not inspect.Parameter.empty and "action" not in how
        words_of_shell = help_of[name].replace("%", "%%").replace("None for", "left out:")
        help = words_of_shell + (f" (default: {_shown(default)})" if shown else "")
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=help, **how)


def options_from(arguments: argparse.Namespace, options: Callable[..., T], **others: object) -> T:
    """Make an option object from the command line's arguments and `others`."""
    names = [name for name in inspect.signature(options).parameters if hasattr(arguments, name)]
    return options(**{name: getattr(arguments, name) for name in names} | others)


def documented(source: str | Callable[..., object]) -> Mapping[str, str]:
    """Descriptions by name from a docstring's Args or Attributes section, each on one line."""
    text = written.docstring(source) if isinstance(source, str) else inspect.getdoc(source) or ""
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    parts = re.split(r"^    (\w+): ", section[1] if section else "", flags=re.M)[1:]
    return {name: " ".join(text.split()).rstrip(".") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _argument(name: str, annotation: Any, default: object) -> dict[str, Any]:  # an annotation has no type of its own
    """Settings of argparse (type, choices, nargs) for an option of a type."""
    kinds = list(_members(annotation))
    if kinds == [bool]:
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if all(get_origin(kind) is Literal for kind in kinds):
        return {"choices": [value for kind in kinds for value in get_args(kind)]}
    if int in kinds and any(_is_list(kind, int) for kind in kinds):
        return {"type": layers, "metavar": "LIST"}
    if any(_is_list(kind, str) for kind in kinds) and all(kind is str or _is_list(kind, str) for kind in kinds):
        return {"type": several, "metavar": "LIST"}
    if any(_is_list(kind, float) for kind in kinds):
        return {"type": numbers, "metavar": "LIST"}
    for kind, how in _READ.items():
        if kind in kinds:
            return how | ({"type": int} if name in _ANY else {})
    raise TypeError(f"Expected an annotation that text can stand for, got {annotation!r} of {name!r}.")


_ANY = ("seed", "jackknife", "permutations", "layer")
"""Whole numbers that need not be positive; the option class says which there are."""

_READ: dict[object, dict[str, Any]] = {
    float: {"type": float, "metavar": "X"},
    int: {"type": positive, "metavar": "N"},
    str: {"metavar": "NAME"},
}


def _members(annotation: Any) -> Iterator[Any]:
    """The members of a union without None; a list of itself for any other type."""
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation is not NoneType:
        yield annotation


def _is_list(kind: object, of: type) -> bool:
    origin = get_origin(kind)
    listed = isinstance(origin, type) and issubclass(origin, Iterable)
    return listed and any(of in _members(member) for member in get_args(kind))


def _shown(default: object) -> str:
    return ",".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def several(text: str) -> list[str]:
    """Parse names separated by commas, such as "cka,rsa"."""
    return [name for name in text.replace(",", " ").split() if name]
