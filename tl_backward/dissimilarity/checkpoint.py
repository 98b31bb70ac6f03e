"""Checkpoints of a comparison: its sums and samples, saved while it reads the data and restored to resume it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from tl_backward._support.storage import check_kind, check_run, joined, load_tensors, part_of, save_tensors


@runtime_checkable
class Gathered(Protocol):
    """Sums or samples that are updated batch by batch, can be saved and restored, and are reduced over processes."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything accumulated so far, by name."""
        ...

    def state(self) -> Mapping[str, object]:
        """Settings and counts beside the tensors, as JSON."""
        ...

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Set everything from what `tensors` and `state` returned."""
        ...

    def reduce(self) -> None:
        """Combine all processes' into one, the same on each."""
        ...


def save_checkpoint(path: str | Path, gathered: Mapping[str, Gathered], run: Mapping[str, object]) -> None:
    """Write everything in `gathered` and the run's options, atomically."""
    tensors = joined(**{name: part.tensors() for name, part in gathered.items()})
    save_tensors(path, tensors, {"run": dict(run), "states": {name: part.state() for name, part in gathered.items()}})


def load_checkpoint(
    path: str | Path, gathered: Mapping[str, Gathered], run: Mapping[str, object], device: str
) -> dict[str, object]:
    """Restore `gathered` in place; returns the saved run's options and progress.

    Raises:
        ValueError: no such checkpoint, or one of a run with other options (the first that differs is named).
    """
    tensors, metadata = load_tensors(path, device)
    check_kind(path, "run" in metadata and "states" in metadata, "compare", metadata)
    saved = json.loads(metadata["run"])
    check_run(path, saved, {key: value for key, value in run.items() if key in saved})
    for name, part in gathered.items():
        part.restore(part_of(tensors, name), json.loads(metadata["states"])[name])
    return saved
