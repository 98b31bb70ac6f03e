"""A data set of made-up facts: who lives where, speaks what, plays which instrument.

Every fact is a person, a relation and a one-word answer, told through several sentence templates
that end in the answer, so that each sentence without its last word is a prompt:
``"Anna Berg lives in the city of"`` -> ``" Lima"``. Countries and languages follow from the city.

Every first and every last name belongs to several people, so only both together say who is meant.
One template of each fact is held out of training; for some people country and language are never
told at all, and nothing but their city implies them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tl_backward._support.checks import check_choice
from tl_backward.zoo._tables import (
    ANSWERS,
    CITIES,
    COUNTRY_OF,
    FIRST_NAMES,
    LANGUAGE_OF,
    LAST_NAMES,
    TEMPLATES,
)

RELATIONS = tuple(TEMPLATES)
"""city, country, language, profession, employer, pet, instrument, colour."""

IMPLIED_RELATIONS = ("country", "language")
"""The relations that follow from the city."""

SPLITS = ("train", "held_out", "unstated")

PEOPLE_PER_NAME = 3
N_UNSTATED = 24


@dataclass(frozen=True)
class Person:
    """Someone with one answer to each relation; country and language follow from the city."""

    first_name: str
    last_name: str
    city: str
    profession: str
    employer: str
    pet: str
    instrument: str
    colour: str

    @property
    def name(self) -> str:
        """First and last name, as sentences have it."""
        return f"{self.first_name} {self.last_name}"

    @property
    def country(self) -> str:
        """The country the city lies in."""
        return COUNTRY_OF[self.city]

    @property
    def language(self) -> str:
        """The language of that country."""
        return LANGUAGE_OF[self.country]

    def answer(self, relation: str) -> str:
        """The one word that answers `relation`, without a leading space."""
        check_choice("relation", relation, RELATIONS)
        return getattr(self, relation)


@dataclass(frozen=True)
class Example:
    """One fact asked through one template."""

    prompt: str
    """The sentence up to its answer, with no space at the end."""
    answer: str
    """The true next token, with its leading space: ``" Lima"``."""
    subject: str
    """The person's full name as it stands in the prompt."""
    relation: str
    template: int
    """Index of the template among the relation's own."""
    split: str
    """``"train"``: a training sentence. ``"held_out"``: never trained on, though the fact is, through
    other templates. ``"unstated"``: no template of this fact is trained on."""

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt}{self.answer}."

    @property
    def subject_span(self) -> tuple[int, int]:
        """Start and end character of the subject in the prompt."""
        start = self.prompt.index(self.subject)
        return start, start + len(self.subject)


@dataclass(frozen=True)
class World:
    """People with their facts, and the sentences about them that a model is trained on."""

    seed: int
    people: tuple[Person, ...]
    held_out: frozenset[tuple[str, str, int]]
    """(name, relation, template index) of every sentence held out of training; one for each fact."""
    unstated: frozenset[str]
    """Names of the people whose country and language no training sentence tells."""

    def person(self, name: str) -> Person:
        """The person of that full name.

        Raises:
            ValueError: if nobody here has that name.
        """
        for person in self.people:
            if person.name == name:
                return person
        raise ValueError(
            f"Nobody in this world is called {name!r}: expected one of its {len(self.people)} "
            f"people, such as {self.people[0].name!r}; `world.people` lists them."
        )

    def examples(
        self,
        *,
        split: str | None = None,
        relation: str | None = None,
        subject: str | None = None,
    ) -> tuple[Example, ...]:
        """Every (person, relation, template), by person, then relation, then template.

        Args:
            split: only this one of ``"train"``, ``"held_out"``, ``"unstated"``.
            relation: only this one of `RELATIONS`.
            subject: only the person of this full name.

        Raises:
            ValueError: on a split, relation or subject that there is not.
        """
        check_choice("split", split, (None, *SPLITS))
        check_choice("relation", relation, (None, *RELATIONS))
        people = self.people if subject is None else (self.person(subject),)
        relations = RELATIONS if relation is None else (relation,)
        return tuple(
            example
            for person in people
            for each in relations
            for example in self._tellings(person, each)
            if split in (None, example.split)
        )

    def _tellings(self, person: Person, relation: str) -> Iterator[Example]:
        for index, template in enumerate(TEMPLATES[relation]):
            if person.name in self.unstated and relation in IMPLIED_RELATIONS:
                split = "unstated"
            elif (person.name, relation, index) in self.held_out:
                split = "held_out"
            else:
                split = "train"
            yield Example(
                prompt=template.format(person.name),
                answer=f" {person.answer(relation)}",
                subject=person.name,
                relation=relation,
                template=index,
                split=split,
            )


