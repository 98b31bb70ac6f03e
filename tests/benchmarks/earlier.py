"""The same work by an earlier version of the package: a capture in which python takes most of the time, and measures.

Each version runs in a process of its own, and the two take turns.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

EARLIER = "0685fc0"
"""The last commit that found weights by tables alone."""
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Print the rows, or what they lack."""
    from tests.benchmarks.measure import Seconds, row  # the processes below know no tests

    unpacked = subprocess.run(["git", "-C", str(ROOT), "archive", EARLIER, "tl_backward"], capture_output=True)
    if unpacked.returncode:
        print(f"NOT MEASURED: what {EARLIER} takes, which needs the repository with its history")
        return
    here, tl4 = Path(sys.executable), ROOT / ".venv-tl4/bin/python"
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(unpacked.stdout)) as archive:
            archive.extractall(folder, filter="data")
        for label, task, python, rounds, goal in (
            ("capture of facts, HookedTransformer", "hooked", here, 41, "<= 1.10"),
            ("capture of facts, Bridge, TL 4", "bridge", tl4, 41, "<= 1.10"),
            ("13 x 13 CKA, 10,000 x 768", "cka", here, 3, "<= 1.02"),
            ("13 x 13 of all additive measures, d 64", "additive", here, 5, "<= 1.02"),
            ("RSA, 3,000 x 768", "rsa", here, 7, "<= 1.15"),
        ):
            if not python.exists():
                print(f"NOT MEASURED: {label} against {EARLIER} (make venv-tl4)")
                continue
            with ExitStack() as stack:
                ours, earlier = (stack.enter_context(_Version(str(python), task, str(at))) for at in (ROOT, folder))
                times: tuple[list[float], list[float]] = [], []
                for index in range(rounds):
                    for side in (0, 1) if index % 2 else (1, 0):
                        times[side].append((ours, earlier)[side].seconds())
            mine, its = map(Seconds, times)
            row(f"{label} / the same by {EARLIER}", mine / its, goal, f"{1000 * mine:.1f} ms, {1000 * its:.1f} ms")


class _Version:
    """A process that does a task with one version of the package whenever it is asked to."""

    def __init__(self, python: str, task: str, package: str) -> None:
        environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
        command = [python, "-W", "ignore", str(Path(__file__).resolve()), task, package]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=package)

    def __enter__(self) -> "_Version":
        self.seconds()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()

    def seconds(self) -> float:
        """CPU seconds of doing it once."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError("the process that does the work has died")


def serve(task: str, package: str) -> None:
    """In a process of its own: do the task each time a line comes."""
    sys.path[0] = package  # this file's own folder otherwise
    import torch

    import tl_backward as tlb

    assert Path(tlb.__file__).is_relative_to(package), tlb.__file__
    torch.set_num_threads(1)
    run = {"cka": all_pairs, "additive": all_pairs, "rsa": rsa}.get(task, captures)(task)
    for _ in sys.stdin:
        start = time.process_time()
        times = run()
        print("seconds", (time.process_time() - start) / times, flush=True)


def captures(kind: str) -> Callable[[], int]:
    """Ten captures of eight tokens."""
    import torch

    import tl_backward as tlb

    model = tlb.zoo.load("facts", kind=kind)
    tokens = torch.arange(20, 28)[None]

    def run() -> int:
        for _ in range(10):
            tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, names_filter=[])
        return 10

    return run


def all_pairs(task: str) -> Callable[[], int]:
    """Measures of 13 x 13 layers from sums over 10,000 samples: CKA of float32 products, or all of float64 ones."""
    import inspect

    import torch

    from tl_backward.dissimilarity import ADDITIVE, CovarianceStatistics
    from tl_backward.dissimilarity.grouped import SumsView

    n, n_layers, d = 10_000, 13, 768 if task == "cka" else 64
    names = ["cka_debiased"] if task == "cka" else BOTH
    dtype = torch.float32 if task == "cka" else torch.float64
    generator = torch.Generator().manual_seed(0)
    x, y = ([torch.randn(n, d, generator=generator) for _ in range(n_layers)] for _ in range(2))
    y[3] = x[2] + 0.5 * y[3]
    says_products = "products" in inspect.signature(CovarianceStatistics.__init__).parameters  # 0.1.0 goes by the rows

    def run() -> int:
        options: dict[str, Any] = {"products": dtype} if says_products else {}
        stats = CovarianceStatistics([d] * n_layers, [d] * n_layers, **options)
        for start in range(0, n, 2000):
            sides = ([rows[start : start + 2000] for rows in side] for side in (x, y))
            stats.update(*([rows if says_products else rows.to(dtype) for rows in side] for side in sides))
        stats.flush()
        view = SumsView(stats)
        for i in range(n_layers):
            for j in range(n_layers):
                pair = view.pair(i, j)
                for name in names:
                    ADDITIVE[name](pair)
        return 1

    return run


BOTH = (
    "cka_debiased cka_biased cka_angular cca cca_squared svcca pwcca pwcca_y procrustes procrustes_normalised "
    "procrustes_squared procrustes_disparity bures_similarity shape_angular linear_regression linear_regression_y_to_x "
    "gulp gulp_squared eigenspace_overlap"
).split()
"""The measures that 0.1.0 made of sums."""


def rsa(task: str) -> Callable[[], int]:
    """Spearman's RSA, by Euclidean distances."""
    import torch

    from tl_backward.dissimilarity import measures

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 768, generator=generator)
    y = x + torch.randn(3000, 768, generator=generator)

    def run() -> int:
        measures.rsa(x, y)
        return 1

    return run


if __name__ == "__main__":
    serve(*sys.argv[1:])
