"""Where in a text an activation is read: by index, by token, or by a function of the text."""

from collections.abc import Callable, Sequence
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
        ids = [i for i in texts.tokens.unique().tolist() if token_string(texts.tokenizer, i) == position]
        there = torch.isin(texts.tokens, torch.tensor(ids, dtype=torch.long)) & texts.mask
        return torch.where(there.any(1), there.shape[1] - 1 - there.flip(1).int().argmax(1), NOWHERE)
    given = [position if isinstance(position, int) else _asked(position, texts, index) for index in range(len(texts))]
    at = torch.tensor(given, dtype=torch.long)
    at = torch.where(at < 0, at + texts.lengths, at)
    return torch.where((at >= 0) & (at < texts.lengths), at, NOWHERE)


def find_each(
    texts: Encoded, positions: Sequence[Position] | None, *, n: int = 1, generator: torch.Generator | None = None
) -> Int[Tensor, "text slot"]:
    """Several positions in each text; without any, `n` of its tokens drawn at random.

    Raises:
        ValueError: no text has any of them; and as for `find_positions`.
    """
    if positions is None:
        return (torch.rand(len(texts), n, generator=generator, dtype=torch.float64) * texts.lengths[:, None]).long()
    at = torch.stack([find_positions(texts, rule) for rule in positions], 1)
    if not (at != NOWHERE).any():
        raise ValueError(
            f"Expected texts that have one of the positions {list(positions)!r:.120}, got {len(texts)} without; choose "
            "positions that occur in the data."
        )
    return at


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
        given = position(text, texts.strings(index))
    except Exception as error:
        raise ValueError(
            f"Expected the position function to give an index, got {type(error).__name__}: {error} for text {index} "
            f"({text!r:.80}); give None where a text has no such position."
        ) from error
    if given is None:
        return _BEYOND
    if isinstance(given, bool) or not isinstance(given, int):
        raise ValueError(
            f"Expected the position function to give an index or None, got {given!r} for text {index} ({text!r:.80})."
        )
    return given
