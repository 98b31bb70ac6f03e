"""Weights taken from the models' own modules, by hand, and every score in float64: what the package is checked against."""

import torch

MLP = {"W_in": "up_proj", "W_gate": "gate_proj", "W_out": "down_proj"}
ATTENTION = {"W_Q": "q_proj", "W_K": "k_proj", "W_V": "v_proj", "W_O": "o_proj"}


def vectors(model, weight, layer=None):
    """[n, d_model] or, for attention, [head, d_head, d_model] of a weight, in float64."""
    found = (
        _hooked(model, weight, layer)
        if hasattr(model, "W_E") and not hasattr(model, "original_model")
        else _bridge(model, weight, layer)
    )
    return found.detach().double()


def _hooked(model, weight, layer):
    if weight in ("W_E", "W_pos"):
        return getattr(model, weight)
    if weight == "W_U":
        return model.W_U.T
    if weight in ("b_out", "b_O") or "." in weight:
        owner = model.blocks[layer] if layer is not None else model
        for part in ({"b_out": "mlp.b_out", "b_O": "attn.b_O"}.get(weight, weight)).split("."):
            owner = getattr(owner, part)
        return owner[None]
    block = model.blocks[layer]
    if weight in MLP:
        matrix = getattr(block.mlp, weight)
        return matrix if weight == "W_out" else matrix.T
    parameters = dict(block.attn.named_parameters())
    matrix = parameters.get(f"_{weight}", parameters.get(weight))  # the stored heads, without repetition
    return matrix if weight == "W_O" else matrix.transpose(1, 2)


def _bridge(model, weight, layer):
    inner = model.original_model
    core = getattr(inner, "transformer", getattr(inner, "model", None))
    is_gpt2 = hasattr(core, "wte")
    if weight == "W_U":
        return inner.get_output_embeddings().weight
    if weight == "W_E":
        return inner.get_input_embeddings().weight
    if weight == "W_pos":
        return core.wpe.weight
    block = (core.h if is_gpt2 else core.layers)[layer]
    d_head = model.cfg.d_head
    if is_gpt2:

        def heads(matrix):
            return matrix.reshape(-1, d_head, matrix.shape[-1])

        qkv = block.attn.c_attn.weight.T.chunk(3)
        named = {"W_in": lambda: block.mlp.c_fc.weight.T, "W_out": lambda: block.mlp.c_proj.weight,
                 "b_out": lambda: block.mlp.c_proj.bias[None], "b_O": lambda: block.attn.c_proj.bias[None],
                 "ln1.w": lambda: block.ln_1.weight[None], "W_O": lambda: heads(block.attn.c_proj.weight),
                 "W_Q": lambda: heads(qkv[0]), "W_K": lambda: heads(qkv[1]), "W_V": lambda: heads(qkv[2])}  # fmt: skip
        return named[weight]()
    if weight in MLP:
        stored = getattr(block.mlp, MLP[weight]).weight
        return stored.T if weight == "W_out" else stored
    if weight == "ln1.w":
        return block.input_layernorm.weight[None]
    stored = getattr(block.self_attn, ATTENTION[weight]).weight
    return (stored.T if weight == "W_O" else stored).reshape(-1, d_head, model.cfg.d_model)


def unembedding(model):
    """W_U [d_model, d_vocab] in float64."""
    return vectors(model, "W_U").T


def extremes(scores, k, allowed=None):
    """(top ids, top scores, bottom ids, bottom scores) of every row, by sorting all of it."""
    ids = torch.arange(scores.shape[1]) if allowed is None else allowed
    ranked = scores[:, ids].sort(dim=1, descending=True, stable=True)
    order = ids[ranked.indices]
    return order[:, :k], ranked.values[:, :k], order.flip(1)[:, :k], ranked.values.flip(1)[:, :k]


def rotate(x, position, base=10000.0, width=None, adjacent=False):
    """Rotary embeddings written out pair by pair: x [n, d_head]."""
    width = x.shape[1] if width is None else width
    turned = x.clone()
    for i in range(width // 2):
        angle = torch.tensor(position * base ** (-2 * i / width), dtype=torch.float64)
        one, two = (2 * i, 2 * i + 1) if adjacent else (i, i + width // 2)
        turned[:, one] = x[:, one] * angle.cos() - x[:, two] * angle.sin()
        turned[:, two] = x[:, two] * angle.cos() + x[:, one] * angle.sin()
    return turned
