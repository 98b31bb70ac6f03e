"""Save what a run over data has gathered, and go on from there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from tl_backward._support.storage import load_tensors, save_tensors


@runtime_checkable
class Gathered(Protocol):
    """Something that grows with the data."""

    def tensors(self) -> dict[str, Tensor]:
        """What it holds."""
        ...

    def state(self) -> Mapping[str, object]:
        """What describes it, as JSON."""
        ...

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Take over what the two gave."""
        ...

    def reduce(self) -> None:
        """Sum over all processes."""
        ...


def save_checkpoint(path: str | Path, gathered: Mapping[str, Gathered], run: Mapping[str, object]) -> None:
    """Write all of `gathered` and what the run is, atomically."""
    tensors = {f"{name}/{key}": tensor for name, part in gathered.items() for key, tensor in part.tensors().items()}
    states = {name: part.state() for name, part in gathered.items()}
    save_tensors(path, tensors, {"run": json.dumps(dict(run)), "states": json.dumps(states)})


def load_checkpoint(
    path: str | Path, gathered: Mapping[str, Gathered], run: Mapping[str, object], device: str
) -> dict[str, object]:
    """Restore `gathered` in place; returns what the run was when it was saved.

    Raises:
        ValueError: no such checkpoint, or one of a run with other options (the first that differs is named).
    """
    tensors, metadata = load_tensors(path, device)
    if "run" not in metadata or "states" not in metadata:
        raise ValueError(
            f"Expected a checkpoint of compare, got {str(path)!r}, which holds something else; choose another file."
        )
    saved = json.loads(metadata["run"])
    for key, value in json.loads(json.dumps(dict(run))).items():
        if key in saved and saved[key] != value and key not in ("next_batch", "digest"):
            raise ValueError(
                f"Expected the checkpoint of a run with {key}={value!r}, got one with {saved[key]!r}; resume with the "
                "options of the run that was interrupted, or choose another file."
            )
    for name, part in gathered.items():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        part.restore(own, json.loads(metadata["states"])[name])
    return saved
