"""Load a model by name: of the zoo, from a Hugging Face directory, or of TransformerLens."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from tl_backward import zoo
from tl_backward._typing import TransformerLensModel
from tl_backward.zoo.loading import has_hooked_transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("hooked", "bridge")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def load_model(
    name_or_dir: str, *, kind: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> TransformerLensModel:
    """Load a model with its tokenizer, without progress bars, its weights as they were trained.

    Args:
        name_or_dir: a model of the zoo, a directory that Hugging Face's `save_pretrained` wrote (read
            offline), or a name that TransformerLens can load (fetched or cached).
        kind: "hooked" for a HookedTransformer (TransformerLens 3 only), "bridge" for a TransformerBridge. By
            default HookedTransformer for the zoo where TransformerLens has it, else TransformerBridge.
        device: as PyTorch names it.
        dtype: one of DTYPES.

    Raises:
        ValueError: an unknown name, kind, dtype or device, or a directory without a model; also where
            TransformerLens's HookedTransformer of a directory would not compute what Hugging Face's model
            does.
        ImportError: `kind="hooked"` where TransformerLens has no HookedTransformer.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"Expected kind 'hooked' or 'bridge', got {kind!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"Expected a dtype among {', '.join(DTYPES)}, got {dtype!r}.")
    _check_device(device)
    if kind == "hooked" and not has_hooked_transformer():
        raise ImportError(
            "kind 'hooked' needs a TransformerLens that has HookedTransformer, and this one does not; "
            "install 'transformer-lens<4' or use kind 'bridge'."
        )
    wanted = getattr(torch, dtype)
    if name_or_dir in zoo.names() or name_or_dir in zoo.RECIPES:
        loaded = cast(nn.Module, zoo.load(name_or_dir, kind=kind))
        if (device, dtype) != ("cpu", "float32"):
            with redirect_stdout(StringIO()):  # TransformerLens reports every move
                loaded = loaded.to(wanted).to(device)
    elif Path(name_or_dir).is_dir():
        loaded = _load_directory(Path(name_or_dir), kind or "bridge", device, wanted)
    elif name_or_dir.startswith((".", "/", "~")):
        raise ValueError(f"Expected a folder with a Hugging Face model, got {name_or_dir!r}; there is no such folder.")
    else:
        loaded = _load_named(name_or_dir, kind or "bridge", device, wanted)
    return cast(TransformerLensModel, loaded.eval())


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Expected a device that PyTorch can use here, got {device!r}: {_first_line(error)}"
        ) from error


def _load_directory(directory: Path, kind: str, device: str, dtype: torch.dtype) -> nn.Module:
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"Expected a Hugging Face model in {str(directory)!r}, but it has no config.json; pass the "
            "folder that save_pretrained wrote."
        )
    with _quiet_transformers():
        model, tokenizer = _hugging_face(directory, dtype)
        if kind == "hooked":
            return _hooked(directory, model, tokenizer, device, dtype)
        return _bridge(directory, model, tokenizer, device, dtype)


def _hugging_face(directory: Path, dtype: torch.dtype) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tl_backward.zoo.activations import register_solu

    register_solu()  # a model of the zoo that was trained into a directory
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        # TransformerBridge hooks attention scores and patterns, which only eager attention computes.
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, attn_implementation="eager", dtype=dtype
        )
    except (OSError, ValueError, KeyError, ImportError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Expected a causal language model with its tokenizer in {str(directory)!r}, but transformers "
            f"cannot load it: {_first_line(error)}"
        ) from error
    return model.eval(), tokenizer


def _bridge(
    directory: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    device: str,
    dtype: torch.dtype,
) -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    try:
        return TransformerBridge.boot_transformers(
            str(directory), hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    except (ValueError, KeyError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"Expected an architecture that TransformerBridge knows in {str(directory)!r}, got "
            f"{model.config.model_type!r}: {_first_line(error)}"
        ) from error


def _hooked(
    directory: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    device: str,
    dtype: torch.dtype,
) -> nn.Module:
    """HookedTransformer of a directory, checked against Hugging Face's own logits.

    TransformerLens tells some architectures by the path's name, so a wrong guess has to be noticed here.
    """
    from transformer_lens import HookedTransformer, loading_from_pretrained

    try:
        cfg = loading_from_pretrained.get_pretrained_model_config(
            str(directory), fold_ln=False, device=device, dtype=dtype
        )
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
        hooked.eval()
        ids = torch.arange(min(8, cfg.n_ctx))[None] % cfg.d_vocab
        with torch.no_grad():
            ours, theirs = hooked(ids.to(device)).cpu().float(), model(ids).logits.float()
        tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        agrees, why = (
            error <= tolerance,
            f"its logits differ from Hugging Face's by {error:.2g} of the largest",
        )
    except (ValueError, KeyError, NotImplementedError, AttributeError, RuntimeError, TypeError) as problem:
        raise ValueError(_no_hooked(directory, _first_line(problem))) from problem
    if not agrees:
        raise ValueError(_no_hooked(directory, why))
    return hooked


def _no_hooked(directory: Path, why: str) -> str:
    return (
        f"Expected a model that TransformerLens can load as a HookedTransformer in {str(directory)!r}, but "
        f"{why}; use kind 'bridge'."
    )


def _load_named(name: str, kind: str, device: str, dtype: torch.dtype) -> nn.Module:
    try:
        with _quiet_transformers():
            if kind == "hooked":
                from transformer_lens import HookedTransformer

                return HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)
            from transformer_lens.model_bridge import TransformerBridge

            return TransformerBridge.boot_transformers(name, device=device, dtype=dtype)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        shipped = ", ".join(zoo.names())
        raise ValueError(
            f"Expected a shipped model ({shipped}), a folder with a Hugging Face model, or a name that "
            f"TransformerLens can load, got {name!r}: {_first_line(error)} (without the internet, give the "
            "folder that save_pretrained wrote)"
        ) from error


def _first_line(error: BaseException) -> str:
    """Cut another library's error to its gist: some list every model they know."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > 200:
        text = text.split(". ")[0]
    return text if len(text) <= 200 else f"{text[:199]}\u2026"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and the hub's accounts of its retries, which are turned on again after."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    enabled, verbosity = logging.is_progress_bar_enabled(), hub.get_verbosity()
    logging.disable_progress_bar()
    hub.set_verbosity_error()
    try:
        yield
    finally:
        hub.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()