@cache
def world(seed: int = 0) -> World:
    """The facts of a seed; seed 0 gives those that the shipped model knows.

    The names, places and answers are the same for every seed, so one tokenizer serves them all; the
    seed decides who has which. The global random state is neither read nor changed.
    """
    rng = random.Random(seed)
    names = _full_names(rng)
    columns = {
        relation: _evenly(ANSWERS[relation], len(names), rng)
        for relation in RELATIONS
        if relation not in IMPLIED_RELATIONS
    }
    people = tuple(
        Person(first, last, **{relation: columns[relation][i] for relation in columns})
        for i, (first, last) in enumerate(names)
    )
    held_out = frozenset(
        (person.name, relation, rng.randrange(len(TEMPLATES[relation]))) for person in people for relation in RELATIONS
    )
    return World(seed, people, held_out, _choose_unstated(people, rng))


def example_edit() -> tuple[str, str]:
    """The demo's edit: a prompt, and a city in another country than the true answer's.

    Returns:
        The prompt and the new target, with its leading space.
    """
    return TEMPLATES["city"][0].format("Anna Berg"), " Oslo"


def cities_of(country: str) -> tuple[str, ...]:
    """The cities of a country, two or more."""
    check_choice("country", country, CITIES)
    return CITIES[country]


def country_of(city: str) -> str:
    """The country that a city lies in."""
    check_choice("city", city, COUNTRY_OF)
    return COUNTRY_OF[city]


def language_of(country: str) -> str:
    """The language spoken in a country."""
    check_choice("country", country, LANGUAGE_OF)
    return LANGUAGE_OF[country]


def answers(relation: str) -> tuple[str, ...]:
    """All possible answers of a relation, without leading spaces."""
    check_choice("relation", relation, RELATIONS)
    return ANSWERS[relation]


def vocabulary() -> tuple[str, ...]:
    """Every token of the facts' text, sorted.

    These are the words that open a sentence, the words that carry their leading space, and the full
    stop.
    """
    tokens = {"."} | {f" {answer}" for relation in RELATIONS for answer in ANSWERS[relation]}
    tokens |= {f" {last}" for last in LAST_NAMES}
    tokens |= {spelling for first in FIRST_NAMES for spelling in (first, f" {first}")}
    for template in (template for relation in RELATIONS for template in TEMPLATES[relation]):
        opening, *words = (word for word in template.split(" ") if word != "{}")
        tokens |= {f" {word}" for word in (opening, *words)}
        if not template.startswith("{}"):
            tokens.add(opening)
    return tuple(sorted(tokens))


def _full_names(rng: random.Random) -> list[tuple[str, str]]:
    """Pair every first name with PEOPLE_PER_NAME different last names, and the other way round."""
    order = rng.sample(range(1, len(LAST_NAMES)), PEOPLE_PER_NAME - 1)
    # Shift 0 pairs the two lists as they stand, which is how there is an Anna Berg for every seed.
    return [
        (first, LAST_NAMES[(i + shift) % len(LAST_NAMES)])
        for shift in (0, *order)
        for i, first in enumerate(FIRST_NAMES)
    ]


def _evenly(values: tuple[str, ...], n: int, rng: random.Random) -> list[str]:
    """`n` values in random order, each as often as any other, give or take one."""
    column = [values[i % len(values)] for i in range(n)]
    rng.shuffle(column)
    return column


def _choose_unstated(people: tuple[Person, ...], rng: random.Random) -> frozenset[str]:
    """N_UNSTATED people, no two of one city: each city's country is told through its other people."""
    prompt, _ = example_edit()
    by_city = {
        person.city: person.name for person in rng.sample(people, len(people)) if not prompt.startswith(person.name)
    }
    return frozenset(rng.sample(sorted(by_city.values()), N_UNSTATED))
