"""Prompts (text, texts or tokens) as batches: token ids and an exact mask of the real ones.

An encoder-decoder's prompts are what its encoder reads. Its logits belong to the tokens that its decoder reads: those
given as `decoder_input_ids`, or what the decoder begins with when it generates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from tl_backward._support.checks import short
from tl_backward._support.closeness import difference, tolerance
from tl_backward._support.types import Prompt, Prompts, TransformerLensModel
from tl_backward.model.checks import model_kind
from tl_backward.model.guard import rng_untouched, unobserved
from tl_backward.model.inputs import (
    DECODER,
    PER_TOKEN,
    check_inputs,
    check_per_token,
    check_reads_text,
    decoder_start,
    has_decoder,
    main_input,
    main_output,
    own_inputs,
    padding_limit,
    probe_signal,
    without_cache,
)
from tl_backward.text.encoding import encode_texts, warn_of_trailing_space, warn_of_two_beginnings, warn_of_unknown
from tl_backward.text.ids import ARRAYS, as_ids, as_prompt, check_in_vocabulary, side_by_side
from tl_backward.text.token_strings import embedding_table, vocabulary_size


@dataclass(frozen=True)
class Batch:
    """A batch of prompts: token ids, their mask, and the model's further inputs."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"] | None
    """True at real tokens; None where nothing is padded."""
    inputs: dict[str, object] = field(default_factory=dict)
    """The model's own further inputs (`pixel_values`, `position_ids`, ...), by name."""
    decoder: "Batch | None" = None
    """What the decoder of an encoder-decoder reads."""

    @property
    def answered(self) -> "Batch":
        """The tokens that the logits belong to: the decoder's where there is one."""
        return self if self.decoder is None else self.decoder

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """[batch, pos] of each sequence of tokens that the model reads."""
        own = (self.tokens.shape[0], self.tokens.shape[1])
        return (own,) if self.decoder is None else (own, *self.decoder.shapes)

    @property
    def n_examples(self) -> int:
        """Rows of the batch."""
        return self.tokens.shape[0]

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """The mask [batch, pos]; all True where nothing is padded."""
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def last(self) -> Int[Tensor, "batch"]:
        """Index of each row's last real token."""
        if self.mask is None:
            return torch.full((self.n_examples,), self.tokens.shape[1] - 1, device=self.tokens.device)
        return self.mask.shape[1] - 1 - self.mask.flip(1).int().argmax(1)

    def rows(self) -> list[list[int]]:
        """Each example's real token ids."""
        if self.mask is None:
            return self.tokens.tolist()
        return [row[real].tolist() for row, real in zip(self.tokens, self.mask, strict=True)]


def encode_prompts(
    model: TransformerLensModel,
    prompts: Prompts,
    *,
    prepend_bos: bool | None = None,
    attention_mask: Bool[Tensor, "batch pos"] | Integer[Tensor, "batch pos"] | None = None,
) -> Batch:
    """Tokenise `prompts` as the model does; several of unequal lengths are padded (see `pad`), with their mask.

    Raises:
        ValueError: an empty prompt, one longer than n_ctx, ids outside the vocabulary, text without a tokenizer, or a
            mask that does not fit the tokens.
        TypeError: anything but text, a list of texts or integer tokens; a model that reads no text.
    """
    check_reads_text(model)
    given = as_prompt(prompts)
    if isinstance(given, ARRAYS):
        return _checked(model, given_tokens(given, attention_mask))
    texts = [given] if isinstance(given, str) else given
    is_text = isinstance(texts, list | tuple) and len(texts) > 0 and all(isinstance(text, str) for text in texts)
    if given is prompts and not is_text:
        what = "an empty list" if isinstance(texts, list | tuple) and not texts else short(prompts)
        raise TypeError(
            "Expected a prompt as text, a non-empty list of texts, or token ids (a list of them, or an integer tensor "
            f"[batch, pos]), got {what}; convert it first."
        )
    if attention_mask is not None:
        raise ValueError(
            f"Expected attention_mask only together with tokens, got one with {'text' if is_text else 'several lists'};"
            " leave it out, their padding is masked exactly."
        )
    if is_text:
        return _checked(model, pad(model, encoded_rows(model, cast("list[str]", texts), prepend_bos=prepend_bos)))
    rows = cast("list[list[int]]", given)
    if not all(rows):
        empty = [index for index, row in enumerate(rows) if not row][0]
        raise ValueError(f"Expected at least one token in every prompt, got none in prompt {empty}; leave it out.")
    return _checked(model, pad(model, rows))


