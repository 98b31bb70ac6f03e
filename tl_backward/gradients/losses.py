"""Scalar losses of (logits, tokens), to be differentiated.

A loss is any callable `loss(logits [batch pos d_vocab], tokens [batch pos]) -> scalar`. One that names a third
parameter `attention_mask` is given the mask of real tokens too (bool [batch pos], True where real). The losses here
that name their target in words (`target_loss(" Oslo")`) learn its ids from the model they are used with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from tl_backward._support.checks import check_choice, short
from tl_backward._support.hints import say_as, show_as
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.types import TransformerLensModel
from tl_backward.text.asked import asked_index, check_one_token, mask_token
from tl_backward.text.encoding import Encoder, encode_continuation
from tl_backward.text.ids import ARRAYS, Id, Ids, as_ids, is_id, one_id
from tl_backward.text.token_strings import output_size

Loss: TypeAlias = Callable[..., Float[Tensor, ""]]
show_as(Loss, "Loss")
say_as(Loss, "loss (logits, tokens) -> scalar tensor")
Reduction: TypeAlias = Literal["mean", "sum"]
Positions: TypeAlias = int | tuple[int, ...] | None
Target: TypeAlias = str | Id | Sequence[str] | Sequence[Id] | Sequence[Sequence[int]] | Sequence[Ids] | Ids
say_as(Target, "text | token id | list of either")
show_as(Target, "Target")


def takes_mask(loss: Loss) -> bool:
    """Whether a loss names a parameter `attention_mask`."""
    try:
        return "attention_mask" in signature(loss).parameters
    except (TypeError, ValueError):
        return False


@public
def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Integer[Tensor, "batch pos"],
    attention_mask: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, ""]:
    """The language-model loss: mean over real tokens of -log p(token[i+1] | token[:i+1]), in nats.

    Raises:
        ValueError: no position has a real next token, or one has no logit.

    Examples:
        >>> loss, cache = tlb.run_with_gradient_cache(model, "Anna Berg lives in", tlb.next_token_loss)
        >>> round(float(loss), 1)  # nats a token
        2.2
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(tokens, dtype=torch.bool)
    real = attention_mask[:, 1:] & attention_mask[:, :-1]
    if not real.any():
        raise ValueError(
            f"Expected at least two real tokens for a next-token loss, got tokens of shape {list(tokens.shape)}; "
            "use a longer prompt or target_loss(...)."
        )
    return _nats(logits, as_ids(tokens)[:, 1:].masked_fill(~real, 0))[real].mean()


def check_has_next(rows: Sequence[Sequence[int]], text: str) -> None:
    """Refuse prompts of which none has a token after its first, for a `next_token_loss`; `text` is the first of them.

    Raises:
        ValueError: none has.
    """
    if all(len(row) < 2 for row in rows):
        raise ValueError(
            f"Expected at least two real tokens for a next-token loss, got one, of {text!r:.60}; use a longer prompt "
            "or target_loss(...)."
        )


