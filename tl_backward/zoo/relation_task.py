"""A small classification task on the facts world: which relation a prompt asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tl_backward.zoo._tables import TEMPLATES
from tl_backward.zoo.facts import RELATIONS, World, world


@dataclass(frozen=True, repr=False, eq=False)
class LabelledPrompts:
    """Prompts, each with its label and the sentence template it was made of."""

    prompts: tuple[str, ...]
    labels: Int[Tensor, " prompt"]
    """The relation's place among those that were asked for."""
    templates: Int[Tensor, " prompt"]
    """One number for each template of each relation."""
    names: tuple[str, ...]
    """The relations, label by label."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        n = len(self.templates.unique())
        return f"LabelledPrompts({len(self)} prompts about {' or '.join(self.names)}, {n} templates)"


def relation_task(
    relations: Sequence[str] = ("city", "profession"), *, of: World | None = None
) -> tuple[LabelledPrompts, LabelledPrompts]:
    """Make training and test prompts of the task: which of the relations a prompt asks for.

    The two sets share neither a person nor a template: every other person and the first half of each relation's
    templates train, the others test.

    Args:
        relations: two or more of `facts.RELATIONS`.
        of: the world; by default that of the shipped model.

    Raises:
        ValueError: fewer than two relations, one twice, or an unknown one.
    """
    names = tuple(relations)
    if len(names) < 2 or len(set(names)) < len(names) or not set(names) <= set(RELATIONS):
        raise ValueError(f"Expected two or more of {', '.join(RELATIONS)}, got {names}; each is one label.")
    chosen = of or world()
    sets: tuple[list, list] = ([], [])
    for index, person in enumerate(chosen.people):
        for label, name in enumerate(names):
            half = len(TEMPLATES[name]) // 2
            for place, template in enumerate(TEMPLATES[name]):
                is_test = place >= half
                if is_test == bool(index % 2):
                    number = sum(len(TEMPLATES[other]) for other in names[:label]) + place
                    sets[is_test].append((template.format(person.name), label, number))
    train, test = (_labelled(rows, names) for rows in sets)
    return train, test


def _labelled(rows: list[tuple[str, int, int]], names: tuple[str, ...]) -> LabelledPrompts:
    prompts, labels, templates = zip(*rows, strict=True)
    return LabelledPrompts(tuple(prompts), torch.tensor(labels), torch.tensor(templates), names)
