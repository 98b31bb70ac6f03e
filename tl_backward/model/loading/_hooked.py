"""HookedTransformer (TransformerLens 3) of a folder, checked against Hugging Face's own logits."""

import copy
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tl_backward._support.closeness import difference, tolerance
from tl_backward.model.loading._agreement import own_logits, probe_tokens
from tl_backward.model.loading._others import first_line

if TYPE_CHECKING:
    from transformer_lens import HookedTransformerConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ONE_AT_A_TIME = threading.Lock()


def hooked_transformer(
    directory: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    device: str,
    dtype: torch.dtype,
) -> nn.Module:
    """The same model as a HookedTransformer, its weights unprocessed.

    Raises:
        ValueError: TransformerLens does not know the architecture, or computes something else.
    """
    from transformer_lens.utilities.architectures import classify_architecture

    try:
        if classify_architecture(type(model).__name__) not in ("causal_lm", "multimodal"):
            raise ValueError(f"a HookedTransformer is a causal language model and a {type(model).__name__} is none")
        tokens = probe_tokens(model)
        theirs = own_logits(model, tokens)
        if tokens is None or theirs is None:
            raise ValueError("Hugging Face's own model gives no logits for tokens alone")
        hooked = _convert(directory, model, tokenizer, device, dtype)
        with torch.no_grad():
            ours: Tensor = hooked(tokens.to(device))
        error = difference(ours, theirs)
        if error > tolerance(dtype):
            raise ValueError(f"its logits differ from Hugging Face's by {error:.2g} of the largest")
    except (ValueError, KeyError, NotImplementedError, AttributeError, RuntimeError, TypeError, IndexError) as problem:
        raise ValueError(
            f"Expected a model that TransformerLens can load as a HookedTransformer in {str(directory)!r}, but "
            f"{first_line(problem).rstrip('.')}; use kind 'bridge'."
        ) from problem
    return hooked


def _convert(
    directory: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    device: str,
    dtype: torch.dtype,
) -> nn.Module:
    from transformer_lens import HookedTransformer, loading_from_pretrained

    cfg = _configuration(directory, model.config, device, dtype)
    weights = loading_from_pretrained.get_pretrained_state_dict(str(directory), cfg, model, dtype=dtype)
    with warnings.catch_warnings():  # that HookedTransformer will go is known to whoever asks for it
        warnings.simplefilter("ignore", DeprecationWarning)
        hooked = HookedTransformer(cfg, tokenizer, move_to_device=False)
    hooked.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    hooked.move_model_modules_to_device()
    return hooked.eval()


def _configuration(
    directory: Path, config: "PretrainedConfig", device: str, dtype: torch.dtype
) -> "HookedTransformerConfig":
    """TransformerLens's configuration of the model.

    It takes a folder for a Llama or a Gemma by its path, so it is given one whose name says nothing.
    """
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    with TemporaryDirectory() as folder, _given(folder, _as_before(config)):
        (Path(folder) / "config.json").touch()
        try:
            cfg = get_pretrained_model_config(folder, fold_ln=False, device=device, dtype=dtype)
        except NotImplementedError:  # Gemma and OLMo are known by nothing but the beginning of their path
            cfg = get_pretrained_model_config(str(directory), fold_ln=False, device=device, dtype=dtype)
    mended = {"model_name": directory.name, "tokenizer_name": str(directory)}
    inner = {"gpt2": "n_inner", "gptj": "n_inner", "gpt_neo": "intermediate_size"}.get(config.model_type, "")
    if width := getattr(config, inner, None):  # TransformerLens has four times d_model
        mended["d_mlp"] = width
    return HookedTransformerConfig.from_dict({**cfg.to_dict(), **mended})


@contextmanager
def _given(folder: str, config: "PretrainedConfig") -> Iterator[None]:
    """While it lasts, TransformerLens reads this configuration where it asks for a folder's."""
    from transformer_lens import loading_from_pretrained

    name = "AutoConfig"

    class Reads:
        @staticmethod
        def from_pretrained(source: str, **options: object) -> "PretrainedConfig":
            return config if source == folder else reads.from_pretrained(source, **options)

    with _ONE_AT_A_TIME:
        reads = getattr(loading_from_pretrained, name)
        setattr(loading_from_pretrained, name, Reads)
        try:
            yield
        finally:
            setattr(loading_from_pretrained, name, reads)


def _as_before(config: "PretrainedConfig") -> "PretrainedConfig":
    """A copy that also has the attributes which transformers 5 dropped and TransformerLens reads."""
    config = copy.deepcopy(config)
    rope = getattr(config, "rope_parameters", None)
    if config.model_type == "gpt2" and not hasattr(config, "n_ctx"):
        vars(config)["n_ctx"] = config.n_positions
    if isinstance(rope, Mapping) and "partial_rotary_factor" in rope and not hasattr(config, "partial_rotary_factor"):
        vars(config)["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return config
