"""The models of the zoo, shipped or trained into a directory: `tl_backward.load` of one of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from tl_backward._support.public import public
from tl_backward._support.storage import damaged
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.loading import Kind, has_hooked_transformer
from tl_backward.model.loading import load as load_any
from tl_backward.model.loading._folder import read_folder
from tl_backward.model.loading._others import quiet_transformers
from tl_backward.model.shipped import FILES, metrics, names, nearest_shipped, shipped_directory

if TYPE_CHECKING:
    import transformers


@public
def load(name_or_dir: str | Path, *, kind: Kind | None = None, fold_ln: bool = False) -> TransformerLensModel:
    """Load a model on CPU in float32, with its tokenizer: `tl_backward.load` of a model of the zoo.

    Prints nothing, makes no network request and leaves the global random state as it was.

    Args:
        name_or_dir: one of `names()`, or a directory that ``python -m tl_backward.zoo.train`` wrote.
        kind: ``"hooked"`` for a HookedTransformer (TransformerLens 3 only), ``"bridge"`` for a
            TransformerBridge. By default HookedTransformer where TransformerLens has it.
        fold_ln: fold LayerNorm's weights into the matrices that read from it, which changes no
            logit; a TransformerBridge goes into compatibility mode for it. By default the weights are as they were
            trained.

    Raises:
        ValueError: the name is unknown, or the directory holds no model of the zoo or a damaged one.
        ImportError: ``kind="hooked"`` where TransformerLens has no HookedTransformer.

    Examples:
        >>> tlb.zoo.load("facts").cfg.n_layers
        4
    """
    default = "hooked" if has_hooked_transformer() else "bridge"
    return load_any(_directory(name_or_dir), kind=kind or default, processing={"fold_ln": True} if fold_ln else None)


def load_hugging_face(
    name_or_dir: str | Path,
) -> "tuple[transformers.GPT2LMHeadModel, transformers.PreTrainedTokenizerFast]":
    """The plain Hugging Face model behind `load`, on CPU in eval mode, and its tokenizer: to train it further.

    Raises:
        ValueError: see `load`.
    """
    directory = _directory(name_or_dir)
    metrics(directory)
    with quiet_transformers(reports=False), torch.random.fork_rng(devices=[]):
        read = read_folder(directory, torch.float32)
    return cast("tuple[transformers.GPT2LMHeadModel, transformers.PreTrainedTokenizerFast]", read)


def _directory(name_or_dir: str | Path) -> Path:
    directory = shipped_directory(str(name_or_dir)) or Path(name_or_dir)
    if not all((directory / file).is_file() for file in FILES):
        shipped, close = ", ".join(map(repr, names())), nearest_shipped(str(name_or_dir))
        hint = f"did you mean {close!r}?" if close else "others are loaded with tl_backward.load."
        raise ValueError(
            f"Expected a model of the zoo, one of {shipped}, or a directory with {', '.join(FILES)}, got "
            f"{str(name_or_dir)!r}; {hint}"
        )
    try:
        model_type = json.loads((directory / "config.json").read_text()).get("model_type")
    except ValueError as error:
        raise ValueError(damaged(directory / "config.json", str(error))) from error
    if model_type != "gpt2":
        raise ValueError(
            f"The models of the zoo are GPT-2 shaped, got model_type {model_type!r} in {directory}; "
            "load others with tl_backward.load."
        )
    return directory
