"""A batch tokenised for both models, and which of their tokens are the same sample.

Two models with one tokenizer are paired token by token. With different ones, a token of A and a token of B are the same
sample where they end at the same character: both have then read the same text. Rows are padded on the right;
every text's activations are those of the text alone (see `PlaceReader`).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_backward._support.types import Tokenizer, TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.dissimilarity.options import Mask, SampleOptions
from tl_backward.text.encoding import encode_texts, needed_tokenizer
from tl_backward.text.extents import shared_ends, token_ends
from tl_backward.text.ids import check_in_vocabulary, side_by_side
from tl_backward.text.options import TextOptions
from tl_backward.text.prompts import Batch
from tl_backward.text.token_strings import one_vocabulary, reads_unknown, vocabulary_size


@dataclass(frozen=True)
class PairedTokens:
    """One batch tokenised for both models, and the pairs of tokens that are samples."""

    number: int
    a: Batch
    """Its mask says which tokens are real; the models need none."""
    b: Batch
    text: Int[Tensor, "sample"]
    """Which row of the batch each sample is from."""
    at_a: Int[Tensor, "sample"]
    """Its position in A's row."""
    at_b: Int[Tensor, "sample"]
    aligned: Literal["tokens", "characters"]
    counts: dict[str, int]
    """texts, tokens_a, tokens_b (real ones that the mask keeps), unknown_a, unknown_b, truncated, empty."""

    @property
    def first(self) -> Bool[Tensor, "sample"]:
        """Whether each sample is the first token of A's row."""
        return self.at_a == 0


def pair_batch(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    number: int,
    item: list[str] | Batch,
    text: TextOptions,
    sample: SampleOptions,
) -> PairedTokens | None:
    """One batch of data as pairs of tokens; None where none of its texts holds any.

    Raises:
        ValueError: tokens for models of different vocabularies, tokenizers that differ under align="tokens", one whose
            offsets are unknown, or a mask of another shape.
    """
    if isinstance(item, Batch):
        _check_one_vocabulary(model_a, model_b, item)
        pairs = _of_tokens(model_a, model_b, number, item, text)
    elif any(item):
        pairs = _of_texts(model_a, model_b, number, item, text, sample)
    else:
        return None
    real_a, real_b = pairs.a.real, pairs.b.real
    if sample.mask is not None:
        real_a = real_a & _checked_mask(sample.mask, pairs.a.tokens)
    keep = real_a[pairs.text, pairs.at_a]
    if text.exclude_first:
        keep &= (pairs.at_a > 0) & (pairs.at_b > 0)
    if sample.sample == "last":
        at = keep.nonzero().flatten()
        ends = pairs.text[at].diff(append=torch.tensor([-1])) != 0
        keep = torch.zeros_like(keep).index_fill_(0, at[ends], True)
    own = {f"tokens_{side}": int(real[:, text.exclude_first :].sum()) for side, real in (("a", real_a), ("b", real_b))}
    at_a, at_b = pairs.at_a[keep], pairs.at_b[keep]
    return replace(pairs, text=pairs.text[keep], at_a=at_a, at_b=at_b, counts=pairs.counts | own)


def _of_texts(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    number: int,
    item: list[str],
    options: TextOptions,
    sample: SampleOptions,
) -> PairedTokens:
    texts = [text for text in item if text]
    rows_a = encode_texts(model_a, texts, prepend_bos=options.prepend_bos)
    rows_b = rows_a if model_a is model_b else encode_texts(model_b, texts, prepend_bos=options.prepend_bos)
    if rows_a != rows_b and sample.align == "tokens":
        different = next(i for i, (one, other) in enumerate(zip(rows_a, rows_b, strict=True)) if one != other)
        raise ValueError(
            f"Expected one tokenization from both models under align='tokens', got {rows_a[different][:6]} and "
            f"{rows_b[different][:6]} for the text {texts[different][:40]!r}; use align='characters'."
        )
    by_characters = sample.align == "characters" or rows_a != rows_b
    limits = [_limit(model, options) for model in (model_a, model_b)]
    if not by_characters:
        limits = [min(limits)] * 2
    cut_a, cut_b = ([row[:limit] for row in rows] for rows, limit in zip((rows_a, rows_b), limits, strict=True))
    if by_characters:
        ends = [
            [token_ends(needed_tokenizer(model), row, text)[:limit] for row, text in zip(rows, texts, strict=True)]
            for model, rows, limit in zip((model_a, model_b), (rows_a, rows_b), limits, strict=True)
        ]
        shared = [shared_ends(*each) for each in zip(*ends, strict=True)]
    else:
        shared = [[(k, k) for k in range(len(row))] for row in cut_a]
    triples = [(index, *at) for index, each in enumerate(shared) for at in each]
    text, at_a, at_b = torch.tensor(triples, dtype=torch.long).view(-1, 3).unbind(1)
    return PairedTokens(
        number=number,
        a=_padded(model_a, cut_a),
        b=_padded(model_b, cut_b),
        text=text,
        at_a=at_a,
        at_b=at_b,
        aligned="characters" if by_characters else "tokens",
        counts={
            "texts": len(texts),
            "empty": len(item) - len(texts),
            "truncated": sum(
                len(one) > limits[0] or len(other) > limits[1] for one, other in zip(rows_a, rows_b, strict=True)
            ),
            "unknown_a": _unknown(model_a.tokenizer, texts, cut_a),
            "unknown_b": _unknown(model_b.tokenizer, texts, cut_b),
        },
    )


