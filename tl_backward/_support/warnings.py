"""Warnings attributed to the user's line of code, however deep in this package they are raised."""

import functools
import sys
import warnings
from contextvars import ContextVar
from pathlib import Path

import beartype
import jaxtyping
import torch

_HERE = str(Path(__file__).parents[1])
_BETWEEN = (
    *(str(Path(str(module.__file__)).parent) for module in (beartype, jaxtyping, torch)),
    functools.__file__,
    "<@beartype",
)
"""What may stand between two functions of ours."""


SAID: ContextVar[set[str] | None] = ContextVar("warnings of the call of a public function", default=None)
"""What has been warned of since a public function was called from outside; None outside one."""


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest stack frame outside this package, so that Python shows a warning once for each line there.

    Within one call of a public function the same is said once, however often it is met.
    """
    said = SAID.get()
    if said is not None:
        if message in said:
            return
        said.add(message)
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith((_HERE, *_BETWEEN)):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
