"""Measures of two 10,000 x 768 float32 representations against the matrix products that each cannot do without."""

import functools
import importlib
import sys
import time
from types import ModuleType

import numpy as np
import torch

from tests.benchmarks.measure import in_fresh_process, interleaved, peak_memory, row
from tl_backward.dissimilarity import measures

N, D = 10_000, 768


def pair(n: int = N, d: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """Two representations that share half of what they say, with a decaying spectrum and a mean."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -1.5, d)
    x = torch.randn(n, d, generator=generator) * scale
    y = (x + torch.randn(n, d, generator=generator) * scale) @ torch.randn(d, d, generator=generator) / d**0.5
    return x + 3, y - 1


def neighbour_products(x: torch.Tensor, y: torch.Tensor) -> None:
    """The n x n similarities of both sides, a tile at a time, and nothing done with them."""
    tile = torch.empty(512, len(x))
    for side in (x, y):
        for start in range(0, len(x), 512):
            queries = side[start : start + 512]
            torch.mm(queries, side.T, out=tile[: len(queries)])


def main() -> None:
    """Print the rows of the measures, on one thread: where cores are shared, threads that wait count as CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows()
    finally:
        torch.set_num_threads(threads)


def rows() -> None:
    """Time, memory, and other packages."""
    x, y = pair()
    times = interleaved(
        {
            "X'Y": lambda: x.T @ y,
            "X'X, X'Y, Y'Y": lambda: (x.T @ x, x.T @ y, y.T @ y),
            "cka_biased": lambda: measures.cka_biased(x, y),
            "cka_debiased": lambda: measures.cka_debiased(x, y),
            "procrustes": lambda: measures.procrustes(x, y),
            "svcca": lambda: measures.svcca(x, y),
        },
        rounds=4,
    )
    for name, products, goal in (
        ("cka_biased", "X'X, X'Y, Y'Y", "<= 1.15"),
        ("cka_debiased", "X'X, X'Y, Y'Y", "<= 1.15"),
        ("procrustes", "X'Y", "<= 1.6"),
        ("svcca", "X'X, X'Y, Y'Y", "<= 2.1"),
    ):
        row(f"{name} / {products}", times[name] / times[products], goal, f"{times[name]:.3f} s")
    near = interleaved(
        {"products": lambda: neighbour_products(x, y), "mutual_knn": lambda: measures.mutual_knn(x, y)}, rounds=1
    )
    row("mutual_knn / XX', YY'", near["mutual_knn"] / near["products"], "<= 1.4", f"{near['mutual_knn']:.2f} s")
    for name, goal in (("mutual_knn", 256), ("rsa", 1000)):
        peak, seconds = map(float, in_fresh_process("tests.benchmarks.dissimilarity", name).split())
        detail = f"{seconds:.1f} s; above the inputs, n = {N:,}"
        row(f"peak memory of {name} in MB", peak / 1e6, f"<= {goal}", detail)
    beside_others()


def beside_others() -> None:
    """Public packages on 2,000 samples of 256 neurons, where they are installed."""
    x, y = pair(2000, 256)
    a, b = x.double().numpy(), y.double().numpy()
    for name, package, theirs, ours in (
        ("scipy's procrustes", "scipy.spatial", lambda p: p.procrustes(a, b)[2], measures.procrustes_disparity),
        (
            "pytorch-cka's cka_from_features",
            "cka",
            lambda p: p.cka_from_features(x.double(), y.double())[0, 0],
            measures.cka_debiased,
        ),
        ("rsatoolbox's compare(calc_rdm)", "rsatoolbox", lambda p: rsatoolbox_rsa(p, a, b), measures.rsa),
        ("repsim's cka", "repsim", lambda p: p.cka([a, b], "linear", "gretton")[0, 1], measures.cka_biased),
        (
            "torchmetrics's procrustes_disparity",
            "torchmetrics.functional.shape",
            lambda p: p.procrustes_disparity(x[None].double(), y[None].double())[0],
            measures.procrustes_disparity,
        ),
    ):
        try:
            call = functools.partial(theirs, importlib.import_module(package))
        except ImportError as error:
            print(f"{name}: not installed, not measured ({error})")
            continue
        same = functools.partial(ours, x.double(), y.double())
        assert abs(float(call()) - float(same())) < 1e-6, name
        times = interleaved({"theirs": call, "ours": same}, rounds=3)
        row(
            f"{name} / {ours.__name__}, 2,000 x 256 float64",
            times["theirs"] / times["ours"],
            "",
            f"{times['ours']:.3f} s",
        )


def rsatoolbox_rsa(package: ModuleType, a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two RDMs, whose squared distances have the same ranks as distances."""
    first, second = (package.rdm.calc_rdm(package.data.Dataset(side), method="euclidean") for side in (a, b))
    return float(package.rdm.compare(first, second, method="spearman")[0, 0])


def peak(name: str) -> None:
    """In a process of its own: print the peak memory of one measure above its inputs, and its CPU seconds."""
    torch.set_num_threads(1)
    x, y = pair()
    measure = getattr(measures, name)
    measure(x[:300], y[:300])  # the first call sets up buffers that stay
    start = time.process_time()
    print(peak_memory(lambda: measure(x, y)), time.process_time() - start)


if __name__ == "__main__":
    peak(*sys.argv[1:])
