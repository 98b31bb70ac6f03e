"""A data set of examples, each a prompt with its loss: encoded and checked at once, captured in batches.

In a batch every example has the gradient it has alone: the loss of a batch is the sum of its examples' own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Never, TypeAlias, TypeGuard, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import NonFiniteError, check_callable_loss, check_loss, short
from tl_backward._support.hints import say_as, show_as
from tl_backward._support.types import Prompt, TransformerLensModel
from tl_backward.gradients.cache import GradientCache
from tl_backward.gradients.capture import run_with_gradient_cache
from tl_backward.gradients.losses import (
    Loss,
    TargetLoss,
    check_has_next,
    next_token_loss,
    next_token_losses,
    takes_mask,
    target_loss,
)
from tl_backward.model.inputs import DECODER, PER_TOKEN, check_inputs, padding_limit
from tl_backward.text.asked import asked_index, mask_token
from tl_backward.text.cases import EditCase
from tl_backward.text.encoded import prompt_text
from tl_backward.text.ids import Id, as_prompt, is_id, is_integers
from tl_backward.text.options import TextOptions
from tl_backward.text.prompts import Batch, encode_prompt, encoded_rows, pad, with_inputs
from tl_backward.text.subjects import Span, find_span
from tl_backward.text.tables import Cases, cases_of, is_file, rows_of

BATCHING = ("batch_size", "prepend_bos")
"""The fields of `TextOptions` that say how examples are encoded and captured."""
EXAMPLES = TextOptions(batch_size=64)
"""Batches of examples where none are given; of long ones, or of a large model, fewer fit a pass (`by_length`)."""
_NUMBERS, _LEAST = 16_000_000, 8
"""What a pass holds at most, about (60 to 110 MB), beyond which larger ones gain nothing; but 8 examples always may."""

Losses: TypeAlias = str | Id | Loss | Iterable[str | Id | Loss] | None
show_as(Losses, "Losses")
Examples: TypeAlias = Iterable[Prompt] | Iterable[tuple[Prompt, str | Id | Loss]] | Cases
"""Prompts (each a text or its ids), (prompt, target) pairs, or edit cases and the tables and files of them."""
say_as(Examples, "list of prompts or of (prompt, target) pairs | list, table or file of edit cases")
show_as(Examples, "Examples")
Each = TypeVar("Each")


@dataclass(frozen=True)
class Example:
    """One prompt of a data set, with its loss."""

    index: int
    tokens: list[int]
    """Of the prompt, which a longer target's tokens but for its last follow (teacher forcing)."""
    n_forced: int
    """How many tokens at the end are the target's."""
    loss: Loss
    target: int
    """The (first) target token; -1 where the loss has none."""
    subject: tuple[int, int] | None = None
    """Its tokens, end excluded."""
    answer: int | None = None
    """The old answer's (first) token; None for the model's own."""
    asked: int | None = None
    """Index in `tokens` at which the answer is asked for; None for the prompt's last."""
    decoder: list[int] | None = None
    """What the decoder of an encoder-decoder reads, whose end a longer target's tokens are instead."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """The model's own further inputs for this prompt, [1, ...]."""

    @property
    def n_tokens(self) -> int:
        """How many tokens the model reads."""
        return len(self.tokens) + len(self.decoder or ())

    @property
    def answered(self) -> list[int]:
        """The tokens that the logits belong to."""
        return self.tokens if self.decoder is None else self.decoder


