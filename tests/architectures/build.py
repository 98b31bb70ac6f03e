"""From a row to a TransformerBridge, offline: the Hugging Face model, its random weights, its tokenizer."""

import copy
import warnings
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tl_backward.model.loading._others import no_installs

from .table import D_VOCAB, MASK, Inputs, Row, tokens

MOST = 1_000_000
"""Parameters of a model that counts as tiny."""


class Unavailable(Exception):
    """An architecture that nothing here can build."""


def tokenizer(masked: bool) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over "w4" ... "w49"."""
    words = {"<bos>": 0, "<pad>": 1, "<unk>": 2, "<mask>": MASK} | {f"w{i}": i for i in range(4, D_VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(bos_token="<bos>", pad_token="<pad>", unk_token="<unk>", eos_token="<bos>")
    if masked:
        special["mask_token"] = "<mask>"
    return PreTrainedTokenizerFast(tokenizer_object=core, name_or_path="tests/words", add_bos_token=True, **special)


def hugging_face(row: Row) -> nn.Module:
    """The row's model in float64, with random weights."""
    cls = row.model_class
    if cls is None or row.config is None:
        raise Unavailable("transformers has no such class (the code comes with the weights)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = row.config(cls.config_class)
        config.architectures = [row.architecture]
        config._attn_implementation = "eager"
        if row.eager_experts:
            config._experts_implementation = "eager"
        with torch.device("meta"), row.making():
            size = sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())
        if size > MOST:
            raise Unavailable(f"{size} parameters: the configuration is not tiny")
        torch.manual_seed(0)
        with row.making():
            model = cls(config).to(torch.float64).eval()
    if row.prepare is not None:
        row.prepare(model)
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    """Give every weight and bias a value that no special case fits, and move the rest, which may be a decay, a little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("weight", "bias")) and "dt_bias" not in name or not parameter.isfinite().all():
                parameter.copy_(0.3 * drawn + (1 if (parameter == 1).all() else 0))
            else:
                parameter.add_(0.1 * drawn)


def bridge(row: Row, model: nn.Module | None = None, dtype: torch.dtype = torch.float64):
    """The row's model in a TransformerBridge."""
    from transformer_lens.model_bridge import TransformerBridge

    if row.boot is not None:
        return row.boot()
    inner = hugging_face(row) if model is None else model
    with warnings.catch_warnings(), no_processors(), no_installs():
        warnings.simplefilter("ignore")
        return TransformerBridge.boot_transformers(
            "tests/tiny", hf_model=inner, tokenizer=tokenizer(row.masked), device="cpu", dtype=dtype
        )


@contextmanager
def no_processors():
    """TransformerLens looks for a processor of each multimodal model's name, and for its libraries; models need neither."""
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter

    loaders = (transformers.AutoProcessor, transformers.AutoFeatureExtractor)
    with ExitStack() as stack:
        for loader in loaders:
            stack.enter_context(patch.object(loader, "from_pretrained", lambda *args, **options: None))
        stack.enter_context(patch.object(ArchitectureAdapter, "_check_required_libraries", lambda self: None))
        yield


def passes(row: Row, config: object) -> dict[str, tuple[Tensor | None, Inputs]]:
    """The passes that a row is measured in: its own inputs, and tokens alone."""
    found: dict[str, tuple[Tensor | None, Inputs]] = {}
    if row.inputs is not None:
        found["own inputs"] = row.inputs(config)
    if row.reads_text:
        found["text"] = (tokens(), {})
    return found
