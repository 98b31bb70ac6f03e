"""What each model is given of a batch, and which of their tokens are the same sample.

Two models with one tokenizer are paired token by token. With different ones, a token of A and a token of B are the same
sample where they end at the same character: both have then read the same text. Rows are padded on the right;
every text's activations are those of the text alone (see `PlaceReader`).
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_backward._support.types import Tokenizer, TransformerLensModel
from tl_backward.dissimilarity.reading import Reading
from tl_backward.text.encoding import encode_texts, needed_tokenizer
from tl_backward.text.extents import shared_ends, token_ends
from tl_backward.text.ids import check_in_vocabulary, side_by_side
from tl_backward.text.prompts import Batch
from tl_backward.text.token_strings import one_vocabulary, reads_unknown, vocabulary_size


@dataclass(frozen=True)
class PairedTokens:
    """One batch as both models are given it, and its samples."""

    number: int
    a: Batch
    """Its mask says which tokens are real; the models need none."""
    b: Batch
    text: Int[Tensor, "sample"]
    """Which row of the batch each sample is from."""
    at_a: Int[Tensor, "sample"]
    """Its position in A's row."""
    at_b: Int[Tensor, "sample"]
    first: Bool[Tensor, "sample"]
    """Whether it is the first token of A's row."""
    aligned: Literal["tokens", "characters"]
    counts: dict[str, int]
    """texts, tokens_a, tokens_b (real ones that the mask keeps), unknown_a, unknown_b, truncated, empty."""


def pair_batch(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    number: int,
    item: list[str] | Batch,
    reading: Reading,
) -> PairedTokens | None:
    """One batch of data as pairs of tokens; None where none of its texts holds any.

    Raises:
        ValueError: tokens for models of different vocabularies, tokenizers that differ under align="tokens", one whose
            offsets are unknown, or a mask of another shape.
    """
    if isinstance(item, Batch):
        _check_one_vocabulary(model_a, model_b, item)
        return _finish(_of_tokens(model_a, model_b, number, item, reading), reading)
    texts = [text for text in item if text]
    if not texts:
        return None
    rows_a = encode_texts(model_a, texts, prepend_bos=reading.prepend_bos)
    rows_b = rows_a if model_a is model_b else encode_texts(model_b, texts, prepend_bos=reading.prepend_bos)
    same = rows_a == rows_b
    if not same and reading.align == "tokens":
        different = next(i for i, (one, other) in enumerate(zip(rows_a, rows_b, strict=True)) if one != other)
        raise ValueError(
            f"Expected one tokenization from both models under align='tokens', got {rows_a[different][:6]} and "
            f"{rows_b[different][:6]} for the text {texts[different][:40]!r}; use align='characters'."
        )
    by_characters = reading.align == "characters" or not same
    limits = [_limit(model, reading) for model in (model_a, model_b)]
    if not by_characters:
        limits = [min(limits)] * 2
    cut_a, cut_b = ([row[:limit] for row in rows] for rows, limit in zip((rows_a, rows_b), limits, strict=True))
    a, b = _padded(model_a, cut_a), _padded(model_b, cut_b)
    text, of_a, of_b = [], [], []
    for index, source in enumerate(texts):
        if by_characters:
            each = ((model_a, rows_a, cut_a), (model_b, rows_b, cut_b))
            ends = [
                token_ends(needed_tokenizer(model), rows[index], source)[: len(cut[index])] for model, rows, cut in each
            ]
            shared = shared_ends(*ends)
        else:
            shared = [(k, k) for k in range(len(cut_a[index]))]
        text += [index] * len(shared)
        of_a += [one for one, _ in shared]
        of_b += [other for _, other in shared]
    beyond = [len(one) > limits[0] or len(other) > limits[1] for one, other in zip(rows_a, rows_b, strict=True)]
    counts = {
        "texts": len(texts),
        "empty": len(item) - len(texts),
        "truncated": sum(beyond),
        "unknown_a": _unknown(model_a.tokenizer, texts, cut_a),
        "unknown_b": _unknown(model_b.tokenizer, texts, cut_b),
    }
    return _finish(
        PairedTokens(
            number=number,
            a=a,
            b=b,
            text=torch.tensor(text, dtype=torch.long),
            at_a=torch.tensor(of_a, dtype=torch.long),
            at_b=torch.tensor(of_b, dtype=torch.long),
            first=torch.tensor(of_a, dtype=torch.long) == 0,
            aligned="characters" if by_characters else "tokens",
            counts=counts,
        ),
        reading,
    )


