"""What is made in a way of its own: quantised as it is released, or TransformerLens's own models."""

import torch
from torch import nn

from . import pretrain
from .table import D_MODEL, D_VOCAB, N_CTX, Row, row


def online_quantised(model: nn.Module) -> None:
    """Put transformers' quantising layers in the places of the linear ones, as loading a release of BitNet does."""
    from transformers.integrations.bitnet import AutoBitLinear

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                made = AutoBitLinear(
                    child.in_features, child.out_features, bias=child.bias is not None, online_quant=True
                )
                setattr(module, name, made.to(torch.float64))


def _native(**options: object):
    def boot() -> nn.Module:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        from .build import randomise, tokenizer

        sizes = dict(
            d_model=D_MODEL, d_head=6, n_layers=2, n_ctx=N_CTX, n_heads=4, d_vocab=D_VOCAB, d_mlp=36, act_fn="gelu"
        )
        config = TransformerBridgeConfig(
            **{**sizes, **options}, architecture="TransformerLensNative", dtype=torch.float64
        )
        model = TransformerBridge.boot_native(config, tokenizer=tokenizer(False)).to(torch.float64)
        randomise(model)
        return model.eval()

    return boot


MODERN = dict(
    normalization_type="RMS", gated_mlp=True, act_fn="silu", positional_embedding_type="rotary", n_key_value_heads=2
)
ROWS: list[Row] = [
    row("BitNetForCausalLM"),
    row("BitNetForCausalLM", "as released: quantised on the fly", prepare=online_quantised),
    Row("TransformerLensNative", boot=_native()),
    Row("TransformerLensNative", "gated, rotary, grouped keys", boot=_native(**MODERN)),
    Row("TransformerLensPretrain", boot=pretrain.boot),
    Row("TransformerLensNative", "attention only", boot=_native(attn_only=True, d_mlp=None)),
]
