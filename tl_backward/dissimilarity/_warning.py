"""Warnings that name the line of whoever called the package."""

import sys
import warnings


def warn(message: str) -> None:
    """Warn at the line outside the package that called."""
    level, frame = 2, sys._getframe(1)
    ours = ("tl_backward", "jaxtyping", "beartype", "torch.", "functools")
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith(ours):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
