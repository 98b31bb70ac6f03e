"""Families of small models to compare with each other, as recipes: activations, widths and depths.

All learn `small_world`, a third of the people, which a model of width 64 knows by heart after 400 steps.
"""

from dataclasses import replace
from types import MappingProxyType

from jaxtyping import Int
from torch import Tensor

from tl_backward.zoo.facts import World, world
from tl_backward.zoo.facts_task import FactsTask
from tl_backward.zoo.recipes import Recipe

SMALL = Recipe(n_layers=4, d_model=64, steps=400, batch_size=32, learning_rate=1e-2)

ACTIVATION_PAIRS = MappingProxyType(
    {
        f"{n_layers}l": MappingProxyType(
            {
                name: replace(SMALL, n_layers=n_layers, activation=activation)
                for name, activation in (("gelu", "gelu_new"), ("solu", "solu"))
            }
        )
        for n_layers in (3, 4)
    }
)
"""Depth -> "gelu" and "solu": recipes that differ in nothing but the activation."""

WIDTHS_AND_DEPTHS = MappingProxyType(
    {
        "32d-4l": replace(SMALL, d_model=32),
        "64d-2l": replace(SMALL, n_layers=2),
        "64d-4l": SMALL,
        "64d-6l": replace(SMALL, n_layers=6),
        "96d-4l": replace(SMALL, d_model=96),
    }
)
"""Three widths of one depth and three depths of one width."""


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with both its seeds, of the initial weights and of the order of data, set to one number."""
    return replace(recipe, init_seed=seed, data_seed=seed)


def small_world() -> World:
    """Every third person whom the shipped model knows: 60 people, three to a first name."""
    whole = world()
    people = whole.people[::3]
    names = {person.name for person in people}
    return World(
        whole.seed,
        people,
        frozenset(telling for telling in whole.held_out if telling[0] in names),
        whole.unstated & names,
    )


def sentence_rows(n: int, *, seed: int, of: World | None = None) -> Int[Tensor, "row pos"]:
    """`n` rows of `n_ctx` tokens as in training, of sentences in an order that `seed` gives.

    The sentences are those of training; no two seeds order them alike.
    """
    return next(FactsTask(of or small_world()).batches(replace(SMALL, batch_size=n, data_seed=seed))).tokens
