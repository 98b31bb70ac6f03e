"""Load a model of the zoo, shipped or trained into a directory, in either TransformerLens world."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from tl_backward._support.storage import damaged, file_checksum, load_json
from tl_backward._support.types import TransformerLensModel

if TYPE_CHECKING:
    import transformers

WEIGHTS = Path(__file__).parent / "weights"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
METRICS, SUMS = "metrics.json", "crc32 of files"


def names() -> tuple[str, ...]:
    """The models that ship with the package.

    Example:
        >>> tlb.zoo.names()
        ('addition', 'counting', 'facts')
    """
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/config.json")))


def load(name_or_dir: str | Path, *, kind: str | None = None, fold_ln: bool = False) -> TransformerLensModel:
    """Load a model on CPU in float32, with its tokenizer.

    Prints nothing, makes no network request and leaves the global random state as it was.

    Args:
        name_or_dir: one of `names()`, or a directory that ``python -m tl_backward.zoo.train`` wrote.
        kind: ``"hooked"`` for a HookedTransformer (TransformerLens 3 only), ``"bridge"`` for a
            TransformerBridge. By default HookedTransformer where TransformerLens has it.
        fold_ln: fold LayerNorm's weights into the matrices that read from it, which changes no
            logit; HookedTransformer only. By default the weights are as they were trained.

    Raises:
        ValueError: the name is unknown, the directory holds no model of the zoo or a damaged one, or
            the options do not go together.
        ImportError: ``kind="hooked"`` where TransformerLens has no HookedTransformer.

    Example:
        >>> tlb.zoo.load("facts").cfg.n_layers
        4
    """
    if kind not in (None, "hooked", "bridge"):
        raise ValueError(f"Unknown kind {kind!r}: expected 'hooked', 'bridge' or None.")
    directory = _directory(name_or_dir)
    if kind is None:
        kind = "hooked" if has_hooked_transformer() else "bridge"
    if kind == "hooked" and not has_hooked_transformer():
        raise ImportError(
            "kind='hooked' needs a TransformerLens that has HookedTransformer, and this one does not; "
            "install 'transformer-lens<4' or load with kind='bridge'."
        )
    if kind == "bridge" and fold_ln:
        raise ValueError(
            "fold_ln=True needs kind='hooked', got a TransformerBridge; call its enable_compatibility_mode() to fold."
        )
    with torch.random.fork_rng(devices=[]):
        model, tokenizer = _hugging_face(directory)
        if kind == "hooked":
            loaded = _hooked(model, tokenizer, directory.name, fold_ln)
        else:
            loaded = _bridge(model, tokenizer, directory.name)
    return cast(TransformerLensModel, loaded)


def load_hugging_face(
    name_or_dir: str | Path,
) -> "tuple[transformers.GPT2LMHeadModel, transformers.PreTrainedTokenizerFast]":
    """The plain Hugging Face model behind `load`, on CPU in eval mode, and its tokenizer: to train it further.

    Raises:
        ValueError: see `load`.
    """
    directory = _directory(name_or_dir)
    with torch.random.fork_rng(devices=[]):
        return _hugging_face(directory)


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens has HookedTransformer, which version 4 removed."""
    return find_spec("transformer_lens.HookedTransformer") is not None


def _directory(name_or_dir: str | Path) -> Path:
    from tl_backward.zoo.recipes import RECIPES

    if name_or_dir in names():
        metrics(WEIGHTS / name_or_dir)
        return WEIGHTS / name_or_dir
    directory = Path(name_or_dir)
    if all((directory / file).is_file() for file in FILES):
        try:
            model_type = json.loads((directory / "config.json").read_text()).get("model_type")
        except ValueError as error:
            raise ValueError(damaged(directory / "config.json", str(error))) from error
        if model_type != "gpt2":
            raise ValueError(
                f"The models of the zoo are GPT-2 shaped, got model_type {model_type!r} in {directory}; "
                "load others with TransformerBridge.boot_transformers."
            )
        metrics(directory)
        return directory
    shipped = ", ".join(map(repr, names()))
    if str(name_or_dir) in RECIPES:
        raise ValueError(
            f"The weights of {name_or_dir!r} do not ship (shipped: {shipped}): train it with "
            f"`python -m tl_backward.zoo.train {name_or_dir} --out DIR` and load DIR."
        )
    raise ValueError(
        f"Unknown model {str(name_or_dir)!r}: expected one of {shipped}, or a directory with {', '.join(FILES)}."
    )


def metrics(directory: Path) -> dict:
    """What was recorded when a model was saved, its files being those of then; nothing where others saved it.

    Raises:
        ValueError: a file that is damaged or another's.
    """
    if not (directory / METRICS).is_file() or b"crc32" not in (directory / METRICS).read_bytes():
        return {}
    recorded = load_json(directory / METRICS)
    for name, expected in recorded.pop(SUMS).items():
        if file_checksum(directory / name) != expected:
            raise ValueError(damaged(directory / name, "its checksum is another"))
    return recorded


def _hugging_face(
    directory: Path,
) -> "tuple[transformers.GPT2LMHeadModel, transformers.PreTrainedTokenizerFast]":
    """The plain model and tokenizer, without transformers' progress bars."""
    from safetensors.torch import load_model
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from tl_backward.zoo.activations import register_solu

    register_solu()
    # TransformerBridge hooks attention scores and patterns, which only eager attention computes.
    config = GPT2Config.from_pretrained(directory, local_files_only=True, attn_implementation="eager")
    model = GPT2LMHeadModel(config)
    load_model(model, directory / "model.safetensors")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True, add_bos_token=True)
    return model.eval(), tokenizer


def _bridge(
    model: "transformers.GPT2LMHeadModel", tokenizer: "transformers.PreTrainedTokenizerFast", name: str
) -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer, device="cpu")


def _hooked(
    model: "transformers.GPT2LMHeadModel",
    tokenizer: "transformers.PreTrainedTokenizerFast",
    name: str,
    fold_ln: bool,
) -> nn.Module:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

    hf = model.config
    cfg = HookedTransformerConfig(
        n_layers=hf.n_layer,
        d_model=hf.n_embd,
        n_ctx=hf.n_positions,
        d_head=hf.n_embd // hf.n_head,
        n_heads=hf.n_head,
        d_mlp=4 * hf.n_embd,
        d_vocab=hf.vocab_size,
        act_fn=hf.activation_function,
        eps=hf.layer_norm_epsilon,
        normalization_type="LN",
        original_architecture="GPT2LMHeadModel",
        model_name=name,
        device="cpu",
    )
    with warnings.catch_warnings():  # TransformerLens 3 announces that 4 has none, which whoever asks for one knows
        warnings.simplefilter("ignore", DeprecationWarning)
        hooked = HookedTransformer(cfg, tokenizer, move_to_device=False)
    hooked.load_and_process_state_dict(
        convert_gpt2_weights(model, cfg),
        fold_ln=fold_ln,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return hooked.eval()
