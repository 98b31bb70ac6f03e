"""Training recipes of the zoo's models."""

from dataclasses import dataclass
from types import MappingProxyType

from tl_backward._support.checks import check_choice

ACTIVATIONS = ("gelu_new", "solu", "relu")
TASKS = ("facts", "counting", "addition")


@dataclass(frozen=True)
class Recipe:
    """A GPT-2 shaped model and its training; the same recipe gives the same weights.

    The initial weights and the order of the data have a seed each, so that two models can share one
    and differ in the other.
    """

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    activation: str = "gelu_new"
    n_ctx: int = 32
    """Tokens in a row of training text, and the longest prompt the model takes, BOS included."""
    init_seed: int = 0
    data_seed: int = 0
    steps: int = 500
    warmup_steps: int = 50
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.6
    reading_weight: float = 0.0
    """Of the loss on all of a text's tokens, beside that on its answer alone; for tasks with answers."""
    task: str = "facts"
    """What it learns: one of TASKS."""

    def __post_init__(self) -> None:
        """Refuse shapes and lengths that no model can have."""
        for name in ("n_layers", "d_model", "n_heads", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"A recipe's {name} is at least 1, got {getattr(self, name)}.")
        if self.n_ctx < 16:
            raise ValueError(f"n_ctx is at least 16, so that every sentence fits, got {self.n_ctx}.")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model is a multiple of n_heads, got d_model={self.d_model} and n_heads={self.n_heads}."
            )
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("task", self.task, TASKS)


RECIPES = MappingProxyType(
    {
        "facts": Recipe(),
        # SoLU learns more slowly; the two differ in nothing but their activation.
        "facts-gelu-2l": Recipe(n_layers=2, steps=1000),
        "facts-solu-2l": Recipe(n_layers=2, steps=1000, activation="solu"),
        # One head a layer, as in InversionView's own case study; learning to read the letters teaches it to look back.
        "counting": Recipe(
            task="counting",
            n_layers=2,
            d_model=64,
            n_heads=1,
            n_ctx=33,
            steps=12000,
            warmup_steps=200,
            batch_size=32,
            learning_rate=4e-3,
            weight_decay=0.03,
            reading_weight=0.5,
        ),
        "addition": Recipe(
            task="addition",
            n_layers=2,
            d_model=64,
            n_heads=4,
            n_ctx=16,
            steps=1500,
            warmup_steps=100,
            batch_size=128,
            learning_rate=3e-3,
            weight_decay=0.1,
        ),
    }
)
"""Name -> recipe. Only some of these models ship; `tl_backward.zoo.train` makes any of them."""
