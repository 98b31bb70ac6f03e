"""Capture of a model so small that python takes most of the time, against an earlier version of the package.

Each version runs in a process of its own, and the two take turns.
"""

import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

EARLIER = "0685fc0"
"""The last commit that found weights by tables alone."""
ROOT = Path(__file__).parents[2]
ROUNDS, CALLS = 41, 10


def main() -> None:
    """Print the rows, or what they lack."""
    from tests.benchmarks.measure import row  # the processes below know no tests

    unpacked = subprocess.run(["git", "-C", str(ROOT), "archive", EARLIER, "tl_backward"], capture_output=True)
    if unpacked.returncode:
        print(f"NOT MEASURED: capture against {EARLIER}, which needs the repository with its history")
        return
    worlds = {"HookedTransformer": (sys.executable, "hooked"), "Bridge, TL 4": (ROOT / ".venv-tl4/bin/python", "bridge")}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(unpacked.stdout)) as archive:
            archive.extractall(folder, filter="data")
        for name, (python, kind) in worlds.items():
            if not Path(python).exists():
                print(f"NOT MEASURED: capture of facts by {name} against {EARLIER} (make venv-tl4)")
                continue
            with ExitStack() as stack:
                ours, earlier = (stack.enter_context(_Captures(str(python), kind, str(at))) for at in (ROOT, folder))
                times: tuple[list[float], list[float]] = [], []
                for index in range(ROUNDS):
                    for side in (0, 1) if index % 2 else (1, 0):
                        times[side].append((ours, earlier)[side].seconds())
            medians = [1000 * statistics.median(each) for each in times]
            ratio, detail = medians[0] / medians[1], f"{medians[0]:.1f} ms, {medians[1]:.1f} ms"
            row(f"capture of facts, {name} / the same by {EARLIER}", ratio, "<= 1.10", detail)


class _Captures:
    """A process that captures with one version of the package whenever it is asked to."""

    def __init__(self, python: str, kind: str, package: str) -> None:
        environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
        command = [python, "-W", "ignore", str(Path(__file__).resolve()), kind, package]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=package)

    def __enter__(self) -> "_Captures":
        self.seconds()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()

    def seconds(self) -> float:
        """CPU seconds of one capture, as a mean of a few."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError("the process that captures has died")


def serve(kind: str, package: str) -> None:
    """In a process of its own: capture each time a line comes."""
    sys.path[0] = package  # this file's own folder otherwise
    import torch

    import tl_backward as tlb

    assert Path(tlb.__file__).is_relative_to(package), tlb.__file__
    torch.set_num_threads(1)
    model = tlb.zoo.load("facts", kind=kind)
    tokens = torch.arange(20, 28)[None]
    for _ in sys.stdin:
        start = time.process_time()
        for _ in range(CALLS):
            tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, names_filter=[])
        print("seconds", (time.process_time() - start) / CALLS, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
