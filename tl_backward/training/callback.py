"""Watch a run of Hugging Face's Trainer."""

from pathlib import Path
from typing import TypedDict, Unpack

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel, Weights
from tl_backward.model.checks import check_model
from tl_backward.training.result import WatchResult
from tl_backward.training.watching import TrainingWatch, watch

STATE = "tl_backward_watch.safetensors"
"""The watch's running state in each of the Trainer's checkpoints."""


class WatchOptions(TypedDict, total=False):
    """Options of `watch`."""

    every: int
    k: int
    rank: int
    n_examples: int
    seed: int


@public
class WatchCallback(TrainerCallback):
    """Watches a `transformers.Trainer` that trains the Hugging Face model in a TransformerBridge.

    Gradients are summed as the optimizer reads them: accumulated over micro-batches, clipped, unscaled, times the
    learning rate. Each checkpoint holds the watch's state, and a run that is resumed goes on with it. Under
    `accelerate launch` each process watches the examples that it sees; `training.merge` joins their results.

    Args:
        model: the bridge; give `bridge.original_model` to the Trainer.
        weights: as in `watch`.
        options: of `watch`.

    Raises:
        TypeError: no TransformerLens model, or an option that `watch` does not take.

    Examples:
        >>> bridge = tlb.zoo.load("facts", kind="bridge")
        >>> watching = tlb.training.WatchCallback(bridge, "W_out")
        >>> # Trainer(bridge.original_model, arguments, train_dataset=data, callbacks=[watching]).train()
        >>> watching.watching is None
        True
    """

    def __init__(self, model: TransformerLensModel, weights: Weights = None, **options: Unpack[WatchOptions]) -> None:
        check_model(model)
        known = list(WatchOptions.__annotations__)
        if unknown := [name for name in options if name not in known]:
            raise TypeError(f"Expected options of watch ({', '.join(known)}), got {unknown[0]!r}; correct it.")
        self.model, self.weights, self.options = model, weights, options
        self.watching: TrainingWatch | None = None

    def result(self) -> WatchResult:
        """What was written until now.

        Raises:
            ValueError: no training has begun.
        """
        if self.watching is None:
            raise ValueError(
                "Expected a training that has begun, got none; pass the callback to a Trainer and train()."
            )
        return self.watching.result()

    def close(self) -> None:
        """Take everything off, where a training ended with an error."""
        if self.watching is not None:
            self.watching.__exit__(None, None, None)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin to watch; where a run is resumed, with what its checkpoint holds."""
        self.close()
        wrapped = kwargs.get("optimizer")
        optimizer = getattr(wrapped, "optimizer", wrapped)
        self.watching = watch(
            self.model,
            self.weights,
            optimizer=optimizer if isinstance(optimizer, torch.optim.Optimizer) else None,
            resume=_state_of(args) if state.global_step else None,
            **self.options,
        )
        self.watching.__enter__()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Put the running state beside the Trainer's."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self.watching is not None and state.is_world_process_zero and folder.is_dir():
            self.watching.save(folder / STATE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Take everything off."""
        self.close()


def _state_of(args: TrainingArguments) -> Path | None:
    given = args.resume_from_checkpoint
    folder = (
        given if isinstance(given, str) and given not in ("True", "true") else get_last_checkpoint(str(args.output_dir))
    )
    path = None if folder is None else Path(folder) / STATE
    return path if path is not None and path.exists() else None
