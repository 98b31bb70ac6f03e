"""Numbers in lists, NumPy arrays and pandas columns as tensors, where a function takes tensors."""

import inspect
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor


def tensor_of(value: object, *, floats: bool = True) -> object:
    """A list, array or column of numbers as a tensor; anything else as it is.

    Args:
        value: nested lists of numbers become float32, or int64; an array keeps its type.
        floats: whether integers and booleans become float32 too.
    """
    if isinstance(value, Tensor):
        return value
    if (to_numpy := getattr(value, "to_numpy", None)) is not None:  # a pandas column, or a frame of numbers
        value = to_numpy()
    if not isinstance(value, list | tuple | np.ndarray):
        return value
    array = value if isinstance(value, np.ndarray) else _array(value)
    if array is None or array.dtype.kind not in ("biuf" if floats else "iu") or not array.size:
        return value
    if array is not value and array.dtype.kind == "f":
        array = array.astype(np.float32)
    made = torch.from_numpy(array.copy() if array is value or not array.flags.writeable else array)
    return made.float() if floats and not made.is_floating_point() else made


def _array(value: list | tuple) -> np.ndarray | None:
    """Nested lists as an array; None where they are no numbers, or of several lengths."""
    if value and all(isinstance(row, Tensor) for row in value):
        return None
    try:
        return np.array(value)
    except (ValueError, TypeError):
        return None


def tensor_parameters(function: Callable) -> dict[str, bool]:
    """The parameters of a function that take a tensor, and whether it is one of floating-point numbers."""
    found = {}
    for name, parameter in inspect.signature(inspect.unwrap(function)).parameters.items():
        kinds = [kind for kind in (parameter.annotation, *get_args(parameter.annotation)) if _of_tensors(kind)]
        if kinds:
            found[name] = any("float32" in kind.dtypes for kind in kinds)
    return found


def _of_tensors(hint: Any) -> bool:  # an annotation has no type of its own
    return getattr(hint, "array_type", None) is Tensor