def encode_examples(
    model: TransformerLensModel,
    prompts: Examples,
    losses: Losses,
    *,
    subjects: Iterable[Span] | None = None,
    answers: Iterable[str | Id] | None = None,
    start: int = 0,
    prepend_bos: bool | None = None,
    inputs: Mapping[str, object] | None = None,
) -> list[Example]:
    """Encode each prompt with its loss, subject, answer and inputs; arguments as of `sweep`, errors name the prompt."""
    if is_file(prompts) or rows_of(prompts) is not None:
        prompts = cases_of(cast(Cases, prompts))
    elif isinstance(prompts, Iterable) and not isinstance(prompts, str):
        check_several(prompts)
        prompts = cast("Sequence[str] | Sequence[tuple] | Sequence[EditCase]", list(prompts))
    if isinstance(prompts, str) or not prompts or not isinstance(prompts, Sequence):
        got = "one text" if isinstance(prompts, str) else "none" if not prompts else short(prompts)
        raise ValueError(f"Expected a list of prompts or edit cases, got {got}; a single one is a list of one.")
    cases = [prompt for prompt in prompts if isinstance(prompt, EditCase)]
    if cases:
        if losses is not None or len(cases) != len(prompts):
            raise ValueError("Expected edit cases alone, got texts or losses beside them; a case brings its target.")
        subjects = [case.subject for case in cases] if subjects is None else subjects
        answers = [case.answer for case in cases] if answers is None else answers
        losses = [case.target for case in cases]
    pairs = [prompt for prompt in prompts if is_pair(prompt)]
    if pairs:
        if losses is not None or len(pairs) != len(prompts) or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                "Expected (prompt, target) pairs alone, got other tuples, or texts or losses beside them; subjects and "
                "old answers have arguments of their own, or come with edit cases."
            )
        losses = [loss for _, loss in pairs]
    if losses is None:
        raise ValueError("Expected one target or loss a prompt, got none; pass losses=[...], pairs or edit cases.")
    if callable(losses) or isinstance(losses, str) or is_id(losses):
        losses = [cast("str | Id | Loss", losses)] * len(prompts)
    texts, n = [_text(prompt) for prompt in prompts], len(prompts)
    columns = (
        _one_each("losses", cast("Iterable[str | Id | Loss]", losses), n),
        [None] * n if subjects is None else _one_each("subjects", subjects, n),
        [None] * n if answers is None else _one_each("answers", answers, n),
        _inputs_of_each(model, inputs or {}, n),
    )
    examples, rows = [], _rows(model, texts, prepend_bos)
    for index, (text, row, loss, subject, answer, given) in enumerate(zip(texts, rows, *columns, strict=True), start):
        try:
            batch = with_inputs(model, encode_prompt(model, row, prepend_bos=prepend_bos), given)
            examples.append(_encoded(model, index, text, batch, loss, subject, answer))
        except (ValueError, TypeError, IndexError) as error:
            raise type(error)(f"Prompt {index}: {error}") from error
    return examples


def check_several(prompts: object) -> None:
    """Refuse the ids of one prompt where several prompts are meant.

    Raises:
        ValueError: they are.
    """
    ids = as_prompt(prompts)
    if is_integers(ids) and ids.ndim == 1:
        raise ValueError(
            f"Expected a list of prompts or edit cases, got the {len(ids)} token ids of one; a single one is a list "
            "of one."
        )


def is_pair(example: object) -> TypeGuard[tuple]:
    """Whether an example is a (prompt, target) pair, and not a prompt whose ids come as a tuple."""
    return isinstance(example, tuple) and not (example and all(is_id(item) for item in example))


def _text(prompt: Prompt | tuple | EditCase) -> Prompt:
    """What the model is given of an example."""
    if is_pair(prompt):
        return prompt[0]
    return prompt.prompt if isinstance(prompt, EditCase) else prompt


def batching(options: TextOptions) -> tuple[int, bool | None]:
    """The batch size, and whether BOS is put before each prompt.

    Raises:
        ValueError: options that examples, all of which are captured whole, do not have.
    """
    if options != TextOptions(batch_size=options.batch_size, prepend_bos=options.prepend_bos):
        raise ValueError(
            f"Expected text_options with {' and '.join(BATCHING)} alone, got {options}; leave out the rest."
        )
    return options.batch_size, options.prepend_bos


def _one_each(name: str, column: Iterable[Each], n: int) -> Sequence[Each]:
    """A column with an entry a prompt: a list, an array or a table's column.

    Raises:
        ValueError: it is none, or has another length.
    """
    one = _ONE[name]
    if isinstance(column, str | Mapping) or not (isinstance(column, Iterable) and isinstance(column, Sized)):
        raise ValueError(f"Expected a list with {one} for each of the {n} prompts, got {short(column)}; pair them.")
    if len(column) != n:
        raise ValueError(
            f"Expected {one} for each of the {n} prompts, got a list of {len(column)}; pair them"
            + ("." if name != "losses" else ", or give one that is no list for all.")
        )
    return list(column)


