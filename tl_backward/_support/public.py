"""Public functions: what Python alone would say of a wrong call becomes a sentence about the argument that is wrong."""

import functools
import inspect
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast, get_type_hints

from beartype.door import is_bearable
from beartype.roar import BeartypeException
from jaxtyping import TypeCheckError
from torch import nn

from tl_backward._support.checks import UnknownInputError, close_names, no_model, short
from tl_backward._support.hints import in_words
from tl_backward._support.warnings import SAID

T = TypeVar("T", bound=Callable)

_RAW = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_NO_SUCH_KEYWORD = re.compile(r"\(\) got (?:an unexpected keyword argument|multiple values for .*?argument) '(\w+)'")


def public(thing: T) -> T:
    """Let a function, or a class and each of its public methods, say which argument is none of what it takes.

    Arguments are looked at where an error has been raised that is no sentence of ours (`Expected ...`), so that a call
    that works is taken whatever its types are; nor is anything lost where none is to blame: the error stays. Of public
    functions that call each other the outermost speaks.

    Raises:
        TypeError: from the function, in place of that error, which stays its cause.

    Examples:
        >>> from tl_backward._support.public import public
        >>> @public
        ... def first(words: list[str], k: int):
        ...     return words[:k]
        >>> first(["a", "b"], "1")
        Traceback (most recent call last):
        TypeError: Expected k of first to be int, got '1'; see help(tl_backward._support.public.first).
    """
    if isinstance(thing, type):
        for name, method in list(vars(thing).items()):
            if name.startswith("_") and name not in ("__getitem__", "__init__"):
                continue
            if inspect.isfunction(method):
                setattr(thing, name, _speaking(method))
            elif isinstance(method, classmethod):
                setattr(thing, name, classmethod(_speaking(method.__func__)))
        return cast(T, thing)
    return cast(T, _speaking(thing))


def _speaking(function: Callable) -> Callable:
    @functools.wraps(function)
    def called(*args: object, **kwargs: object) -> object:
        if SAID.get() is not None:
            return function(*args, **kwargs)
        outermost = SAID.set(set())
        try:
            return function(*args, **kwargs)
        except _RAW as error:
            sentence = _sentence(function, error, args, kwargs)
            if sentence is None:
                raise
            raise TypeError(sentence) from error
        finally:
            SAID.reset(outermost)

    return called


def _sentence(function: Callable, error: Exception, args: tuple, kwargs: dict[str, object]) -> str | None:
    """What to say in place of an error; None where it speaks for itself, or nothing better is known."""
    said, parameters = str(error.args[0]) if error.args else "", inspect.signature(function).parameters
    unknown = error.name if isinstance(error, UnknownInputError) else None
    if isinstance(error, TypeError) and (match := _NO_SUCH_KEYWORD.search(said)):
        unknown = match[1] if match[1] not in parameters else None
    if unknown is not None:
        keywords = [name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD]
        inputs = error.known if isinstance(error, UnknownInputError) else ()
        beside = " or an input of the model" if isinstance(error, UnknownInputError) else ""
        known = list(dict.fromkeys([*keywords, *inputs]))
        close = ", ".join(map(repr, close_names(unknown, known)))
        hint = f"the nearest are {close}" if close else f"known are {', '.join(known)}"
        return f"Expected a keyword of {_called(function)}{beside}, got {unknown!r}; {hint}."
    if isinstance(error, TypeCheckError | BeartypeException) or ("Expected " in said and "\n" not in said):
        return None
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError as reason:
        # Keywords of an older form are turned within the call, which then failed of something else.
        if not (isinstance(error, TypeError) and ("required" in said or "positional" in said)):
            return None
        what = f"that is {reason}" if "missing" in str(reason) else f"with {reason}"
        return f"Expected a complete call of {_called(function)}, got one {what}; see its help."
    for name, hint in _hints(function):
        if name in bound and not _fits(bound[name], hint):
            if hint is nn.Module:
                return no_model(bound[name])
            return (
                f"Expected {name} of {_called(function)} to be {in_words(hint)}, got {short(bound[name])}; see "
                f"help({_name(function)})."
            )
    return None


def _name(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}".replace(".<locals>", "").removesuffix(".__init__")


def _called(function: Callable) -> str:
    """What is called: a class where that makes one."""
    return _name(function).rpartition(".")[2]


def _hints(function: Callable) -> Iterator[tuple[str, Any]]:
    """Each parameter's hint, of those that have one; a name that is for type checkers alone has none."""
    own = inspect.unwrap(function)
    try:
        hints = get_type_hints(own)
    except NameError:
        hints = {name: hint for name, hint in inspect.get_annotations(own).items() if not isinstance(hint, str)}
    for name, parameter in inspect.signature(own).parameters.items():
        if name in hints and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield name, hints[name]


def _fits(value: object, hint: Any) -> bool:
    before = random.getstate()  # from which beartype draws the item of a list that it looks at
    try:
        return is_bearable(value, hint)
    except BeartypeException:  # a hint that it does not know
        return True
    finally:
        random.setstate(before)
