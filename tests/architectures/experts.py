"""Decoders with mixtures of experts, in transformers' default implementation and in its loop."""

from .decoders import HALF, LOCAL, SCALES
from .table import Row, layers, row

HEADS = dict(num_key_value_heads=4)
"""Latent attention has as many keys as queries."""
LATENT = dict(**HEADS, head_dim=4)
V4_LAYERS = ("sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention")
LLAMA4 = dict(interleave_moe_layer_step=2, no_rope_layers=[1, 0], num_experts_per_tok=1)


def _both(architecture: str, variant: str = "", **options: object) -> list[Row]:
    loop = f"{variant}, " if variant else ""
    return [
        row(architecture, variant, **options, in_single=True),
        row(architecture, f"{loop}eager experts", **options, eager_experts=True),
    ]


ROWS = [
    *_both("MixtralForCausalLM"),
    *_both("Qwen2MoeForCausalLM", decoder_sparse_step=1),
    row("Qwen2MoeForCausalLM", "first layer dense", mlp_only_layers=[0]),
    *_both("Qwen3MoeForCausalLM"),
    row("Qwen3MoeForCausalLM", "first layer dense", mlp_only_layers=[0]),
    *_both("OlmoeForCausalLM"),
    row("OlmoeForCausalLM", "clipped", clip_qkv=0.4),
    row("FlexOlmoForCausalLM"),
    *_both("GptOssForCausalLM", like=LOCAL),
    *_both("DeepseekV2ForCausalLM", like=LATENT, topk_method="greedy"),
    row("DeepseekV2ForCausalLM", "lite: queries as they are", like=LATENT, topk_method="greedy", q_lora_rank=None),
    *_both("DeepseekV3ForCausalLM", like=LATENT),
    row("DeepseekV3ForCausalLM", "queries as they are", like=LATENT, q_lora_rank=None),
    *_both(
        "DeepseekV4ForCausalLM", like=layers(*V4_LAYERS), head_dim=8, o_groups=2, o_lora_rank=6, index_head_dim=8, hc_mult=2,
        num_key_value_heads=1, mlp_layer_types=["hash_moe", "moe", "moe"], partial_rotary_factor=0.5,
    ),
    *_both("Llama4ForCausalLM", like=LLAMA4),
    *_both("GraniteMoeForCausalLM", like=SCALES),
    *_both("JetMoeForCausalLM"),
    *_both("MiniMaxM2ForCausalLM"),
    *_both("AfmoeForCausalLM", like=LOCAL),
    *_both("Ernie4_5_MoeForCausalLM"),
    *_both("Glm4MoeForCausalLM", like=HALF),
    *_both("Glm4MoeLiteForCausalLM", like=LATENT),
    *_both("GlmMoeDsaForCausalLM", like=LATENT, index_head_dim=8),
    *_both("LagunaForCausalLM"),
    row("PhiMoEForCausalLM", cls="PhimoeForCausalLM"),
    row("JetMoEForCausalLM", cls="JetMoeForCausalLM"),
]  # fmt: skip
