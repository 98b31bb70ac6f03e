"""Where a text has a space between two tokens of which neither has it: word pieces, whole words."""

from collections.abc import Sequence

from tl_backward._support.types import Tokenizer


def token_gaps(tokenizer: Tokenizer | None, ids: Sequence[int], strings: Sequence[str]) -> list[bool]:
    """Whether the tokenizer writes a space before each token that no token's own string has.

    Args:
        tokenizer: the model's; None for none, so that there are no gaps.
        ids: the tokens.
        strings: what each is by itself.
    """
    known: dict[tuple[int, int], bool] = {}
    gaps = [False] * len(strings)
    if tokenizer is None:
        return gaps
    for place in range(1, len(strings)):
        pair = (ids[place - 1], ids[place])
        if pair not in known:
            known[pair] = _apart(tokenizer, pair, strings[place - 1], strings[place])
        gaps[place] = known[pair]
    return gaps


def joined(strings: Sequence[str], gaps: Sequence[bool]) -> str:
    """The text that tokens make."""
    return "".join((" " if gap else "") + string for string, gap in zip(strings, gaps, strict=True))


def _apart(tokenizer: Tokenizer, pair: tuple[int, int], first: str, second: str) -> bool:
    if first[-1:].isspace() or second[:1].isspace():
        return False
    try:
        return tokenizer.decode(list(pair)).strip() == f"{first} {second}"
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):  # an id beyond the tokenizer
        return False
