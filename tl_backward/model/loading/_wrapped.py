"""TransformerLens's model of a Hugging Face model, checked on a few tokens against that model's own logits."""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tl_backward._support.closeness import difference, tolerance
from tl_backward._support.warnings import warn_user
from tl_backward.model.loading._others import LoadingWarning, first_line, no_installs
from tl_backward.model.loading.options import Wanted

if TYPE_CHECKING:
    from transformer_lens import HookedTransformerConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_N_TOKENS = 12
_ONE_AT_A_TIME = threading.Lock()
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
    tokens = _probe_tokens(model) if check else None
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
        warn_user(
            f"The processor of {name_or_dir!r} did not load ({_processor_error(name_or_dir)}), so the model reads text "
            "alone; if its processor needs torchvision, install the one that fits your torch.",
            LoadingWarning,
        )
    return bridge


def process_bridge(bridge: nn.Module, wanted: Wanted) -> nn.Module:
    """In compatibility mode, its weights processed, where that is asked for."""
    if wanted.processing is not None:
        cast(Callable[..., None], bridge.enable_compatibility_mode)(
            no_processing=not any(wanted.options.values()), **wanted.options
        )
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
    """Description of how the logits of a Bridge differ from the model's own; "" where they agree."""
    inputs = _probe_inputs(model, tokens)
    try:
        ours = bridge.eval()(inputs.pop("input_ids"), **inputs)
    except Exception as error:
        return first_line(error).rstrip(".")
    error = _difference(ours, theirs, wanted)
    return f"they differ by {error:.2g} of the largest" if error > tolerance(theirs.dtype) else ""


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
        tokens = _probe_tokens(model) if check else None
        theirs = own_logits(model, tokens)
        hooked = _convert(directory, model, tokenizer, wanted)
        if check:
            if tokens is None or theirs is None:
                raise ValueError("Hugging Face's own model gives no logits for tokens alone")
            with torch.no_grad():
                ours: Tensor = hooked(tokens.to(wanted.device))
            error = _difference(ours, theirs, wanted)
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
    """Context in which TransformerLens gets this configuration where it asks for a folder's."""
    from transformer_lens import loading_from_pretrained

    def read(source: str, **options: object) -> "PretrainedConfig":
        return config if source == folder else reads.from_pretrained(source, **options)

    with _ONE_AT_A_TIME:
        module = loading_from_pretrained.__dict__
        reads = module["AutoConfig"]
        module["AutoConfig"] = SimpleNamespace(from_pretrained=read)
        try:
            yield
        finally:
            module["AutoConfig"] = reads


def _as_before(model: "PreTrainedModel") -> "PretrainedConfig":
    """A copy of its configuration with what TransformerLens reads: the class, and what transformers 5 dropped."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    rope = getattr(config, "rope_parameters", None)
    dropped = {"n_ctx": config.n_positions} if config.model_type == "gpt2" else {}
    if isinstance(rope, Mapping) and "partial_rotary_factor" in rope:
        dropped["partial_rotary_factor"] = rope["partial_rotary_factor"]
    vars(config).update({name: value for name, value in dropped.items() if not hasattr(config, name)})
    return config


def _probe_tokens(model: "PreTrainedModel") -> Tensor | None:
    """Ids [1, pos] that any text model takes, none of them special; None for a model that reads no text."""
    embedding = model.get_input_embeddings() if model.main_input_name == "input_ids" else None
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    config = model.config.to_dict()
    special = set(_special_ids(config))
    ids = [token for token in range(min(len(weight), 1000)) if token not in special]
    # Two fewer than there are positions, as RoBERTa's begin at the padding's.
    limits = [config[name] for name in ("max_position_embeddings", "n_positions") if isinstance(config.get(name), int)]
    length = max(1, min(_N_TOKENS, *(limit - 2 for limit in limits), len(ids)))
    return torch.tensor([ids[:: max(1, len(ids) // length)][:length]], device=model.device)


def _special_ids(config: Mapping) -> Iterator[int]:
    """Ids that a configuration gives a meaning: an image's place among them."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special_ids(value)
        elif str(name).endswith(("token_id", "token_index", "token_ids")):
            yield from (value if isinstance(value, list) else [value] if isinstance(value, int) else [])


@torch.no_grad()
def own_logits(model: "PreTrainedModel", tokens: Tensor | None) -> Tensor | None:
    """Hugging Face's logits [1, pos, d_vocab], taken before TransformerLens wraps the model; None where it has none."""
    if tokens is None:
        return None
    try:
        logits = getattr(model(**_probe_inputs(model, tokens)), "logits", None)
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError):  # it takes no text alone
        return None
    return logits if isinstance(logits, Tensor) else None


def _difference(ours: Tensor, theirs: Tensor, wanted: Wanted) -> float:
    """By how much logits differ (see `difference`), up to each position's mean where the unembedding was centred."""
    if wanted.options["center_unembed"]:
        ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
    return difference(ours, theirs)


def _probe_inputs(model: "PreTrainedModel", tokens: Tensor) -> dict[str, Tensor]:
    """Probe inputs: the tokens, for an encoder-decoder given to encoder and decoder."""
    decoder = {"decoder_input_ids": tokens} if getattr(model.config, "is_encoder_decoder", False) else {}
    return {"input_ids": tokens, **decoder}
