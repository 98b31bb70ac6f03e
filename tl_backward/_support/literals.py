"""Type checks with beartype that leave a Literal's allowed values to the function, whose error names them all."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

import beartype as package
from beartype import BeartypeConf, beartype

# Its name before beartype 0.20 is the second.
_FROZEN: Any = getattr(package, "FrozenDict", None) or package.BeartypeHintOverrides

F = TypeVar("F", bound=Callable)


def check_types(signature: F, **conf: Any) -> F:
    """Check a function's arguments and what it returns; of a Literal, only the values' type. `conf` is beartype's."""
    hints = list(getattr(signature, "__annotations__", {}).values())
    overrides = {each: type(get_args(each)[0]) for hint in hints for each in _literals(hint)}
    if not overrides:
        return beartype(conf=BeartypeConf(**conf))(signature)
    return beartype(conf=BeartypeConf(hint_overrides=_FROZEN(overrides), **conf))(signature)


def _literals(hint: Any) -> Iterator[Any]:  # an annotation has no type of its own
    if get_origin(hint) is Literal:
        yield hint
    else:
        for part in get_args(hint):
            yield from _literals(part)
