"""The parts of a prompt that gradients are averaged over: first, subject, last and other tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NAMES = ("first", "subject", "last", "other", "target")

Span: TypeAlias = str | tuple[int, int] | None
Subject: TypeAlias = Span | Sequence[Span]


@dataclass(frozen=True, repr=False, eq=False)
class Segments:
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
    tokens: list[list[str]],
    mask: Bool[Tensor, "batch pos"],
    answer_position: Int[Tensor, "batch"],
    subject: Subject = None,
    *,
    n_forced: Sequence[int] | None = None,
) -> Segments:
    """Segment each prompt.

    Args:
        tokens: each prompt's tokens as strings, padding included.
        mask: True at real tokens.
        answer_position: the token in each row at which its answer is asked for.
        subject: the subject's text or its (start, end) span among the real tokens (end excluded, BOS counted), one for
            all prompts or one each; None for none.
        n_forced: how many tokens at each row's end are the target's; None for all after `answer_position`.

    Raises:
        ValueError: a subject that does not occur, a span outside the prompt, or as many subjects as no prompts.
    """
    codes = torch.full(mask.shape, -1)
    subjects = _one_each(subject, len(tokens))
    for example, (strings, real) in enumerate(zip(tokens, mask.cpu(), strict=True)):
        places = real.nonzero().flatten().tolist()
        codes[example, places] = NAMES.index("other")
        codes[example, places[0]] = NAMES.index("first")
        span = subjects[example]
        if span is not None:
            start, end = find_span([strings[place] for place in places], span)
            codes[example, places[start:end]] = NAMES.index("subject")
        last = int(answer_position[example])
        codes[example, last] = NAMES.index("last")
        after = [place for place in places if place > last]
        forced = after if n_forced is None else places[len(places) - n_forced[example] :]
        codes[example, forced] = NAMES.index("target")
    return Segments(codes.to(mask.device))


def find_span(tokens: Sequence[str], subject: str | tuple[int, int]) -> tuple[int, int]:
    """The (start, end) tokens that overlap the subject's first occurrence, or a span checked against the prompt.

    Raises:
        ValueError: the subject is not in the prompt.
    """
    if not isinstance(subject, str):
        start, end = subject
        if not 0 <= start < end <= len(tokens):
            raise ValueError(
                f"Expected a subject span within the prompt's {len(tokens)} tokens, got {(start, end)}; give "
                "(start, end) with the end excluded."
            )
        return start, end
    # Some tokenizers drop spaces, so the texts are compared without.
    words = ["".join(token.split()) for token in tokens]
    text, wanted = "".join(words), "".join(subject.split())
    at = text.find(wanted) if wanted else -1
    if at < 0:
        raise ValueError(
            f"Expected the subject to occur in the prompt, got {subject!r}; the prompt reads {''.join(tokens)!r}."
        )
    start = end = None
    offset = 0
    for index, token in enumerate(words):
        if offset < at + len(wanted) and offset + len(token) > at and token:
            start, end = (index if start is None else start), index + 1
        offset += len(token)
    if start is None or end is None:
        raise ValueError(f"Expected the subject to cover at least one token, got {subject!r}; give its text.")
    return start, end


def _one_each(subject: Subject, n: int) -> Sequence[Span]:
    if subject is None or isinstance(subject, str):
        return [subject] * n
    if isinstance(subject[0], int):
        return [cast(tuple[int, int], subject)] * n
    if len(subject) != n:
        raise ValueError(f"Expected one subject, or one for each of {n} prompts, got {len(subject)}; pair them.")
    return cast(Sequence[Span], subject)
