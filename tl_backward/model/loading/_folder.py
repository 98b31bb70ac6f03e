"""Loads a Hugging Face model from a folder, in its own class, with every weight from the folder's files."""

import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from tl_backward._support.warnings import warn_user
from tl_backward.model.loading._others import LoadingWarning, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def read_folder(directory: Path, dtype: torch.dtype) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
    """The model, in eval mode on the CPU, and its tokenizer: None for a model that reads no text and has none.

    Raises:
        ValueError: a folder that transformers cannot load, or whose weights are not those of the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    from tl_backward.model.loading.solu import register_solu

    register_solu()  # a model of the zoo that was trained into a directory
    tokenizer = None
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        architecture, load = _class_of(config)
        if _reads_text(architecture) or (directory / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        loaded = load(
            directory,
            local_files_only=True,
            # TransformerBridge hooks attention scores and patterns, which only eager attention computes.
            attn_implementation="eager",
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except MemoryError:
        raise
    except Exception as error:  # safetensors, pickle, json and each tokenizer have errors of their own
        raise ValueError(
            f"Expected a language model with its tokenizer in {str(directory)!r}, but transformers cannot load it: "
            f"{_reason(error)}; copy or save the folder again, whole."
        ) from error
    _check_numbers(directory, config)  # of files that are whole by now
    model, report = cast("tuple[PreTrainedModel, dict[str, Collection]]", loaded)
    _check_weights(directory, model, report)
    return model.eval(), tokenizer


def _reason(error: Exception) -> str:
    if "automatic conversion of the weights" in str(error):  # it refers to a report that is not printed here
        return "weights that it joins, such as a layer's experts, do not fit together"
    return first_line(error).rstrip(".")


def _class_of(config: "PretrainedConfig") -> tuple[str, Callable[..., object]]:
    """The architecture that TransformerBridge takes a configuration for, and how its class is loaded.

    AutoModelForCausalLM would load a BertForMaskedLM as a BertLMHeadModel, and no encoder-decoder.
    """
    import transformers
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
        get_hf_model_class_for_architecture,
    )

    try:
        architecture = str(determine_architecture_from_hf_config(config))
    except ValueError:  # TransformerBridge refuses it later, unless HookedTransformer knows it
        return "", transformers.AutoModelForCausalLM.from_pretrained
    own = None if architecture.endswith("Model") or not _reads_text(architecture) else architecture
    # A bare model, such as BloomModel, and those of sound and pictures are read as TransformerLens reads them.
    loader = getattr(transformers, own or "", None) or get_hf_model_class_for_architecture(architecture)
    return architecture, loader.from_pretrained


def _reads_text(architecture: str) -> bool:
    from transformer_lens.utilities.architectures import classify_architecture

    return classify_architecture(architecture) not in ("audio", "vision")


_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
"""What safetensors calls the data types of whole numbers."""


def _check_numbers(directory: Path, config: "PretrainedConfig") -> None:
    """Refuse weights that are stored as whole numbers where nothing says how to read them.

    transformers would take 8-bit codes for the weights themselves.

    Raises:
        ValueError: a file of the folder has such a weight, and config.json no quantization_config.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    from safetensors import safe_open

    for path in _weight_files(directory):
        with safe_open(path, "pt") as file:
            names: Iterable[str] = file.keys()
            for name in names:
                stored = file.get_slice(name).get_dtype()
                if stored in _INTEGERS and name.endswith(("weight", "bias")):
                    raise ValueError(
                        f"Expected weights as floating-point numbers in {str(path)!r}, got {name} as {stored} whole "
                        "numbers without a quantization_config in config.json that says what they stand for; save the "
                        "model anew, with its quantization_config or dequantised."
                    )


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files that transformers reads a model from."""
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
    return [directory / name for name in dict.fromkeys(names)]


def _check_weights(directory: Path, model: "PreTrainedModel", report: dict[str, Collection]) -> None:
    """Refuse what transformers filled with random numbers; it has set aside what a class may lack or leave unread.

    Raises:
        ValueError: tensors that are missing, of another shape, or of a part of the model that it has not as saved.
    """
    missing, unread = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    reshaped = [
        f"{name} {list(got)} instead of {list(wanted)}" for name, got, wanted in sorted(report["mismatched_keys"])
    ]
    modules = {name for part in (model, model.base_model) for name, _ in part.named_modules()} - {""}
    kind = type(model).__name__
    if missing or reshaped or any(_belongs(name, modules) for name in unread):
        parts = [("lack", missing), ("have in another shape", reshaped), ("have unasked", unread)]
        problems = ", ".join(f"{verb} {_several(names)}" for verb, names in parts if names)
        raise ValueError(
            f"Expected files in {str(directory)!r} with the weights of the {kind} that its config.json describes, got "
            f"files that {problems}; copy or save the folder again, whole, or mend its config.json."
        )
    if unread:
        warn_user(f"{kind} has no use for {_several(unread)} in {str(directory)!r}.", LoadingWarning)


def _belongs(name: str, modules: Collection[str]) -> bool:
    """Whether a tensor is of a module that the model has, or of a further layer; another task's head is of neither."""
    patterns = {_pattern(module) for module in modules}
    parts = name.split(".")[:-1]
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    further = any(_pattern(module) in patterns and module not in modules for module in around)
    return further or bool(around) and _pattern(around[-1]) in patterns


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _several(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
