"""Where in a text an activation is read: by index, by token, or by a function of the text."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from tl_backward.text.encoded import Encoded
from tl_backward.text.token_strings import token_string

Position: TypeAlias = int | str | Callable[[str, list[str]], int | None]
"""An index among the text's tokens (BOS counted; negative from the text's own end, padding never counted); a token as
it reads, at its last occurrence; or a function of the text and its tokens that gives an index, or None for nowhere."""

NOWHERE = -1


def find_positions(texts: Encoded, position: Position) -> Int[Tensor, "text"]:
    """The position's index in each text, NOWHERE in texts that do not have it.

    Raises:
        ValueError: a function that raises, or gives no index; the message names the text.
        TypeError: a position of another kind.
    """
    if isinstance(position, bool) or not (isinstance(position, int | str) or callable(position)):
        raise TypeError(
            f"Expected a position as an index, a token or a function (text, tokens) -> index, got {position!r}; for "
            "example -1 for a text's last token."
        )
    if isinstance(position, str):
        return _last_of(texts, position)
    if isinstance(position, int):
        return _index(texts.lengths, torch.full_like(texts.lengths, position))
    given = torch.tensor([_asked(position, texts, index) for index in range(len(texts))], dtype=torch.long)
    return _index(texts.lengths, given)


def find_position(texts: Encoded, position: Position) -> int:
    """The position in a single text.

    Raises:
        ValueError: the text does not have it; and as for `find_positions`.
    """
    (at,) = find_positions(texts, position).tolist()
    if at == NOWHERE:
        strings = texts.strings(0)
        where = f"{position!r}" if isinstance(position, int | str) else "nowhere, or outside,"
        raise ValueError(
            f"Expected a position in the query's {len(strings)} tokens {strings!r:.200}, got {where}; give an index in "
            f"[-{len(strings)}, {len(strings)}) or a token that occurs."
        )
    return at


_BEYOND = torch.iinfo(torch.long).max // 2  # an index no text has


def _asked(position: Callable[[str, list[str]], int | None], texts: Encoded, index: int) -> int:
    text = texts.text(index)
    try:
        found = position(text, texts.strings(index))
    except Exception as error:
        raise ValueError(
            f"Expected the position function to give an index, got {type(error).__name__}: {error} for text {index} "
            f"({text!r:.80}); give None where a text has no such position."
        ) from error
    if found is None:
        return _BEYOND
    if isinstance(found, bool) or not isinstance(found, int):
        raise ValueError(
            f"Expected the position function to give an index or None, got {found!r} for text {index} ({text!r:.80})."
        )
    return found


def _index(lengths: Int[Tensor, "text"], given: Int[Tensor, "text"]) -> Int[Tensor, "text"]:
    at = torch.where(given < 0, given + lengths, given)
    return torch.where((at >= 0) & (at < lengths), at, NOWHERE)


def _last_of(texts: Encoded, token: str) -> Int[Tensor, "text"]:
    ids = [i for i in texts.tokens.unique().tolist() if token_string(texts.tokenizer, i) == token]
    there = torch.isin(texts.tokens, torch.tensor(ids, dtype=torch.long)) & texts.mask
    last = there.shape[1] - 1 - there.flip(1).int().argmax(1)
    return torch.where(there.any(1), last, NOWHERE)
