"""A random model and its twin: the same function in another basis of the residual stream, neurons in another order."""

import torch
from models import bridge, hooked
from torch import nn

MLP_ORDER = [torch.randperm(28, generator=torch.Generator().manual_seed(layer)) for layer in range(2)]
LLAMA_ORDER = [torch.randperm(40, generator=torch.Generator().manual_seed(layer)) for layer in range(2)]


def basis(d_a, d_b, seed=5):
    """[d_a, d_b] with orthonormal rows, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d_b, d_b, dtype=torch.float64, generator=generator))[0][:d_a]


def twins(world, wider=0):
    """(model, twin, basis, order of the twin's neurons): x_twin = x @ basis, neuron i of the twin is order[i]."""
    return _hooked(wider) if world == "hooked" else _bridge(wider)


def _hooked(wider):
    a = hooked("no_norm")
    d_a = a.cfg.d_model
    b, r = hooked("no_norm", d_model=d_a + wider), basis(d_a, d_a + wider)
    with torch.no_grad():
        for name, p in a.named_parameters():
            target, last = b.get_parameter(name), name.rsplit(".", 1)[1]
            if last in ("W_Q", "W_K", "W_V", "W_U"):
                target.copy_(torch.einsum("da,...db->...ab", r, p))
            elif last == "W_in":
                target.copy_((r.T @ p)[:, MLP_ORDER[int(name.split(".")[1])]])
            elif last == "b_in":
                target.copy_(p[MLP_ORDER[int(name.split(".")[1])]])
            elif last == "W_out":
                target.copy_((p @ r)[MLP_ORDER[int(name.split(".")[1])]])
            elif last in ("W_O", "W_E", "W_pos", "b_O", "b_out"):
                target.copy_(p @ r)
            else:
                target.copy_(p)
    return a, b, r, MLP_ORDER


def _bridge(wider):
    a, d_a = bridge("llama"), 24
    d_b = d_a + wider
    # A root mean square over more coordinates is smaller: its epsilon and the weight make up for it.
    b, r = bridge("llama", hidden_size=d_b, rms_norm_eps=1e-6 * d_a / d_b), basis(d_a, d_b)
    inner_a, inner_b = a.original_model, b.original_model
    with torch.no_grad():
        for model, weight in ((inner_a, 1.0), (inner_b, (d_a / d_b) ** 0.5)):
            for module in model.modules():
                if "RMSNorm" in type(module).__name__:
                    module.weight.fill_(weight)
        inner_b.model.embed_tokens.weight.copy_(inner_a.model.embed_tokens.weight @ r)
        inner_b.lm_head.weight.copy_(inner_a.lm_head.weight @ r)
        for one, other, order in zip(inner_a.model.layers, inner_b.model.layers, LLAMA_ORDER, strict=True):
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(other.self_attn, name).weight.copy_(getattr(one.self_attn, name).weight @ r)
            other.self_attn.o_proj.weight.copy_(r.T @ one.self_attn.o_proj.weight)
            for name in ("gate_proj", "up_proj"):
                getattr(other.mlp, name).weight.copy_((getattr(one.mlp, name).weight @ r)[order])
            other.mlp.down_proj.weight.copy_((r.T @ one.mlp.down_proj.weight)[:, order])
    assert not any(isinstance(p, nn.Parameter) and p.isnan().any() for p in inner_b.parameters())
    return a, b, r, LLAMA_ORDER
