"""A user's own decoder as TransformerLens wraps it: norms, rotary attention, gated MLPs, experts as a list of modules."""

import torch
from torch import Tensor, nn

from .table import D_MODEL, D_VOCAB, N_CTX


class Attention(nn.Module):
    """Causal attention whose queries and keys are rotated."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D_MODEL, 3 * D_MODEL, bias=False), nn.Linear(D_MODEL, D_MODEL)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, pos, d_model]."""
        heads = self.qkv(x).unflatten(-1, (3, 4, D_MODEL // 4))
        q, k, v = heads.unbind(2)

        def turn(t: Tensor) -> Tensor:
            left, right = t.chunk(2, -1)
            return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

        scores = torch.einsum("bqhd,bkhd->bhqk", turn(q), turn(k)) / (D_MODEL // 4) ** 0.5
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        pattern = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return self.out(torch.einsum("bhqk,bkhd->bqhd", pattern, v).flatten(2))


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(D_MODEL, width, bias=False), nn.Linear(D_MODEL, width, bias=False)
        self.down = nn.Linear(width, D_MODEL, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model]."""
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """Two of three experts a token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D_MODEL, 3, bias=False)
        self.experts = nn.ModuleList([Gated(10) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, pos, d_model]."""
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            out = out.index_add(0, rows, expert(flat[rows]) * weights[rows, place, None])
        return out.view_as(x)


class Block(nn.Module):
    """Attention, then an MLP."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(D_MODEL), nn.RMSNorm(D_MODEL)
        self.attn, self.mlp = Attention(), mlp

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, pos, d_model]."""
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """A dense block and one with experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm_f = nn.Embedding(D_VOCAB, D_MODEL), nn.RMSNorm(D_MODEL)
        self.blocks = nn.ModuleList([Block(Gated(36)), Block(Mixture())])
        self.lm_head = nn.Linear(D_MODEL, D_VOCAB, bias=False)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """input_ids [batch, pos]."""
        x = self.embed(input_ids)
        angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / 10.0 ** torch.arange(D_MODEL // 8, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, angles.cos()[:, None], angles.sin()[:, None])
        return {"logits": self.lm_head(self.norm_f(x))}


def boot() -> nn.Module:
    """It in a Bridge."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.supported_architectures.pretrain import build_pretrain_bridge

    from .build import randomise, tokenizer

    inner = Decoder().to(torch.float64).eval()
    randomise(inner)
    config = TransformerBridgeConfig(
        d_model=D_MODEL, d_head=6, n_layers=2, n_ctx=N_CTX, n_heads=4, d_vocab=D_VOCAB, d_mlp=36, act_fn="silu",
        architecture="TransformerLensPretrain", dtype=torch.float64,
    )  # fmt: skip
    model = build_pretrain_bridge(inner, config, device="cpu", dtype=torch.float64)
    model.set_tokenizer(tokenizer(False)) if hasattr(model, "set_tokenizer") else setattr(
        model, "tokenizer", tokenizer(False)
    )
    return model.eval()
