"""Token ids as they come in: any integer dtype, PyTorch's or NumPy's, made int64 once and here."""

from numbers import Integral
from operator import index
from typing import SupportsIndex, TypeAlias, TypeGuard, cast

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

Id: TypeAlias = int | np.integer | Integer[Tensor, ""]
"""One of them."""
Ids: TypeAlias = Integer[Tensor, "..."] | Integer[np.ndarray, "..."]
"""Token ids of any integer dtype, which `as_ids` makes int64."""
ARRAYS = (Tensor, np.ndarray)
"""What `as_ids` takes, or refuses for what it holds."""


def is_id(value: object) -> bool:
    """Whether something is one integer: Python's, NumPy's, or a tensor without axes; True and False are none."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and _is_integer(value.dtype)
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_integers(value: object) -> TypeGuard[Tensor | np.ndarray]:
    """Whether something is a tensor or a NumPy array of integers."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    return isinstance(value, Tensor) and _is_integer(value.dtype)


def as_ids(value: Tensor | np.ndarray, what: str = "token ids") -> Tensor:
    """A tensor or a NumPy array of integers as int64, on its device and in its shape; itself where it is that already.

    Raises:
        TypeError: it holds no integers.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise TypeError(
                f"Expected integer {what}, got an array of {value.dtype}; token ids come from model.to_tokens(text)."
            )
        return torch.from_numpy(value.astype(np.int64))
    if not _is_integer(value.dtype):
        raise TypeError(
            f"Expected integer {what}, got {value.dtype} of shape {list(value.shape)}; token ids come from "
            "model.to_tokens(text)."
        )
    return value.long()


def one_id(value: object, what: str = "a token id") -> int:
    """One id as an int.

    Raises:
        TypeError: it is no integer (a float, even a whole one; True; text).
    """
    if not is_id(value):
        raise TypeError(f"Expected {what} as an integer, got {value!r:.60}; ids come from model.to_tokens(text).")
    return index(cast(SupportsIndex, value))


def _is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool
