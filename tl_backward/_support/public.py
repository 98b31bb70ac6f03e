"""Public functions: what Python alone would say of a wrong call becomes a sentence about the argument that is wrong."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast, get_args, get_type_hints

from beartype.roar import BeartypeException
from jaxtyping import TypeCheckError
from torch import nn

from tl_backward._support.checks import UnknownInputError, close_names, no_model, short
from tl_backward._support.hints import fits, in_words, order_of, short_signature
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

    if (short := short_signature(function)) is not None:
        vars(called)["__signature__"] = short
    return called


def _sentence(function: Callable, error: Exception, args: tuple, kwargs: dict[str, object]) -> str | None:
    """What to say in place of an error; None where it speaks for itself, or nothing better is known."""
    said, parameters = str(error.args[0]) if error.args else "", inspect.signature(function).parameters
    unknown = error.name if isinstance(error, UnknownInputError) else None
    if isinstance(error, TypeError) and (match := _NO_SUCH_KEYWORD.search(said)):
        unknown = match[1] if match[1] not in parameters else None
    if unknown is not None:
        if option := _option_with(function, unknown):
            return f"Expected a keyword of {_called(function, args)}{_beside(error)}, got {unknown!r}; write {option}."
        keywords = _keywords(function, args)
        inputs = error.known if isinstance(error, UnknownInputError) else ()
        known = list(dict.fromkeys([*keywords, *inputs]))
        close = ", ".join(map(repr, close_names(unknown, known)))
        hint = f"the nearest are {close}" if close else f"known are {', '.join(known)}"
        return f"Expected a keyword of {_called(function, args)}{_beside(error)}, got {unknown!r}; {hint}."
    if isinstance(error, TypeCheckError | BeartypeException) or ("Expected " in said and "\n" not in said):
        return None
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError as reason:
        # Keywords of an older form are turned within the call, which then failed of something else.
        if not (isinstance(error, TypeError) and ("required" in said or "positional" in said)):
            return None
        what = f"that is {reason}" if "missing" in str(reason) else f"with {reason}"
        return f"Expected a complete call of {_called(function, args)}, got one {what}; see its help."
    for name, hint in _hints(function):
        if name in bound and not fits(bound[name], hint):
            if hint is nn.Module:
                return no_model(bound[name])
            return (
                f"Expected {name} of {_called(function, args)} to be {in_words(hint)}, got {short(bound[name])}; "
                f"{order_of(function, name, bound[name])}see help({_name(function)})."
            )
    return None


def _name(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}".replace(".<locals>", "").removesuffix(".__init__")


def _called(function: Callable, args: tuple) -> str:
    """What is called: where that makes an object its class, which may be another that passes its keywords on."""
    return type(args[0]).__name__ if _makes(function, args) else _name(function).rpartition(".")[2]


def _makes(function: Callable, args: tuple) -> bool:
    return function.__name__ == "__init__" and bool(args)


def _beside(error: Exception) -> str:
    return " or an input of the model" if isinstance(error, UnknownInputError) else ""


def _keywords(function: Callable, args: tuple) -> list[str]:
    """The keywords that are taken, those of an object's own class first."""
    called = [type(args[0]), function] if _makes(function, args) else [function]
    every = [each for one in called for each in inspect.signature(one).parameters.values()]
    named = [each.name for each in every if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return [name for name in dict.fromkeys(named) if name not in ("self", "cls")]


def _option_with(function: Callable, field: str) -> str | None:
    """How to give what is a field of one of the function's options; None where it is of none."""
    parameters = inspect.signature(function).parameters
    for name, hint in _hints(function):
        for kind in get_args(hint) or (hint,):
            among = is_dataclass(kind) and any(own.name == field and own.init for own in fields(kind))
            if among and parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
                return f"{name}={cast(type, kind).__name__}({field}=...)"
    return None


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
