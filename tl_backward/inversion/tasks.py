"""What is known of the zoo's tasks: their inputs, which are well-formed, and features to look for."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tl_backward._support.public import public
from tl_backward.inversion.features import Feature, Parsed, feature_of
from tl_backward.inversion.options import EDITS, Edit
from tl_backward.inversion.shipped import RECIPES, facts_by_prompt
from tl_backward.zoo import addition, counting, facts

SMALL_DOMAIN = 20_000
"""Inputs that are looked through, all of them, without being asked."""


@dataclass(frozen=True)
class Task:
    """A source of inputs and what can be asked of them."""

    name: str
    draw: Callable[[int, int], list[str]]
    """(n, seed) -> inputs drawn from the task's prior."""
    features: MappingProxyType[str, Feature]
    """Hypotheses; None as the value of an input that is not well-formed."""
    valid: Callable[[str], bool] | None = None
    """Whether an input is well-formed; None where all are."""
    domain: Callable[[], Iterable[str]] | None = None
    """All inputs, where they are finitely many."""
    domain_size: int = 0
    edits: Sequence[Edit] = EDITS
    """How a search may move between inputs."""
    given: bool = False
    """Whether it is a list of texts, of which nothing more is known: too long ones are cut."""

    @property
    def is_small(self) -> bool:
        """Whether all inputs can be looked through in seconds."""
        return 0 < self.domain_size <= SMALL_DOMAIN


@public
def task_of(model_name: str) -> Task | None:
    """The task that a model of the zoo was trained on, or None; the facts models share one."""
    tasks = {"facts": _facts, "counting": _counting, "addition": _addition}
    make = tasks.get("facts" if model_name.startswith("facts") else model_name)
    return None if make is None else make()


@public
def task_of_texts(texts: Sequence[str], name: str = "texts") -> Task:
    """A task whose prior is a list of texts, drawn without replacement; at most all of them."""
    draw = sampler(texts)
    return Task(name, draw, MappingProxyType(WORDS), domain=lambda: draw(len(texts), 0), given=True)


def sampler(texts: Iterable[str]) -> Callable[[int, int], list[str]]:
    """A function (n, seed) -> n of the texts, drawn without replacement; all of them where n is larger."""
    pool = list(texts)
    return lambda n, seed: random.Random(seed).sample(pool, min(n, len(pool)))


WORDS: dict[str, Feature] = {
    "first word": lambda text: next(iter(text.split()), None),
    "last word": lambda text: next(reversed(text.split()), None),
    "last two words": lambda text: tuple(text.split()[-2:]),
    "last character": lambda text: text[-1:],
    "number of words": lambda text: len(text.split()),
}
"""Features that any text has."""


def features_of(
    parse: Callable[[str], Parsed | None], asked: Mapping[str, Callable[[Parsed], object]]
) -> MappingProxyType[str, Feature]:
    """`feature_of` each named feature, of what `parse` gives for a text."""
    return MappingProxyType({name: feature_of(parse, feature) for name, feature in asked.items()})


def _counting() -> Task:
    asked: dict[str, Callable[[counting.Count], object]] = {
        "count": lambda q: q.count,
        "query letter": lambda q: q.query,
        "letters": lambda q: "".join(sorted(set(q.letters))),
        "other letters": lambda q: "".join(sorted(set(q.letters) - {q.query})),
        "length": lambda q: len(q.letters),
        "first letter": lambda q: q.letters[0],
        "last letter": lambda q: q.letters[-1],
    }
    return Task(
        "counting",
        lambda n, seed: list(counting.prompts(n, seed=seed, split="held_out")),
        features_of(counting.parse, asked),
        valid=RECIPES["counting"].valid,
    )


def _addition() -> Task:
    asked: dict[str, Callable[[addition.Sum], object]] = {
        **{f"left {place}": lambda q, i=i: str(q.left)[i] for i, place in enumerate(PLACES)},
        **{f"right {place}": lambda q, i=i: str(q.right)[i] for i, place in enumerate(PLACES)},
        **{
            f"sum of the {place}": lambda q, i=i: int(str(q.left)[i]) + int(str(q.right)[i])
            for i, place in enumerate(PLACES)
        },
        "carry into the tens": lambda q: q.left % 10 + q.right % 10 >= 10,
        "carry into the hundreds": lambda q: q.left % 100 + q.right % 100 >= 100,
        "first digit of the sum": lambda q: str(q.left + q.right)[0],
        "sum of four digits": lambda q: q.left + q.right >= 1000,
        "sum": lambda q: q.left + q.right,
    }
    return Task(
        "addition",
        lambda n, seed: list(addition.prompts(n, seed=seed, split="held_out")),
        features_of(addition.parse, asked),
        valid=RECIPES["addition"].valid,
        domain=addition.every_prompt,
        domain_size=810_000,
        edits=("substitute", "swap"),
    )


PLACES = ("hundreds", "tens", "units")


def _facts() -> Task:
    known = facts_by_prompt()
    asked: dict[str, Callable[[facts.Example], object]] = {
        "relation": lambda e: e.relation,
        "person": lambda e: e.subject,
        "first name": lambda e: e.subject.split()[0],
        "last name": lambda e: e.subject.split()[-1],
        "answer": lambda e: e.answer,
        "template": lambda e: (e.relation, e.template),
    }
    return Task(
        "facts",
        sampler(known),
        features_of(known.get, asked),
        valid=RECIPES["facts"].valid,
        domain=lambda: list(known),
        domain_size=len(known),
    )
