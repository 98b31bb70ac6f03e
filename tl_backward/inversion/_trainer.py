"""Hugging Face's Trainer with checkpoints of our own: safetensors and JSON, each there whole or not at all."""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tl_backward._support.storage import joined, load_json, load_tensors, part_of, save_json, save_tensors
from tl_backward.inversion.network import DecoderNetwork
from tl_backward.inversion.storage import network_tensors, restore_network
from tl_backward.inversion.stream import TrainingStream

_TENSORS, _RUN, _STATE, _OLD = "checkpoint.safetensors", "run.json", "trainer_state.json", "checkpoint-"


@contextmanager
def every_rng_untouched() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's global random states on leaving: Trainer seeds all three."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def latest_checkpoint(out: Path) -> Path | None:
    """The checkpoint in `out` with the most steps, from which a run resumes; None where there is none."""
    whole = [path for path in out.glob(f"{_OLD}*") if path.name.removeprefix(_OLD).isdigit()]
    return max(whole, key=lambda path: int(path.name.removeprefix(_OLD)), default=None)


def read_run(checkpoint: Path) -> dict:
    """The options, history and optimizer settings of a run, as its checkpoint has them.

    Raises:
        ValueError: a file that is missing, damaged or another's.
    """
    return load_json(checkpoint / _RUN, beside=[_STATE])


def remove_checkpoints(out: Path) -> None:
    """Delete all checkpoints in `out`, those that an interruption left unfinished too."""
    for path in out.glob(f"{_OLD}*"):
        shutil.rmtree(path)


class DecoderTrainer(Trainer):
    """Trains a `DecoderNetwork` on a `TrainingStream`, whose batches each process makes for itself."""

    def __init__(
        self,
        network: DecoderNetwork,
        arguments: TrainingArguments,
        stream: TrainingStream,
        run: Callable[[], Mapping[str, object]],
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(model=network, args=arguments, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.stream, self.run, self.losses = stream, run, []
        stream.process, stream.n_processes = arguments.process_index, arguments.world_size

    def get_train_dataloader(self) -> DataLoader:
        """The stream's batches as they are: it makes whole ones, of this process's own texts."""
        return DataLoader(_Batches(self.stream), batch_size=None)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Trainer's own, which keeps the mean loss of all processes and refuses one that is not finite, in all at once.

        Raises:
            ValueError: NaN or inf.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        mean = cast(Tensor, self.accelerator.reduce(loss.clone(), "mean")).item()  # it reduces in place
        self.losses.append(mean)
        if not isfinite(mean):
            raise ValueError(
                f"Expected a finite loss, got {mean} at step {self.state.global_step}; lower learning_rate "
                f"({self.args.learning_rate})."
            )
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        if not self.args.should_save:
            return
        out = Path(cast(str, self.args.output_dir))
        partial = out / f"{_OLD}{self.state.global_step}.part"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        optimizer, scheduler = self._optimizer_and_scheduler()
        states = optimizer.state_dict()
        moments = {
            f"{index}/{key}": torch.as_tensor(value)
            for index, state in states["state"].items()
            for key, value in state.items()
        }
        tensors = joined(network=network_tensors(cast(DecoderNetwork, self.model)), optimizer=moments)
        save_tensors(partial / _TENSORS, tensors, {"format": "pt"})
        scaler = getattr(self.accelerator, "scaler", None)
        run = {
            **self.run(),
            "rates": [{key: group[key] for key in ("lr", "initial_lr")} for group in states["param_groups"]],
            "schedule": {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"},
            "scaler": None if scaler is None else scaler.state_dict(),
            "losses": self.losses,
        }
        self.state.save_to_json(str(partial / _STATE))
        save_json(partial / _RUN, run, beside=[_STATE])
        whole = partial.with_suffix("")
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(partial, whole)
        for path in out.glob(f"{_OLD}*"):
            if path != whole:
                shutil.rmtree(path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        tensors, _ = load_tensors(Path(resume_from_checkpoint) / _TENSORS)
        restore_network(cast(DecoderNetwork, model or self.model), part_of(tensors, "network"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        optimizer, scheduler = self._optimizer_and_scheduler()
        tensors, _ = load_tensors(Path(checkpoint) / _TENSORS)
        run, states = read_run(Path(checkpoint)), optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part_of(tensors, "optimizer").items():
            index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = tensor
        groups = [group | saved for group, saved in zip(states["param_groups"], run["rates"], strict=True)]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        scheduler.load_state_dict(scheduler.state_dict() | run["schedule"])
        self.losses = list(run["losses"])

    def _optimizer_and_scheduler(self) -> tuple[Optimizer, LRScheduler]:
        """The optimizer and scheduler of a training that has begun; DeepSpeed, which has its own, is not supported."""
        return cast(Optimizer, self.optimizer), cast(LRScheduler, self.lr_scheduler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        saved = None if checkpoint is None else read_run(Path(checkpoint))["scaler"]
        if scaler is not None and saved is not None:
            scaler.load_state_dict(saved)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing in a training step draws numbers: batches come from generators of their own."""


class _Batches(IterableDataset):
    """A `TrainingStream` as the data set of a torch DataLoader."""

    def __init__(self, stream: TrainingStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.stream)


class Watching(TrainerCallback):
    """Calls `after` with the number of steps done, after every step."""

    def __init__(self, after: Callable[[int], None]) -> None:
        self.after = after

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Pass on the number of steps done."""
        self.after(state.global_step)
