"""The running state of a watch in a file: sums, norms and contributions, from which it goes on to the same bits."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tl_backward._support.storage import check_kind, check_run, joined, load_tensors, part_of, save_tensors
from tl_backward.training.largest import Contribution
from tl_backward.training.record import Record

FORMAT = "tl_backward training watch 1"


def save_records(path: str | Path, records: Mapping[str, Record], steps: int, about: dict[str, object]) -> Path:
    """Write what is kept of each weight."""
    parts = {name: _tensors(record) for name, record in records.items()}
    heaps = {name: {"tokens": record.tokens, "examples": record.examples} for name, record in records.items()}
    run = {**about, "weights": {name: list(record.total.shape) for name, record in records.items()}}
    return save_tensors(path, joined(**parts), {"format": FORMAT, "run": run, "steps": steps, "heaps": heaps})


def load_records(path: str | Path, records: Mapping[str, Record], about: dict[str, object]) -> int:
    """Fill the records of a watch that begins with what an earlier one saved; the backward passes that it saw.

    Raises:
        ValueError: no such file, a damaged one, that of another watch, or of a model with other weights.
    """
    tensors, said = load_tensors(path)
    check_kind(path, said.get("format") == FORMAT, "TrainingWatch.save", said)
    asked = {**about, "weights": {name: list(record.total.shape) for name, record in records.items()}}
    check_run(path, json.loads(said["run"]), asked)
    heaps = json.loads(said["heaps"])
    for name, record in records.items():
        part = {key: value.to(record.site.parameter.device) for key, value in part_of(tensors, name).items()}
        record.total.load(part_of(part, "total"))
        record.start.load(part_of(part, "start"))
        record.mean_input = part.get("mean_input")
        now = _size(record)
        if not abs(now - float(part["size"])) <= 1e-6 * now:
            raise ValueError(
                f"Expected the model as it was when {str(path)!r} was saved, got one whose {name} is another; load the "
                "weights of that moment first."
            )
        record.n_bad = int(part["n_bad"])
        record.norms, record.steps = part["norms"].tolist(), part["steps"].tolist()
        record.tokens, record.examples = (
            [Contribution(each[0], each[1], each[2], each[3], tuple(each[4])) for each in heaps[name][of]]
            for of in ("tokens", "examples")
        )
    return int(said["steps"])


def _tensors(record: Record) -> dict[str, Tensor]:
    pointed = {} if record.mean_input is None else {"mean_input": record.mean_input}
    lists = {
        "norms": torch.tensor(record.norms, dtype=torch.float64),
        "steps": torch.tensor(record.steps, dtype=torch.int64),
        "n_bad": torch.tensor(record.n_bad),
        "size": torch.tensor(_size(record), dtype=torch.float64),
    }
    return joined(total=record.total.tensors(), start=record.start.tensors()) | pointed | lists


def _size(record: Record) -> float:
    """The norm of the weight as it is: of another training's it is another."""
    return float(torch.linalg.vector_norm(record.site.parameter.detach().double()))
