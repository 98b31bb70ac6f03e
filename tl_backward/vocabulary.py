"""Token ids as strings that show what they are: leading spaces kept, bytes and padding rows named."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from tl_backward._typing import Tokenizer, TransformerLensModel

if TYPE_CHECKING:
    import pandas


_KNOWN: "WeakKeyDictionary[Tokenizer, dict[int, str]]" = WeakKeyDictionary()
"""The strings of each tokenizer, for as long as somebody has it."""


def vocabulary_size(model: TransformerLensModel) -> int:
    """How many tokens a model reads, the rows of W_E.

    A Bridge's `cfg.d_vocab` is its tokenizer's size once it was given another tokenizer.
    """
    return embedding_table(model).shape[0]


def embedding_table(model: TransformerLensModel) -> Tensor:
    """The table that tokens are looked up in [d_vocab, d_model], also where TransformerLens has no name for it."""
    inner = getattr(model, "original_model", None)
    find = getattr(inner, "get_input_embeddings", None)
    try:
        return model.W_E
    except AttributeError:
        if find is None:
            raise
        return find().weight


def output_size(model: object) -> int | None:
    """How many tokens a model predicts, the columns of W_U; None where it has none."""
    try:
        head = getattr(model, "W_U", None)
    except NotImplementedError:  # a quantised tensor that cannot be transposed, of [d_vocab, d_model]
        found = cast(nn.Module, getattr(model, "unembed", None))
        return next(found.parameters()).shape[0]
    return None if head is None else head.shape[1]


def one_vocabulary(model_a: TransformerLensModel, model_b: TransformerLensModel) -> bool:
    """Whether an id is the same token to both, as their tokenizers tell; where one has none, as their sizes do."""
    vocabularies = [getattr(model.tokenizer, "get_vocab", None) for model in (model_a, model_b)]
    known = [get() for get in vocabularies if get is not None]
    if len(known) == 2:
        return known[0] == known[1]
    return vocabulary_size(model_a) == vocabulary_size(model_b)


def token_string(tokenizer: Tokenizer | None, token: int) -> str:
    """One token as text, as it stands in a sentence.

    A sentencepiece word keeps the space it stands for, an incomplete byte shows as its name (<0xE2>), and an id
    beyond the tokenizer (a padded vocabulary) or without one shows as [id].
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
    if piece is None or (not text and not piece):
        return f"[{token}]"
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return piece
    if piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" "):
        return " " + text
    return text


def token_strings(tokenizer: Tokenizer | None, ids: Tensor) -> list:
    """`token_string` of every id, nested as `ids` is."""
    return [
        token_strings(tokenizer, row) if row.ndim else token_string(tokenizer, int(row)) for row in ids.detach().cpu()
    ]


def unknown_words(tokenizer: Tokenizer | None, text: str) -> list[str]:
    """The words of a text that the tokenizer reads as its unknown token, with a space before them and without."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    encode = getattr(tokenizer, "encode", None)
    if unknown is None or encode is None:
        return []
    words = dict.fromkeys(text.split())
    return [w for w in words if all(unknown in encode(form, add_special_tokens=False) for form in (w, f" {w}"))]


def text_frame(rows: Iterable[Mapping[str, object]]) -> "pandas.DataFrame":
    """Rows as a frame; a column with a string in it holds Python objects, as `text_column` does."""
    import pandas

    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    with_text = {name for name, values in columns.items() if any(isinstance(value, str) for value in values)}
    dtypes = {name: object if name in with_text else None for name in columns}
    return pandas.DataFrame({name: pandas.Series(values, dtype=dtypes[name]) for name, values in columns.items()})


def text_column(strings: Iterable[str | None]) -> "pandas.Series":
    """Untrusted strings as a column of Python objects: the string dtype of pandas 3 refuses lone surrogates."""
    import pandas

    return pandas.Series(list(strings), dtype=object)
