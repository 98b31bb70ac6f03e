"""Keywords under the names they had before, for one release: each warns and names the new form."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, cast

from tl_backward._support.warnings import warn_user

P = ParamSpec("P")
R = TypeVar("R")


def old_keywords(moved: dict[str, str], **options: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function be called with keywords that were renamed, or that are now fields of an option object.

    Args:
        moved: old keyword -> new one ("weights"), or option object and field ("text_options.batch_size").
        options: parameter -> its option dataclass; where the caller gives none, the parameter's default is begun with.

    Raises:
        TypeError: from the function, where old and new name the same thing.

    Examples:
        >>> from tl_backward._support.deprecation import old_keywords
        >>> @old_keywords({"n_tokens": "k"})
        ... def top(*, k=10):
        ...     return k
        >>> top(n_tokens=3)  # and a DeprecationWarning: top(n_tokens=...) is now top(k=...)
        3
    """

    def accepting(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            old = [name for name in moved if name in kwargs]
            if not old:
                return function(*args, **kwargs)
            given, fields = dict(kwargs), dict[str, dict[str, object]]()
            own = inspect.signature(function).parameters
            for name in old:
                parameter, _, field = moved[name].partition(".")
                value = given.pop(name)
                if field:
                    begun = kwargs.get(parameter)
                    if isinstance(begun, options[parameter]) and getattr(begun, field) is not getattr(
                        options[parameter], field, getattr(begun, field)
                    ):
                        raise TypeError(
                            f"{function.__name__}() got {parameter!r} with {field!r} and its old name {name!r}; drop "
                            "the old."
                        )
                    fields.setdefault(parameter, {})[field] = value
                elif parameter in kwargs:
                    raise TypeError(f"{function.__name__}() got {parameter!r} and its old name {name!r}; drop the old.")
                else:
                    given[parameter] = value
                new = f"{parameter}={options[parameter].__name__}({field}=...)" if field else f"{parameter}=..."
                warn_user(
                    f"{function.__name__}({name}=...) is now {function.__name__}({new}); the old form goes with the "
                    "next release.",
                    DeprecationWarning,
                )
            for parameter, values in fields.items():
                if parameter in given and given[parameter] is None:
                    continue  # what was switched off stays so
                begun, made = given.get(parameter, own[parameter].default), options[parameter]
                if type(begun) in (int, float):  # a number may stand for the first field
                    begun = made(begun)
                given[parameter] = replace(cast(Any, begun), **values) if isinstance(begun, made) else made(**values)
            return cast(Callable[..., R], function)(*args, **given)

        return called

    return accepting