def encode_prompt(model: TransformerLensModel, prompt: Prompt, *, prepend_bos: bool | None = None) -> Batch:
    """One prompt as a batch of one, as `encode_prompts` makes it.

    Raises:
        ValueError, TypeError: as `encode_prompts` does; several prompts.
    """
    batch = encode_prompts(model, prompt, prepend_bos=prepend_bos)
    if batch.n_examples != 1:
        raise TypeError(f"Expected one prompt, got {batch.n_examples}; give one at a time.")
    return batch


def encoded_rows(
    model: TransformerLensModel, texts: Sequence[str], *, prepend_bos: bool | None = None
) -> list[list[int]]:
    """Each prompt's ids, with a warning of what a prompt should not end with, hold or begin with.

    Raises:
        ValueError, TypeError: as `encode_texts` does; a model that reads no text.
    """
    check_reads_text(model)
    rows = encode_texts(model, texts, prepend_bos=prepend_bos)
    warn_of_trailing_space(texts)
    others = [place for place, text in enumerate(texts) if text[-1:] != " "]
    warn_of_unknown(model, [texts[place] for place in others], [rows[place] for place in others])
    warn_of_two_beginnings(model, rows)
    return rows


def forward(model: TransformerLensModel, batch: Batch) -> Float[Tensor, "batch *rest"]:
    """The logits of one pass, padding masked, without a key-value cache; no draw from the global RNG.

    They are [batch, pos, d_vocab] over `batch.answered.tokens`, or whatever else is the model's main output.

    Raises:
        ValueError: an encoder-decoder, and a batch that does not say what its decoder reads.
    """
    options: dict[str, object] = {"return_type": "logits"}
    if batch.mask is not None:
        options["attention_mask"] = batch.mask.long()
    main: object = batch.tokens
    if model_kind(model) == "TransformerBridge":
        options |= without_cache(model)
        name = main_input(model)
        if name in batch.inputs and name != "input_ids":  # an image or a sound in the tokens' place
            main = batch.inputs[name]
        if has_decoder(model):
            options |= _decoder_options(batch, own_inputs(model))
    with rng_untouched(model):
        return main_output(model(main, **{**options, **batch.inputs}))


