"""Where a decoder's training texts come from: a list, a function that makes fresh ones, or a `datasets` stream."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeAlias, cast

Data: TypeAlias = Sequence[str] | Callable[[int], Iterable[str]] | Iterable[Mapping[str, object]]
"""A list of texts, read in a new order each epoch; a function epoch -> texts, called anew each epoch, which may give
texts without end; or a `datasets` data set or stream, read again each epoch."""


class TextSource:
    """Texts without end, the same ones for the same seed, and some that are kept for evaluation."""

    def __init__(self, data: object, *, n_kept: int, seed: int = 0, column: str = "text") -> None:
        """Take the first `n_kept` texts for evaluation.

        Args:
            data: see `Data`.
            n_kept: how many to keep out of training; of a function they are its epoch 0, and training begins with
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
        self._data, self._seed, self._column, self._n_kept = cast(Data, data), seed, column, 0
        if isinstance(data, Sequence):  # whose order may be by subject
            self._data = random.Random(f"{seed} kept").sample(list(data), len(data))
        first = list(islice(self._read(0), 2 * n_kept))
        if not first:
            raise ValueError(
                "Expected at least one text to train on, got none; the list is empty, or the function's first epoch "
                "gave nothing."
            )
        self.kept = first[:n_kept] if callable(data) else first[: max(1, len(first) // 2)]
        self._n_kept = len(self.kept)
        if not callable(data) and len(first) < 2:
            self._n_kept = 0  # a single text is both learned and evaluated

    def __iter__(self) -> Iterator[str]:
        """Epoch after epoch.

        Raises:
            ValueError: an epoch without a text; its number and how many texts came before are said.
        """
        epoch, n_before = 1, 0
        while True:
            n = 0
            for text in self._epoch(epoch):
                n += 1
                yield text
            if not n:
                raise ValueError(
                    f"Expected texts in every epoch, got none in epoch {epoch} after {n_before} texts; the function "
                    "must give texts each time it is called."
                )
            epoch, n_before = epoch + 1, n_before + n

    def _epoch(self, epoch: int) -> Iterable[str]:
        if isinstance(self._data, Sequence):
            texts = list(islice(self._read(epoch), self._n_kept, None))
            random.Random(f"{self._seed} {epoch}").shuffle(texts)
            return texts
        return islice(self._read(epoch), 0 if callable(self._data) else self._n_kept, None)

    def _read(self, epoch: int) -> Iterator[str]:
        rows = self._data(epoch) if callable(self._data) else self._data
        if not isinstance(rows, Iterable) or isinstance(rows, str):
            raise TypeError(f"Expected the function to give texts, got {type(rows).__name__}; yield them one by one.")
        for row in rows:
            text = row.get(self._column) if isinstance(row, Mapping) else row
            if not isinstance(text, str):
                raise TypeError(
                    f"Expected texts, or rows with a text under {self._column!r}, got {row!r:.80}; convert them first."
                )
            yield text
