"""Token ids as strings: leading spaces are preserved, bytes and padding rows named."""

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from tl_backward._support.types import DataFrame, Series, Tokenizer, TransformerLensModel
from tl_backward.model.inputs import check_reads_text

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What a sentencepiece tokenizer writes for a space."""
BYTE_LEVEL_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""What GPT-2's kind writes for it."""
_KNOWN: "WeakKeyDictionary[Tokenizer, dict[int, str]]" = WeakKeyDictionary()
"""The strings of each tokenizer, for as long as somebody has it."""


def vocabulary_size(model: TransformerLensModel) -> int:
    """Size of a model's input vocabulary, the rows of W_E.

    A Bridge's `cfg.d_vocab` is its tokenizer's size once it was given another tokenizer.
    """
    return embedding_table(model).shape[0]


def embedding_table(model: TransformerLensModel) -> Tensor:
    """The table that tokens are looked up in [d_vocab, d_model], also where TransformerLens has no name for it.

    Raises:
        TypeError: the model reads no text.
    """
    check_reads_text(model)
    find = getattr(getattr(model, "original_model", None), "get_input_embeddings", None)
    try:
        return model.W_E
    except AttributeError:
        if find is None:
            raise
        return find().weight


def output_size(model: object) -> int | None:
    """Size of a model's output vocabulary, the columns of W_U; None without an unembedding."""
    try:
        head = getattr(model, "W_U", None)
    except NotImplementedError:  # a quantised tensor that cannot be transposed, of [d_vocab, d_model]
        return next(cast(nn.Module, getattr(model, "unembed", None)).parameters()).shape[0]
    except AssertionError as error:  # TransformerLens's own, of a component that holds no weight itself
        raise ValueError(
            "Expected an unembedding with a weight of its own, got a module around one, which TransformerLens reads no "
            "W_U from; put the module in its place by itself."
        ) from error
    return None if head is None else head.shape[1]


def one_vocabulary(model_a: TransformerLensModel, model_b: TransformerLensModel) -> bool:
    """Whether an id is the same token to both, as their tokenizers tell; where one has none, as their sizes do."""
    get_a, get_b = (getattr(model.tokenizer, "get_vocab", None) for model in (model_a, model_b))
    if get_a is not None and get_b is not None:
        return get_a() == get_b()
    return vocabulary_size(model_a) == vocabulary_size(model_b)


def token_string(tokenizer: Tokenizer | None, token: int) -> str:
    """One token as text, as it stands in a sentence.

    A sentencepiece word keeps the space it stands for; bytes that are no whole character show as their names (<0xE2>),
    as does a byte whose character is another token; an id beyond the tokenizer (a padded vocabulary) or without one
    shows as [id].
    """
    if token < 0:
        return ""
    if tokenizer is None:
        return f"[{token}]"
    try:
        known = _KNOWN.setdefault(tokenizer, {})
    except TypeError:  # one that cannot be referred to weakly
        return _token_string(tokenizer, token)
    if token not in known:
        known[token] = _token_string(tokenizer, token)
    return known[token]


def _token_string(tokenizer: Tokenizer, token: int) -> str:
    try:
        piece, text = tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token])
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        return f"[{token}]"
    if piece is None or not text:
        return piece or f"[{token}]"
    if "\N{REPLACEMENT CHARACTER}" in text:
        return _named_bytes(piece, text)
    if _BYTE.fullmatch(piece) and _is_another(tokenizer, text, token):
        return piece
    if piece.startswith(SPACE) and not text.startswith(" "):
        return " " + text
    return text


_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _is_another(tokenizer: Tokenizer, text: str, token: int) -> bool:
    """Whether a text is a token of its own beside the byte that stands for it too."""
    find = getattr(tokenizer, "convert_tokens_to_ids", None)
    if find is None:
        return False
    none = (None, token, getattr(tokenizer, "unk_token_id", None))
    return any(find(form) not in none for form in (text, text.replace(" ", SPACE)))


def _named_bytes(piece: str, text: str) -> str:
    """A piece that decodes to a text with replacement characters: its bytes named where they are no whole character.

    A byte-level piece (GPT-2's) is one whose bytes, as its letters stand for them, decode to that text.
    """
    data = bytes(_BYTE_OF[char] for char in piece if char in _BYTE_OF)
    if len(data) < len(piece) or data.decode(errors="replace") != text:
        return piece
    shown = ""
    while data:
        try:
            return shown + data.decode()
        except UnicodeDecodeError as error:
            wrong = data[error.start : error.end]
            shown += data[: error.start].decode() + "".join(f"<0x{byte:02X}>" for byte in wrong)
            data = data[error.end :]
    return shown


def _byte_letters() -> dict[str, int]:
    """The letter that GPT-2's kind of tokenizer writes for each byte: its own where that shows, else from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _byte_letters()


def is_space(tokenizer: Tokenizer | None, token: int) -> bool:
    """Whether a token is a space, or several, and nothing else, as its tokenizer writes them."""
    piece = None if tokenizer is None else tokenizer.convert_ids_to_tokens(token)
    return bool(piece) and not piece.strip(SPACE + BYTE_LEVEL_SPACE)


def token_strings(tokenizer: Tokenizer | None, ids: Tensor) -> list:
    """`token_string` of every id, nested as `ids` is."""
    return [
        token_strings(tokenizer, row) if row.ndim else token_string(tokenizer, int(row)) for row in ids.detach().cpu()
    ]


def reads_unknown(tokenizer: Tokenizer | None, text: str) -> bool:
    """Whether a tokenizer reads something of a text as its unknown token.

    Not where the text names that token itself (GPT-2's <|endoftext|> is its unknown token as well as its BOS).
    """
    unknown, encode = getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "encode", None)
    if unknown is None or encode is None:
        return False
    read = list(encode(text, add_special_tokens=False)).count(unknown)
    return read > text.count(str(getattr(tokenizer, "unk_token", None)))


def unknown_words(tokenizer: Tokenizer | None, text: str) -> list[str]:
    """The words of a text that the tokenizer reads as its unknown token, with a space before them and without."""
    return [
        word
        for word in dict.fromkeys(text.split())
        if all(reads_unknown(tokenizer, form) for form in (word, f" {word}"))
    ]


def text_frame(rows: Iterable[Mapping[str, object]]) -> DataFrame:
    """Rows as a frame; a column with a string in it holds Python objects, as `text_column` does."""
    import pandas

    rows = list(rows)
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}
    with_text = {name for name, values in columns.items() if any(isinstance(value, str) for value in values)}
    return pandas.DataFrame(
        {name: text_column(values) if name in with_text else pandas.Series(values) for name, values in columns.items()}
    )


def text_column(strings: Iterable[object]) -> Series:
    """Untrusted strings as a column of Python objects: the string dtype of pandas 3 refuses lone surrogates."""
    import pandas

    return pandas.Series(list(strings), dtype=object)