def own_pass(model: TransformerLensModel) -> object:
    """Output of a short pass over a probe batch.

    Raises:
        RuntimeError: TransformerLens does not run this model.
    """
    try:
        return forward(model, probe_batch(model))
    except (ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        if str(error).startswith("Expected"):
            raise
        name = type(getattr(model, "original_model", model)).__name__
        raise RuntimeError(
            f"Expected a model that TransformerLens runs, got a {name} whose own pass ends in {type(error).__name__} "
            f"({' '.join(str(error).split())[:120]}); TransformerLens 4.3 may run it."
        ) from error


def _decoder_options(batch: Batch, takes: set[str]) -> dict[str, object]:
    if batch.decoder is None:
        raise ValueError(
            "Expected a model whose logits belong to the prompt's tokens, got an encoder-decoder, whose logits belong "
            "to its decoder's; run_with_gradient_cache, backward_lens, sweep, gradient_similarity, shift_edit and "
            "gradient_edit say what its decoder reads, scores of edits do not."
        )
    options: dict[str, object] = {DECODER[0]: batch.decoder.tokens}
    if batch.decoder.mask is not None and DECODER[1] in takes:
        options[DECODER[1]] = batch.decoder.mask.long()
    return options


def with_inputs(model: TransformerLensModel, batch: Batch, inputs: Mapping[str, object]) -> Batch:
    """A batch with the model's own further inputs, and with what its decoder reads where it has one.

    Raises:
        TypeError: the model does not take one of them, or decoder_input_ids are no integer tokens.
        ValueError: one that does not fit the prompts; an unknown start of the decoder.
    """
    check_inputs(model, inputs)
    further = {
        name: as_ids(value, name) if name in PER_TOKEN and isinstance(value, ARRAYS) else value
        for name, value in {**batch.inputs, **inputs}.items()
    }
    check_per_token(further, batch.tokens)
    if not has_decoder(model):
        return replace(batch, inputs=further)
    ids, mask = further.pop(DECODER[0], None), further.pop(DECODER[1], None)
    if ids is None:
        if mask is not None:
            raise ValueError(f"Expected {DECODER[1]} only together with {DECODER[0]}, got it alone; leave it out.")
        decoder = batch.decoder
        if decoder is None:
            start = torch.tensor([decoder_start(model)] * batch.n_examples, device=batch.tokens.device)
            decoder = Batch(start, None)
        return replace(batch, inputs=further, decoder=decoder)
    if not isinstance(ids, ARRAYS) or not (mask is None or isinstance(mask, ARRAYS)):
        raise TypeError(f"Expected {DECODER[0]} and {DECODER[1]} as tensors [batch, pos], got other objects.")
    decoder = _checked(model, given_tokens(ids, mask, *DECODER))
    if decoder.n_examples != batch.n_examples:
        raise ValueError(
            f"Expected {DECODER[0]} for each of the {batch.n_examples} prompts, got {decoder.n_examples} rows; give "
            "one row a prompt."
        )
    return replace(batch, inputs=further, decoder=decoder)


def probe_batch(model: TransformerLensModel) -> Batch:
    """A small probe batch: a few tokens from all over the vocabulary, or a signal where the model reads no text."""
    name = main_input(model)
    if name != "input_ids":
        value = probe_signal(model, name)
        return Batch(torch.zeros(len(value), 0, dtype=torch.long, device=value.device), None, {name: value})
    table = embedding_table(model)
    d_vocab, length = table.shape[0], max(1, min(_PROBE[1], int(getattr(model.cfg, "n_ctx", 0) or _PROBE[1])))
    # From the middle on: special tokens, some of which stand for an image, come first.
    half, n = max(1, d_vocab // 2), _PROBE[0] * length
    ids = (d_vocab // 2 + torch.arange(n) * max(1, half // n) % half).reshape(_PROBE[0], length).to(table.device)
    return Batch(ids, None, decoder=Batch(ids[:, : max(1, length - 2)], None) if has_decoder(model) else None)


_PROBE = (3, 7)
"""Examples and tokens of a short pass: few, and no size that an axis of a model is likely to have."""


def extend(model: TransformerLensModel, batch: Batch, continuation: tuple[tuple[int, ...], ...]) -> Batch:
    """The batch with ids appended to what each example's logits belong to (teacher forcing of a longer target)."""
    if not any(continuation):
        return batch
    rows = [row + list(extra) for row, extra in zip(batch.answered.rows(), continuation, strict=True)]
    longer = _checked(model, pad(model, rows))
    if batch.decoder is not None:
        return replace(batch, decoder=longer)
    inputs = {name: _continued(name, value, batch, longer) for name, value in batch.inputs.items()}
    return replace(longer, inputs=inputs)


def _continued(name: str, value: object, batch: Batch, longer: Batch) -> object:
    """An input with an entry a token, for a longer batch: the last entry again, or a position further each time."""
    if name not in PER_TOKEN or not isinstance(value, Tensor):
        return value
    old = value.expand(*value.shape[:-2], *batch.tokens.shape)
    new = old.new_zeros(*old.shape[:-1], longer.tokens.shape[1])
    for row, (real, where) in enumerate(zip(batch.real, longer.real, strict=True)):
        own = old[..., row, real]
        steps = torch.arange(1, int(where.sum()) - own.shape[-1] + 1, device=own.device) * PER_TOKEN[name]
        new[..., row, where] = torch.cat([own, own[..., -1:] + steps], -1)
    return new


def pad(model: TransformerLensModel, rows: list[list[int]]) -> Batch:
    """Rows of ids as one tensor, padded with the tokenizer's pad token on its side; a Bridge's always on the right.

    Left padding turns the logits or gradients of most Bridges into NaN: TransformerLens gives a query without any key
    -inf alone to choose from. What a causal model says of real tokens does not depend on the side.
    """
    tokenizer = getattr(model, "tokenizer", None)
    left = getattr(tokenizer, "padding_side", "right") == "left" and model_kind(model) == "HookedTransformer"
    tokens, mask = side_by_side(rows, getattr(tokenizer, "pad_token_id", None) or 0, left=left)
    if not mask.all():
        _check_reads_masks(model)
        _check_padding(model, mask)
    device = embedding_table(model).device
    return Batch(tokens.to(device), None if mask.all() else mask.to(device))


def _check_padding(model: TransformerLensModel, mask: Bool[Tensor, "batch pos"]) -> None:
    """Refuse more padding than leaves the texts' own values as they are.

    Raises:
        ValueError: there is more (`padding_limit`).
    """
    most, limit = int((~mask).sum(1).max()), padding_limit(model)
    if most > limit:
        raise ValueError(
            f"Expected texts whose lengths differ by at most {limit} tokens in float64, where this model's attention "
            f"window is {limit + 1} and more padding is NaN, got {most}; give one text at a time, or load the model "
            "in float32."
        )


_READS_MASKS: "WeakKeyDictionary[TransformerLensModel, float]" = WeakKeyDictionary()
"""How far each model's logits of a padded text are from those of the text alone."""


def _check_reads_masks(model: TransformerLensModel) -> None:
    """Refuse padding to a model that gives a padded text other logits than the text alone.

    TransformerLens's Bridge of OpenAI's first GPT does: it takes a mask from outside to be causal already.

    Raises:
        ValueError: it does.
    """
    if model not in _READS_MASKS:
        _READS_MASKS[model] = _far_from_alone(model)
    if _READS_MASKS[model] > 1:
        name = type(getattr(model, "original_model", model)).__name__
        raise ValueError(
            f"Expected a model that gives a padded text the logits of the text alone, got a {name} of TransformerLens, "
            "which reads attention masks otherwise; give one text at a time (batch_size=1), or texts of one length."
        )


def _far_from_alone(model: TransformerLensModel) -> float:
    """Error of a padded text's logits in units of the rounding tolerance; 0 where it cannot be measured."""
    probe = probe_batch(model)
    n_real = probe.tokens.shape[1] - 2
    if main_input(model) != "input_ids" or n_real < 1:
        return 0.0
    mask = (torch.arange(n_real + 2, device=probe.tokens.device) < n_real).expand_as(probe.tokens)
    with unobserved(model):
        try:
            alone = forward(model, replace(probe, tokens=probe.tokens[:, :n_real]))
            padded = forward(model, replace(probe, mask=mask))
        except Exception:  # whatever a library raises: the pass that is wanted will say what it lacks
            return 0.0
    if padded.ndim != 3 or alone.ndim != 3:
        return 0.0
    n = min(padded.shape[1], alone.shape[1])
    return difference(padded[:, :n], alone[:, :n]) / tolerance(alone.dtype)


def given_tokens(tokens: object, mask: object, name: str = "tokens", mask_name: str = "attention_mask") -> Batch:
    """Ids [batch, pos] or [pos] and their mask, None for none, as arrays or lists.

    Raises:
        TypeError: no integers, or other axes.
        ValueError: a mask of another shape, or of other numbers than 0 and 1.
    """
    ids = as_ids(tokens if isinstance(tokens, ARRAYS) else torch.as_tensor(tokens), f"{name} [batch, pos] or [pos]")
    if ids.ndim not in (1, 2):
        raise TypeError(
            f"Expected integer {name} [batch, pos] or [pos], got {ids.dtype} of shape {list(ids.shape)}; token ids "
            "come from model.to_tokens(text)."
        )
    ids = torch.atleast_2d(ids)
    if mask is None:
        return Batch(ids, None)
    real = torch.atleast_2d(mask if isinstance(mask, Tensor) else torch.as_tensor(mask))
    if real.shape != ids.shape:
        raise ValueError(
            f"Expected {mask_name} of the tokens' shape {list(ids.shape)}, got {list(real.shape)}; one entry a token, "
            "1 where real."
        )
    if bool(((real != 0) & (real != 1)).any()):  # another row of ids, additive masks, numbers of packed texts
        raise ValueError(
            f"Expected {mask_name} of 1 where a token is real and 0 where it is padding, got other numbers; give "
            "the tokenizer's own."
        )
    return Batch(ids, real.bool())


def _checked(model: TransformerLensModel, batch: Batch) -> Batch:
    n_tokens, n_ctx = batch.tokens.shape[1], model.cfg.n_ctx
    if not batch.tokens.numel():
        raise ValueError(f"Expected at least one token, got shape {list(batch.tokens.shape)}; the prompt is empty.")
    if n_tokens > n_ctx:
        raise ValueError(
            f"Expected at most n_ctx={n_ctx} tokens (target included), got {n_tokens}; shorten the prompt."
        )
    check_in_vocabulary(batch.tokens, vocabulary_size(model))
    return batch
