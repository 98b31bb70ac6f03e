"""Real models and data made by others, beside the project where they are present; tests that need them skip loudly."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TL_BACKWARD_SHARED", Path(__file__).parents[2] / "shared"))


def shared(*parts: str) -> Path:
    """A path under the shared folder, or a skip that says what is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"NOT TESTED: the shared folder with {'/'.join(parts)} is absent (set TL_BACKWARD_SHARED)")
    return path


def stories(kind: str = "bridge"):
    """stories260K, a real Llama (GQA, gated), in either world."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(shared("models", "stories260K"))
    inner, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if kind == "bridge":
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(folder, hf_model=inner, tokenizer=tokenizer, device="cpu")
    return hooked_llama(inner, tokenizer)


def hooked_llama(inner, tokenizer):
    """A HookedTransformer with the weights of a Hugging Face Llama."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    config = inner.config
    head = config.hidden_size // config.num_attention_heads
    cfg = HookedTransformerConfig(
        n_layers=config.num_hidden_layers, d_model=config.hidden_size, n_heads=config.num_attention_heads, d_head=head,
        n_key_value_heads=config.num_key_value_heads, d_mlp=config.intermediate_size, d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings, act_fn="silu", normalization_type="RMS", gated_mlp=True, final_rms=True,
        positional_embedding_type="rotary", rotary_dim=head, rotary_adjacent_pairs=False, eps=config.rms_norm_eps,
        rotary_base=int(config.rope_parameters["rope_theta"]), original_architecture="LlamaForCausalLM",
        default_prepend_bos=True,
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=tokenizer)
    model.load_state_dict(convert_llama_weights(inner, cfg), strict=False)
    return model.eval()
