"""A data set of prompts with their targets, encoded and checked before anything is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch

from tl_backward._checks import check_callable_loss
from tl_backward._typing import TransformerLensModel
from tl_backward.cases import EditCase
from tl_backward.losses import Loss, TargetLoss, target_loss
from tl_backward.prompts import encode_prompts
from tl_backward.segments import Span, find_span
from tl_backward.vocabulary import token_strings

Losses: TypeAlias = Loss | Sequence[str] | Sequence[int] | Sequence[Loss] | None
Each = TypeVar("Each")


@dataclass(frozen=True)
class Item:
    """One prompt of the data set."""

    index: int
    tokens: list[int]
    target: tuple[int, ...]
    """The target's token ids; empty where `loss` is given."""
    loss: Loss | None
    """A loss other than `target_loss`, of this prompt alone."""
    subject: Span
    answer: int | None
    """The old answer's (first) token; None for the model's own."""


def encode_items(
    model: TransformerLensModel,
    prompts: Sequence[str] | Sequence[EditCase],
    losses: Losses,
    subjects: Sequence[Span] | None,
    answers: Sequence[str | int] | None,
    start: int,
    prepend_bos: bool | None,
) -> list[Item]:
    """Each prompt with what belongs to it; see `sweep` for the arguments. An error names the prompt."""
    if isinstance(prompts, str) or not prompts:
        what = "one text" if isinstance(prompts, str) else "none"
        raise ValueError(f"Expected a list of prompts or edit cases, got {what}; use backward_lens for a single one.")
    cases = [prompt for prompt in prompts if isinstance(prompt, EditCase)]
    if cases:
        if losses is not None or len(cases) != len(prompts):
            raise ValueError("Expected edit cases alone, got texts or losses beside them; a case brings its target.")
        subjects = [case.subject for case in cases] if subjects is None else subjects
        answers = [case.answer for case in cases] if answers is None else answers
        losses = [case.target for case in cases]
    if losses is None:
        raise ValueError("Expected one target or loss a prompt, got none; pass losses=[...] or edit cases.")
    texts = [prompt.prompt if isinstance(prompt, EditCase) else prompt for prompt in prompts]
    n = len(texts)
    columns = (
        [losses] * n if callable(losses) else _one_each("losses", losses, n),
        [None] * n if subjects is None else _one_each("subjects", subjects, n),
        [None] * n if answers is None else _one_each("answers", answers, n),
    )
    items = []
    for index, (text, loss, subject, answer) in enumerate(zip(texts, *columns, strict=True)):
        try:
            items.append(_item(model, start + index, text, loss, subject, answer, prepend_bos))
        except (ValueError, TypeError, IndexError) as error:
            raise type(error)(f"Prompt {start + index}: {error}") from error
    return items


def _one_each(name: str, column: Sequence[Each], n: int) -> Sequence[Each]:
    if isinstance(column, str) or not isinstance(column, Sequence) or len(column) != n:
        raise ValueError(f"Expected {name} for each of the {n} prompts, got {column!r:.100}; pair them.")
    return column


def _item(
    model: TransformerLensModel,
    index: int,
    prompt: str,
    loss: str | int | Loss,
    subject: Span,
    answer: str | int | None,
    prepend_bos: bool | None,
) -> Item:
    (tokens,) = encode_prompts(model, prompt, prepend_bos=prepend_bos).rows()
    own = None
    target: tuple[int, ...] = ()
    if isinstance(loss, str | int):
        target = _ids(model, loss)
    elif isinstance(loss, TargetLoss) and loss.positions == -1:
        target = (loss.bind(model, 1).ids or ((),))[0]
    else:
        check_callable_loss(loss)
        own = loss
    room = model.cfg.n_ctx - max(0, len(target) - 1)
    if len(tokens) > room:
        raise ValueError(f"Expected at most n_ctx={model.cfg.n_ctx} tokens (target included), got more; shorten it.")
    if subject is not None:
        strings = token_strings(getattr(model, "tokenizer", None), torch.tensor([tokens]))
        subject = find_span(strings[0], subject)
    return Item(index, tokens, target, own, subject, None if answer in (None, "") else _ids(model, answer)[0])


def _ids(model: TransformerLensModel, text: str | int) -> tuple[int, ...]:
    return (target_loss(text).bind(model, 1).ids or ((),))[0]
