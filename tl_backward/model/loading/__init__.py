"""Load a model by name: of the zoo, from a Hugging Face directory, or of TransformerLens."""

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import cast

import torch
from torch import nn

from tl_backward import zoo
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.loading._bridge import boot, transformer_bridge
from tl_backward.model.loading._folder import read_folder
from tl_backward.model.loading._hooked import hooked_transformer
from tl_backward.model.loading._others import LoadingWarning, first_line, quiet_transformers
from tl_backward.zoo.loading import has_hooked_transformer

__all__ = ["DTYPES", "KINDS", "LoadingWarning", "load_model"]

KINDS = ("hooked", "bridge")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def load_model(
    name_or_dir: str | os.PathLike[str], *, kind: str | None = None, device: str = "cpu", dtype: str = "float32"
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
        TypeError: a name that is no text.
        ValueError: an unknown name, kind, dtype or device; a directory without a model, or whose files lack
            weights of it or have others; a directory of which TransformerLens's model would not compute what
            Hugging Face's does, on a few tokens.
        ImportError: `kind="hooked"` where TransformerLens has no HookedTransformer.

    Warns:
        LoadingWarning: a directory with another task's weights beside the model's, or a multimodal model whose
            processor does not load. TransformerLens would install torchvision for it; here nothing is installed.

    A directory's model is of the class that its config.json names: masked models and encoder-decoders too.
    """
    if not isinstance(name_or_dir, str | os.PathLike):
        raise TypeError(
            f"Expected a model's name or folder as text, got {type(name_or_dir).__name__}; see tl_backward.zoo.names()."
        )
    name_or_dir = os.fspath(name_or_dir)
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
        raise ValueError(f"Expected a device that PyTorch can use here, got {device!r}: {first_line(error)}") from error


def _load_directory(directory: Path, kind: str, device: str, dtype: torch.dtype) -> nn.Module:
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"Expected a Hugging Face model in {str(directory)!r}, but it has no config.json; pass the "
            "folder that save_pretrained wrote."
        )
    with quiet_transformers(reports=False), torch.random.fork_rng(devices=[]):
        model, tokenizer = read_folder(directory, dtype)
        convert = hooked_transformer if kind == "hooked" else transformer_bridge
        return convert(directory, model, tokenizer, device, dtype)


def _load_named(name: str, kind: str, device: str, dtype: torch.dtype) -> nn.Module:
    try:
        with quiet_transformers():
            if kind == "hooked":
                from transformer_lens import HookedTransformer

                return HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)
            return boot(name, {"device": device, "dtype": dtype})
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        shipped = ", ".join(zoo.names())
        raise ValueError(
            f"Expected a shipped model ({shipped}), a folder with a Hugging Face model, or a name that "
            f"TransformerLens can load, got {name!r}: {first_line(error)} (without the internet, give the "
            "folder that save_pretrained wrote)"
        ) from error
