"""Encoded texts: rows of tokens on the CPU, each from position 0, and their decoding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_backward._support.checks import check_at_least_one
from tl_backward._support.hints import show_as
from tl_backward._support.saved import Saved
from tl_backward._support.types import Tokenizer, TransformerLensModel
from tl_backward.model.checks import model_kind
from tl_backward.text.encoding import encode_texts, encode_warned
from tl_backward.text.ids import ARRAYS, Ids, as_ids, as_prompt, check_in_vocabulary, side_by_side
from tl_backward.text.prompts import Batch
from tl_backward.text.tables import texts_of
from tl_backward.text.token_strings import token_string, vocabulary_size


@dataclass(frozen=True, repr=False, eq=False)
class Encoded(Saved):
    """Texts as rows of token ids, BOS included, padded on the right."""

    tokens: Int[Tensor, "text pos"]
    """On the CPU; 0 beyond each text's end."""
    lengths: Int[Tensor, "text"]
    """Real tokens of each text."""
    tokenizer: Tokenizer | None
    source: tuple[str, ...] | None = None
    """The texts, where they came as such."""

    def __repr__(self) -> str:
        return f"Encoded({len(self)} texts of {int(self.lengths.min())} to {int(self.lengths.max())} tokens)"

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def mask(self) -> Bool[Tensor, "text pos"]:
        """True at real tokens."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def text(self, index: int) -> str:
        """One text: as it came, or its tokens decoded without the BOS before them."""
        return decode(self.tokenizer, self.row(index)) if self.source is None else self.source[index]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All texts; decoded at first use."""
        if self.source is not None:
            return self.source
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        return tuple(decode_rows(self.tokenizer, [row[:length] for row, length in rows]))

    def row(self, index: int) -> list[int]:
        """One text's real tokens."""
        return self.tokens[index, : int(self.lengths[index])].tolist()

    def strings(self, index: int) -> list[str]:
        """Strings of one text's real tokens."""
        return [token_string(self.tokenizer, token) for token in self.row(index)]

    def select(self, index: Int[Tensor, "chosen"]) -> "Encoded":
        """The texts at some indices, without needless padding."""
        lengths = self.lengths[index]
        width = int(lengths.max()) if len(lengths) else 0
        known = vars(self).get("texts", self.source)  # decoded once, however often they are chosen from
        source = None if known is None else tuple(known[i] for i in index.tolist())
        return Encoded(self.tokens[index, :width], lengths, self.tokenizer, source)


Inputs: TypeAlias = Iterable[str] | Ids | Sequence[Sequence[int] | Ids] | Batch | Encoded
show_as(Inputs, "Inputs")


def encode(model: TransformerLensModel, inputs: Inputs, *, prepend_bos: bool | None = None) -> Encoded:
    """Inputs as rows of tokens, as the model's own `to_tokens` makes them.

    Args:
        model: any TransformerLens model.
        inputs: a list or an iterator of texts; a table's column text or prompt; a tensor of tokens [text, pos] without
            padding, or a list with a list of them a text; a `prompts.Batch` of tokens with their mask, padded on either
            side; or what this function gave.
        prepend_bos: as TransformerLens means it; None is the tokenizer's and the model's own.

    Raises:
        ValueError: no text, an empty one, one longer than n_ctx, ids outside the vocabulary, or text without a
            tokenizer; the message names the text.
        TypeError: one text alone, or something else; no HookedTransformer or TransformerBridge.
    """
    model_kind(model)
    if isinstance(inputs, Encoded):
        return inputs
    ids = as_prompt(inputs)
    if ids is not inputs and not isinstance(ids, ARRAYS):
        return encode_rows(model, cast("list[list[int]]", ids))
    inputs = cast(Inputs, ids)
    if isinstance(inputs, ARRAYS):
        inputs = Batch(as_ids(inputs, "tokens [text, pos]"), None)
    if isinstance(inputs, Batch):
        tokens = as_ids(inputs.tokens, "tokens [text, pos]").cpu()
        if tokens.ndim != 2:
            hint = "put one text's ids into a list" if tokens.ndim == 1 else "token ids come from model.to_tokens(text)"
            raise TypeError(
                f"Expected integer tokens [text, pos], got {inputs.tokens.dtype} of shape {list(tokens.shape)}; {hint}."
            )
        if inputs.mask is not None:
            return encode_rows(model, Batch(tokens, inputs.mask.cpu().bool()).rows())
        return _checked(model, Encoded(tokens, torch.full((len(tokens),), tokens.shape[1]), model.tokenizer))
    inputs = texts_of(inputs)
    texts = list(cast("Iterable[str]", inputs)) if isinstance(inputs, Iterable) else None
    if texts is None or isinstance(inputs, str) or not all(isinstance(text, str) for text in texts):
        what = "one text" if isinstance(inputs, str) else f"a {type(inputs).__name__} of something else"
        raise TypeError(
            f"Expected inputs as a list of texts or a tensor of tokens [text, pos], got {what}; put texts into a list."
        )
    return encode_rows(model, encode_warned(model, texts, prepend_bos=prepend_bos), source=tuple(texts))


