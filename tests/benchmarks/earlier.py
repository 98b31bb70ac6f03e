"""The same job by earlier versions of the package: what has become faster, and that nothing has become slower.

Each version runs in a process of its own, and the two take turns.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

from tests.benchmarks import served
from tests.benchmarks.measure import Seconds, row

ROOT = Path(__file__).parents[2]
FIRST = "0685fc0"
"""Version 0.1.0: the last commit that found weights by tables alone."""
SLOWER = "060f08c"
"""Before the work on speed: what one reads `times faster` against."""
BEFORE = "be6e24b"
"""After its first half: what nothing may be slower than."""

ROWS = (
    ("capture of facts, HookedTransformer", "hooked", FIRST, 41, "<= 1.10"),
    ("capture of facts, Bridge, TL 4", "bridge", FIRST, 41, "<= 1.10"),
    ("13 x 13 CKA, 10,000 x 768", "cka", FIRST, 3, "<= 1.02"),
    ("13 x 13 of all additive measures, d 64", "additive", FIRST, 5, "<= 1.02"),
    ("RSA, 3,000 x 768", "rsa", FIRST, 7, "<= 1.15"),
    ("sweep of 64 facts, no control", "sweep alone", SLOWER, 7, "<= 0.54"),
    ("sweep of 64 facts, five draws", "sweep", SLOWER, 5, ""),
    ("invert, 100 stories, all layers", "invert", SLOWER, 2, "<= 0.17"),
    ("compare, 100 stories, 5 x 5 layers", "compare", SLOWER, 2, "<= 0.50"),
    ("similarity, 64 texts x 64 tokens", "similarity", SLOWER, 5, ""),
    *(
        (label, job, BEFORE, rounds, "<= 1.03")
        for label, job, rounds in (
            ("capture of facts, HookedTransformer", "hooked", 41),
            ("capture of facts, Bridge, TL 4", "bridge", 41),
            ("lens of facts", "lens", 21),
            ("lens, control of one draw", "lens with a control", 7),
            ("lens, 6 layers of 512", "wide lens", 9),
            ("sweep of 64 facts, no control", "sweep alone", 7),
            ("sweep of 64 facts, five draws", "sweep", 5),
            ("shift edit of facts", "shift edit", 21),
            ("W_out of facts in words", "words", 9),
            ("similarity, 64 texts x 64 tokens", "similarity", 7),
            ("readout of 300 vectors", "readout", 5),
            ("top_pairs, 6,000 x 6,000, rank 64", "pairs", 7),
            ("invert, 100 stories, all layers", "invert", 3),
            ("compare, 100 stories, 5 x 5 layers", "compare", 3),
        )
    ),
)
"""What the job is called, its name in `served`, the version beside, rounds, goal."""


def main() -> None:
    """Print the rows, or what they lack."""
    with tempfile.TemporaryDirectory() as folder:
        packages = {commit: _unpacked(commit, Path(folder, commit)) for commit in (FIRST, SLOWER, BEFORE)}
        for label, job, commit, rounds, goal in ROWS:
            python = ROOT / ".venv-tl4/bin/python" if job == "bridge" else Path(sys.executable)
            if (lacks := _lacking(packages[commit], job, python, commit)) is not None:
                print(f"NOT MEASURED: {label} against {commit}, which needs {lacks}")
                continue
            _compared(label, job, str(python), packages[commit], rounds, (commit, goal))


def _compared(label: str, job: str, python: str, earlier: Path | None, rounds: int, of: tuple[str, str]) -> None:
    times: tuple[list[float], list[float]] = [], []
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(_Version(python, job, str(at))) for at in (ROOT, earlier))
        for index in range(rounds):
            for side in (0, 1) if index % 2 else (1, 0):
                times[side].append((ours, theirs)[side].seconds())
    mine, its = map(Seconds, times)
    row(f"{label} / the same by {of[0]}", mine / its, of[1], f"{1000 * mine:.1f} ms, {1000 * its:.1f} ms")


def _unpacked(commit: str, folder: Path) -> Path | None:
    """The package as it was, in a folder; None without the repository's history."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "tl_backward"], capture_output=True)
    if done.returncode:
        return None
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _lacking(earlier: Path | None, job: str, python: Path, commit: str) -> str | None:
    if earlier is None:
        return "the repository with its history"
    if not python.exists():
        return "make venv-tl4"
    if served.JOBS[job] is served.of_stories and not served.SHARED.is_dir():
        return f"{served.SHARED.name}/ beside the project"
    return None


class _Version:
    """A process that does a job with one version of the package whenever it is asked to."""

    def __init__(self, python: str, job: str, package: str) -> None:
        environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
        command = [python, "-W", "ignore", str(Path(served.__file__).resolve()), job, package]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=package
        )

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
