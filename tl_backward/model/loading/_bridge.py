"""TransformerBridge of a Hugging Face model, checked against that model's own logits; no package is installed."""

import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tl_backward._support.closeness import tolerance
from tl_backward.model.loading._agreement import logit_difference, own_logits, probe_inputs, probe_tokens
from tl_backward.model.loading._installs import no_installs
from tl_backward.model.loading._others import LoadingWarning, first_line
from tl_backward.model.loading.options import Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RIGHT_SINCE: dict[str, str] = dict.fromkeys(("cohere", "cohere2", "hunyuan_v1_dense", "mt5", "t5"), "4.3")
"""The first TransformerLens found to compute what these model types do; 3.9 was found not to."""


def transformer_bridge(
    directory: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    wanted: Wanted,
    *,
    check: bool,
) -> nn.Module:
    """The model in a TransformerBridge, which wraps it in place.

    Raises:
        ValueError: TransformerBridge does not know the architecture, or computes something else.
    """
    if torch.device(wanted.device) != model.device:  # boot leaves a model where it is
        cast(nn.Module, model).to(wanted.device)
    tokens = probe_tokens(model) if check else None
    theirs = own_logits(model, tokens)
    options = {"hf_model": model, "tokenizer": tokenizer, "device": wanted.device, "dtype": wanted.dtype}
    model_type, installed = model.config.model_type, version("transformer-lens")
    right = RIGHT_SINCE.get(model_type)
    remedy = f"install 'transformer-lens>={right}'" if right else "try another version of TransformerLens"
    try:
        bridge = process_bridge(boot(str(directory) if check else directory.name, options), wanted)
    except MemoryError:
        raise
    except Exception as error:  # each architecture's adapter has errors of its own
        raise ValueError(
            f"Expected an architecture that TransformerBridge knows in {str(directory)!r}, got {model_type!r}, which "
            f"TransformerLens {installed} does not boot: {first_line(error).rstrip('.')}; {remedy}."
        ) from error
    if wanted.processing is not None:
        remedy = "load it with processing=None"
    if tokens is not None and theirs is not None and (why := _differs(bridge, model, tokens, theirs, wanted)):
        raise ValueError(
            f"Expected a TransformerBridge of {str(directory)!r} with Hugging Face's logits, but for {model_type!r} "
            f"TransformerLens {installed} has none: {why}; {remedy}."
        )
    return bridge


def boot(name_or_dir: str, options: dict[str, object]) -> nn.Module:
    """`TransformerBridge.boot_transformers`, which installs nothing here; a processor that did not load is named."""
    from transformer_lens.model_bridge import TransformerBridge

    with no_installs() as refused:
        bridge = cast(Callable[..., nn.Module], TransformerBridge.boot_transformers)(name_or_dir, **options)
    if refused:
        warnings.warn(
            f"The processor of {name_or_dir!r} did not load ({_processor_error(name_or_dir)}), so the model reads text "
            "alone; if its processor needs torchvision, install the one that fits your torch.",
            LoadingWarning,
            stacklevel=2,
        )
    return bridge


def process_bridge(bridge: nn.Module, wanted: Wanted) -> nn.Module:
    """In compatibility mode, its weights processed, where that is asked for."""
    if wanted.processing is not None:
        enable = cast(Callable[..., None], bridge.enable_compatibility_mode)
        enable(no_processing=not any(wanted.options.values()), **wanted.options)
    return bridge


def _processor_error(name_or_dir: str) -> str:
    from transformers import AutoProcessor

    try:
        AutoProcessor.from_pretrained(name_or_dir)
    except Exception as error:  # whatever transformers, torch or an image library says
        return first_line(error).rstrip(".")
    return "TransformerLens could not load it"


@torch.no_grad()
def _differs(bridge: nn.Module, model: "PreTrainedModel", tokens: Tensor, theirs: Tensor, wanted: Wanted) -> str:
    """Why the logits of a Bridge are not the model's own; empty where they are."""
    inputs = probe_inputs(model, tokens)
    try:
        ours = bridge.eval()(inputs.pop("input_ids"), **inputs)
    except Exception as error:
        return first_line(error).rstrip(".")
    error = logit_difference(ours, theirs, wanted)
    return f"they differ by {error:.2g} of the largest" if error > tolerance(theirs.dtype) else ""
