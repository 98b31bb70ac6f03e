"""Segments of a prompt (first, subject, last, other, target), the predicting position, and the old answer's token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.hints import show_as
from tl_backward._support.saved import Saved
from tl_backward._support.types import TransformerLensModel
from tl_backward.gradients.losses import TargetLoss
from tl_backward.text.ids import ARRAYS, Id, Ids, as_ids, is_id
from tl_backward.vocabulary.readout import predicted_tokens, single_token

Answer: TypeAlias = str | Id | Sequence[str] | Sequence[Id] | Ids | None
show_as(Answer, "Answer")
NAMES = ("first", "subject", "last", "other", "target")


@dataclass(frozen=True, repr=False, eq=False)
class Segments(Saved):
    """Which segment each token belongs to: each real token is in exactly one.

    `last` is where the answer is asked for, the prompt's last token or its mask, even within the subject; the
    subject's tokens are `subject` even at the start; the first is `first` (usually BOS); tokens of a longer target that
    were appended to the prompt are `target`; the rest is `other`.
    """

    codes: Int[Tensor, "batch pos"]
    """Index into NAMES; -1 at padding."""

    def __repr__(self) -> str:
        return f"Segments({', '.join(f'{name}: {int(mask.sum())}' for name, mask in self.masks().items())})"

    def masks(self) -> dict[str, Bool[Tensor, "batch pos"]]:
        """A mask for each segment that occurs."""
        every = {name: self.codes == code for code, name in enumerate(NAMES)}
        return {name: mask for name, mask in every.items() if mask.any()}

    def labels(self) -> list[list[str]]:
        """The segment of each token, "" at padding."""
        return [[NAMES[code] if code >= 0 else "" for code in row] for row in self.codes.tolist()]


def segment_tokens(
    mask: Bool[Tensor, "batch pos"],
    answer_position: Int[Tensor, "batch"],
    subjects: Sequence[tuple[int, int] | None] | None = None,
    *,
    n_forced: Sequence[int] | None = None,
) -> Segments:
    """Assign each prompt's tokens to segments: codes [batch, pos].

    Args:
        mask: True at real tokens.
        answer_position: the token in each row at which its answer is asked for.
        subjects: each prompt's subject as its (start, end) span among the real tokens (see `subject_spans`); None for
            none.
        n_forced: how many tokens at each row's end are the target's; None for all after `answer_position`.
    """
    codes = torch.full(mask.shape, -1)
    spans = [None] * len(mask) if subjects is None else subjects
    for example, (span, real) in enumerate(zip(spans, mask.cpu(), strict=True)):
        places = real.nonzero().flatten().tolist()
        codes[example, places] = NAMES.index("other")
        codes[example, places[0]] = NAMES.index("first")
        if span is not None:
            codes[example, places[slice(*span)]] = NAMES.index("subject")
        last = int(answer_position[example])
        codes[example, last] = NAMES.index("last")
        n_before = sum(place <= last for place in places) if n_forced is None else len(places) - n_forced[example]
        codes[example, places[n_before:]] = NAMES.index("target")
    return Segments(codes.to(mask.device))


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
    """Token ids of each example's old answer [batch]: as given, or the model's most likely token at `asked`."""
    n, device = logits.shape[0], logits.device
    if isinstance(answer, ARRAYS):
        return predicted_tokens(model, as_ids(answer)).to(device).expand(n)
    if answer is None:
        return logits[torch.arange(n, device=device), asked].argmax(-1)
    one = isinstance(answer, str) or is_id(answer)
    words = [cast("str | int", answer)] * n if one else list(cast("Sequence[str | int]", answer))
    return torch.tensor([single_token(model, word) for word in words], device=device)
