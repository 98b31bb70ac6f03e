"""What a stitch costs: its loss minus the tail model's own, text by text, with a confidence interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.alignment.stitched import StitchedModel
from tl_backward.dissimilarity.options import SampleOptions
from tl_backward.dissimilarity.tokens import pair_batch
from tl_backward.model.guard import rng_untouched
from tl_backward.model.partial import logits_after, streams_after
from tl_backward.text.data import TextData, batches_of
from tl_backward.text.encoding import warn_of_two_beginnings
from tl_backward.text.options import TextOptions
from tl_backward.text.prompts import Batch

Z95 = 1.959964  # of a normal distribution, for 95 %


@dataclass(frozen=True, eq=False)
class TextBatch:
    """A batch of texts as tokens, each row from position 0 on and padded on the right."""

    tokens: Int[Tensor, "text pos"]
    mask: Bool[Tensor, "text pos"]
    """True at tokens of the text, False at padding."""
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
    """All batches of the data as tokens, in memory.

    Raises:
        ValueError: models that do not read the data as the same tokens.
    """
    options, alike = replace(options, exclude_first=False), SampleOptions(align="tokens")
    batches: list[TextBatch] = []
    warned = False
    for number, item in enumerate(islice(batches_of(data, options.batch_size, options.text_key), options.n_batches)):
        pairs = pair_batch(model_a, model_b, number, item, options, alike)
        if pairs is not None:
            warned = warned or isinstance(item, list) and warn_of_two_beginnings(model_a, pairs.a.rows())
            batches.append(TextBatch(pairs.a.tokens.cpu(), pairs.a.real.cpu(), _bytes(model_b, pairs.a)))
    return batches


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
    """Batches to fit on, and batches to measure on: the data `held_out`, or of `data` the last, a share `held_out`.

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
    n_held = min(len(batches) - 1, max(1, math.ceil(held_out * len(batches))))
    return batches[:-n_held], batches[-n_held:]


@dataclass(frozen=True, repr=False)
class Penalty:
    """Loss of a stitched model minus its tail model's own, over the tokens of the texts it is measured on."""

    nats: float
    """Per predicted token."""
    bits_per_byte: float
    """Per byte of text; NaN for tokens without a tokenizer."""
    standard_error: float
    """Of `nats`, by the delete-one-text jackknife; NaN for a single text."""
    interval: tuple[float, float]
    """95 %, of `nats`."""
    interval_bits: tuple[float, float]
    """95 %, of `bits_per_byte`."""
    loss: float
    """The stitched model's, in nats a token."""
    tail_loss: float
    """The tail model's own."""
    n_texts: int
    n_tokens: int

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"Penalty({self.nats:+.4f} nats a token [{low:+.4f}, {high:+.4f}], {self.bits_per_byte:+.4f} bits a byte, "
            f"on {self.n_texts} texts)"
        )


def penalty_of(
    stitched: Float[Tensor, "text"],
    own: Float[Tensor, "text"],
    tokens: Int[Tensor, "text"],
    n_bytes: Int[Tensor, "text"],
) -> Penalty:
    """The penalty, from each text's summed losses in nats and its numbers of predicted tokens and of bytes."""
    more, count, size = (stitched - own).double(), tokens.double(), n_bytes.double()
    nats, error = _ratio(more, count)
    bits, bits_error = _ratio(more / math.log(2), size)
    total = float(count.sum())
    return Penalty(
        nats=nats,
        bits_per_byte=bits,
        standard_error=error,
        interval=(nats - Z95 * error, nats + Z95 * error),
        interval_bits=(bits - Z95 * bits_error, bits + Z95 * bits_error),
        loss=float(stitched.sum()) / total,
        tail_loss=float(own.sum()) / total,
        n_texts=len(tokens),
        n_tokens=int(total),
    )


def _ratio(more: Tensor, count: Tensor) -> tuple[float, float]:
    """sum(more) / sum(count) over texts, and its delete-one-text jackknife standard error."""
    if not float(count.sum()):
        return math.nan, math.nan
    if len(more) < 2:
        return float(more.sum() / count.sum()), math.nan
    left_out = (more.sum() - more) / (count.sum() - count).clamp(min=1)
    spread = (left_out - left_out.mean()).square().sum() * (len(more) - 1) / len(more)
    return float(more.sum() / count.sum()), float(spread.sqrt())


def own_losses(model: TransformerLensModel, batches: Sequence[TextBatch]) -> Float[Tensor, "text"]:
    """Each text's summed next-token loss, in nats, under a model without a stitch."""
    last = model.cfg.n_layers - 1
    losses = []
    with torch.no_grad(), rng_untouched(model):
        for batch in batches:
            stream = streams_after(model, batch.tokens, [last])[last]
            losses.append(batch.losses(logits_after(model, batch.tokens, last, stream)).cpu())
    return torch.cat(losses)


def penalties(
    stitches: Sequence[Sequence[StitchedModel]],
    batches: Sequence[TextBatch],
    own: Float[Tensor, "text"],
    advance: Callable[[float], object] = lambda share: None,
) -> list[list[Penalty]]:
    """Penalties of stitches of the same two models, those of one head's layer in a row; the head runs once a batch.

    Args:
        stitches: rows of them.
        batches: texts.
        own: each text's loss under the tail's model.
        advance: called with the share of a stitch that has been measured.
    """
    first, layers = stitches[0][0], [row[0].layer_a for row in stitches]
    losses: list[list[list[Tensor]]] = [[[] for _ in row] for row in stitches]
    with torch.no_grad(), rng_untouched(first.model_a), rng_untouched(first.model_b):
        for batch in batches:
            streams = streams_after(first.model_a, batch.tokens, layers)
            for row, row_losses in zip(stitches, losses, strict=True):
                for stitched, each in zip(row, row_losses, strict=True):
                    each.append(batch.losses(stitched.tail(batch.tokens, streams[stitched.layer_a])).cpu())
                    advance(1 / len(batches))
    tokens, sizes = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("n_predicted", "n_bytes"))
    return [[penalty_of(torch.cat(each), own, tokens, sizes) for each in row] for row in losses]
