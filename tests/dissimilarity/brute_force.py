"""Independent, slow versions of what is streamed, and matrices to try them on."""

import json

import numpy
import torch
from shared import shared

from tl_backward.dissimilarity import CovarianceStatistics

WIDTHS_A, WIDTHS_B = [3, 7, 1], [5, 2]


def rows(n, widths, seed, mean=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shared_part = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    made = []
    for width in widths:
        mix = torch.randn(4, width, generator=generator, dtype=torch.float64)
        made.append(
            (shared_part @ mix + torch.randn(n, width, generator=generator, dtype=torch.float64) + mean).to(dtype)
        )
    return made


def fed(x, y, sizes):
    stats = CovarianceStatistics([r.shape[1] for r in x], [r.shape[1] for r in y])
    for a, b in zip(
        zip(*[r.split(sizes) for r in x], strict=True), zip(*[r.split(sizes) for r in y], strict=True), strict=True
    ):
        stats.update(a, b)
    return stats


def song(x, y):
    """HSIC_1 by its definition, from the Gram matrices (Song et al. 2012, eq. 5)."""
    n = len(x)
    first, second = (z @ z.T for z in (x, y))
    first.fill_diagonal_(0)
    second.fill_diagonal_(0)
    one = torch.ones(n, dtype=x.dtype)
    trace = (first @ second).trace() + (one @ first @ one) * (one @ second @ one) / ((n - 1) * (n - 2))
    return float((trace - 2 / (n - 2) * (one @ first @ second @ one)) / (n * (n - 3)))


def brute_cka(x, y):
    return song(x, y) / (song(x, x) * song(y, y)) ** 0.5


def reference():
    values = json.loads(shared("reference", "dissimilarity_reference.json").read_text())
    matrices = numpy.load(shared("reference", "dissimilarity_reference.npz"))
    return values["oracle"], {
        name: [torch.tensor(matrices[f"{name}__{m}"]).double() for m in "XY"] for name in values["pairs"]
    }
