"""Tiny models that tests only read, built once."""

import functools

from models import build


@functools.cache
def cached(world):
    """The plainest model of a world; whoever changes it builds one of their own."""
    return build(world)
