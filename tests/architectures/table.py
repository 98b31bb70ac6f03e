"""What a row of the table is, and how its model's configuration is made small."""

import dataclasses
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

D_VOCAB, D_MODEL, N_CTX = 50, 24, 32
MASK = 3
"""The tokenizer's mask."""
PLACEHOLDER = 5
"""The token that stands for a piece of an image or a sound."""

Inputs = dict[str, object]

_SIZES: dict[object, str] = {
    D_VOCAB: "vocab_size vocab_size_per_layer_input",
    N_CTX: "max_position_embeddings n_positions n_ctx max_seq_len context_length original_max_position_embeddings "
    "max_encoder_position_embeddings max_decoder_position_embeddings",
    D_MODEL: "hidden_size n_embd d_model word_embed_proj_dim attention_hidden_size lru_width",
    36: "intermediate_size n_inner ffn_dim d_ff ffn_hidden_size encoder_ffn_dim decoder_ffn_dim intermediate_size_mlp",
    2: "num_hidden_layers n_layer n_layers num_layers num_decoder_layers encoder_layers decoder_layers "
    "num_key_value_heads num_experts_per_tok moe_k expand mamba_expand index_n_heads linear_num_key_heads "
    "num_sparse_encoder_layers",
    4: "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts rotary_dim state_size mamba_d_state "
    "qk_rope_head_dim index_topk hidden_size_per_layer_input laurel_rank chunk_size mamba_chunk_size "
    "linear_num_value_heads ssm_state_size adapter_rank time_step_rank mamba_dt_rank",
    6: "d_kv head_dim attention_head_size kv_channels qk_nope_head_dim linear_key_head_dim linear_value_head_dim "
    "mamba_d_head mamba_head_dim mamba_headdim query_pre_attn_scalar global_head_dim",
    8: "kv_lora_rank sliding_window attention_window_size attention_chunk_size local_attention mamba_n_heads "
    "mamba_num_heads n_mamba_heads",
    10: "v_head_dim",
    12: "q_lora_rank moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
    "shared_intermediate_size",
    1: "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group first_k_dense_replace "
    "num_dense_layers pad_token_id mamba_n_groups mamba_ngroups n_groups",
    3: "conv_kernel mamba_d_conv conv_L_cache linear_conv_kernel_dim conv1d_width",
    0: "bos_token_id eos_token_id decoder_start_token_id attention_dropout resid_pdrop embd_pdrop attn_pdrop dropout "
    "hidden_dropout attention_probs_dropout_prob hidden_dropout_prob dropout_rate",
    None: "forced_eos_token_id forced_bos_token_id",
}
SIZES = {name: value for value, names in _SIZES.items() for name in names.split()}
"""Of a decoder's options, whatever an architecture calls them."""
IMAGE = dict(
    hidden_size=16, embed_dim=16, intermediate_size=20, num_hidden_layers=2, depth=2, num_attention_heads=2, num_heads=2,
    image_size=8, patch_size=4, num_channels=3, in_channels=3, projection_dim=16, out_hidden_size=D_MODEL, head_dim=8,
    num_position_embeddings=16, spatial_merge_size=1, temporal_patch_size=1, num_key_value_heads=2,
)  # fmt: skip
SOUND = dict(
    d_model=16, hidden_size=16, encoder_layers=2, num_hidden_layers=2, encoder_attention_heads=2, num_attention_heads=2,
    encoder_ffn_dim=20, intermediate_size=20, num_mel_bins=8, max_source_positions=20, num_key_value_heads=2, head_dim=8,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One architecture as TransformerLens registers it, or a variant of it."""

    architecture: str
    variant: str = ""
    config: Callable[[type], PretrainedConfig] | None = None
    """Makes the configuration of a class; None where transformers has no such class."""
    cls: str = ""
    """The class in transformers, where its name is another."""
    inputs: Callable[[PretrainedConfig], tuple[Tensor | None, Inputs]] | None = None
    """(tokens, further inputs) of the pass in which every part of the model runs; None where tokens are enough."""
    reads_text: bool = True
    """Whether a pass over tokens alone is possible too."""
    masked: bool = False
    """Whether it is asked at a mask."""
    eager_experts: bool = False
    """Whether experts run in transformers' loop, not in its default implementation."""
    in_single: bool = False
    """Whether the model is measured in float32 too: grouped products have no other kernel."""
    making: Callable[[], AbstractContextManager] = nullcontext
    """What surrounds the making of a model."""
    prepare: Callable[[nn.Module], None] | None = None
    """What is done to the model before it is booted."""
    boot: Callable[[], nn.Module] | None = None
    """Makes the Bridge, where none of transformers' classes does."""

    @property
    def name(self) -> str:
        """The row's own name."""
        return f"{self.architecture} ({self.variant})" if self.variant else self.architecture

    @property
    def model_class(self) -> type | None:
        """The class in transformers."""
        return getattr(transformers, self.cls or self.architecture, None)


def tiny(cls: type, sizes: dict[str, object] = SIZES, **own: object) -> PretrainedConfig:
    """A small configuration: of the sizes those that the class knows, and the row's own options."""
    known = {f.name for f in dataclasses.fields(cls)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(**{**{name: value for name, value in sizes.items() if name in known}, **own})


def row(architecture: str, variant: str = "", /, *, like: dict[str, object] | None = None, **own: object) -> Row:
    """A row whose configuration has the common sizes, those of `like`, and its own options.

    Fields of Row among the options are the row's.
    """
    every = {**(like or {}), **own}
    fields = {f.name for f in dataclasses.fields(Row)} & set(every)
    options = {name: value for name, value in every.items() if name not in fields}
    given = {name: every[name] for name in fields}
    return Row(architecture, variant, **{"config": lambda cls: tiny(cls, **options), **given})


def layers(*kinds: str) -> dict[str, object]:
    """Layers of these kinds."""
    return dict(layer_types=list(kinds), num_hidden_layers=len(kinds))


def tokens(n: int = 6, first: int = 10, placeholders: int = 0) -> Tensor:
    """Two examples of random words, each with placeholders after its first."""
    generator = torch.Generator().manual_seed(n)
    words = torch.randint(first, D_VOCAB, (2, n), generator=generator)
    filled = torch.full((2, placeholders), PLACEHOLDER)
    return torch.cat([words[:, :1], filled, words[:, 1:]], 1)


def noise(*shape: int) -> Tensor:
    """A signal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
