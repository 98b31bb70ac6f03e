"""Token ids of any integer dtype, PyTorch's or NumPy's, converted to int64."""

from collections.abc import Sequence
from numbers import Integral
from operator import index
from typing import SupportsIndex, TypeAlias, TypeGuard, cast

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from tl_backward._support.hints import say_as, show_as

Id: TypeAlias = int | np.integer | Integer[Tensor, ""]
"""One of them."""
show_as(Id, "Id")
Ids: TypeAlias = Integer[Tensor, "..."] | Integer[np.ndarray, "..."]
"""Token ids of any integer dtype, which `as_ids` makes int64."""
say_as(Id, "token id")
say_as(Ids, "tensor or array of token ids")
show_as(Ids, "Ids")
ARRAYS = (Tensor, np.ndarray)
"""What `as_ids` takes, or refuses for what it holds."""

_UNSIGNED = (np.dtype(np.uint64), torch.uint64)
_TOO_LARGE = "Expected token ids of at most 63 bits, got a larger one; token ids come from model.to_tokens(text)."


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
        ValueError: one has more than 63 bits.
    """
    if not is_integers(value):
        raise TypeError(
            f"Expected integer {what}, got {value.dtype} of shape {list(value.shape)}; token ids come from "
            "model.to_tokens(text)."
        )
    ids = torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value.long()
    if value.dtype in _UNSIGNED and bool((ids < 0).any()):
        raise ValueError(_TOO_LARGE)
    return ids


def as_prompt(value: object) -> object:
    """Prompts whose ids come in lists as a tensor: a list of ids [pos], a list of as many ids each [batch, pos].

    Rows of other lengths become lists of ints, to be padded; whatever is no list of ids stays what it is.

    Raises:
        ValueError: an id has more than 63 bits.

    Examples:
        >>> from tl_backward.text.ids import as_prompt
        >>> as_prompt([5, 6]), as_prompt([[5, 6], (7, 8)]), as_prompt([[5], [7, 8]]), as_prompt(["a"])
        (tensor([5, 6]), tensor([[5, 6],
                [7, 8]]), [[5], [7, 8]], ['a'])
    """
    if not isinstance(value, list | tuple) or not value:
        return value
    if is_id(value[0]):
        row = _ids_of(value)
        return value if row is None else torch.tensor(row)
    rows: list[list[int]] = []
    for item in value:
        if (row := _ids_of(item)) is None:
            return value
        rows.append(row)
    return torch.tensor(rows, dtype=torch.long) if len({len(row) for row in rows}) == 1 else rows


def _ids_of(value: object) -> list[int] | None:
    """A list, or an array with one axis, of ids as ints; None where it is something else."""
    if isinstance(value, ARRAYS):
        return as_ids(value).tolist() if is_integers(value) and value.ndim == 1 else None
    if not isinstance(value, list | tuple) or not all(is_id(item) for item in value):
        return None
    row = [one_id(item) for item in value]
    if any(not -(2**63) <= item < 2**63 for item in row):
        raise ValueError(_TOO_LARGE)
    return row


def one_id(value: object, what: str = "a token id") -> int:
    """One id as an int.

    Raises:
        TypeError: it is no integer (a float, even a whole one; True; text).
    """
    if not is_id(value):
        hint = "; ids come from model.to_tokens(text)" if " id" in what else ""
        raise TypeError(f"Expected {what} as an integer, got {value!r:.60}{hint}.")
    return index(cast(SupportsIndex, value))


def check_in_vocabulary(tokens: Int[Tensor, "..."], d_vocab: int) -> None:
    """Refuse ids of tokens that a vocabulary does not have.

    Raises:
        ValueError: one is outside [0, d_vocab).
    """
    if int(tokens.min()) < 0 or int(tokens.max()) >= d_vocab:
        raise ValueError(
            f"Expected token ids in [0, {d_vocab}), got {int(tokens.min())} to {int(tokens.max())}; the tokens come "
            "from another vocabulary."
        )


def side_by_side(
    rows: Sequence[Sequence[int]], fill: int = 0, *, left: bool = False
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Rows of ids as one tensor padded with `fill` on one side, and a mask of the rows' own ids."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
    width = int(lengths.max()) if len(rows) else 0
    place = torch.arange(width)
    real = place >= width - lengths if left else place < lengths
    tokens = torch.full(real.shape, fill)
    tokens[real] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return tokens, real


def _is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool
