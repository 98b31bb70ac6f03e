"""`make architectures`: the whole table, in both versions of TransformerLens.

`python -m tests.architectures [-k PART] [-o JSON] PYTHON ...` measures every row with each PYTHON, one process each at a
time, in a process that is replaced when a row crashes it or takes too long, and writes docs/architectures.md when
nothing was left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from queue import Empty, Queue

ROOT = Path(__file__).parents[2]
OFFLINE = dict(HF_HUB_OFFLINE="1", PIP_NO_INDEX="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
LIMIT = 120.0
"""Seconds that a row may take."""


def worker() -> None:
    """Measure the rows that are asked for on stdin; answers are lines of JSON on stdout."""
    import logging
    import warnings

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    from . import ROWS, registered
    from .measure import measure

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    about = {name: version(name) for name in ("transformer-lens", "transformers", "torch")}
    known = registered()
    rows = [name for name, row in ROWS.items() if row.architecture in known]
    absent = [name for name in known if name not in {row.architecture for row in ROWS.values()}]
    print(json.dumps({"about": about, "rows": rows, "registered": known, "absent": absent}), file=answers, flush=True)
    for line in sys.stdin:
        start = time.monotonic()
        result = measure(ROWS[line.strip()])
        result.seconds = time.monotonic() - start
        print(json.dumps(asdict(result)), file=answers, flush=True)


class Measurer:
    """A worker of one Python, replaced when it dies."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.start()

    def start(self) -> None:
        """Start the worker."""
        self.log = tempfile.TemporaryFile("w+")
        command = [self.python, "-m", "tests.architectures", "--worker"]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | OFFLINE,
        )
        self.lines: Queue[str] = Queue()
        threading.Thread(target=self._read, args=(self.process, self.lines), daemon=True).start()
        self.about = self._answer(10 * LIMIT)

    @staticmethod
    def _read(process: subprocess.Popen, lines: Queue) -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def _answer(self, limit: float) -> dict:
        line = self.lines.get(timeout=limit)
        if not line:
            raise EOFError
        return json.loads(line)

    def __call__(self, name: str) -> dict:
        """The result of a row."""
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        try:
            return self._answer(LIMIT)
        except (Empty, EOFError) as error:
            why = f"took more than {LIMIT:.0f} s" if isinstance(error, Empty) else "the process died"
            self.stop()
            self.log.seek(0)
            last = self.log.read().strip().splitlines()[-1:] or [""]
            self.start()
            return dict(
                name=name, architecture=name.split(" (")[0], boots="yes", runs=True, errors={"row": f"{why}: {last[0]}"}
            )

    def stop(self) -> None:
        """End the worker."""
        self.process.kill()
        self.process.wait()


def measured(python: str, part: str, tell) -> dict:
    """Every row of one Python."""
    measure = Measurer(python)
    try:
        found = {**measure.about, "results": []}
        for name in measure.about["rows"]:
            if part in name:
                found["results"].append(measure(name))
                tell(found["about"]["transformer-lens"], found["results"][-1])
        return found
    finally:
        measure.stop()


def main() -> int:
    """Print the table and write it down."""
    from .page import counts, line, page

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", default=[sys.executable])
    parser.add_argument("-k", dest="part", default="", help="only rows whose name has this part; writes no page")
    parser.add_argument("-o", dest="json", type=Path, default=ROOT / "build" / "architectures.json")
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        worker()
        return 0
    worlds: dict[str, dict] = {}

    def one(python: str) -> None:
        worlds[python] = measured(python, options.part, lambda version, row: print(line(version, row), flush=True))

    threads = [threading.Thread(target=one, args=(python,)) for python in options.pythons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(worlds) < len(options.pythons):
        return 2  # the thread has said why
    found = [worlds[python] for python in options.pythons]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1))
    if not options.part and len(found) > 1:
        (ROOT / "docs" / "architectures.md").write_text(page(found))
    silent = wrong = 0
    for world in found:
        summary = counts(world)
        silent, wrong = silent + summary["silent"], wrong + summary["wrong"]
        print(f"TransformerLens {world['about']['transformer-lens']}: {summary['text']}")
    return 1 if silent or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
