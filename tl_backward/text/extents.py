"""Character spans of tokens in a text, and tokens of two tokenizers that end at the same character."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, cast

from tl_backward._support.types import Tokenizer
from tl_backward.text.token_strings import is_space

Extent: TypeAlias = tuple[int, int]
"""[start, end) among a text's characters; empty for a token that stands for none (a BOS)."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class _OffsetTokenizer(Protocol):
    def __call__(self, text: str, **options: object) -> Mapping[str, list]: ...


def extents_in_text(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[Extent] | None:
    """(start, end) characters of `text` of each token, from the tokenizer's offsets.

    All bytes of a character have that character; a lone "▁" or "Ġ" has none, since the one before a text stands for
    nothing in it. Where the tokenizer has no offsets (slow ones), those of what the ids decode to, if that differs from
    the text in spaces, cases and accents alone. None for what is neither.
    """
    if not getattr(tokenizer, "is_fast", False):
        return _carried_over(text, *decoded_extents(tokenizer, ids))
    encode = cast(_OffsetTokenizer, tokenizer)
    # TransformerLens writes a BOS that the tokenizer does not add before the text, which may change its first token.
    for before in dict.fromkeys(("", getattr(tokenizer, "bos_token", None) or "")):
        encoded = encode(before + text, return_offsets_mapping=True, add_special_tokens=False)
        plain = list(encoded["input_ids"])
        start = next((k for k in range(len(ids) - len(plain) + 1) if list(ids[k : k + len(plain)]) == plain), None)
        if start is None:
            continue
        own = [
            (max(0, first - len(before)), 0 if is_space(tokenizer, token) else max(0, last - len(before)))
            for token, (first, last) in zip(plain, encoded["offset_mapping"], strict=True)
        ]
        return [(0, 0)] * start + own + [(len(text), len(text))] * (len(ids) - start - len(plain))
    return _carried_over(text, *decoded_extents(tokenizer, ids))


def token_ends(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int | None]:
    """Number of characters of the text at each token's end; 0 for special tokens before it, None for other empty ones.

    Raises:
        ValueError: a tokenizer that does not tell.
    """
    extents = extents_in_text(tokenizer, ids, text)
    if extents is None:
        raise ValueError(
            "Expected tokens whose characters in the text are known, to align different tokenizers, got "
            f"{list(ids[:6])} of {type(tokenizer).__name__} for the text {text[:40]!r}; load its fast version, or pass "
            "token batches that you aligned yourself."
        )
    special = set(getattr(tokenizer, "all_special_ids", ()))
    first = next((k for k, (start, end) in enumerate(extents) if end > start), len(extents))
    return [
        end if end > start else 0 if k < first and ids[k] in special else None for k, (start, end) in enumerate(extents)
    ]


def shared_ends(ends_a: Sequence[int | None], ends_b: Sequence[int | None]) -> list[tuple[int, int]]:
    """Pairs of tokens that end at one character; of several (the bytes of one character) the last."""
    last_a, last_b = ({end: k for k, end in enumerate(ends) if end is not None} for ends in (ends_a, ends_b))
    return [(k, last_b[end]) for end, k in last_a.items() if end in last_b]


def _carried_over(text: str, decoded: str, extents: Sequence[Extent]) -> list[Extent] | None:
    """Map character spans in a decoded text to spans in the original text."""
    places, own = ([place for place, char in enumerate(each) if not char.isspace()] for each in (text, decoded))
    if [plain(text)[place] for place in places] != [plain(decoded)[place] for place in own]:
        return None
    place_of = dict(zip(own, places, strict=True))
    chars = [[place_of[place] for place in range(start, end) if place in place_of] for start, end in extents]
    return [(own[0], own[-1] + 1) if own else (0, 0) for own in chars]


def plain(text: str) -> str:
    """A text in lower case without accents, character by character."""
    letters = (unicodedata.normalize("NFD", char)[0].lower() for char in text)
    return "".join(letter if len(letter) == 1 else char for letter, char in zip(letters, text, strict=True))


def decoded_extents(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[Extent]]:
    """The text that ids decode to, special tokens left out, and the characters of it that each adds.

    Token k adds what the text of the first k tokens and that of all begin with alike, beyond what the first k - 1 do;
    one that ends within a character's bytes has that character too.
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    own = [int(token) for token in ids if token not in special]
    text = tokenizer.decode(own) if own else ""
    extents: list[Extent] = []
    n = start = 0
    for token in ids:
        if token in special:
            extents.append((start, start))
            continue
        n += 1
        part = tokenizer.decode(own[:n])
        same = max(start, _common(part, text))
        begun = same < len(text) and bool(part[same:]) and not part[same:].strip(_INCOMPLETE)
        extents.append((start, same + begun))
        start = same
    return text, extents


def _common(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
