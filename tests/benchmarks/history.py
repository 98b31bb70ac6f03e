"""What `make bench` measured, commit by commit, in a file that is kept: a step back shows."""

import csv
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

FILE = Path(__file__).with_name("history.csv")
FIELDS = ("date", "commit", "cpu", "torch", "what", "ratio")


class History:
    """Appends each ratio at once, and says what it is of the last one of the same processor and torch."""

    def __init__(self, file: Path = FILE, commit: str | None = None) -> None:
        date = datetime.now(UTC).isoformat(timespec="minutes")
        self.file = file
        self.here = {"date": date, "commit": commit or _commit(), "cpu": _cpu(), "torch": torch.__version__}
        self.last: dict[str, dict[str, str]] = {}
        if file.exists():
            with file.open(newline="", encoding="utf-8") as rows:
                for row in csv.DictReader(rows):
                    if (row["cpu"], row["torch"]) == (self.here["cpu"], self.here["torch"]):
                        self.last[row["what"]] = row

    def add(self, what: str, ratio: float) -> str:
        """Keep a ratio; returns how it stands to the last one, or nothing where there is none."""
        fresh = not self.file.exists()
        with self.file.open("a", newline="", encoding="utf-8") as rows:
            writer = csv.DictWriter(rows, FIELDS, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow({**self.here, "what": what, "ratio": f"{ratio:.4f}"})
        last = self.last.get(what)
        if last is None or float(last["ratio"]) <= 0:
            return ""
        return f"[{ratio / float(last['ratio']):.2f} of {last['commit']}]"


def _commit() -> str:
    """Of this checkout, with "-dirty" where files differ from it."""
    command = ["git", "-C", str(FILE.parent), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
