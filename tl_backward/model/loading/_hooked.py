"""HookedTransformer (TransformerLens 3) of a folder, checked against Hugging Face's own logits."""

import copy
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tl_backward._support.closeness import tolerance
from tl_backward.model.loading._agreement import logit_difference, own_logits, probe_tokens
from tl_backward.model.loading._others import first_line
from tl_backward.model.loading.options import Wanted

if TYPE_CHECKING:
    from transformer_lens import HookedTransformerConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ONE_AT_A_TIME = threading.Lock()


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens has HookedTransformer, which version 4 removed."""
    return find_spec("transformer_lens.HookedTransformer") is not None


def hooked_transformer(
    directory: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    wanted: Wanted,
    *,
    check: bool,
) -> nn.Module:
    """The same model as a HookedTransformer.

    Raises:
        ValueError: TransformerLens does not know the architecture, or computes something else.
    """
    from transformer_lens.utilities.architectures import classify_architecture

    try:
        if classify_architecture(type(model).__name__) not in ("causal_lm", "multimodal"):
            raise ValueError(f"a HookedTransformer is a causal language model and a {type(model).__name__} is none")
        tokens = probe_tokens(model) if check else None
        theirs = own_logits(model, tokens)
        hooked = _convert(directory, model, tokenizer, wanted)
        if check:
            if tokens is None or theirs is None:
                raise ValueError("Hugging Face's own model gives no logits for tokens alone")
            with torch.no_grad():
                ours: Tensor = hooked(tokens.to(wanted.device))
            error = logit_difference(ours, theirs, wanted)
            if error > tolerance(wanted.dtype):
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
    wanted: Wanted,
) -> nn.Module:
    from transformer_lens import HookedTransformer, loading_from_pretrained

    cfg = _configuration(directory, model, wanted)
    weights = loading_from_pretrained.get_pretrained_state_dict(str(directory), cfg, model, dtype=wanted.dtype)
    with warnings.catch_warnings():  # that HookedTransformer will go is known to whoever asks for it
        warnings.simplefilter("ignore", DeprecationWarning)
        hooked = HookedTransformer(cfg, tokenizer, move_to_device=False)
    hooked.load_and_process_state_dict(weights, **wanted.options)
    hooked.move_model_modules_to_device()
    return hooked.eval()


def _configuration(directory: Path, model: "PreTrainedModel", wanted: Wanted) -> "HookedTransformerConfig":
    """TransformerLens's configuration of the model.

    It takes a folder for a Llama or a Gemma by its path, so it is given one whose name says nothing.
    """
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    config, where = model.config, {"device": wanted.device, "dtype": wanted.dtype}
    with TemporaryDirectory() as folder, _given(folder, _as_before(model)):
        (Path(folder) / "config.json").touch()
        try:
            cfg = get_pretrained_model_config(folder, fold_ln=False, **where)
        except NotImplementedError:  # Gemma and OLMo are known by nothing but the beginning of their path
            cfg = get_pretrained_model_config(str(directory), fold_ln=False, **where)
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


def _as_before(model: "PreTrainedModel") -> "PretrainedConfig":
    """A copy of its configuration with what TransformerLens reads: the class, and what transformers 5 dropped."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    rope = getattr(config, "rope_parameters", None)
    if config.model_type == "gpt2" and not hasattr(config, "n_ctx"):
        vars(config)["n_ctx"] = config.n_positions
    if isinstance(rope, Mapping) and "partial_rotary_factor" in rope and not hasattr(config, "partial_rotary_factor"):
        vars(config)["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return config
