"""Options of a lens's control: the same architecture with fresh, untrained weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tl_backward._support.absent import Absent
from tl_backward._support.checks import check_integers, short
from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.controls import random_inits


@public
@dataclass(frozen=True)
class RandomInit:
    """The same architecture with fresh weights; "random_init" stands for the defaults.

    Attributes:
        n_draws: of fresh weights: one lens is run with each; prompt i of a sweep sees draw i % n_draws, so that a
            curve's control averages over several. Fewer than five are compared with nothing.
        seed: of the first draw; the next draws' follow it.

    Raises:
        TypeError: what is no integer.
        ValueError: no draw, or a seed of more than 64 bits.
    """

    n_draws: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(self, "n_draws", "seed")
        if self.n_draws < 1:
            raise ValueError(f"Expected n_draws of at least 1, got {self.n_draws}; leave the control out with None.")

    def models(self, model: TransformerLensModel, draws: Iterable[int] = (0,)) -> Iterator[TransformerLensModel]:
        """An untrained copy of `model`, drawn anew in place for each of the draws."""
        return random_inits(model, (self.seed + draw for draw in draws))


Control: TypeAlias = Literal["random_init"] | RandomInit

NO_CONTROL = Absent("a control", "ask for one with control='random_init'")

OLD_KEYWORDS = {"n_draws": "control.n_draws", "seed": "control.seed"}
"""What functions took one by one before 0.2.0."""


def control_of(control: Control | None) -> RandomInit | None:
    """The control's options from the `control` argument; None for no control.

    Raises:
        ValueError: another name.
    """
    if control is None or isinstance(control, RandomInit):
        return control
    if control != "random_init":
        raise ValueError(
            "Expected control to be None, 'random_init' (the same architecture with fresh weights) or a "
            f"tlb.lens.RandomInit(n_draws=..., seed=...), got {short(control)}; no other control is known."
        )
    return RandomInit()
