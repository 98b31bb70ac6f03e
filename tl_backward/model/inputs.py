"""Inputs of a model's forward pass: those beside tokens, by name, a decoder's start tokens, and a probe input."""

import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import version
from inspect import Parameter, signature
from math import prod

import torch
from torch import Tensor, nn

from tl_backward._support.checks import UnknownInputError
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.checks import check_model, model_kind
from tl_backward.model.modules import every_module, root_of

_BATCH, _LENGTH = 4, 3
DECODER = ("decoder_input_ids", "decoder_attention_mask")
"""What says what a decoder reads."""

PER_TOKEN = {"position_ids": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Inputs with an entry a token, and by how much they grow from one token of a longer target to the next."""

_NOT_GIVEN = {
    "input_ids": "pass tokens as prompts",
    "inputs_embeds": "pass tokens, and change their embeddings with a hook",
    "decoder_inputs_embeds": "pass decoder_input_ids, and change their embeddings with a hook",
    "encoder_outputs": "pass prompts, which the encoder reads",
    "labels": "pass a loss",
    "past_key_values": "a capture is one pass over all tokens",
    "use_cache": "a capture is one pass over all tokens",
    "cache_position": "a capture is one pass over all tokens",
    "logits_to_keep": "choose positions in the loss",
    "return_dict": "the loss is given the model's main output",
}
"""What a forward pass names that is no input of a capture, and what to do instead."""


def main_input(model: TransformerLensModel) -> str:
    """The name of a model's main input: "input_ids", or that of its image or sound where it reads no text."""
    name = getattr(getattr(model, "original_model", None), "main_input_name", "input_ids")
    for flag, other in (("is_visual_model", "pixel_values"), ("is_audio_model", "input_values")):
        if getattr(model.cfg, flag, False):
            return name if name != "input_ids" else other
    return "input_ids"


def padding_limit(model: TransformerLensModel) -> int:
    """How many tokens of padding behind a text leave its own values as they are; `sys.maxsize` where any number does.

    In float64 transformers' eager attention makes NaN of a token that sees nothing, as padding does once it is as wide
    as a sliding window, and 0 times it reaches the text (findings/padding_in_float64_is_nan.sh).
    """
    inner = getattr(model, "original_model", None)
    if getattr(inner, "dtype", None) != torch.float64:
        return sys.maxsize
    config = getattr(inner, "config", None)
    windows = [getattr(each, "sliding_window", None) for each in (config, getattr(config, "text_config", None))]
    return min((each for each in windows if isinstance(each, int) and each > 0), default=sys.maxsize) - 1


def check_text_model(model: TransformerLensModel) -> None:
    """Refuse anything but a TransformerLens model that reads text."""
    check_model(model)
    check_reads_text(model)


def check_reads_text(model: TransformerLensModel) -> None:
    """Refuse prompts for a model that reads none.

    Raises:
        TypeError: it reads images or sounds alone.
    """
    name = main_input(model)
    if name != "input_ids":
        raise TypeError(
            f"Expected a model that reads text, got one that reads {name}, whose gradients are captured by "
            f"run_with_gradient_cache(model, None, loss, {name}=...)."
        )


def own_inputs(model: TransformerLensModel) -> set[str]:
    """The inputs that a model's own forward pass names."""
    layer = root_of(model)
    names = set(_named(layer))
    for _ in range(2):  # what a head hands on by **kwargs its body names
        layer = getattr(layer, "base_model", None)
        names.update(_named(layer) if isinstance(layer, nn.Module) else ())
    return names


def _named(layer: nn.Module) -> tuple[str, ...]:
    own = layer.__dict__.get("forward")
    return _parameters(type(layer).forward)[1:] if own is None else _parameters(own)


@lru_cache(maxsize=64)
def _parameters(function: Callable) -> tuple[str, ...]:
    given = signature(function).parameters.values()
    return tuple(each.name for each in given if each.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL))


def check_inputs(model: TransformerLensModel, names: Iterable[str]) -> None:
    """Refuse inputs that the model's forward pass does not take.

    Raises:
        TypeError: the model does not take it, or it is given in another way.
    """
    hooked = model_kind(model) == "HookedTransformer"
    known = set() if hooked else own_inputs(model) - set(_NOT_GIVEN)
    for name in names:
        if name in _NOT_GIVEN:
            raise TypeError(f"Expected an input that the model reads, got {name!r}; {_NOT_GIVEN[name]}.")
        if hooked:
            raise UnknownInputError(name, ())
        if name not in known and not (name == DECODER[1] and DECODER[0] in known):
            raise UnknownInputError(name, sorted(known))


