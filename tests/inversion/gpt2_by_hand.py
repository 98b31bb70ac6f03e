"""The decoder's forward pass written out in float64, for one sample, from its parameters alone."""

import math

import torch


def log_probabilities(network, z, site, tokens):
    """[len(tokens) + 1, d_vocab + 1]: after END and after each token."""
    p = {name: value.detach().double() for name, value in network.state_dict().items()}
    layout = network.layout
    vectors = _vectors(p, layout, z.double(), site)
    opened = [p["lm.transformer.wte.weight"][token] for token in [network.end, *tokens]]
    prefix = layout.conditioning == "prefix"
    x = torch.stack([*vectors, *opened] if prefix else opened)
    x = x + p["lm.transformer.wpe.weight"][: len(x)]
    for layer in range(layout.n_layers):
        name = f"lm.transformer.h.{layer}."
        x = x + _attention(p, name + "attn.", layout.n_heads, _norm(p, name + "ln_1", x), None)
        if not prefix:
            x = x + _attention(
                p, name + "crossattention.", layout.n_heads, _norm(p, name + "ln_cross_attn", x), vectors
            )
        x = x + _mlp(p, name + "mlp.", _norm(p, name + "ln_2", x))
    x = _norm(p, "lm.transformer.ln_f", x)[len(vectors) if prefix else 0 :]
    logits = x @ p["lm.transformer.wte.weight"].T
    return logits - logits.logsumexp(1, keepdim=True)


def _vectors(p, layout, z, site):
    h = (z - p["mean"][site]) / p["scale"][site] @ p["read"][site] + p["site.weight"][site]
    for layer in (1, 3):
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        h = p[f"mlp.{layer}.weight"] @ h + p[f"mlp.{layer}.bias"]
    return h.reshape(layout.n_vectors, layout.d_model)


def _norm(p, name, x):
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * p[name + ".weight"] + p[name + ".bias"]


def _attention(p, name, n_heads, x, seen):
    d = x.shape[1]
    if seen is None:
        q, k, v = (x @ p[name + "c_attn.weight"] + p[name + "c_attn.bias"]).split(d, 1)
    else:
        q = x @ p[name + "q_attn.weight"] + p[name + "q_attn.bias"]
        k, v = (seen @ p[name + "c_attn.weight"] + p[name + "c_attn.bias"]).split(d, 1)
    mixed = torch.zeros_like(x)
    for head in range(n_heads):
        part = slice(head * d // n_heads, (head + 1) * d // n_heads)
        for i in range(len(x)):
            last = i + 1 if seen is None else len(k)
            scores = torch.stack([q[i, part] @ k[j, part] / math.sqrt(d // n_heads) for j in range(last)])
            mixed[i, part] = scores.softmax(0) @ v[:last, part]
    return mixed @ p[name + "c_proj.weight"] + p[name + "c_proj.bias"]


def _mlp(p, name, x):
    h = x @ p[name + "c_fc.weight"] + p[name + "c_fc.bias"]
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return h @ p[name + "c_proj.weight"] + p[name + "c_proj.bias"]
