"""Prompts in: text, several texts, or tokens; tokens and an exact mask of the real ones out."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_backward._checks import UnknownWordsWarning, check_text, model_kind, nearest
from tl_backward._typing import Prompts, TransformerLensModel
from tl_backward._visits import rng_untouched
from tl_backward.vocabulary import embedding_table, unknown_words, vocabulary_size


@dataclass(frozen=True)
class Batch:
    """Tokens as the model is given them."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"] | None
    """True at real tokens; None where nothing is padded."""
    inputs: dict[str, object] = field(default_factory=dict)
    """The model's own further inputs (`decoder_input_ids`, `pixel_values`, ...), by name."""

    @property
    def n_examples(self) -> int:
        """Rows of the batch."""
        return self.tokens.shape[0]

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
    attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
) -> Batch:
    """Tokenise `prompts` as the model does; several texts are padded (see `pad`), with their mask.

    Raises:
        ValueError: an empty prompt, one longer than n_ctx, ids outside the vocabulary, text without a tokenizer, or a
            mask that does not fit the tokens.
        TypeError: anything but text, a list of texts or integer tokens.
    """
    if isinstance(prompts, Tensor):
        return _checked(model, _given_tokens(prompts, attention_mask))
    if attention_mask is not None:
        raise ValueError(
            "Expected attention_mask only together with tokens, got one with text; leave it out, padding of text is "
            "masked exactly."
        )
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        what = "an empty list" if isinstance(texts, list | tuple) and not texts else type(prompts).__name__
        raise TypeError(
            f"Expected a prompt as text, a non-empty list of texts or an integer tensor [batch, pos], got {what}; "
            "convert it first."
        )
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(
            "Expected a model with a tokenizer, got text for one without; pass token ids (an integer tensor "
            "[batch, pos]) or set model.tokenizer."
        )
    options = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
    rows = []
    for text in texts:
        if not text:
            raise ValueError("Expected a prompt with at least one token, got an empty text; write something.")
        rows.append(model.to_tokens(check_text(text), truncate=False, **options).flatten().tolist())
        unknown = getattr(model.tokenizer, "unk_token_id", None)
        if unknown in rows[-1] and unknown != getattr(model.tokenizer, "bos_token_id", None):  # GPT-2's are the same
            which = ", ".join(map(repr, unknown_words(model.tokenizer, text)))
            warnings.warn(
                f"The prompt {text!r} has words that are not in the model's vocabulary and are read as unknown"
                + (f": {which}." if which else "."),
                UnknownWordsWarning,
                stacklevel=4,
            )
    return _checked(model, pad(model, rows))


def forward(model: TransformerLensModel, batch: Batch) -> Float[Tensor, "batch *said d_vocab"]:
    """The logits of one pass, padding masked, without a key-value cache; no draw from the global RNG."""
    options: dict[str, object] = {"return_type": "logits"}
    if batch.mask is not None:
        options["attention_mask"] = batch.mask.long()
    main: object = batch.tokens
    if model_kind(model) == "TransformerBridge":
        takes = own_inputs(model)
        if "use_cache" in takes:
            options["use_cache"] = False
        name = main_input(model)
        if name in batch.inputs and name != "input_ids":  # an image or a sound in the tokens' place
            main = batch.inputs[name]
    with rng_untouched(model):
        return model(main, **{**options, **batch.inputs})


def main_input(model: TransformerLensModel) -> str:
    """What a model reads first of all: "input_ids", or the name of its image or sound where it reads no text."""
    inner = getattr(model, "original_model", None)
    name = getattr(inner, "main_input_name", "input_ids")
    for flag, other in (("is_visual_model", "pixel_values"), ("is_audio_model", "input_values")):
        if getattr(model.cfg, flag, False):
            return name if name != "input_ids" else other
    return "input_ids"


def own_inputs(model: TransformerLensModel) -> dict[str, Parameter]:
    """The inputs that a model's own forward pass names."""
    inner = getattr(model, "original_model", None)
    layers = [inner or model]
    for _ in range(2):  # what a head hands on by **kwargs its body names
        body = getattr(layers[-1], "base_model", None)
        if isinstance(body, nn.Module) and body is not layers[-1]:
            layers.append(body)
    found: dict[str, Parameter] = {}
    for layer in layers:
        found |= dict(signature(cast(nn.Module, layer).forward).parameters)
    return {name: p for name, p in found.items() if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)}


def with_inputs(model: TransformerLensModel, batch: Batch, inputs: Mapping[str, object]) -> Batch:
    """A batch with the model's own further inputs, which it is known to take.

    Raises:
        TypeError: it does not take one of them.
    """
    if not inputs:
        return batch
    known = own_inputs(model)
    for name in inputs:
        if name not in known:
            raise TypeError(
                f"Expected an input that the model takes, got {name!r}; the nearest are {nearest(name, known)}."
            )
    return replace(batch, inputs={**batch.inputs, **inputs})


