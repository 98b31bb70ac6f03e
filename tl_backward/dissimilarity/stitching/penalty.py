"""What a stitch costs: its loss minus the tail model's own, text by text, with a confidence interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.dissimilarity.stitching.model import StitchedModel, run_head, run_tail
from tl_backward.dissimilarity.stitching.texts import TextBatch
from tl_backward.model.guard import rng_untouched

Z95 = 1.959964  # of a normal distribution, for 95 %


@dataclass(frozen=True)
class Penalty:
    """Loss of a stitched model minus its tail model's own, over the tokens of the texts it is judged on."""

    nats: float
    """A token."""
    bits_per_byte: float
    """A byte of text; NaN for tokens without a tokenizer."""
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


def penalty_of(
    stitched: Float[Tensor, "text"],
    own: Float[Tensor, "text"],
    tokens: Int[Tensor, "text"],
    n_bytes: Int[Tensor, "text"],
) -> Penalty:
    """From each text's summed losses in nats, predicted tokens and bytes."""
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
    """Sum over sum, and its delete-one jackknife standard error."""
    if not float(count.sum()):
        return math.nan, math.nan
    if len(more) < 2:
        return float(more.sum() / count.sum()), math.nan
    left_out = (more.sum() - more) / (count.sum() - count).clamp(min=1)
    spread = (left_out - left_out.mean()).square().sum() * (len(more) - 1) / len(more)
    return float(more.sum() / count.sum()), float(spread.sqrt())


def own_losses(model: TransformerLensModel, batches: Sequence[TextBatch]) -> Float[Tensor, "text"]:
    """Each text's loss under a model as it is."""
    last = model.cfg.n_layers - 1
    losses = []
    with torch.no_grad(), rng_untouched(model):
        for batch in batches:
            tokens = batch.tokens.to(model.W_U.device)
            stream = run_head(model, tokens, [last])[last]
            losses.append(batch.losses(run_tail(model, tokens, last, stream)).cpu())
    return torch.cat(losses)


def judge(stitched: StitchedModel, batches: Sequence[TextBatch], own: Float[Tensor, "text"] | None = None) -> Penalty:
    """The penalty of a stitched model on texts."""
    own = own_losses(stitched.model_b, batches) if own is None else own
    losses = []
    with torch.no_grad(), rng_untouched(stitched.model_a), rng_untouched(stitched.model_b):
        for batch in batches:
            losses.append(batch.losses(stitched.tail(batch.tokens, stitched.head(batch.tokens))).cpu())
    tokens, sizes = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("n_predicted", "n_bytes"))
    return penalty_of(torch.cat(losses), own, tokens, sizes)