_ONE = {"losses": "a target or loss", "subjects": "a subject (or None)", "answers": "an old answer"}


def _inputs_of_each(model: TransformerLensModel, inputs: Mapping[str, object], n: int) -> list[dict[str, Tensor]]:
    """Each prompt's own row of the model's further inputs.

    Raises:
        TypeError: the model does not take one of them, or one is no tensor.
        ValueError: one without a row for each prompt, or with an entry a token, which batches would pad.
    """
    check_inputs(model, inputs)
    tensors: dict[str, Tensor] = {}
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected {name} as a tensor with a row for each prompt, got {type(value).__name__}.")
        if name in PER_TOKEN or name == DECODER[1]:
            raise ValueError(
                f"Expected inputs that do not depend on how prompts are padded to batches, got {name}; capture such "
                "prompts one by one with run_with_gradient_cache."
            )
        if value.ndim < 1 or len(value) != n:
            raise ValueError(
                f"Expected {name} with a row for each of the {n} prompts, got shape {list(value.shape)}; what cannot "
                "be told apart by prompt is captured one by one with run_with_gradient_cache."
            )
        tensors[name] = value
    return [{name: value[row : row + 1] for name, value in tensors.items()} for row in range(n)]


def _rows(model: TransformerLensModel, texts: Sequence[Prompt], prepend_bos: bool | None) -> Sequence[Prompt]:
    """The texts' tokens, encoded in one go; the texts themselves where one is refused, so that it is named."""
    if not all(isinstance(text, str) for text in texts):
        return texts
    try:
        found = encoded_rows(model, cast("Sequence[str]", texts), prepend_bos=prepend_bos)
        return [torch.tensor(row) for row in found]
    except (ValueError, TypeError, IndexError):
        return texts


def _encoded(
    model: TransformerLensModel,
    index: int,
    prompt: Prompt,
    batch: Batch,
    wanted: str | Id | Loss,
    subject: Span,
    answer: str | Id | None,
) -> Example:
    ((tokens,), (answered,)) = batch.rows(), batch.answered.rows()
    forced, target = (), -1
    loss: Loss = cast(Loss, wanted) if callable(wanted) else target_loss(wanted)
    check_callable_loss(loss)
    if loss is next_token_loss:
        check_has_next([answered], prompt_text(model, prompt))
    if isinstance(loss, TargetLoss):
        loss = loss.bind(model, 1)
        (ids,) = loss.ids or ((-1,),)
        one = loss.positions in (None, -1) or (loss.mask is not None and isinstance(loss.positions, int))
        forced, target = ids[:-1], ids[0] if one else -1
    if len(answered) + len(forced) > model.cfg.n_ctx:
        raise ValueError(f"Expected at most n_ctx={model.cfg.n_ctx} tokens (target included), got more; shorten it.")
    if subject is not None:
        text = prompt if isinstance(prompt, str) else None
        subject = find_span(getattr(model, "tokenizer", None), tokens, subject, text)
    predicted = [*answered, *forced]
    return Example(
        index=index,
        tokens=predicted if batch.decoder is None else tokens,
        n_forced=len(forced),
        loss=loss,
        target=target,
        subject=subject,
        answer=None if answer in (None, "") else _first_token(model, answer),
        asked=_asked(model, loss, tokens),
        decoder=None if batch.decoder is None else predicted,
        inputs=cast("dict[str, Tensor]", batch.inputs),
    )


def _asked(model: TransformerLensModel, loss: Loss, tokens: list[int]) -> int | None:
    """Index of the token at which a masked model predicts: the mask, or the loss's position; None for other models."""
    mask, positions = mask_token(model), getattr(loss, "positions", None)
    if mask is None:
        return None
    return range(len(tokens))[positions] if isinstance(positions, int) else asked_index(tokens, mask)


def _first_token(model: TransformerLensModel, text: str | Id) -> int:
    return (target_loss(text).bind(model, 1).ids or ((-1,),))[0][0]


