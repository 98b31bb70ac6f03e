"""Calls and names as they were before 0.2.0, for one release: each warns and says the new one."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import ParamSpec, TypeVar, cast

from tl_backward._support.deprecation import old_keywords
from tl_backward._support.types import TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.inversion.options import Closeness, SamplingOptions, SearchOptions
from tl_backward.inversion.query import Query
from tl_backward.model.place import Place, PlaceLike, resolve_place
from tl_backward.text.options import TextOptions

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = {
    "epsilon": (Closeness, ("metric", "match")),
    "text_options": (TextOptions, ("prepend_bos", "batch_size")),
    "search_options": (SearchOptions, tuple(field.name for field in fields(SearchOptions))),
    "sampling_options": (SamplingOptions, ("temperature", "noise")),
}
"""Parameter -> its class, and those of its fields that were keywords."""


def old_options(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function be called with what are now fields of the option objects that it takes."""
    own = inspect.signature(function).parameters
    taken = {name: option for name, option in _OPTIONS.items() if name in own}
    moved = {old: f"{name}.{old}" for name, (_, old_names) in taken.items() for old in old_names}
    return old_keywords(moved, **{name: option for name, (option, _) in taken.items()})(function)


def old_order(
    *names: str, is_new: Callable[[object], bool], after: int = 1
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function be called in its old order.

    Args:
        names: what stood after the model, in order.
        is_new: whether a value is of the kind that stands there now; nothing of the old kind may be.
        after: how many arguments come before, the model included.
    """

    def accepting(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            given = args[after:]
            if not given or len(given) > len(names) or is_new(given[0]):
                return function(*args, **kwargs)
            order = [name for name in inspect.signature(function).parameters if name in names and name != "epsilon"]
            old, new = (f"{function.__name__}(model, {', '.join(each)})" for each in (names, order))
            warn_user(f"{old} is now {new}; the old order goes with the next release.", DeprecationWarning)
            return cast(Callable[..., R], function)(*args[:after], **dict(zip(names, given, strict=False)), **kwargs)

        return called

    return accepting


def is_query(value: object) -> bool:
    """Whether a value is a query (a text, its tokens or a `Query`) and not a set of inputs.

    Raises:
        TypeError: one row of tokens, which may be either.
    """
    shape = getattr(value, "shape", ())
    if len(shape) == 2 and shape[0] == 1:
        raise TypeError(
            f"Expected a query's tokens [pos] after the model, got shape {list(shape)}, which may be inputs too; pass "
            "tokens[0], in the order (model, query, site, position, inputs)."
        )
    return len(shape) == 1 or isinstance(value, str | Query)


def is_site(value: object) -> bool:
    """Whether a value names a site and is not a set of inputs."""
    return isinstance(value, str | Place) or (isinstance(value, tuple) and any(isinstance(i, int) for i in value))


class Site:
    """Now `Place(name, head=head)`."""

    def __new__(cls, name: str, head: int | None = None) -> Place:
        """A `Place`, after a warning."""
        warn_user(
            "tl_backward.inversion.Site(name, head) is now Place(name, head=head); the old name goes with the next "
            "release.",
            DeprecationWarning,
        )
        return Place(name, head=head)


def resolve_site(model: TransformerLensModel, site: PlaceLike) -> Place:
    """Now `resolve_place`."""
    warn_user(
        "tl_backward.inversion.resolve_site is now resolve_place; the old name goes with the next release.",
        DeprecationWarning,
    )
    return resolve_place(model, site)
