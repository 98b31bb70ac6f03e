"""Where a prompt's answer is asked for, and which token the old one is."""

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.gradients.losses import TargetLoss
from tl_backward.text.ids import ARRAYS, Id, Ids, as_ids, is_id
from tl_backward.vocabulary.readout import predicted_tokens, single_token

Answer: TypeAlias = str | Id | Sequence[str] | Sequence[Id] | Ids | None


def answer_position(
    loss: TargetLoss, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None
) -> Int[Tensor, "batch"]:
    """Index of the token in each row at which the (first) target token is asked for: the prompt's last, or its mask."""
    return torch.tensor([places[0] for places in loss.places(tokens, mask)], device=tokens.device)


def answer_tokens(
    model: TransformerLensModel,
    answer: Answer,
    logits: Float[Tensor, "batch pos d_vocab"],
    asked: Int[Tensor, "batch"],
) -> Int[Tensor, "batch"]:
    """The old answer's token of each example: as given, or the model's own most likely one at `asked`."""
    n, device = logits.shape[0], logits.device
    if isinstance(answer, ARRAYS):
        return predicted_tokens(model, as_ids(answer)).to(device).expand(n)
    if answer is None:
        return logits[torch.arange(n, device=device), asked].argmax(-1)
    one = isinstance(answer, str) or is_id(answer)
    words = [cast("str | int", answer)] * n if one else list(cast("Sequence[str | int]", answer))
    return torch.tensor([single_token(model, word) for word in words], device=device)
