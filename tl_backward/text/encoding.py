"""Text to token ids: whole texts as the model's own `to_tokens`, and continuations of a prompt.

Nothing outside this folder asks a model or a tokenizer for the ids of a text.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from tl_backward._support.checks import TrailingSpaceWarning, UnknownWordsWarning, check_text, nearest
from tl_backward._support.types import Tokenizer, TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.text.token_strings import SPACE, is_space, reads_unknown, token_string, unknown_words

_MANY = 8
"""Texts from which on a tokenizer is asked for all of them in one go."""


@runtime_checkable
class Encoder(Protocol):
    """Protocol of what encodes target words: a TransformerLens model."""

    def to_tokens(self, input: str, prepend_bos: bool | None = ...) -> Tensor:
        """Token ids [1, pos] of a text."""
        ...


class _BatchTokenizer(Protocol):
    def __call__(self, text: Sequence[str], **options: object) -> Mapping[str, list[list[int]]]: ...


def needed_tokenizer(model: TransformerLensModel) -> Tokenizer:
    """The model's tokenizer; refused where it has none.

    Raises:
        ValueError: it has none.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "Expected a model with a tokenizer, got text for one without; pass token ids (an integer tensor "
            "[batch, pos]) or set model.tokenizer."
        )
    return tokenizer


def encode_read(model: TransformerLensModel, read: str | list[str], **options: object) -> Tensor:
    """[batch, pos] of what a model's own forward makes of text, padded as it pads it: same options, same ids."""
    return cast(Callable[..., Tensor], model.to_tokens)(read, **options)


