"""Type hints in the words of an error message: what a function takes, without the modules that its types are from."""

import inspect
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from types import UnionType
from typing import Any, ForwardRef, Literal, Union, get_args, get_origin

from beartype.door import is_bearable
from beartype.roar import BeartypeException
from torch import Tensor

_KINDS = {"Float": "floats", "Int": "integers", "Integer": "integers", "Bool": "booleans"}
_NAMED: list[tuple[frozenset, str]] = []
"""Hints that have a name of their own, by their members, the largest first."""


_ALIASES: list[tuple[frozenset, str]] = []
"""Hints that help shows by their alias, by their members, the largest first."""


def say_as(hint: Any, words: str) -> None:
    """Let what many functions take be said in words, alone and within unions."""
    _NAMED.append((_parts(hint), words))
    _NAMED.sort(key=lambda each: -len(each[0]))


def show_as(hint: Any, alias: str) -> None:
    """Let help show a type that many functions take by its alias, alone and within unions."""
    _ALIASES.append((_parts(hint), alias))
    _ALIASES.sort(key=lambda each: -len(each[0]))


class _Short:
    """A hint as help shows it, by the names of its aliases."""

    def __init__(self, hint: Any) -> None:
        self._hint = hint

    def __repr__(self) -> str:
        left, said = list(_members_of(self._hint)), []
        for members, alias in _ALIASES:
            if members <= {*left}:
                said.append(alias)
                left = [part for part in left if part not in members]
        others = ["None" if part is type(None) else inspect.formatannotation(part) for part in left]
        return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", " | ".join([*said, *others]))


def short_signature(function: Callable) -> inspect.Signature | None:
    """A function's signature in which long hints have their aliases' names, for help; None where it has none.

    The annotations themselves stay whole: they are what is checked.
    """
    hints = getattr(function, "__annotations__", {})
    if function.__name__ == "__init__":  # dataclasses are checked by the signatures of theirs
        return None
    if not any(members <= _parts(hint) for hint in hints.values() for members, _ in _ALIASES):
        return None
    signature = inspect.signature(function)
    short = [
        each.replace(annotation=_Short(each.annotation))
        if any(members <= _parts(each.annotation) for members, _ in _ALIASES)
        else each
        for each in signature.parameters.values()
    ]
    return signature.replace(parameters=short)


def in_words(hint: Any) -> str:
    """A hint as a sentence has it.

    Examples:
        >>> from tl_backward._support.hints import in_words
        >>> in_words(dict[str, list[int]] | None)
        'dictionary {str: list of int} | None'
    """
    origin, parts = get_origin(hint), get_args(hint)
    named = next((words for members, words in _NAMED if members == _parts(hint)), None)
    if named is not None:
        return named
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(_members(parts)))
    if hint is type(None):
        return "None"
    if origin is Literal:
        return " | ".join(map(repr, parts))
    if hasattr(hint, "array_type"):
        return _array(hint)
    if origin is tuple:
        return f"({', '.join('...' if part is ... else in_words(part) for part in parts)})"
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(parts) == 2:
        return f"dictionary {{{in_words(parts[0])}: {in_words(parts[1])}}}"
    if isinstance(origin, type) and issubclass(origin, Collection | Iterable) and len(parts) == 1:
        return f"{'set' if issubclass(origin, Set) else 'list'} of {_whole(parts[0])}"
    if origin is Callable and len(parts) == 2:
        taken = "..." if parts[0] is ... else ", ".join(map(in_words, parts[0]))
        return f"function ({taken}) -> {_whole(parts[1])}"
    if isinstance(hint, ForwardRef):
        return hint.__forward_arg__
    text = inspect.formatannotation(hint).replace("torch.nn.modules.module.Module", "TransformerLensModel")
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def fits(value: object, hint: Any) -> bool:
    """Whether a value is what a hint says, as far as beartype looks; the global random state is left as found."""
    before = random.getstate()  # from which beartype draws the item of a list that it looks at
    try:
        return is_bearable(value, hint)
    except BeartypeException:  # a hint that it does not know
        return True
    finally:
        random.setstate(before)


def order_of(function: Callable, name: str, value: object) -> str:
    """The order of a call, for the end of an error message: where a value is what another argument takes; else ""."""
    every = inspect.signature(inspect.unwrap(function)).parameters
    own = [each for each in every.values() if each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self"]
    hints = [each.annotation for each in own if each.name != name and not isinstance(each.annotation, str)]
    alone = value is None or isinstance(value, str | int | float) or hasattr(value, "shape")  # most take such
    if alone or name not in [each.name for each in own] or not any(fits(value, hint) for hint in hints):
        return ""
    return f"the order is {function.__name__}({', '.join(each.name for each in own)}); "


def _whole(hint: Any) -> str:
    """A hint within another: in brackets where it is one of several."""
    text = in_words(hint)
    return f"({text})" if "|" in text and text[0] not in "{[(" else text


def _parts(hint: Any) -> frozenset:
    return frozenset(_members_of(hint))


def _members_of(hint: Any) -> tuple:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _members(parts: tuple) -> list[str]:
    """What a union is made of, in its order; members that have a name together are said by it."""
    left, said = list(parts), {}
    for members, words in _NAMED:
        if members <= {*left}:
            first = next(part for part in left if part in members)
            said[first] = words
            left = [part for part in left if part not in members or part is first]
    words = [said[part] if part in said else in_words(part) for part in left]
    return [f"({each})" if each.startswith("function") and len(words) > 1 else each for each in words]


def _array(hint: Any) -> str:
    """An array of jaxtyping: of what, and its axes."""
    of = _KINDS.get(hint.dtype.__name__, "numbers")
    what = "tensor" if hint.array_type is Tensor else "NumPy array"
    if not hint.dim_str:
        return f"scalar {what} of {of}"
    return f"{what} of {of}" + ("" if hint.dim_str == "..." else f" [{', '.join(hint.dim_str.split())}]")
