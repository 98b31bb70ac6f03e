"""Hypothesis strategies for tiny random transformers in both TransformerLens worlds, and for what is asked of them."""

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from models import D_VOCAB, N_CTX, bridge, hooked

import tl_backward as tlb

FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
ACTIVATIONS = [
    "gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "silu",
    "relu",
    "relu2",
    "solu",
    "solu_ln",
    "xielu",
]
BRIDGE_ACTIVATIONS = ["gelu", "gelu_new", "silu", "relu", "tanh"]
often = st.sampled_from([False, False, False, True])
dtypes = st.sampled_from([torch.float64] * 5 + [torch.float32, torch.bfloat16])


@dataclass(frozen=True)
class Drawn:
    """A random model, not built yet; its repr is what a failing test shows."""

    world: str
    family: str
    options: dict[str, object]
    dtype: torch.dtype
    flags: tuple[str, ...] = ()
    compatibility: bool = False
    frozen: bool = False

    def build(self):
        """The model, with random weights."""
        if self.world == "hooked":
            model = hooked(self.family, self.dtype, **self.options, **dict.fromkeys(self.flags, True))
        else:
            model = bridge(self.family, self.dtype, self.compatibility, **self.options)
            for flag in self.flags:
                getattr(model, f"set_{flag}")(True)
        return model


@dataclass(frozen=True)
class Asked:
    """One pass: tokens [batch, pos], padded or not, a loss, and the user's hooks by (number of a hook point, kind)."""

    tokens: list[list[int]]
    lengths: list[int] | None
    side: str
    loss: str
    fwd_hooks: list[tuple[int, str]] = field(default_factory=list)
    bwd_hooks: list[int] = field(default_factory=list)

    def encoded(self):
        """(tokens, mask): mask None where nothing is padded."""
        tokens = torch.tensor(self.tokens)
        if self.lengths is None:
            return tokens, None
        place = torch.arange(tokens.shape[1])
        mask = torch.stack([place < n if self.side == "right" else place >= tokens.shape[1] - n for n in self.lengths])
        return torch.where(mask, tokens, 1), mask

    def hooks(self, model):
        """(fwd_hooks, bwd_hooks) as `model.hooks` takes them."""
        names = sorted(model.hook_dict)
        forward = [(names[number % len(names)], KINDS[kind]) for number, kind in self.fwd_hooks]
        return forward, [(names[number % len(names)], triple) for number in self.bwd_hooks]