def encode_texts(
    model: TransformerLensModel, texts: Sequence[str], *, prepend_bos: bool | None = None
) -> list[list[int]]:
    """Each text's ids as `model.to_tokens` gives them, never cut.

    Many texts in one go, where that adds the same to the tokenizer's own ids of the shortest, the longest and the
    middle one, and of one with and one without a space before it.

    Raises:
        ValueError: a model without a tokenizer, an empty text, or one that UTF-8 cannot write.
    """
    tokenizer = needed_tokenizer(model)
    for index, text in enumerate(texts):
        if not check_text(text):
            which = f" as text {index}" if len(texts) > 1 else ""
            raise ValueError(
                f"Expected texts of at least one character, got an empty one{which}; write something, or leave it out."
            )
    options = {} if prepend_bos is None else {"prepend_bos": prepend_bos}

    def one(text: str) -> list[int]:
        return model.to_tokens(text, truncate=False, **options).flatten().tolist()

    if len(texts) < _MANY:
        return [one(text) for text in texts]
    bare = cast(_BatchTokenizer, tokenizer)(list(texts), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    begun = {text[0].isspace(): index for index, text in enumerate(texts)}
    tried = {order[0], order[len(order) // 2], order[-1], *begun.values()}
    added = {_added(one(texts[index]), bare[index]) for index in tried}
    (before,) = added if len(added) == 1 else (None,)
    return [one(text) for text in texts] if before is None else [[*before, *row] for row in bare]


def _added(full: list[int], bare: list[int]) -> tuple[int, ...] | None:
    """The ids before a text's own ids (BOS); None where more than that differs."""
    start = len(full) - len(bare)
    return tuple(full[:start]) if start >= 0 and full[start:] == bare else None


def encode_warned(
    model: TransformerLensModel, texts: Sequence[str], *, prepend_bos: bool | None = None
) -> list[list[int]]:
    """`encode_texts`, with a warning of words that the model reads as unknown, and one of texts with two BOS."""
    rows = encode_texts(model, texts, prepend_bos=prepend_bos)
    warn_of_unknown(model, texts, rows)
    warn_of_two_beginnings(model, rows)
    return rows


def warn_of_trailing_space(texts: Sequence[str]) -> None:
    """Warn once for all prompts of a call of those that end in a space, which belongs to the next word's token.

    A model that was trained on words with the space before them was never asked after a space alone.
    """
    ends = [text for text in texts if text[-1:] == " "]
    if ends:
        some = f"The prompt {ends[0][-40:]!r} ends" if len(ends) == 1 else f"{len(ends)} prompts end"
        warn_user(
            f"{some} in a space, which is a token of its own there: the model is asked after it; leave it out, and "
            "begin the target with it (' word').",
            TrailingSpaceWarning,
        )


def warn_of_unknown(model: TransformerLensModel, texts: Sequence[str], rows: Iterable[Sequence[int]]) -> None:
    """Warn once for all texts of a call of words that the model encodes as unknown."""
    tokenizer = model.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    held = [text for text, row in zip(texts, rows, strict=True) if unknown in row and reads_unknown(tokenizer, text)]
    if held:
        words = dict.fromkeys(word for text in held[:_MANY] for word in unknown_words(tokenizer, text))
        some = "A text has" if len(held) == 1 else f"{len(held)} texts have"
        # Where no word is to blame, it is what stands between them, as a space at the end.
        what, which = ("words", islice(words, _MANY)) if words else ("parts", [held[0][-40:]])
        warn_user(
            f"{some} {what} that are not in the model's vocabulary and are read as unknown: "
            f"{', '.join(map(repr, which))}.",
            UnknownWordsWarning,
        )


def warn_of_two_beginnings(model: TransformerLensModel, rows: Iterable[Sequence[int]]) -> bool:
    """Warn once for all texts of a call of texts that got a second BOS; returns whether it warned."""
    bos = getattr(model.tokenizer, "bos_token_id", None)
    doubled = bos is not None and any(list(row[:2]) == [bos, bos] for row in rows)
    if doubled:
        warn_user(
            f"A text begins with the tokenizer's BOS ({getattr(model.tokenizer, 'bos_token', '')!r}) and was given a "
            "second one; leave it out of the text, or pass prepend_bos=False."
        )
    return doubled


def encode_continuation(model: Encoder, text: str) -> list[int]:
    """Token ids of a text that follows another: without a BOS, and with as many leading spaces as it has itself.

    Llama's kind of tokenizer puts a space before every text. One that the text has already would be a token more, so it
    is left to the tokenizer; Gemma's kind adds none, and keeps the text's own.

    Raises:
        ValueError: the text encodes to nothing, or to the tokenizer's unknown token.
    """
    tokenizer = getattr(model, "tokenizer", None)
    ids = _bare(model, check_text(text)) if text else []
    if text.startswith(" ") and _leading_spaces(tokenizer, ids) > _spaces(text):
        ids = (_bare(model, text[1:]) if text[1:] else []) or ids[1:]
    elif text[:1].isspace() and not text.startswith(" ") and len(ids) > 1 and is_space(tokenizer, ids[0]):
        ids = ids[1:]  # what the tokenizer puts before every text does not stand before a line break
    if not ids:
        raise ValueError(f"Expected a target that encodes to at least one token, got {text!r}; give a word.")
    if reads_unknown(tokenizer, text):
        known = [token_string(tokenizer, token) for token in range(len(cast(Sized, tokenizer)))]
        raise ValueError(
            f"Expected a target in the model's vocabulary, got {text!r}, which contains an unknown word; the nearest "
            f"are {nearest(text, known)} (the leading space counts: ' Oslo' and 'Oslo' are different tokens)."
        )
    return ids


def _bare(model: Encoder, text: str) -> list[int]:
    """A text's ids without the special tokens around it (BOS, BERT's [CLS] and [SEP])."""
    encode = getattr(getattr(model, "tokenizer", None), "encode", None)
    if encode is None:
        return model.to_tokens(text, prepend_bos=False).flatten().tolist()
    return list(encode(text, add_special_tokens=False))


def _leading_spaces(tokenizer: Tokenizer | None, ids: Sequence[int]) -> int:
    """How many spaces lead a sentencepiece tokenizer's pieces."""
    if tokenizer is None:
        return 0
    return _spaces("".join(tokenizer.convert_ids_to_tokens(token) or "" for token in ids), SPACE)


def _spaces(text: str, space: str = f" {SPACE}") -> int:
    return len(text) - len(text.lstrip(space))
