"""Data in: lists of texts, rows of a dataset, tensors or batches of tokens."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import cast

import torch

from tl_backward._support.storage import fingerprint
from tl_backward.dissimilarity.options import Align, Mask, Sample, SampleOptions
from tl_backward.text.ids import ARRAYS, as_ids
from tl_backward.text.options import TextOptions
from tl_backward.text.prompts import Batch


@dataclass(frozen=True)
class Reading:
    """How data become samples."""

    batching: int = 8
    """Texts a batch; token batches come as they are."""
    sample: Sample = "token"
    """Every token, each text's last one, or each text's mean."""
    exclude_first: bool = False
    """Whether position 0 is left out."""
    mask: Mask | None = None
    """Which of A's tokens count, beside padding, which never does."""
    align: Align = "auto"
    text_key: str = "text"
    """The column of a dataset's rows."""
    prepend_bos: bool | None = None
    max_tokens: int | None = None
    """Where texts are cut; None for the model's n_ctx."""


def reading_of(text: TextOptions, sample: SampleOptions = SampleOptions()) -> Reading:
    """Both options together."""
    return Reading(
        text.batch_size, sample.sample, text.exclude_first, sample.mask, sample.align, text.text_key,
        text.prepend_bos, text.max_tokens,
    )  # fmt: skip


def data_digest(before: str, item: list[str] | Batch) -> str:
    """The fingerprint of the data read so far and one more batch, to notice that a resumed run is given others."""
    return fingerprint(before, *([item.tokens] if isinstance(item, Batch) else (f"{text}\0" for text in item)))


def raw_batches(data: object, reading: Reading) -> Iterator[list[str] | Batch]:
    """The data as lists of texts or batches of tokens, in order.

    Raises:
        TypeError: data of a kind that is not known.
        ValueError: no data at all, or a row without the text.
    """
    if isinstance(data, str | Mapping):
        what = "one text" if isinstance(data, str) else f"a mapping with the keys {list(data)[:4]}"
        raise TypeError(
            f"Expected data as a list of texts, a dataset's split, or token batches, got {what}; put the text into a "
            "list, or choose a split such as data['train']."
        )
    empty = isinstance(data, ARRAYS) and not all(data.shape)
    if isinstance(data, ARRAYS) and data.ndim and not empty:
        ids = as_ids(data, "tokens [batch, pos]")
        yield from (_tokens(part, None) for part in ids.reshape(-1, ids.shape[-1]).split(reading.batching))
        return
    if not isinstance(data, Iterable) or (isinstance(data, ARRAYS) and not data.ndim):
        raise TypeError(
            f"Expected data as a list of texts, a dataset's split, or token batches, got {type(data).__name__}; pass "
            "something that can be iterated over."
        )
    rows = _rows(() if empty else data, reading)
    first = next(rows, None)
    if first is None:
        raise ValueError("Expected data with at least one text or batch of tokens, got none; the iterator is empty.")
    rows = chain([first], rows)
    for row in rows:
        if isinstance(row, Batch):
            yield row
        else:
            texts = [row, *islice(rows, reading.batching - 1)]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("Expected texts or token batches, got both in turn; pass one kind.")
            yield cast(list[str], texts)


def _rows(data: Iterable, reading: Reading) -> Iterator[str | Batch]:
    """Each item of the data as a text or as a batch of tokens."""
    for index, item in enumerate(data):
        if isinstance(item, str):
            yield item
        elif isinstance(item, ARRAYS):
            yield _tokens(item, None)
        elif isinstance(item, Mapping) and reading.text_key in item:
            yield str(item[reading.text_key])
        elif isinstance(item, Mapping) and "input_ids" in item:
            yield _tokens(item["input_ids"], item.get("attention_mask"))
        elif isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, ARRAYS) for part in item):
            yield _tokens(*item)
        else:
            held = f"a row with the columns {list(item)[:6]}" if isinstance(item, Mapping) else type(item).__name__
            raise TypeError(
                f"Expected texts, rows with a column {reading.text_key!r} or 'input_ids', token tensors, or pairs "
                f"(tokens, attention_mask), got {held} as item {index}; name the column with text_key=..."
            )


def _tokens(tokens: object, mask: object) -> Batch:
    ids = as_ids(tokens if isinstance(tokens, ARRAYS) else torch.as_tensor(tokens), "tokens [batch, pos]")
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or not ids.numel():
        raise TypeError(
            f"Expected integer tokens [batch, pos], got shape {list(ids.shape)}; token ids come from "
            "model.to_tokens(text)."
        )
    if mask is None:
        return Batch(ids, None)
    real = torch.as_tensor(mask)
    if real.numel() != ids.numel():
        raise ValueError(
            f"Expected an attention mask of the tokens' shape {list(ids.shape)}, got {list(real.shape)}; one entry a "
            "token, 1 where real."
        )
    return Batch(ids, real.bool().reshape(ids.shape))
