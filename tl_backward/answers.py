"""Where a prompt's answer is asked for, and which token the old one is."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._typing import TransformerLensModel
from tl_backward.readout import predicted_tokens, single_token

Answer: TypeAlias = str | int | Sequence[str] | Sequence[int] | Int[Tensor, "batch"] | None


def answer_position(mask: Bool[Tensor, "batch pos"], continuation: Sequence[Sequence[int]]) -> Int[Tensor, "batch"]:
    """Index of each prompt's last token, before the target tokens that were appended to it (`continuation`)."""
    places = [row.nonzero().flatten() for row in mask]
    return torch.stack([real[-1 - len(forced)] for real, forced in zip(places, continuation, strict=True)])


def answer_tokens(
    model: TransformerLensModel,
    answer: Answer,
    logits: Float[Tensor, "batch pos d_vocab"],
    asked: Int[Tensor, "batch"],
) -> Int[Tensor, "batch"]:
    """The old answer's token of each example: as given, or the model's own most likely one at `asked`."""
    n, device = logits.shape[0], logits.device
    if isinstance(answer, Tensor):
        return predicted_tokens(model, answer).to(device).expand(n)
    if answer is None:
        return logits[torch.arange(n, device=device), asked].argmax(-1)
    words = [answer] * n if isinstance(answer, str | int) else list(answer)
    return torch.tensor([single_token(model, word) for word in words], device=device)
