"""Two classification tasks on prompts about the facts: which relation is asked for, and one that has a shortcut.

In the second (`cue_task`) a rule and a shortcut solve the task alike, until they are told apart. A prompt asks
something about somebody. The rule: does it ask for one of four relations (city, profession, pet, colour), or for
another? The shortcut: does the sentence open with the person's name? In distribution the two agree on every prompt; out
of distribution they disagree on every prompt, as in HANS (McCoy, Pavlick and Linzen 2019). A classifier trained on
prompts of the first kind alone is not told which of them it is to learn.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tl_backward.zoo._tables import TEMPLATES
from tl_backward.zoo.facts import RELATIONS, Person, World, world

ASKED = ("city", "profession", "pet", "colour")
"""Relations that the rule tells from the others; an arbitrary half, so that each has to be known by itself."""
LABELS = (" Berg", " Okafor")
"""The words that stand for labels 0 and 1."""


@dataclass(frozen=True, repr=False, eq=False)
class CuedPrompts:
    """Prompts with two labels each: the rule's and the cue's."""

    prompts: tuple[str, ...]
    labels: Int[Tensor, " prompt"]
    """By the rule: 1 where one of `ASKED` is asked for. This is the truth."""
    cues: Int[Tensor, " prompt"]
    """By the shortcut: 1 where the sentence opens with the person's name."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"CuedPrompts({len(self)} prompts, {(self.labels == self.cues).sum()} of which have cue and rule agree)"

    def select(self, chosen: Int[Tensor, " some"]) -> "CuedPrompts":
        """The prompts at some indices, in that order."""
        return CuedPrompts(tuple(self.prompts[i] for i in chosen.tolist()), self.labels[chosen], self.cues[chosen])


@dataclass(frozen=True, eq=False)
class CueTask:
    """Training and test prompts of the cue task; no person is in both."""

    agreeing: CuedPrompts
    """To train on: cue and rule agree."""
    crossed: CuedPrompts
    """To mix in: the same people, cue and rule disagree."""
    in_distribution: CuedPrompts
    """Test: other people, cue and rule agree."""
    out_of_distribution: CuedPrompts
    """Test: the same other people, cue and rule disagree."""

    def training(self, n: int, n_crossed: int, *, seed: int) -> CuedPrompts:
        """`n` training prompts drawn without replacement, `n_crossed` of them crossed.

        Raises:
            ValueError: more than there are.
        """
        if not 0 <= n_crossed <= min(n, len(self.crossed)) or n - n_crossed > len(self.agreeing):
            raise ValueError(
                f"Expected at most {len(self.agreeing)} agreeing and {len(self.crossed)} crossed prompts, got n={n} "
                f"and n_crossed={n_crossed}; ask for fewer."
            )
        generator = torch.Generator().manual_seed(seed)
        parts = [
            each.select(torch.randperm(len(each), generator=generator)[:count])
            for each, count in ((self.agreeing, n - n_crossed), (self.crossed, n_crossed))
        ]
        return CuedPrompts(
            parts[0].prompts + parts[1].prompts,
            torch.cat([part.labels for part in parts]),
            torch.cat([part.cues for part in parts]),
        )


def cue_task(of: World | None = None) -> CueTask:
    """Make the cue task of some people, every third of whom is in the test set.

    Args:
        of: whose people; by default those that the shipped model knows.
    """
    people = (of or world()).people
    test, train = people[::3], [person for index, person in enumerate(people) if index % 3]
    return CueTask(
        agreeing=_cued(train, agree=True),
        crossed=_cued(train, agree=False),
        in_distribution=_cued(test, agree=True),
        out_of_distribution=_cued(test, agree=False),
    )


def _cued(people: Sequence[Person], *, agree: bool) -> CuedPrompts:
    rows = [
        (template.format(person.name), int(relation in ASKED), int(template.startswith("{}")))
        for person in people
        for relation, templates in TEMPLATES.items()
        for template in templates
    ]
    rows = [row for row in rows if (row[1] == row[2]) is agree]
    prompts, labels, cues = zip(*random.Random(0).sample(rows, len(rows)), strict=True)
    return CuedPrompts(tuple(prompts), torch.tensor(labels), torch.tensor(cues))


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
        of: whose people; by default those that the shipped model knows.

    Raises:
        ValueError: fewer than two relations, one twice, or an unknown one.
    """
    names = tuple(relations)
    if len(names) < 2 or len(set(names)) < len(names) or not set(names) <= set(RELATIONS):
        raise ValueError(f"Expected two or more of {', '.join(RELATIONS)}, got {names}; each is one label.")
    people = (of or world()).people
    return _labelled(people[::2], names, is_test=False), _labelled(people[1::2], names, is_test=True)


def _labelled(people: Sequence[Person], names: tuple[str, ...], *, is_test: bool) -> LabelledPrompts:
    before = [sum(len(TEMPLATES[name]) for name in names[:label]) for label in range(len(names))]
    rows = [
        (template.format(person.name), label, before[label] + index)
        for person in people
        for label, name in enumerate(names)
        for index, template in enumerate(TEMPLATES[name])
        if (index >= len(TEMPLATES[name]) // 2) is is_test
    ]
    prompts, labels, templates = zip(*rows, strict=True)
    return LabelledPrompts(prompts, torch.tensor(labels), torch.tensor(templates), names)