def _of_tokens(
    model_a: TransformerLensModel, model_b: TransformerLensModel, number: int, item: Batch, options: TextOptions
) -> PairedTokens:
    limit = min(_limit(model, options) for model in (model_a, model_b))
    if item.tokens.shape[1] > limit and (item.mask is None or bool(item.mask[:, limit:].any())):
        raise ValueError(
            f"Expected token batches of at most {limit} positions (n_ctx, or max_tokens), got "
            f"{item.tokens.shape[1]}; cut them, so that nothing is dropped unsaid."
        )
    fill = getattr(getattr(model_a, "tokenizer", None), "pad_token_id", None)
    if item.mask is None and fill is not None and item.tokens.shape[1] > 1 and bool((item.tokens[:, -1] == fill).any()):
        warn_user(
            f"Token batch {number} ends in padding tokens and comes without an attention mask, so that they count as "
            "samples; pass pairs (tokens, attention_mask)."
        )
    rows = [row[:limit] for row in Batch(item.tokens, item.mask).rows()]
    a, b = _padded(model_a, rows), _padded(model_b, rows)
    text, at = a.real.nonzero(as_tuple=True)
    counts = {"texts": len(rows), "empty": 0, "truncated": 0, "unknown_a": 0, "unknown_b": 0}
    return PairedTokens(number, a, b, text, at, at, "tokens", counts)


def _padded(model: TransformerLensModel, rows: list[list[int]]) -> Batch:
    """Rows of ids as one batch, each from position 0 and padded on the right."""
    tokens, mask = side_by_side(rows, getattr(model.tokenizer, "pad_token_id", None) or 0)
    return Batch(tokens.to(model.W_U.device), mask)


def _checked_mask(mask: Mask, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Which tokens the user's mask leaves."""
    chosen = mask(tokens)
    if not isinstance(chosen, Tensor) or chosen.shape != tokens.shape or chosen.dtype != torch.bool:
        got = f"{chosen.dtype} of shape {list(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
        raise ValueError(
            f"Expected mask(tokens) to give one bool a token, shape {list(tokens.shape)}, got {got}; for example "
            "mask=lambda tokens: tokens != 13."
        )
    return chosen.cpu()


def count_tokens(model: TransformerLensModel, text: str, options: TextOptions) -> int:
    """How many tokens of a text the model is given."""
    return min(len(encode_texts(model, [text], prepend_bos=options.prepend_bos)[0]), _limit(model, options))


def _limit(model: TransformerLensModel, options: TextOptions) -> int:
    return model.cfg.n_ctx if options.max_tokens is None else min(model.cfg.n_ctx, options.max_tokens)


def _unknown(tokenizer: Tokenizer | None, texts: list[str], rows: list[list[int]]) -> int:
    """How many tokens are the unknown token, in texts that do not name it themselves."""
    unknown, bos = getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "bos_token_id", None)
    return sum(
        row.count(unknown) - (unknown == bos == row[0])
        for text, row in zip(texts, rows, strict=True)
        if unknown in row and reads_unknown(tokenizer, text)
    )


def _check_one_vocabulary(model_a: TransformerLensModel, model_b: TransformerLensModel, item: Batch) -> None:
    if model_a is not model_b and not one_vocabulary(model_a, model_b):
        raise ValueError(
            "Expected models of one vocabulary for data given as tokens, got two whose tokenizers differ, so that "
            "an id means different words; pass texts, which are aligned by characters."
        )
    check_in_vocabulary(item.tokens, min(vocabulary_size(model) for model in (model_a, model_b)))
