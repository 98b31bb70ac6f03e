"""Checkpoint of a sweep: the prompts measured so far, in a file from which it is resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tl_backward._support.storage import check_run, fingerprint
from tl_backward._support.types import TransformerLensModel
from tl_backward.gradients.examples import Example
from tl_backward.lens.control import NO_CONTROL
from tl_backward.lens.sweep_result import Sweep, load_sweep_of_run, rows_of_draw

_RUN = "prompts, options or model"


@dataclass
class SweepCheckpoint:
    """A sweep's checkpoint file (None for no file) and the sweep that was read from it."""

    path: str | Path | None
    run: str
    """What the run is; a file of another is refused."""
    held: Sweep | None = None

    @classmethod
    def of(cls, path: str | Path | None, run: str, model: TransformerLensModel) -> "SweepCheckpoint":
        """Read the checkpoint if the file exists.

        Raises:
            ValueError: it is damaged, or of another run.
        """
        if path is None or not Path(path).exists():
            return cls(path, run)
        held, its = load_sweep_of_run(path, tokenizer=getattr(model, "tokenizer", None))
        check_run(path, {_RUN: its}, {_RUN: run})
        return cls(path, run, held)

    def done(self, draw: int | None) -> Sweep | None:
        """Rows of the file that belong to the model (draw None) or to a draw of the control."""
        if self.held is None or draw is None:
            return None if self.held is None else replace(self.held, control=NO_CONTROL, interrupted=False)
        return rows_of_draw(self.held.control, draw) if self.held.control else None

    def save(self, sweep: Sweep) -> None:
        """Write the sweep so far, atomically, as a file that `load_sweep` reads."""
        if self.path is not None:
            sweep.save(self.path, run=self.run)


def run_digest(items: Sequence[Example], options: Mapping[str, object]) -> str:
    """Fingerprint of a sweep's inputs: examples, model and options; the code of the losses is left out."""
    examples = [(e.index, e.tokens, e.n_forced, e.target, e.subject, e.answer, *_further(e)) for e in items]
    return fingerprint([options, examples])


def _further(example: Example) -> list[object]:
    """An example's decoder tokens and further inputs, for the fingerprint; empty where it has none."""
    inputs = [(name, list(value.shape), fingerprint(value)) for name, value in sorted(example.inputs.items())]
    return [*inputs] if example.decoder is None else [example.decoder, *inputs]