def next_token_losses(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch"]:
    """The `next_token_loss` of each of several texts of as many tokens, of which there are two or more."""
    return _nats(logits, tokens[:, 1:]).mean(1)


def _nats(
    logits: Float[Tensor, "batch pos d_vocab"], following: Int[Tensor, "batch pos-1"]
) -> Float[Tensor, "batch pos-1"]:
    if int(following.max()) >= logits.shape[-1]:
        raise ValueError(
            f"Expected next tokens with ids in [0, {logits.shape[-1]}), which the model has logits of, got "
            f"{int(following.max())}; a model that does not predict what it reads needs target_loss(...)."
        )
    return -logits[:, :-1].log_softmax(-1).gather(-1, following[..., None])[..., 0]


@dataclass(frozen=True)
class TargetLoss(Saved):
    """Cross-entropy of a target after the prompt, in nats; `bind` encodes it for a model. Made by `target_loss`."""

    target: Target
    positions: Positions = None
    reduction: Reduction = "mean"
    ids: tuple[tuple[int, ...], ...] | None = None
    """The target's token ids, one tuple an example (or one for all), once bound to a model."""
    mask: int | None = None
    """The mask token at which that model is asked; None where it is asked after the last token."""

    def __post_init__(self) -> None:
        """Refuse what is no target."""
        _check(self.target, self.reduction)

    def bind(self, model: Encoder, n_examples: int) -> "TargetLoss":
        """The same loss with the target encoded by `model`, one row an example."""
        rows, mask = _encode(self.target, model, n_examples), mask_token(cast(TransformerLensModel, model))
        check_one_token(rows, mask)
        if len({len(row) for row in rows} | {1}) > 1 and self.positions not in (None, -1):
            raise ValueError(
                f"Expected a single-token target with positions={self.positions}, got {rows} token ids; a target of "
                "several tokens is teacher-forced after the prompt, which needs positions=None."
            )
        return replace(self, ids=rows, mask=mask)

    @property
    def continuation(self) -> tuple[tuple[int, ...], ...]:
        """What is appended to each prompt so that every target token is predicted (teacher forcing)."""
        return tuple(row[:-1] for row in self.ids or ())

    def places(
        self, tokens: Integer[Tensor, "batch pos"], attention_mask: Bool[Tensor, "batch pos"] | None = None
    ) -> list[list[int]]:
        """Where each example's target tokens are predicted, as indices into its row: one a target token.

        Several `positions` of a single-token target have one place each.
        """
        places = []
        for example, ids in enumerate(self.ids or _encode(self.target, None, tokens.shape[0])):
            real = _real_positions(tokens, attention_mask, example)
            forced = len(ids) > 1
            places.append(real[-len(ids) :] if forced else _select(tokens[example], real, self.positions, self.mask))
        return places

    def __call__(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Integer[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean (or sum) over examples of the mean over target tokens of -log p(target token), in nats."""
        rows = self.ids or _encode(self.target, None, tokens.shape[0])
        losses = []
        for example, (ids, at) in enumerate(zip(rows, self.places(tokens, attention_mask), strict=True)):
            if len(at) < len(ids):
                raise ValueError(
                    f"Expected the prompt to be followed by the target's first {len(ids) - 1} tokens, got "
                    f"{len(at)} real tokens; pass the loss to run_with_gradient_cache, which appends them."
                )
            wanted = torch.tensor(ids if len(ids) > 1 else ids * len(at), device=logits.device)
            losses.append(torch.nn.functional.cross_entropy(logits[example, at], wanted))
        stacked = torch.stack(losses)
        return stacked.mean() if self.reduction == "mean" else stacked.sum()


@public
def target_loss(
    target: Target, positions: Id | Sequence[Id] | Ids | None = None, reduction: Reduction = "mean"
) -> TargetLoss:
    """Cross-entropy of a target after the prompt: -log p(target | prompt) in nats, averaged over its tokens.

    A target of several tokens is teacher-forced: all but its last token are appended to the prompt, and the loss is
    the mean over the target's positions. This is the loss of Katz et al. 2024, sec. 6 (one new answer, one prompt).
    A model that sees both ways (BERT) is asked at the prompt's one mask, for a target of one token.

    Args:
        target: text (its leading space counts: " Oslo"), a token id, ids, a list of texts or of lists of ids (one an
            example), or an integer tensor [pos] or [batch, pos].
        positions: where the (single-token) target is predicted, counted over real tokens, padding left out; None is
            where the prompt asks: the last token (-1), or the mask. Several positions are averaged.
        reduction: over the examples of a batch; "sum" gives each example the gradient it has alone.

    Examples:
        >>> loss, _ = tlb.run_with_gradient_cache(model, "Anna Berg lives in the city of", tlb.target_loss(" Graz"))
        >>> round(float(loss), 1)  # the model knows
        0.1
    """
    return TargetLoss(target=target, positions=_positions(positions), reduction=reduction)


@dataclass(frozen=True)
class LogitDifference(Saved):
    """The metric logit(answer) - logit(other); `bind` encodes both for a model. Made by `logit_difference`."""

    answer: Target
    other: Target
    positions: Positions = None
    reduction: Reduction = "mean"
    ids: tuple[tuple[int, int], ...] | None = None
    """The token ids of both answers, a pair an example, once bound to a model."""
    mask: int | None = None
    """The mask token at which that model is asked; None where it is asked after the last token."""

    def __post_init__(self) -> None:
        """Refuse what is no answer."""
        for each in (self.answer, self.other):
            _check(each, self.reduction)

    def bind(self, model: Encoder, n_examples: int) -> "LogitDifference":
        """The same difference with both answers encoded by `model`."""
        return replace(self, ids=self._pairs(model, n_examples), mask=mask_token(cast(TransformerLensModel, model)))

    def _pairs(self, model: Encoder | None, n_examples: int) -> tuple[tuple[int, int], ...]:
        answers, others = (_encode(each, model, n_examples) for each in (self.answer, self.other))
        for answer, other in zip(answers, others, strict=True):
            if len(answer) != 1 or len(other) != 1:
                raise ValueError(
                    f"Expected single-token answers, got ids {answer} and {other}; logits of several tokens cannot be "
                    "subtracted, use target_loss for a longer target."
                )
        return tuple((answer, other) for (answer,), (other,) in zip(answers, others, strict=True))

    def __call__(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Integer[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean (or sum) over examples of logit(answer) - logit(other)."""
        values = []
        for example, (answer, other) in enumerate(self.ids or self._pairs(None, tokens.shape[0])):
            at = _select(tokens[example], _real_positions(tokens, attention_mask, example), self.positions, self.mask)
            values.append((logits[example, at, answer] - logits[example, at, other]).mean())
        stacked = torch.stack(values)
        return stacked.mean() if self.reduction == "mean" else stacked.sum()


OWN_LOSSES = (TargetLoss, LogitDifference)
"""Losses whose `bind` leaves the model as it is."""


@public
def logit_difference(
    answer: Target, other: Target, positions: Id | Sequence[Id] | Ids | None = None, reduction: Reduction = "mean"
) -> LogitDifference:
    """The metric logit(answer) - logit(other) at a position, TransformerLens's usual one (larger is better).

    Its raw gradient points uphill: adding it favours `answer`, a descent step (which subtracts) favours `other`.
    Arguments as in `target_loss`; both answers must be single tokens.

    Examples:
        >>> metric = tlb.logit_difference(" Graz", " Oslo")
        >>> value, _ = tlb.run_with_gradient_cache(model, "Anna Berg lives in the city of", metric)
        >>> bool(value > 0)  # logit of the first minus that of the second
        True
    """
    return LogitDifference(answer=answer, other=other, positions=_positions(positions), reduction=reduction)


def _check(target: Target, reduction: Reduction) -> None:
    """Refuse a target whose type no model could make sense of.

    Raises:
        TypeError: it is no text, id, or list of either.
        ValueError: an empty list, or another reduction.
    """
    check_choice("reduction", reduction, get_args(Reduction))
    if isinstance(target, str | Tensor | np.ndarray) or is_id(target):
        return
    if not isinstance(target, Sequence):
        raise TypeError(
            f"Expected a target as text, a token id, or a list of either, got {short(target)}; give what the prompt is "
            "to be answered with."
        )
    if not len(target):
        raise ValueError("Expected a target of at least one token, got an empty list; give text or ids.")
    kinds = {str if isinstance(item, str) else int if is_id(item) else type(item) for item in target}
    if len(kinds) > 1 or not kinds <= {str, int, list, tuple, Tensor, np.ndarray}:
        raise TypeError(f"Expected targets that are all text, ids, or lists of ids, got {short(target)}.")


def _encode(target: Target, model: Encoder | None, n_examples: int) -> tuple[tuple[int, ...], ...]:
    """Token ids of the target, one row for each of `n_examples` examples."""
    if isinstance(target, ARRAYS):
        ids = as_ids(target, "target ids")
        rows = ids.tolist() if ids.ndim == 2 else [ids.reshape(-1).tolist()]
    elif is_id(target):
        rows = [[one_id(target)]]
    elif isinstance(target, str):
        rows = [_words(target, model)]
    else:
        target = cast("Sequence[str] | Sequence[Id] | Sequence[Sequence[int]]", target)  # as `_check` has found
        words = [item for item in target if isinstance(item, str)]
        if words and len(words) == len(target):
            rows = [_words(word, model) for word in words]
        elif target and all(isinstance(item, (list, tuple, *ARRAYS)) and not is_id(item) for item in target):
            rows = [[one_id(i) for i in item] for item in cast(Sequence[Sequence[int]], target)]
        else:
            rows = [[one_id(item) for item in target]]
    if any(not row for row in rows) or not rows:
        raise ValueError(f"Expected a target of at least one token, got {target!r}; give text or ids.")
    d_vocab = output_size(model)
    for row in rows:
        if min(row) < 0 or (d_vocab is not None and max(row) >= d_vocab):
            raise ValueError(
                f"Expected target ids in [0, {d_vocab or 'd_vocab'}), got {row}; the model's vocabulary has "
                f"{d_vocab or 'fewer'} tokens."
            )
    rows = rows * n_examples if len(rows) == 1 else rows
    if len(rows) != n_examples:
        raise ValueError(
            f"Expected one target, or one for each of the {n_examples} examples, got {len(rows)}; pair every prompt "
            "with its target."
        )
    return tuple(tuple(row) for row in rows)


def _words(text: str, model: Encoder | None) -> list[int]:
    if model is None:
        raise ValueError(
            f"Expected token ids when a loss is called directly, got the text {text!r}; pass the loss to "
            "run_with_gradient_cache, or call loss.bind(model, n_examples) first."
        )
    return encode_continuation(model, text)


def _positions(given: Id | Sequence[Id] | Ids | None) -> Positions:
    if given is None or is_id(given):
        return None if given is None else one_id(given)
    return tuple(one_id(place, "positions") for place in cast(Sequence[int], given))


def _real_positions(tokens: Tensor, attention_mask: Tensor | None, example: int) -> list[int]:
    if attention_mask is None:
        return list(range(tokens.shape[1]))
    real = attention_mask[example].nonzero().flatten().tolist()
    if not real:
        raise ValueError(
            f"Expected at least one real token in every example, got none in example {example}; leave it out, or mend "
            "its attention_mask."
        )
    return real


def _select(tokens: Tensor, real: list[int], positions: Positions, mask: int | None) -> list[int]:
    """Indices into a row of the positions that are meant, None being where the prompt asks."""
    if positions is None:
        return [real[asked_index(tokens[real].tolist(), mask)]]
    wanted = (positions,) if isinstance(positions, int) else positions
    for position in wanted:
        if not -len(real) <= position < len(real):
            raise IndexError(
                f"Expected positions in [-{len(real)}, {len(real)}), got {position}; the prompt has {len(real)} tokens."
            )
    return [real[position] for position in wanted]
