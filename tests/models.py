"""Tiny random models of every architecture family, in both TransformerLens worlds, built offline."""

import importlib.util

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

D_VOCAB, N_CTX = 50, 16
HAS_HOOKED_TRANSFORMER = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None

_HOOKED_BASE = dict(
    n_layers=2, d_model=20, n_ctx=N_CTX, d_head=5, n_heads=4, d_mlp=28, d_vocab=D_VOCAB, act_fn="gelu", seed=0
)
_GQA = dict(positional_embedding_type="rotary", rotary_dim=4, n_key_value_heads=2)
HOOKED: dict[str, dict] = {
    "ln": {},
    "ln_folded": {"fold": True},
    "no_norm": {"normalization_type": None},
    "rms_gated": {"normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu"},
    "gqa_grouped": {**_GQA, "normalization_type": "RMS"},
    "gqa_ungrouped": {**_GQA, "ungroup_grouped_query_attention": True},
    "gqa_ungrouped_split": {**_GQA, "ungroup_grouped_query_attention": True, "use_split_qkv_input": True},
    "gqa_split": {**_GQA, "use_split_qkv_input": True},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "attn_only": {"attn_only": True, "d_mlp": None, "act_fn": None},
    "parallel": {"parallel_attn_mlp": True},
    "solu_ln": {"act_fn": "solu_ln"},
    "split_qkv": {"use_split_qkv_input": True},
    "attn_in": {"use_attn_in": True},
    "attn_result": {"use_attn_result": True},
    "mlp_in": {"use_hook_mlp_in": True},
    "moe": {"num_experts": 3, "experts_per_token": 2, "gated_mlp": True, "act_fn": "silu"},
    "softcap": {"attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 3.0},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "post_norms": {"normalization_type": "RMS", "use_normalization_before_and_after": True},
    "qk_norm": {"normalization_type": "RMS", "use_qk_norm": True},
    "bloom": {"positional_embedding_type": "alibi", "post_embedding_ln": True},
}

_SMALL = dict(vocab_size=D_VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
_GROUPED = dict(**_SMALL, num_key_value_heads=2, max_position_embeddings=N_CTX)
BRIDGED: dict[str, tuple[str, PretrainedConfig]] = {
    "gpt2": (
        "gpt2",
        GPT2Config(
            vocab_size=D_VOCAB, n_positions=N_CTX, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0
        ),
    ),
    "neox": ("EleutherAI/pythia-70m", GPTNeoXConfig(**_SMALL, max_position_embeddings=N_CTX)),
    "gptj": (
        "EleutherAI/gpt-j-6b",
        GPTJConfig(
            vocab_size=D_VOCAB,
            n_positions=N_CTX,
            n_embd=24,
            n_layer=2,
            n_head=3,
            rotary_dim=4,
            bos_token_id=0,
            eos_token_id=0,
        ),
    ),
    "llama": ("meta-llama/Llama-3.2-1B", LlamaConfig(**_GROUPED, head_dim=6)),
    "gemma2": ("google/gemma-2-2b", Gemma2Config(**_GROUPED, head_dim=6, sliding_window=8)),
    "qwen2": ("Qwen/Qwen2-0.5B", Qwen2Config(**_GROUPED)),
    "mixtral": ("mistralai/Mixtral-8x7B-v0.1", MixtralConfig(**_GROUPED, num_local_experts=3, num_experts_per_tok=2)),
}


def tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A word-level tokenizer over "w3" ... "w49"."""
    words = {"<bos>": 0, "<pad>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, D_VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<bos>",
        name_or_path="tests/words",
        add_bos_token=True,
        padding_side=padding_side,
    )


def randomise(model: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Give every parameter, norms and biases too, a value that no special case fits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.copy_(noise + 1 if (parameter == 1).all() else noise)


def hooked(family: str = "ln", dtype: torch.dtype = torch.float64, **overrides):
    """A random HookedTransformer of a family in HOOKED (TransformerLens 3 only)."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    options = {**_HOOKED_BASE, **HOOKED[family], **overrides}
    fold = options.pop("fold", False)
    model = HookedTransformer(HookedTransformerConfig(**options, dtype=dtype), tokenizer=tokenizer())
    model.blocks.to(dtype)  # TransformerLens makes experts in float32 whatever the dtype
    randomise(model)
    if fold:
        model.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    return model.eval()


def bridge(family: str = "gpt2", dtype: torch.dtype = torch.float64, compatibility: bool = False, **overrides):
    """A random TransformerBridge of a family in BRIDGED."""
    from transformer_lens.model_bridge import TransformerBridge

    name, config = BRIDGED[family]
    config = type(config).from_dict({**config.to_dict(), **overrides})
    options = {"experts_implementation": "eager"} if family == "mixtral" else {}
    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(config, attn_implementation="eager", **options).to(dtype).eval()
    randomise(inner)
    model = TransformerBridge.boot_transformers(name, hf_model=inner, tokenizer=tokenizer(), device="cpu", dtype=dtype)
    if compatibility:
        model.enable_compatibility_mode()
        for parameter in model.original_model.parameters():  # it adds biases in float32 whatever the dtype
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def worlds() -> list[str]:
    """Both worlds where TransformerLens has both."""
    return ["hooked", "bridge"] if HAS_HOOKED_TRANSFORMER else ["bridge"]


def build(world: str, **options):
    """The plainest model of a world."""
    return hooked(**options) if world == "hooked" else bridge(**options)


TOKENS = torch.tensor([[0, 4, 5, 6, 9, 7, 4], [0, 8, 9, 3, 3, 20, 41]])