def _of_tokens(
    model_a: TransformerLensModel, model_b: TransformerLensModel, number: int, item: Batch, reading: Reading
) -> PairedTokens:
    limit = min(_limit(model, reading) for model in (model_a, model_b))
    if item.tokens.shape[1] > limit and (item.mask is None or bool(item.mask[:, limit:].any())):
        raise ValueError(
            f"Expected token batches of at most {limit} positions (n_ctx, or max_tokens), got "
            f"{item.tokens.shape[1]}; cut them, so that nothing is dropped unsaid."
        )
    fill = getattr(getattr(model_a, "tokenizer", None), "pad_token_id", None)
    if item.mask is None and fill is not None and item.tokens.shape[1] > 1 and bool((item.tokens[:, -1] == fill).any()):
        warnings.warn(
            f"Token batch {number} ends in padding tokens and comes without an attention mask, so that they count as "
            "samples; pass pairs (tokens, attention_mask).",
            stacklevel=4,
        )
    rows = [row[:limit] for row in Batch(item.tokens, item.mask).rows()]
    pairs = [(text, k) for text, row in enumerate(rows) for k in range(len(row))]
    text, ranks = (torch.tensor(part, dtype=torch.long) for part in zip(*pairs, strict=True))
    counts = {"texts": len(rows), "empty": 0, "truncated": 0, "unknown_a": 0, "unknown_b": 0}
    a, b = _padded(model_a, rows), _padded(model_b, rows)
    return PairedTokens(number, a, b, text, ranks, ranks, ranks == 0, "tokens", counts)


def _finish(pairs: PairedTokens, reading: Reading) -> PairedTokens:
    """Leave out what is masked, first, or not last."""
    kept = [_kept(batch, reading, which) for which, batch in (("a", pairs.a), ("b", pairs.b))]
    keep = kept[0][pairs.text, pairs.at_a] & (~pairs.first if reading.exclude_first else True)
    if reading.exclude_first:
        keep &= pairs.at_b > 0
    if reading.sample == "last":
        kept_at = keep.nonzero().flatten()
        rows = pairs.text[kept_at]
        ends = torch.ones_like(rows, dtype=torch.bool)
        ends[:-1] = rows[1:] != rows[:-1]
        keep = torch.zeros_like(keep).index_fill_(0, kept_at[ends], True)
    counts = dict(pairs.counts)
    for which, mask in zip("ab", kept, strict=True):
        counts[f"tokens_{which}"] = int(mask.sum()) - (len(mask) if reading.exclude_first else 0)
    at_a, at_b = pairs.at_a[keep], pairs.at_b[keep]
    return replace(
        pairs, text=pairs.text[keep], at_a=at_a, at_b=at_b, first=pairs.first[keep], counts=counts,
    )  # fmt: skip


def _padded(model: TransformerLensModel, rows: list[list[int]]) -> Batch:
    """Rows of ids side by side, each from position 0."""
    tokens, mask = side_by_side(rows, getattr(model.tokenizer, "pad_token_id", None) or 0)
    return Batch(tokens.to(model.W_U.device), mask)


def _kept(batch: Batch, reading: Reading, which: str) -> Bool[Tensor, "batch pos"]:
    real = torch.ones(batch.tokens.shape, dtype=torch.bool) if batch.mask is None else batch.mask
    if reading.mask is None or which == "b":
        return real
    mask = reading.mask(batch.tokens)
    if not isinstance(mask, Tensor) or mask.shape != batch.tokens.shape or mask.dtype != torch.bool:
        got = f"{mask.dtype} of shape {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"Expected mask(tokens) to give one bool a token, shape {list(batch.tokens.shape)}, got {got}; for example "
            "mask=lambda tokens: tokens != 13."
        )
    return real & mask.cpu()


def count_tokens(model: TransformerLensModel, text: str, reading: Reading) -> int:
    """How many tokens of a text the model is given."""
    return min(len(encode_texts(model, [text], prepend_bos=reading.prepend_bos)[0]), _limit(model, reading))


def _limit(model: TransformerLensModel, reading: Reading) -> int:
    limit = model.cfg.n_ctx if reading.max_tokens is None else min(model.cfg.n_ctx, reading.max_tokens)
    if limit < 1:
        raise ValueError(f"Expected max_tokens of at least 1, got {reading.max_tokens}; None is the model's n_ctx.")
    return limit


def _unknown(tokenizer: Tokenizer | None, texts: list[str], rows: list[list[int]]) -> int:
    """How many tokens are the unknown token, in texts that do not name it themselves."""
    unknown, bos = getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "bos_token_id", None)
    found = 0
    for text, row in zip(texts, rows, strict=True):
        if unknown in row and reads_unknown(tokenizer, text):
            found += row.count(unknown) - (unknown == bos == row[0])
    return found


def _check_one_vocabulary(model_a: TransformerLensModel, model_b: TransformerLensModel, item: Batch) -> None:
    if model_a is not model_b and not one_vocabulary(model_a, model_b):
        raise ValueError(
            "Expected models of one vocabulary for data given as tokens, got two whose tokenizers differ, so that "
            "an id means different words; pass texts, which are aligned by characters."
        )
    check_in_vocabulary(item.tokens, min(vocabulary_size(model) for model in (model_a, model_b)))
