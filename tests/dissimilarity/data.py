"""Matrices to compare, and the measures that can be taken here."""

from importlib.util import find_spec

import numpy as np
import torch

from tl_backward.dissimilarity import list_measures

TABLE = list_measures().set_index("name")
MISSING = [name for name in TABLE.index if TABLE.package[name] and find_spec(TABLE.package[name]) is None]
"""Measures whose package is not installed: test_ties says so loudly."""
INSTALLED = [name for name in TABLE.index if name not in MISSING]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n, d1, d2, seed=0, noise=0.5):
    """Two sample matrices that share part of what they say, float64."""
    shared = min(d1, d2)
    signal = random(n, shared, seed=4 * seed)
    x = signal @ random(shared, d1, seed=4 * seed + 1) + noise * random(n, d1, seed=4 * seed + 2)
    return x, signal @ random(shared, d2, seed=4 * seed + 3) + noise * random(n, d2, seed=4 * seed + 5)


def rotation(d, seed=0):
    return torch.linalg.qr(random(d, d, seed=seed)).Q


def invertible(d, seed=0):
    """Well away from orthogonal, condition number 10."""
    return rotation(d, seed) @ torch.diag(torch.logspace(0, 1, d, dtype=torch.float64)) @ rotation(d, seed + 1)


def as_numpy(*tensors):
    return [np.asarray(tensor.double().numpy()) for tensor in tensors]
