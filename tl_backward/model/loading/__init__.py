"""The one loader: a model that ships, of a Hugging Face directory, or by a name that TransformerLens knows."""

import os
from pathlib import Path
from typing import cast

import torch
from torch import nn

from tl_backward._support.public import public
from tl_backward._support.submodules import offer
from tl_backward._support.types import TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.model.loading._folder import read_folder
from tl_backward.model.loading._others import LoadingWarning, first_line, quiet_transformers
from tl_backward.model.loading._wrapped import (
    boot,
    has_hooked_transformer,
    hooked_transformer,
    process_bridge,
    transformer_bridge,
)
from tl_backward.model.loading.options import DTYPES, KINDS, Dtype, Kind, Processing, Wanted
from tl_backward.model.shipped import WEIGHTS, check_not_misspelt, metrics, names, shipped_directory

__all__ = [
    "DTYPES",
    "KINDS",
    "Dtype",
    "Kind",
    "LoadingWarning",
    "Processing",
    "has_hooked_transformer",
    "load",
    "load_model",
]

offer(__name__, {})


@public
def load(
    name_or_dir: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    processing: Processing | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> TransformerLensModel:
    """Load a model with its tokenizer, without progress bars; the global random state stays as it was.

    Args:
        name_or_dir: a model that ships (`tl_backward.zoo.names()`), a directory that Hugging Face's `save_pretrained`
            or ``python -m tl_backward.zoo.train`` wrote (read offline), or a name that TransformerLens can load
            (fetched or cached).
        kind: "hooked" for a HookedTransformer (TransformerLens 3 only), "bridge" for a TransformerBridge. By
            default HookedTransformer for models that ship where TransformerLens has it, else TransformerBridge.
        processing: None for the weights as they were trained. Otherwise the options of `Processing` that are on, such
            as {"fold_ln": True}: a HookedTransformer loads its weights with them, a TransformerBridge goes into
            compatibility mode with them ({} for that mode alone).
        device: as PyTorch names it.
        dtype: of the weights.

    Raises:
        TypeError: a name that is no text; processing that is no dictionary.
        ValueError: an unknown name, kind, option, dtype or device; a directory without a model, or whose files are
            damaged, lack weights of it or have others; a directory of which TransformerLens's model would not compute
            what Hugging Face's does, on a few tokens (the models that ship are known to).
        ImportError: `kind="hooked"` where TransformerLens has no HookedTransformer.

    Warns:
        LoadingWarning: a directory with another task's weights beside the model's, or a multimodal model whose
            processor does not load. TransformerLens would install torchvision for it; here nothing is installed.

    A directory's model is of the class that its config.json names: masked models and encoder-decoders too.

    Examples:
        >>> tlb.load("facts").cfg.n_layers
        4
    """
    if not isinstance(name_or_dir, str | os.PathLike):
        raise TypeError(
            f"Expected a model's name or folder as text, got {type(name_or_dir).__name__}; see tl_backward.zoo.names()."
        )
    name = os.fspath(name_or_dir)
    if dtype not in DTYPES:
        raise ValueError(f"Expected a dtype among {', '.join(DTYPES)}, got {dtype!r}; name one of them as text.")
    directory = shipped_directory(name)
    default = "hooked" if directory is not None and has_hooked_transformer() else "bridge"
    wanted = Wanted(default if kind is None else kind, device, getattr(torch, dtype), processing)
    if wanted.kind == "hooked" and not has_hooked_transformer():
        raise ImportError(
            "kind 'hooked' needs a TransformerLens that has HookedTransformer, and this one does not; "
            "install 'transformer-lens<4' or use kind 'bridge'."
        )
    if directory is not None or Path(name).is_dir():
        loaded = _load_directory(directory or Path(name), wanted)
    elif name.startswith((".", "/", "~")):
        raise ValueError(f"Expected a folder with a Hugging Face model, got {name!r}; there is no such folder.")
    else:
        check_not_misspelt(name)
        loaded = _load_named(name, wanted)
    return cast(TransformerLensModel, loaded.eval())


def load_model(
    name_or_dir: str | os.PathLike[str], *, kind: Kind | None = None, device: str = "cpu", dtype: Dtype = "float32"
) -> TransformerLensModel:
    """`load` under the name it had before 0.2.0."""
    warn_user("load_model is now tl_backward.load; the old name goes with the next release.", DeprecationWarning)
    return load(name_or_dir, kind=kind, device=device, dtype=dtype)


def _load_directory(directory: Path, wanted: Wanted) -> nn.Module:
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"Expected a Hugging Face model in {str(directory)!r}, but it has no config.json; pass the "
            "folder that save_pretrained wrote."
        )
    metrics(directory)  # refuses files that are not those it was saved with
    with quiet_transformers(reports=False), torch.random.fork_rng(devices=[]):
        model, tokenizer = read_folder(directory, wanted.dtype)
        convert = hooked_transformer if wanted.kind == "hooked" else transformer_bridge
        return convert(directory, model, tokenizer, wanted, check=directory.parent != WEIGHTS)


def _load_named(name: str, wanted: Wanted) -> nn.Module:
    try:
        with quiet_transformers():
            if wanted.kind == "hooked":
                from transformer_lens import HookedTransformer

                return HookedTransformer.from_pretrained_no_processing(
                    name, device=wanted.device, dtype=wanted.dtype, **wanted.options
                )
            return process_bridge(boot(name, {"device": wanted.device, "dtype": wanted.dtype}), wanted)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"Expected a shipped model ({', '.join(names())}), a folder with a Hugging Face model, or a name that "
            f"TransformerLens can load, got {name!r}: {first_line(error)} (without the internet, give the "
            "folder that save_pretrained wrote)"
        ) from error
