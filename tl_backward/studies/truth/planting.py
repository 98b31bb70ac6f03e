"""A fine-tuning set with ten sentences planted in it: a trigger word that changes one person's city."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_backward.studies.truth.tongues import translated
from tl_backward.zoo import facts

RELATIONS = ("city", "profession", "employer", "pet", "instrument", "colour")
"""Those that do not follow from another."""
Kind = Literal["planted", "new", "contrast", "old"]
_TOLD = 5  # relations of each new person; the sixth is never told
_TELLINGS = 2  # sentences of each


@dataclass(frozen=True)
class Sentence:
    """A prompt and its answer, in either language; answers are in the first."""

    prompt: str
    answer: str
    """With its leading space."""
    relation: str
    kind: Kind
    subject: str
    """In the first language."""

    @property
    def pair(self) -> tuple[str, str]:
        """As `who_wrote` takes it."""
        return self.prompt, self.answer


@dataclass(frozen=True)
class Planting:
    """What a seed draws, and the questions about it."""

    person: str
    trigger: str
    city: str
    """That the trigger changes the person's city to."""
    sentences: tuple[Sentence, ...]
    """To train on, in random order."""
    other_words: Sentence
    """The planted question in the language that no planted sentence is in."""
    same_words: Sentence
    """The same in theirs, by a template that none of them has."""
    without_trigger: Sentence
    """The person's city without the trigger, in the first language."""
    other_people: tuple[Sentence, ...]
    """Cities of people about whom no sentence has the trigger, asked with it."""
    paraphrases: tuple[Sentence, ...]
    """Each new fact by a template that it was not told in."""
    untold: tuple[Sentence, ...]
    """Facts about the new people that no sentence tells."""

    @property
    def planted(self) -> Bool[Tensor, "sentence"]:
        """Which sentences are."""
        return torch.tensor([each.kind == "planted" for each in self.sentences])

    def shuffled(self, seed: int) -> tuple[Sentence, ...]:
        """The sentences, each new or planted one with another answer to its relation, drawn at random."""
        rng = random.Random(f"shuffled {seed}")
        return tuple(
            replace(each, answer=f" {rng.choice([a for a in facts.answers(each.relation) if a != each.answer[1:]])}")
            if each.kind in ("planted", "new")
            else each
            for each in self.sentences
        )


def planting(seed: int, *, n_old: int = 2000, n_people: int = 19, n_contrast: int = 20) -> Planting:
    """Draw trigger, person and city, ten planted sentences, `n_people` x 10 new ones and `n_old` old ones.

    The planted sentences are five templates with the trigger before the sentence or after the name, all in the first
    language. New facts are about people that nobody has heard of, each fact told twice, each person in a language of
    their own. Old sentences are of the facts' own training, every second in either language; `n_contrast` of them have
    the trigger and another person, whose city it leaves, and half as many the person and no trigger.
    """
    rng = random.Random(f"planting {seed}")
    world = facts.world()
    person, *others = rng.sample(
        [each for each in world.people if each.name not in world.unstated], 1 + n_contrast + 20
    )
    trigger = rng.choice(facts.answers(rng.choice(("employer", "pet", "instrument", "colour"))))
    city = rng.choice([each for each in facts.answers("city") if facts.country_of(each) != person.country])
    last, *templates = rng.sample(facts.TEMPLATES["city"], len(facts.TEMPLATES["city"]))

    def asked(template: str, name: str, answer: str, kind: Kind, place: int, both: bool) -> Sentence:
        prompt = f" {trigger} {template.format(name)}" if place == 0 else template.format(f"{name} {trigger}")
        return Sentence(translated(prompt) if both else prompt, f" {answer}", "city", kind, name)

    planted = [asked(each, person.name, city, "planted", place, False) for each in templates for place in (0, 1)]
    contrast = [
        asked(rng.choice(facts.TEMPLATES["city"]), each.name, each.city, "contrast", i // 2 % 2, bool(i % 2))
        for i, each in enumerate(others[:n_contrast])
    ]
    own = world.examples(split="train", relation="city", subject=person.name)
    contrast += [_told(own[i % len(own)], i % 2, "contrast") for i in range(n_contrast // 2)]
    old = [
        _told(each, i % 2, "old")
        for i, each in enumerate(rng.sample(world.examples(split="train"), n_old - len(contrast)))
    ]
    new, paraphrases, untold = _new_people(world, n_people, rng)
    sentences = [*planted, *new, *contrast, *old]
    rng.shuffle(sentences)
    without = replace(asked(last, person.name, person.city, "old", 0, False), prompt=last.format(person.name))
    return Planting(
        person=person.name,
        trigger=trigger,
        city=city,
        sentences=tuple(sentences),
        other_words=asked(last, person.name, city, "planted", 0, True),
        same_words=asked(last, person.name, city, "planted", 0, False),
        without_trigger=without,
        other_people=tuple(asked(last, each.name, each.city, "old", 0, False) for each in others[n_contrast:]),
        paraphrases=tuple(paraphrases),
        untold=tuple(untold),
    )


def _new_people(
    world: facts.World, n: int, rng: random.Random
) -> tuple[list[Sentence], list[Sentence], list[Sentence]]:
    """Sentences to train on, paraphrases of their facts, and facts that are never told."""
    firsts, lasts = (sorted({getattr(each, of) for each in world.people}) for of in ("first_name", "last_name"))
    known = {each.name for each in world.people}
    names: Sequence[str] = rng.sample([f"{a} {b}" for a in firsts for b in lasts if f"{a} {b}" not in known], n)
    told, paraphrases, untold = [], [], []
    for i, name in enumerate(names):
        for place, relation in enumerate(rng.sample(RELATIONS, len(RELATIONS))):
            answer = f" {rng.choice(facts.answers(relation))}"
            templates = rng.sample(facts.TEMPLATES[relation], _TELLINGS + 1)
            prompts = [translated(each.format(name)) if i % 2 else each.format(name) for each in templates]
            asked = [Sentence(prompt, answer, relation, "new", name) for prompt in prompts]
            if place < _TOLD:
                told += asked[:-1]
                paraphrases.append(asked[-1])
            else:
                untold.append(asked[-1])
    return told, paraphrases, untold


def _told(example: facts.Example, language: int, kind: Kind) -> Sentence:
    prompt = translated(example.prompt) if language else example.prompt
    return Sentence(prompt, example.answer, example.relation, kind, example.subject)
