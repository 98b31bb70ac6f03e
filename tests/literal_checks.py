"""What pytest checks the package's types with: `tl_backward._support.literals`, loaded from outside the package.

jaxtyping's import hook has every module of the package import its checker, this one too.
"""

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jaxtyping

_PATH = Path(__file__).parents[1] / "tl_backward" / "_support" / "literals.py"
_SPEC = importlib.util.spec_from_file_location("literals_of_the_package", _PATH)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
check_types = _MODULE.check_types


_ALL_CALLS = jaxtyping.jaxtyped


def _jaxtyped(*functions: Any, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, but for functions without arrays, which need no bookkeeping of shapes at each call.

    That bookkeeping was half of all the time that the tests took.
    """
    if not functions:
        return lambda function: _jaxtyped(function, typechecker=typechecker)
    (function,) = functions
    by_hook = inspect.isfunction(function) and not (typechecker.__module__ or "").startswith("tl_backward")
    if by_hook:
        vars(function).pop("__signature__", None)  # with aliases' names, for help; what is checked is whole
    if by_hook and not any(map(_is_of_arrays, _parts(function.__annotations__.values()))):
        return _MODULE.check_types(function, violation_type=jaxtyping.TypeCheckError)
    return _ALL_CALLS(function, typechecker=typechecker)


def _parts(hints: Any) -> Iterator[Any]:
    for hint in hints:
        yield hint
        yield from _parts(hint if isinstance(hint, list) else get_args(hint))


def _is_of_arrays(hint: Any) -> bool:
    return isinstance(hint, str) or (isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray))


jaxtyping.jaxtyped = _jaxtyped
