"""Options of comparisons and stitches: what a sample is, how a comparison is run, how a stitch's map is fitted."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from jaxtyping import Bool, Int
from torch import Tensor

from tl_backward._support.checks import check_choice, check_integers
from tl_backward._support.public import public
from tl_backward.activations.reader import Heads
from tl_backward.lens.control import Control, control_of
from tl_backward.model.place import Places
from tl_backward.text.options import TextOptions

Sample: TypeAlias = Literal["token", "last", "mean"]
Align: TypeAlias = Literal["auto", "tokens", "characters"]
Mask: TypeAlias = Callable[[Int[Tensor, "batch pos"]], Bool[Tensor, "batch pos"]]
Estimator: TypeAlias = Literal["full", "minibatch_ratio_of_means", "minibatch_mean_of_ratios"]
MapKind: TypeAlias = Literal["identity", "orthogonal", "linear", "affine"]
Fit: TypeAlias = Literal["least_squares", "sgd"]


@public
@dataclass(frozen=True)
class SampleOptions:
    """What one sample of two models is: a place in a text, and what each of them holds there.

    Attributes:
        sample: every "token", each text's "last" token, or each text's "mean".
        mask: mask(tokens [batch, pos]) -> bool [batch, pos]: which of A's tokens count, each text's from position 0
            on. Padding never does.
        align: "tokens" pairs the models' tokens one to one, "characters" those that end at the same character; "auto"
            does the former where both models tokenise a batch the same.
        heads: "flatten" a hook point's heads side by side, or take "each" as a representation of its own.
        hook_b: hook point of model B, where it is another than A's.

    Raises:
        ValueError: a value of `sample`, `align` or `heads` that is not named above.
    """

    sample: Sample = "token"
    mask: Mask | None = None
    align: Align = "auto"
    heads: Heads = "flatten"
    hook_b: Places | None = None

    def __post_init__(self) -> None:
        for name, kind in (("sample", Sample), ("align", Align), ("heads", Heads)):
            check_choice(name, getattr(self, name), get_args(kind))


@public
@dataclass(frozen=True)
class RunOptions:
    """How a comparison is run: how values, their errors and chance are estimated, and in how much memory.

    Attributes:
        estimator: of "cka": "full" over all samples, "minibatch_ratio_of_means" (Nguyen et al. 2021) or
            "minibatch_mean_of_ratios" (Brown et al. 2023), which depend on what is in a batch together.
        jackknife: at most so many groups of consecutive batches are left out in turn for the standard errors; each
            takes sums of its own, so there may be fewer (at least 8) to fit `max_memory`, and takes each measure's
            own time again (decompositions, for all but CKA); 0 for none.
        permutations: how many random pairings of the sample's rows to measure, each taking that time too; 0 for none.
        sample_size: samples kept for permutations and for measures that need samples rather than sums.
        seed: of the sample and the permutations.
        max_memory: bytes that may be held beside the models and a batch.
        checkpoint: a file to save to every 20 batches and to go on from if it is there, given the same data and
            options.
        show_plan: print the memory plan before the run.
        control: "random_init", or a `RandomInit` with another seed or number of draws: also compares pairs of untrained
            networks of the two models' configurations, without errors and chance; each draw reads the data anew.

    Raises:
        TypeError: a count or seed that is no integer.
        ValueError: an unknown estimator or control, or a number that is too small.
    """

    estimator: Estimator = "full"
    jackknife: int = 20
    permutations: int = 20
    sample_size: int = 2048
    seed: int = 0
    max_memory: int = 8_000_000_000
    checkpoint: str | Path | None = None
    show_plan: bool = False
    control: Control | None = None

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, get_args(Estimator))
        control_of(self.control)
        check_integers(self, "jackknife", "permutations", "sample_size", "seed")
        for name, least in (("jackknife", 0), ("permutations", 0), ("sample_size", 4)):
            if getattr(self, name) < least:
                raise ValueError(f"Expected {name} of at least {least}, got {getattr(self, name)}; give a larger one.")


@public
@dataclass(frozen=True)
class FitOptions:
    """How a stitch's map is fitted: in closed form, and from there by SGD where asked.

    SGD is that of Brown et al. 2023: Nesterov momentum, a linear warm-up, then a cosine to zero.

    Attributes:
        steps: of SGD.
        warmup_steps: of them, over which the learning rate rises.
        learning_rate: at its highest.
        momentum: of SGD.
        clip: the gradient's norm is cut here.
        seed: of the batches' order.
        save_every: steps between checkpoints.
        checkpoint: a file that SGD saves to and goes on from.
        ridge: of the closed form: share of the mean eigenvalue of X'X that is added to all, for few samples.
        layer_norm: whether an extra LayerNorm comes before the map; None for SGD alone.

    Raises:
        TypeError: a count or seed that is no integer.
        ValueError: no step, or a learning rate that is not positive.
    """

    steps: int = 2000
    warmup_steps: int = 200
    learning_rate: float = 0.03
    momentum: float = 0.9
    clip: float = 1.0
    seed: int = 0
    save_every: int = 100
    checkpoint: str | Path | None = None
    ridge: float = 0.0
    layer_norm: bool | None = None

    def __post_init__(self) -> None:
        check_integers(self, "steps", "warmup_steps", "seed", "save_every")
        if self.steps < 1 or self.warmup_steps < 0 or self.learning_rate <= 0:
            raise ValueError(
                f"Expected at least one step, a warm-up of at least 0 and a positive learning rate, got {self.steps}, "
                f"{self.warmup_steps} and {self.learning_rate}; correct them."
            )


OLD_TEXT = {"batching": "text_options.batch_size"} | {
    field.name: f"text_options.{field.name}" for field in fields(TextOptions) if field.name != "batch_size"
}
"""Deprecated keyword -> the field of `text_options` that replaces it."""