def _float(change):
    """Leave alone what is no activation: token ids, masks, tuples."""
    return lambda x, hook: change(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else None


def part_in_place(x):
    x[:, :1] *= 0.3


def triple(gradient, hook):
    return 3 * gradient


KINDS = {
    "scale": _float(lambda x: x * 1.7),
    "scale in place": _float(lambda x: x.mul_(1.7)),
    "part in place": _float(part_in_place),
    "replace a part": _float(lambda x: torch.cat([0.5 * x[:, :1], x[:, 1:]], 1)),
    "observe": _float(lambda x: None),
}


def _flags(draw, possible):
    """Some of a model's flags; of the two that give every head an input, one."""
    flags = [flag for flag in possible if draw(often)]
    return tuple(flag for flag in flags if flag != "use_attn_in" or "use_split_qkv_input" not in flags)


@st.composite
def hooked_transformers(draw):
    """HookedTransformers (TransformerLens 3): every option that changes where a weight reads or writes."""
    n_heads, d_head = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    groups = draw(st.sampled_from([None, None, *[k for k in (1, 2, 3) if n_heads % k == 0]]))
    positions = draw(st.sampled_from(["standard", "rotary", "rotary", "alibi", "shortformer"]))
    norm = draw(st.sampled_from(["LN", "LNPre", "RMS", "RMSPre", None]))
    options = dict(
        n_layers=draw(st.integers(1, 3)), n_heads=n_heads, d_head=d_head, d_model=draw(st.integers(3, 16)),
        d_mlp=draw(st.integers(2, 18)), act_fn=draw(st.sampled_from(ACTIVATIONS)), normalization_type=norm,
        positional_embedding_type=positions, n_key_value_heads=groups, parallel_attn_mlp=draw(often),
        final_rms=draw(often), use_attn_scale=draw(st.booleans()), scale_attn_by_inverse_layer_idx=draw(often),
        attention_dir=draw(st.sampled_from(["causal", "causal", "bidirectional"])),
        attn_scores_soft_cap=draw(st.sampled_from([-1.0, -1.0, 4.0])),
        output_logits_soft_cap=draw(st.sampled_from([-1.0, -1.0, 3.0])),
        clip_qkv=draw(st.sampled_from([None, None, 0.4])), post_embedding_ln=draw(often) and norm is not None,
    )  # fmt: skip
    if positions == "rotary":
        options |= dict(rotary_dim=2 * draw(st.integers(1, d_head // 2)), rotary_adjacent_pairs=draw(st.booleans()))
    if groups is not None:
        options["ungroup_grouped_query_attention"] = draw(st.booleans())
    if draw(often):
        kinds = draw(st.lists(st.sampled_from(["global", "local"]), min_size=3, max_size=3))
        options |= dict(use_local_attn=True, window_size=draw(st.integers(1, 5)), attn_types=kinds)
    form = draw(st.sampled_from(["dense", "dense", "dense", "gated", "gated", "attention only", "mixture"]))
    if form == "attention only":
        options |= dict(attn_only=True, d_mlp=None, act_fn=None)
    elif form == "mixture":
        experts = draw(st.integers(2, 4))
        options |= dict(
            num_experts=experts, experts_per_token=draw(st.integers(1, experts)), gated_mlp=draw(st.booleans())
        )
    options["gated_mlp"] = options.get("gated_mlp", form == "gated")
    options["parallel_attn_mlp"] &= form != "attention only"  # TransformerLens has no such block
    if str(norm).startswith("RMS"):
        options |= dict(use_normalization_before_and_after=draw(often), use_qk_norm=draw(often))
    flags = _flags(draw, [flag for flag in FLAGS if not (flag == "use_attn_in" and groups)])
    if groups and positions == "shortformer":  # TransformerLens adds the positions of all heads to the keys' few
        flags = tuple(flag for flag in flags if flag != "use_split_qkv_input")
    return Drawn("hooked", "ln", options, draw(dtypes), flags, frozen=draw(often))


def _common(draw, heads):
    """Options that most Hugging Face configurations share."""
    return dict(
        vocab_size=D_VOCAB, num_hidden_layers=draw(st.integers(1, 3)), num_attention_heads=heads,
        intermediate_size=draw(st.integers(2, 30)), max_position_embeddings=N_CTX,
        hidden_act=draw(st.sampled_from(BRIDGE_ACTIVATIONS)), tie_word_embeddings=draw(st.booleans()),
    )  # fmt: skip


def _gpt2(draw):
    heads = draw(st.integers(1, 4))
    return dict(
        n_layer=draw(st.integers(1, 3)), n_head=heads, n_embd=heads * draw(st.integers(2, 6)),
        n_inner=draw(st.sampled_from([None, 7, 30])), activation_function=draw(st.sampled_from(BRIDGE_ACTIVATIONS)),
        scale_attn_by_inverse_layer_idx=draw(often), scale_attn_weights=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )  # fmt: skip


def _neox(draw):
    heads = draw(st.integers(1, 4))
    return _common(draw, heads) | dict(
        hidden_size=heads * 2 * draw(st.integers(1, 4)), rotary_pct=draw(st.sampled_from([0.5, 1.0])),
        use_parallel_residual=draw(st.booleans()),
    )  # fmt: skip


def _gptj(draw):
    heads, half = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return dict(
        n_layer=draw(st.integers(1, 3)), n_head=heads, n_embd=heads * 2 * half, n_inner=draw(st.sampled_from([None, 9])),
        rotary_dim=2 * draw(st.integers(1, half)), activation_function=draw(st.sampled_from(BRIDGE_ACTIVATIONS)),
        tie_word_embeddings=draw(st.booleans()),
    )  # fmt: skip


def _grouped(draw):
    heads = draw(st.integers(1, 4))
    return _common(draw, heads) | dict(
        hidden_size=draw(st.integers(3, 20)), head_dim=2 * draw(st.integers(1, 4)),
        num_key_value_heads=draw(st.sampled_from([k for k in (1, 2, 3, 4) if heads % k == 0])),
    )  # fmt: skip


def _llama(draw):
    options = _grouped(draw)
    width = options["num_attention_heads"] * draw(st.integers(2, 6))  # Hugging Face wants it so, whatever head_dim is
    return options | dict(hidden_size=width, attention_bias=draw(st.booleans()), mlp_bias=draw(st.booleans()))


def _gemma2(draw):
    options = _grouped(draw)
    act = options.pop("hidden_act")
    width = options["num_attention_heads"] * draw(st.integers(2, 6))
    return options | dict(
        hidden_size=width, hidden_activation=act, sliding_window=draw(st.integers(2, 8)),
        query_pre_attn_scalar=draw(st.sampled_from([4, 256])),
        attn_logit_softcapping=draw(st.sampled_from([None, 5.0])),
        final_logit_softcapping=draw(st.sampled_from([None, 3.0])),
        layer_types=draw(st.lists(st.sampled_from(["full_attention", "sliding_attention"]),
                                  min_size=options["num_hidden_layers"], max_size=options["num_hidden_layers"])),
    )  # fmt: skip


def _qwen2(draw):
    options = _grouped(draw)
    d_head = options.pop("head_dim")
    layers = ["full_attention"] * options["num_hidden_layers"]
    return options | dict(hidden_size=options["num_attention_heads"] * d_head, layer_types=layers)


def _mixtral(draw):
    experts = draw(st.integers(2, 4))
    options = _qwen2(draw)
    del options["layer_types"]
    return options | dict(num_local_experts=experts, num_experts_per_tok=draw(st.integers(1, experts)))


BRIDGES = {
    "gpt2": _gpt2, "neox": _neox, "gptj": _gptj, "llama": _llama, "gemma2": _gemma2, "qwen2": _qwen2, "mixtral": _mixtral
}  # fmt: skip


@st.composite
def bridges(draw):
    """TransformerBridges of random Hugging Face configurations."""
    family = draw(st.sampled_from(sorted(BRIDGES)))
    options = BRIDGES[family](draw)
    grouped = options.get("num_key_value_heads", 0) != options.get("num_attention_heads", 0)
    flags = _flags(draw, [flag for flag in FLAGS if not (flag == "use_attn_in" and grouped)])
    if family == "gptj":  # TransformerLens refuses the others
        flags = tuple(flag for flag in flags if flag == "use_hook_mlp_in")
    compatibility = family != "mixtral" and draw(often)
    return Drawn("bridge", family, options, draw(dtypes), flags, compatibility, frozen=draw(often))


@st.composite
def questions(draw):
    """Tokens, padding, a loss, hooks."""
    batch, pos = draw(st.integers(1, 3)), draw(st.integers(2, 8))
    row = st.lists(st.integers(3, D_VOCAB - 1), min_size=pos, max_size=pos)
    tokens = draw(st.lists(row, min_size=batch, max_size=batch))
    lengths = draw(st.lists(st.integers(2, pos), min_size=batch, max_size=batch)) if draw(st.booleans()) else None
    if lengths is not None and pos not in lengths:
        lengths[0] = pos
    place = st.integers(0, 10**6)
    hooks = st.lists(st.tuples(place, st.sampled_from(sorted(KINDS))), max_size=2)
    return Asked(
        tokens, lengths, draw(st.sampled_from(["left", "right"])), draw(st.sampled_from(sorted(LOSSES))),
        draw(hooks) if draw(st.booleans()) else [], draw(st.lists(place, max_size=2)) if draw(often) else [],
    )  # fmt: skip


def _weighted(logits, tokens, attention_mask=None):
    """Every real position matters, each by another amount."""
    nats = -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    real = torch.ones_like(nats) if attention_mask is None else attention_mask.to(nats.dtype)
    return (nats * real * torch.linspace(0.5, 2, nats.numel(), dtype=nats.dtype).view(nats.shape)).sum()


def _next_token(logits, tokens, attention_mask=None):
    """The same number, of models too that see both ways, where `next_token_loss` itself is refused."""
    return tlb.next_token_loss(logits, tokens, attention_mask)


LOSSES = {
    "next token": _next_token,
    "target": tlb.target_loss(7),
    "sum of targets": tlb.target_loss(9, reduction="sum"),
    "logit difference": tlb.logit_difference("w7", "w8"),
    "weighted": _weighted,
}