def without_cache(model: TransformerLensModel) -> dict[str, object]:
    """The option that keeps a pass from a key-value cache, for models that take one and run without.

    TransformerLens 3 computes a gated delta rule (Qwen3-Next) itself where there is no cache, in a way that
    transformers has left behind: with one, transformers does.
    """
    if model_kind(model) != "TransformerBridge" or "use_cache" not in own_inputs(model):
        return {}
    if not _own_delta_rule():
        return {"use_cache": False}
    gated = any(type(module).__name__ == "GatedDeltaNetBridge" for module in every_module(model))
    return {} if gated else {"use_cache": False}


@lru_cache(maxsize=1)
def _own_delta_rule() -> bool:
    return version("transformer-lens").startswith("3.")


def has_decoder(model: TransformerLensModel) -> bool:
    """Whether a model is an encoder with a decoder, whose tokens its logits belong to."""
    return bool(getattr(getattr(root_of(model), "config", None), "is_encoder_decoder", False))


def decoder_start(model: TransformerLensModel) -> list[int]:
    """The ids that a decoder begins with when it generates: `decoder_start_token_id`, then `forced_bos_token_id`.

    Where nothing names the first it is the BOS, or else the pad token, with which T5's kin begin.

    Raises:
        ValueError: no configuration of the model names any of them.
    """
    inner = getattr(model, "original_model", None)
    config = getattr(inner, "config", None)
    parts = [getattr(config, name, None) for name in ("decoder", "text_config")]
    owners = [getattr(inner, "generation_config", None), config, *parts]
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    start = _first_id([(owner, name) for name in names for owner in (parts[0], *owners)])
    if start is None:
        raise ValueError(
            "Expected decoder_input_ids, since the model's configuration has no decoder_start_token_id to begin with, "
            "got none; pass the tokens that its decoder reads."
        )
    forced = _first_id([(owner, "forced_bos_token_id") for owner in owners])
    return [start] if forced is None else [start, forced]


def _first_id(places: list[tuple[object, str]]) -> int | None:
    values = (getattr(owner, name, None) for owner, name in places)
    return next((value for value in values if isinstance(value, int)), None)


def check_per_token(inputs: dict[str, object], tokens: Tensor) -> None:
    """Refuse inputs with an entry a token that do not fit the tokens [batch, pos].

    Raises:
        ValueError: one does not.
    """
    for name in PER_TOKEN:
        value = inputs.get(name)
        if isinstance(value, Tensor) and not (
            value.ndim >= 2 and value.shape[-1] == tokens.shape[1] and value.shape[-2] in (1, len(tokens))
        ):
            raise ValueError(
                f"Expected {name} for each of the tokens {list(tokens.shape)}, got {list(value.shape)}; one entry a "
                "token."
            )


def main_output(output: object) -> Tensor:
    """The model's main output: its logits, or the first tensor that it returns.

    Raises:
        TypeError: it returns none.
    """
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise TypeError(f"Expected a model that returns a tensor, got {type(output).__name__}; wrap it so that it does.")


def probe_signal(model: TransformerLensModel, name: str) -> Tensor:
    """An image or a sound of the size that the model's configuration asks for."""
    config, like = getattr(root_of(model), "config", None), next(root_of(model).parameters())
    if name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (2, int(getattr(config, "num_channels", 3)), height, width)
    elif hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):  # a spectrogram
        shape = (2, int(getattr(config, "max_length", 0)), int(getattr(config, "num_mel_bins", 0)))
    else:
        shape = (2, 16 * prod(map(int, getattr(config, "conv_stride", (5, 2, 2, 2, 2, 2, 2)))) + 400)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


def probe_tokens(model: TransformerLensModel) -> Tensor:
    """A few tokens [batch, pos] from the middle of the vocabulary, where none stands for padding."""
    table = _table(model)
    d_vocab, length = table.shape[0], max(1, min(_LENGTH, model.cfg.n_ctx))
    ids = d_vocab // 2 + torch.arange(_BATCH * length) % max(1, d_vocab // 2)
    return ids.reshape(_BATCH, length).to(table.device)


def _table(model: TransformerLensModel) -> Tensor:
    """The input embedding, that TransformerLens has no name for in some encoder-decoders."""
    inputs = getattr(getattr(model, "original_model", None), "get_input_embeddings", None)
    table = getattr(inputs(), "weight", None) if inputs is not None else model.W_E
    if not isinstance(table, Tensor) or table.ndim != 2:
        raise ValueError("Expected a model that reads tokens, got one without an input embedding; it has no words.")
    return table


def probe_logits(model: TransformerLensModel, tokens: Tensor) -> Tensor:
    """The logits of a pass, without a key-value cache; an encoder-decoder's decoder reads the same tokens."""
    options: dict[str, object] = {"return_type": "logits", **without_cache(model)}
    if has_decoder(model):
        options["decoder_input"] = tokens
    return model(tokens, **options)
