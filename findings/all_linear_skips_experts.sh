#!/usr/bin/env bash
# torch 2.13.0, transformers 5.23.0, peft 0.21.2.
#
# LoraConfig(target_modules="all-linear") reaches the experts of some mixtures and not of others, without a word.
# transformers keeps experts as stacked parameters, not as Linear modules. peft adapts those of some architectures all
# the same: Mixtral, Qwen3-MoE, OLMoE and DeepSeek-V3 have their experts adapted; GPT-OSS, Granite-MoE, Llama 4 and
# Phi-MoE do not, and there all-linear means attention, at most with the router and Llama 4's shared expert, and
# leaves most of the model alone. Nothing warns of that. Where the experts are reached, peft warns that its own
# rank_pattern for gate_up_proj was ignored, and it was not: the two matrices fused there get twice the rank. So the
# only warnings come where all is right.
#
# Output seen (r=4, 4 experts, 2 layers):
#   MixtralForCausalLM     82% of its parameters in stacked experts; rank of their adapters: [4, 8];
#       warnings of something ignored: 2
#   Qwen3MoeForCausalLM    70% (the rest as above)
#   OlmoeForCausalLM       82% (as above)
#   DeepseekV3ForCausalLM  65% (as above)
#   GptOssForCausalLM      81% of its parameters in stacked experts; rank of their adapters: no adapters;
#       warnings of something ignored: 0
#   GraniteMoeForCausalLM  82% (the rest as above)
#   Llama4ForCausalLM      68% (as above)
#   PhimoeForCausalLM      82% (as above)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 \
    tokenizers==0.23.3 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6 peft==0.21.2 accelerate==1.15.0
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" PIP_NO_INDEX=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import warnings

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM, DeepseekV3Config, GptOssConfig, GraniteMoeConfig, Llama4TextConfig, MixtralConfig,
    OlmoeConfig, PhimoeConfig, Qwen3MoeConfig, logging,
)

logging.set_verbosity_error()
SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, bos_token_id=0, eos_token_id=0, pad_token_id=1)
LATENT = dict(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=0,
              moe_intermediate_size=64, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
              v_head_dim=16)
REACHED = [
    MixtralConfig(**SIZES, num_local_experts=4),
    Qwen3MoeConfig(**SIZES, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2),
    OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    DeepseekV3Config(**SIZES, **LATENT),
]
SKIPPED = [
    GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=16, layer_types=["full_attention"] * 2),
    GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    Llama4TextConfig(**SIZES, intermediate_size_mlp=64, num_local_experts=4, head_dim=16),
    PhimoeConfig(**SIZES, num_local_experts=4),
]

for config in REACHED + SKIPPED:
    model = AutoModelForCausalLM.from_config(config)
    stacked = {name: p for name, p in model.named_parameters() if p.ndim == 3}
    share = sum(p.numel() for p in stacked.values()) / model.num_parameters()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4))
    said = sum("ignored" in str(warning.message) for warning in caught)
    downs = [p for name, p in adapted.named_parameters() if ".experts." in name and "lora_A" in name]
    ranks = sorted({p.shape[0] // 4 for p in downs})
    print(f"{type(model).__name__:22} {share:.0%} of its parameters in stacked experts; rank of their adapters: "
          f"{ranks or 'no adapters'}; warnings of something ignored: {said}")
    assert share > 0.5
    assert (ranks, said) == (([4, 8], 2) if config in REACHED else ([], 0)), (ranks, said)
PYTHON