def encode_starts(
    model: TransformerLensModel, texts: Sequence[str], max_tokens: int | None = None, *, prepend_bos: bool | None = None
) -> Encoded:
    """Encode texts, truncated to `max_tokens` tokens, BOS counted; None truncates them to the model's context.

    Raises:
        ValueError: max_tokens < 1, and as for `encode`.
    """
    longest = model.cfg.n_ctx if max_tokens is None else min(max_tokens, model.cfg.n_ctx)
    check_at_least_one("max_tokens", longest, "leave it out to cut at the context")
    return encode_rows(model, [row[:longest] for row in encode_texts(model, texts, prepend_bos=prepend_bos)])


def encode_rows(
    model: TransformerLensModel, rows: Sequence[Sequence[int]], *, source: tuple[str, ...] | None = None
) -> Encoded:
    """Encoded texts from rows of token ids, BOS included, such as a decoder or a search returns.

    Raises:
        ValueError: no row, an empty one, one longer than n_ctx, or ids outside the vocabulary.
    """
    tokens, real = side_by_side(rows)
    return _checked(model, Encoded(tokens, real.sum(1), model.tokenizer, source))


def _checked(model: TransformerLensModel, texts: Encoded) -> Encoded:
    if not len(texts):
        raise ValueError("Expected at least one text, got none; the list, or the generator behind it, is empty.")
    n_ctx, lengths = model.cfg.n_ctx, texts.lengths
    for wrong, wanted in ((lengths == 0, "at least one token"), (lengths > n_ctx, f"at most n_ctx={n_ctx} tokens")):
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise ValueError(
                f"Expected {wanted} in every text, got {int(lengths[first])} in text {first} "
                f"({texts.text(first)!r:.60}); leave it out or change it."
            )
    check_in_vocabulary(texts.tokens, vocabulary_size(model))
    return texts


def prompt_text(model: TransformerLensModel, prompt: object) -> str:
    """One prompt as it came, or what its ids decode to, without the BOS before them."""
    ids = as_prompt(prompt)
    if not isinstance(ids, ARRAYS):
        return str(prompt)
    return decode(getattr(model, "tokenizer", None), as_ids(ids).reshape(-1).tolist())


def decode(tokenizer: Tokenizer | None, row: Sequence[int]) -> str:
    """Decode a row of tokens, without its leading BOS."""
    return decode_rows(tokenizer, [[int(token) for token in row]])[0]


def decode_rows(tokenizer: Tokenizer | None, rows: Sequence[list[int]]) -> list[str]:
    """Decode rows of tokens, each without its leading BOS, which a tokenizer takes long to name."""
    if tokenizer is None:
        return ["".join(f"[{token}]" for token in row) for row in rows]
    bos = getattr(tokenizer, "bos_token_id", None)
    return [tokenizer.decode(row[1:] if row[:1] == [bos] else row) for row in rows]