def by_length(model: TransformerLensModel, examples: Sequence[Example], batch_size: int) -> Iterator[list[Example]]:
    """Batches of at most `batch_size` examples of like lengths, so that little is padded, and that fit a pass.

    A token takes about 3 d_vocab + 32 n_layers d_model numbers, forwards and backwards.
    """
    most_padding = padding_limit(model)
    most = _NUMBERS // (3 * model.cfg.d_vocab + 32 * model.cfg.n_layers * model.cfg.d_model)
    batch: list[Example] = []
    for example in sorted(examples, key=lambda each: each.n_tokens):
        full = len(batch) == batch_size or (len(batch) >= _LEAST and (len(batch) + 1) * example.n_tokens > most)
        if batch and (full or example.n_tokens - batch[0].n_tokens > most_padding):
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


@dataclass(frozen=True)
class Captured:
    """A batch's gradient factors, with each example's mask, loss and predicting token."""

    cache: GradientCache
    mask: Bool[Tensor, "batch pos"]
    """Of `cache.tokens`."""
    losses: Float[Tensor, "batch"]
    asked: Int[Tensor, "batch"]
    """Index of the token at which each prompt is asked: its last, or its mask."""


def capture_batch(model: TransformerLensModel, examples: Sequence[Example], weights: Sequence[str]) -> Captured:
    """One forward and one activation-only backward for several examples.

    Raises:
        NonFiniteError: one example's loss or gradient is not finite; it carries the example's index.
    """
    given = answered = pad(model, [example.tokens for example in examples])
    further = {name: torch.cat([example.inputs[name] for example in examples]) for name in examples[0].inputs}
    decoder = [example.decoder for example in examples if example.decoder is not None]
    if decoder:
        answered = pad(model, decoder)
        further |= dict(zip(DECODER, (answered.tokens, answered.real), strict=True))
    loss = _EachItsOwn(examples, answered.real, answered.last.tolist())
    try:
        _, cache = run_with_gradient_cache(
            model, given.tokens, loss, weights=list(weights), names_filter=[], attention_mask=given.mask,
            **cast("dict[str, Never]", further),
        )  # fmt: skip
    except NonFiniteError as error:
        index = examples[error.index].index
        raise NonFiniteError(f"Prompt {index}: {error}", index) from error
    # From a row's end, on whichever side it is padded.
    back = [e.n_forced if e.asked is None else len(e.answered) - 1 - e.asked for e in examples]
    asked = answered.last - torch.tensor(back, device=answered.last.device)
    return Captured(cache, answered.real, torch.stack(loss.values), asked)


@dataclass
class _EachItsOwn:
    """The sum of every example's own loss, each given its real tokens alone."""

    examples: Sequence[Example]
    mask: Bool[Tensor, "batch pos"]
    last: Sequence[int]
    """Index of each row's last real token."""
    values: list[Tensor] = field(default_factory=list)

    def __call__(
        self, logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, ""]:
        counts = self.mask.sum(1).tolist()
        texts = all(example.loss is next_token_loss for example in self.examples)
        if texts and 2 <= min(counts) == max(counts):
            real = slice(self.last[0] + 1 - counts[0], self.last[0] + 1)
            each = next_token_losses(logits[:, real], tokens[:, real])
            if each.isfinite().all():
                self.values += each.detach().double().unbind()
                return each.sum()
            values = enumerate(each.unbind())
        else:
            values = self._one_by_one(logits, tokens, counts)
        total = logits.new_zeros(())
        for row, value in values:
            try:
                value = check_loss(value)
            except NonFiniteError as error:
                raise NonFiniteError(str(error), row) from error
            self.values.append(value.detach().double())
            total = total + value
        return total

    def _one_by_one(
        self, logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], counts: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        # Split once: the gradient of a slice of the batch is as large as the batch, and zeros but for the slice.
        for row, (example, own, ids) in enumerate(zip(self.examples, logits.split(1), tokens.split(1), strict=True)):
            real = slice(self.last[row] + 1 - counts[row], self.last[row] + 1)
            ids = ids[:, real]
            named = {"attention_mask": torch.ones_like(ids, dtype=torch.bool)} if takes_mask(example.loss) else {}
            yield row, example.loss(own[:, real], ids, **named)