def probe_batch(model: TransformerLensModel) -> Batch:
    """A few tokens from all over the vocabulary, or what else a model reads: enough for a short pass of our own."""
    name = main_input(model)
    if name != "input_ids":
        value = _probe_signal(model, name)
        return Batch(torch.zeros(len(value), 0, dtype=torch.long), None, {name: value})
    table = embedding_table(model)
    d_vocab, length = table.shape[0], max(1, min(_PROBE[1], int(getattr(model.cfg, "n_ctx", 0) or _PROBE[1])))
    # From the middle on: special tokens, some of which stand for an image, come first.
    half, n = max(1, d_vocab // 2), _PROBE[0] * length
    ids = d_vocab // 2 + torch.arange(n) * max(1, half // n) % half
    return Batch(ids.reshape(_PROBE[0], length).to(table.device), None)


_PROBE = (3, 7)
"""Examples and tokens of a short pass: few, and no size that an axis of a model is likely to have."""


def _probe_signal(model: TransformerLensModel, name: str) -> Tensor:
    """An image or a sound of the size that the model's configuration asks for."""
    inner = cast(nn.Module, getattr(model, "original_model", model))
    config = getattr(inner, "config", None)
    like = next(inner.parameters())
    if name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (2, int(getattr(config, "num_channels", 3)), height, width)
    elif hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):  # a spectrogram
        shape = (2, int(getattr(config, "max_length", 0)), int(getattr(config, "num_mel_bins", 0)))
    else:
        stride = 1
        for each in getattr(config, "conv_stride", (5, 2, 2, 2, 2, 2, 2)):
            stride *= int(each)
        shape = (2, 16 * stride + 400)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def extend(model: TransformerLensModel, batch: Batch, continuation: tuple[tuple[int, ...], ...]) -> Batch:
    """The batch with ids appended to each example's real tokens (teacher forcing of a longer target)."""
    if not any(continuation):
        return batch
    rows = [row + list(extra) for row, extra in zip(batch.rows(), continuation, strict=True)]
    return _checked(model, pad(model, rows))


def pad(model: TransformerLensModel, rows: list[list[int]]) -> Batch:
    """Rows of ids as one tensor, padded with the tokenizer's pad token on its side; a Bridge's always on the right.

    Left padding turns the logits or gradients of most Bridges into NaN: TransformerLens gives a query without any key
    -inf alone to choose from. What a causal model says of real tokens does not depend on the side.
    """
    tokenizer = getattr(model, "tokenizer", None)
    left = getattr(tokenizer, "padding_side", "right") == "left" and model_kind(model) == "HookedTransformer"
    side: Literal["left", "right"] = "left" if left else "right"
    fill = getattr(tokenizer, "pad_token_id", None) or 0
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = True
    device = embedding_table(model).device
    return Batch(tokens.to(device), None if mask.all() else mask.to(device))


def _given_tokens(tokens: Tensor, attention_mask: Tensor | None) -> Batch:
    if tokens.ndim == 1:
        tokens = tokens[None]
        attention_mask = None if attention_mask is None else attention_mask.reshape(1, -1)
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TypeError(
            f"Expected integer tokens [batch, pos] or [pos], got {tokens.dtype} of shape {list(tokens.shape)}; token "
            "ids come from model.to_tokens(text)."
        )
    if attention_mask is not None and attention_mask.shape != tokens.shape:
        raise ValueError(
            f"Expected attention_mask of the tokens' shape {list(tokens.shape)}, got {list(attention_mask.shape)}; one "
            "entry a token, 1 where real."
        )
    return Batch(tokens, None if attention_mask is None else attention_mask.bool())


def _checked(model: TransformerLensModel, batch: Batch) -> Batch:
    n_tokens, n_ctx, d_vocab = batch.tokens.shape[1], model.cfg.n_ctx, vocabulary_size(model)
    if batch.tokens.numel() == 0:
        raise ValueError(f"Expected at least one token, got shape {list(batch.tokens.shape)}; the prompt is empty.")
    if n_tokens > n_ctx:
        raise ValueError(
            f"Expected at most n_ctx={n_ctx} tokens (target included), got {n_tokens}; shorten the prompt."
        )
    if int(batch.tokens.min()) < 0 or int(batch.tokens.max()) >= d_vocab:
        raise ValueError(
            f"Expected token ids in [0, {d_vocab}), got {int(batch.tokens.min())} to {int(batch.tokens.max())}; the "
            "tokens come from another vocabulary."
        )
    return batch
