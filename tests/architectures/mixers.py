"""Decoders that mix tokens by recurrences and convolutions, alone or beside attention."""

from .experts import _both
from .table import D_MODEL, layers, row

DELTA = layers("linear_attention", "full_attention")

ROWS = [
    row("MambaForCausalLM", use_mambapy=False),
    row("FalconMambaForCausalLM", use_mambapy=False),
    row("Mamba2ForCausalLM", num_heads=8, head_dim=6),
    row("JambaForCausalLM", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        use_mamba_kernels=False),
    row("BambaForCausalLM", attn_layer_indices=[1]),
    row("FalconH1ForCausalLM", mamba_d_ssm=48, key_multiplier=0.7, mlp_multipliers=[0.8, 0.6]),
    *_both("NemotronHForCausalLM", layers_block_type=["mamba", "attention", "moe", "mlp"], num_hidden_layers=4,
           use_mamba_kernels=False, moe_latent_size=None),
    row("Zamba2ForCausalLM", num_hidden_layers=5, layers_block_type=["mamba", "mamba", "hybrid", "mamba", "hybrid"],
        num_mem_blocks=1, use_mem_rope=False, num_key_value_heads=4, attention_hidden_size=2 * D_MODEL,
        attention_head_dim=12, use_mamba_kernels=False),
    *_both("GraniteMoeHybridForCausalLM", like=layers("mamba", "attention"), position_embedding_type="rope"),
    row("GraniteMoeHybridForCausalLM", "without positions", like=layers("mamba", "attention")),
    row("GraniteMoeHybridForCausalLM", "attention, no experts", like=layers("attention", "attention"), num_local_experts=0,
        position_embedding_type="rope"),
    row("Lfm2ForCausalLM", like=layers("conv", "full_attention"), block_multiple_of=4, block_auto_adjust_ff_dim=False),
    *_both("Lfm2MoeForCausalLM", like=layers("conv", "full_attention")),
    row("RecurrentGemmaForCausalLM", num_hidden_layers=3, block_types=["recurrent", "recurrent", "attention"]),
    *_both("Qwen3NextForCausalLM", like=DELTA),
    row("Qwen3_5ForCausalLM", like=DELTA),
    *_both("Qwen3_5MoeForCausalLM", like=DELTA),
    row("OlmoHybridForCausalLM", like=DELTA, linear_num_key_heads=4),
    row("RwkvForCausalLM"),
]  # fmt: skip
