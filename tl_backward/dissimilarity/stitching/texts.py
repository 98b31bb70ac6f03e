"""The texts that stitches are fitted and judged on, as tokens that both models read alike."""

import math
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.dissimilarity.options import SampleOptions
from tl_backward.dissimilarity.reading import reading_of
from tl_backward.dissimilarity.tokens import pair_batch
from tl_backward.text.data import TextData, batches_of
from tl_backward.text.encoding import warn_of_two_beginnings
from tl_backward.text.options import TextOptions
from tl_backward.text.prompts import Batch


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Rows from position 0 on, padded on the right."""

    tokens: Int[Tensor, "text pos"]
    mask: Bool[Tensor, "text pos"]
    """Which are real."""
    n_bytes: Int[Tensor, "text"]
    """UTF-8 bytes of what the tokens after the first spell; 0 where there is no tokenizer."""

    def losses(self, logits: Float[Tensor, "text pos d_vocab"]) -> Float[Tensor, "text"]:
        """Each text's summed next-token cross-entropy, in nats."""
        targets = self.tokens[:, 1:].to(logits.device)
        each = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
        return (each * self.mask[:, 1:].to(logits.device)).sum(1)

    @property
    def n_predicted(self) -> Int[Tensor, "text"]:
        """How many tokens of each text are predicted: all but its first."""
        return (self.mask.sum(1) - 1).clamp(min=0)


def read_texts(
    model_a: TransformerLensModel, model_b: TransformerLensModel, data: TextData, options: TextOptions
) -> list[TextBatch]:
    """All batches of the data, held as tokens.

    Raises:
        ValueError: models that do not read the data as the same tokens.
    """
    reading = reading_of(replace(options, exclude_first=False), SampleOptions(align="tokens"))
    found: list[TextBatch] = []
    warned = False
    for number, item in enumerate(islice(batches_of(data, reading.batching, reading.text_key), options.n_batches)):
        pairs = pair_batch(model_a, model_b, number, item, reading)
        if pairs is None:
            continue
        warned = warned or isinstance(item, list) and warn_of_two_beginnings(model_a, pairs.a.rows())
        mask = torch.ones_like(pairs.a.tokens, dtype=torch.bool) if pairs.a.mask is None else pairs.a.mask
        found.append(TextBatch(pairs.a.tokens.cpu(), mask.cpu(), _bytes(model_b, Batch(pairs.a.tokens, mask))))
    return found


def _bytes(model: TransformerLensModel, batch: Batch) -> Int[Tensor, "text"]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        return torch.zeros(len(batch.tokens), dtype=torch.long)
    return torch.tensor([len(tokenizer.decode(row[1:]).encode("utf-8", "surrogatepass")) for row in batch.rows()])


def fit_and_held_out_texts(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    data: TextData,
    held_out: float | TextData,
    options: TextOptions,
) -> tuple[list[TextBatch], list[TextBatch]]:
    """Batches to fit on, and others to measure on: data of their own, or the last ones, a share of `held_out` of all.

    Raises:
        ValueError: fewer than two batches, or a share outside (0, 1).
    """
    batches = read_texts(model_a, model_b, data, options)
    if not isinstance(held_out, float | int):
        return batches, read_texts(model_a, model_b, held_out, replace(options, n_batches=None))
    if not 0 < held_out < 1:
        raise ValueError(
            f"Expected held_out in (0, 1), got {held_out}; 0.2 keeps a fifth of the batches to measure on."
        )
    if len(batches) < 2:
        raise ValueError(
            f"Expected at least 2 batches, some to fit on and some to measure on, got {len(batches)}; give more texts, "
            "a smaller batch_size, or texts of their own as held_out."
        )
    kept = min(len(batches) - 1, max(1, math.ceil(held_out * len(batches))))
    return batches[:-kept], batches[-kept:]
