"""Tiny models that are alike, as trained siblings are: one random model, and copies with a little noise."""

import torch
from models import build, randomise

BRIDGE_NAMES = {"n_layers": "n_layer", "d_model": "n_embd", "n_heads": "n_head"}


def model(world, seed=0, noise=0.0, noise_seed=0, **shape):
    """A random model of a world with the weights of `seed`, and noise of its own on top."""
    if world == "bridge":
        shape = {BRIDGE_NAMES.get(key, key): value for key, value in shape.items()}
    made = build(world, **shape)
    randomise(made, seed)
    generator = torch.Generator().manual_seed(1000 + noise_seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * noise)
    return made


def tokens(n, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 50, (n, length), generator=generator)
    rows[:, 0] = 0
    return rows


def stream(model, tokens, layer):
    """[text, pos, d_model] by TransformerLens's own cache."""
    return model.run_with_cache(tokens)[1][f"blocks.{layer}.hook_resid_post"].detach()


def gram_cka(x, y, debiased=False):
    """CKA from Gram matrices, as the papers write it."""
    n = len(x)
    k, q = x.double() @ x.double().T, y.double() @ y.double().T
    if not debiased:
        h = torch.eye(n, dtype=torch.float64) - 1 / n
        k, q = h @ k @ h, h @ q @ h
        return float((k * q).sum() / (k.norm() * q.norm()))
    for gram in (k, q):
        gram.fill_diagonal_(0)

    def hsic(a, b):
        ones = torch.ones(n, dtype=torch.float64)
        inner = (a @ b).trace() + (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        return (inner - 2 / (n - 2) * (ones @ a @ b @ ones)) / (n * (n - 3))

    return float(hsic(k, q) / (hsic(k, k) * hsic(q, q)).sqrt())
