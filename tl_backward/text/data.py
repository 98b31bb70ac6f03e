"""Iterating over text data (texts, rows of a data set, tokens): in batches once, or text by text without end."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from typing import TypeAlias, cast

import numpy as np
from torch import Tensor

from tl_backward._support.hints import say_as, show_as
from tl_backward.text.files import as_known
from tl_backward.text.ids import ARRAYS, Ids, as_ids, as_prompt
from tl_backward.text.prompts import Batch, given_tokens
from tl_backward.text.tables import Frame, texts_of

TextData: TypeAlias = (
    Ids | Iterable[str | Mapping[str, object] | Ids | Sequence[Tensor | np.ndarray] | Sequence[int]] | Sequence[int]
)
"""Texts; rows of a `datasets` data set or stream, with a text or with `input_ids`; token ids [batch, pos], all at once
or batch by batch; lists of ids, one a text; or (tokens, attention_mask) pairs."""
say_as(TextData, "list of texts | rows with a text each | token ids [batch, pos]")
show_as(TextData, "TextData")
Data: TypeAlias = Sequence[str] | Callable[[int], Iterable[str]] | Iterable[Mapping[str, object]]
"""A list of texts, read in a new order each epoch; a function epoch -> texts, called anew each epoch, which may give
texts without end; or a `datasets` data set or stream, read again each epoch."""


def batches_of(data: object, batch_size: int, text_key: str = "text") -> Iterator[list[str] | Batch]:
    """The data (see `TextData`) as lists of texts or batches of tokens, in order.

    Raises:
        TypeError: data of a kind that is not known, or a row whose text is none.
        ValueError: no data at all.
    """
    if isinstance(data, str | Mapping):
        what = "one text" if isinstance(data, str) else f"a mapping with the keys {list(data)[:4]}"
        raise TypeError(
            f"Expected data as a list of texts, a dataset's split, or token batches, got {what}; put the text into a "
            "list, or choose a split such as data['train']."
        )
    if isinstance(data, Frame):
        data = texts_of(data, text_key if text_key in data.columns else None)
    one = as_prompt(data)
    data = one if isinstance(one, Tensor) and one.ndim == 1 else data  # a list of ids is one text
    if isinstance(data, ARRAYS) and data.ndim:
        ids = as_ids(data, "tokens [batch, pos]") if all(data.shape) else None
        data = () if ids is None else ids.reshape(-1, ids.shape[-1]).split(batch_size)
    elif isinstance(data, ARRAYS) or not isinstance(data, Iterable):
        raise TypeError(
            f"Expected data as a list of texts, a dataset's split, or token batches, got {type(data).__name__}; pass "
            "something that can be iterated over."
        )
    rows = _rows(data, text_key)
    first = next(rows, None)
    if first is None:
        raise ValueError("Expected data with at least one text or batch of tokens, got none; the iterator is empty.")
    rows = chain([first], rows)
    for row in rows:
        if isinstance(row, Batch):
            yield row
            continue
        texts = [row, *islice(rows, batch_size - 1)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("Expected texts or token batches, got both in turn; pass one kind.")
        yield cast(list[str], texts)


def text_of(row: object, text_key: str) -> str:
    """The text of an item: the item itself, or a row's value under `text_key`.

    Raises:
        TypeError: neither.
    """
    text = row.get(text_key) if isinstance(row, Mapping) else row
    if not isinstance(text, str):
        raise TypeError(f"Expected texts, or rows with a text under {text_key!r}, got {row!r:.80}; convert them first.")
    return text


def _rows(data: Iterable, text_key: str) -> Iterator[str | Batch]:
    """Each item of the data as a text or as a batch of tokens."""
    for index, item in enumerate(data):
        if isinstance(item, Mapping) and text_key not in item:
            item = as_known(item, (text_key,))
        if isinstance(item, str) or (isinstance(item, Mapping) and text_key in item):
            yield text_of(item, text_key)
        elif isinstance(item, ARRAYS):
            yield _tokens(item, None)
        elif isinstance(item, Mapping) and "input_ids" in item:
            yield _tokens(item["input_ids"], item.get("attention_mask"))
        elif isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, ARRAYS) for part in item):
            yield _tokens(*item)
        elif isinstance(ids := as_prompt(item), ARRAYS):
            yield _tokens(ids, None)
        else:
            held = f"a row with the columns {list(item)[:6]}" if isinstance(item, Mapping) else type(item).__name__
            raise TypeError(
                f"Expected texts, rows with a column {text_key!r} or 'input_ids', token tensors, or pairs "
                f"(tokens, attention_mask), got {held} as item {index}; name the column with text_key=..."
            )


def _tokens(tokens: object, mask: object) -> Batch:
    batch = given_tokens(tokens, mask)
    if not batch.tokens.numel():
        raise TypeError(
            f"Expected integer tokens [batch, pos], got shape {list(batch.tokens.shape)}; token ids come from "
            "model.to_tokens(text)."
        )
    return batch


class TextSource:
    """An endless, seeded stream of texts, with some held out for evaluation."""

    def __init__(self, data: object, *, n_held_out: int, seed: int = 0, column: str = "text") -> None:
        """Hold out the first `n_held_out` texts for evaluation.

        Args:
            data: see `Data`.
            n_held_out: how many to keep out of training; of a function they are its epoch 0, and training begins with
                epoch 1. Of a list they are drawn at random, of a stream they are the first; at most half of either.
            seed: of a list's order.
            column: where a `datasets` row has its text.

        Raises:
            TypeError: one text, or an iterator, which can be read only once.
            ValueError: no text at all.
        """
        if isinstance(data, str) or not (callable(data) or isinstance(data, Iterable)):
            raise TypeError(
                f"Expected data as a list of texts, a function epoch -> texts or a data set, got "
                f"{'one text' if isinstance(data, str) else type(data).__name__}; put texts into a list."
            )
        if isinstance(data, Iterator):
            raise TypeError(
                f"Expected data that can be read again each epoch, got {type(data).__name__}, which ends after one "
                "reading; pass the function that makes it, called with the epoch's number."
            )
        self._data, self._seed, self._column = cast(Data, data), seed, column
        if isinstance(data, Sequence):  # whose order may be by subject
            self._data = random.Random(f"{seed} kept").sample(list(data), len(data))
        first = list(islice(self._read(0), 2 * n_held_out))
        if not first:
            raise ValueError(
                "Expected at least one text to train on, got none; the list is empty, or the function's first epoch "
                "gave nothing."
            )
        self.held_out = first[:n_held_out] if callable(data) else first[: max(1, len(first) // 2)]
        # A function's epoch 0 is never trained on; a single text is both learned and evaluated.
        self._n_skipped = 0 if callable(data) or len(first) < 2 else len(self.held_out)

    def __iter__(self) -> Iterator[str]:
        """Texts of epoch after epoch, without end.

        Raises:
            ValueError: an epoch without a text; its number and how many texts came before are said.
        """
        n_before = 0
        for epoch in count(1):
            n = 0
            for text in self._epoch(epoch):
                n += 1
                yield text
            if not n:
                raise ValueError(
                    f"Expected texts in every epoch, got none in epoch {epoch} after {n_before} texts; the function "
                    "must give texts each time it is called."
                )
            n_before += n

    def _epoch(self, epoch: int) -> Iterable[str]:
        texts = islice(self._read(epoch), self._n_skipped, None)
        if isinstance(self._data, Sequence):
            texts = list(texts)
            random.Random(f"{self._seed} {epoch}").shuffle(texts)
        return texts

    def _read(self, epoch: int) -> Iterator[str]:
        rows = self._data(epoch) if callable(self._data) else self._data
        if not isinstance(rows, Iterable) or isinstance(rows, str):
            raise TypeError(f"Expected the function to give texts, got {type(rows).__name__}; yield them one by one.")
        return (text_of(row, self._column) for row in rows)
