"""Prompts of the language-model cases: who is given something (IOI), and facts of the world; own words throughout.

The paper's cases (Huang et al. 2024, sec. 3.2 and 3.4) are indirect object identification in GPT-2 small and factual
recall in GPT-2 XL.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from types import MappingProxyType

from tl_backward.inversion.positions import Position
from tl_backward.inversion.tasks import Task, features_of, sampler

NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Jack",
    "Kate",
    "Leo",
    "Lily",
    "Max",
    "Mia",
    "Paul",
    "Sam",
    "Sue",
    "Tim",
    "Tom",
)
PLACES = ("park", "school", "shop", "lake", "zoo", "garden", "house", "farm")
THINGS = ("ball", "book", "cake", "hat", "kite", "flower", "box", "toy")
IOI = (
    "When {a} and {b} went to the {place}, {c} gave a {thing} to",
    "One day {a} and {b} met at the {place}. {c} handed a {thing} to",
    "{a} and {b} played at the {place} all day, and then {c} showed a {thing} to",
    "At the {place}, {a} saw {b}, so {c} wanted to give the {thing} to",
)

COUNTRIES = MappingProxyType(
    {
        "France": ("Paris", "French", "Europe"),
        "Italy": ("Rome", "Italian", "Europe"),
        "Spain": ("Madrid", "Spanish", "Europe"),
        "Germany": ("Berlin", "German", "Europe"),
        "Portugal": ("Lisbon", "Portuguese", "Europe"),
        "Poland": ("Warsaw", "Polish", "Europe"),
        "Greece": ("Athens", "Greek", "Europe"),
        "Russia": ("Moscow", "Russian", "Europe"),
        "Japan": ("Tokyo", "Japanese", "Asia"),
        "China": ("Beijing", "Chinese", "Asia"),
        "Thailand": ("Bangkok", "Thai", "Asia"),
        "Vietnam": ("Hanoi", "Vietnamese", "Asia"),
        "Egypt": ("Cairo", "Arabic", "Africa"),
        "Kenya": ("Nairobi", "Swahili", "Africa"),
        "Peru": ("Lima", "Spanish", "South America"),
        "Chile": ("Santiago", "Spanish", "South America"),
        "Cuba": ("Havana", "Spanish", "North America"),
        "Mexico": ("Mexico City", "Spanish", "North America"),
    }
)
"""Country -> capital, language, continent."""
RELATIONS = MappingProxyType(
    {
        "capital": ("The capital of {} is the city of", "The government of {} sits in"),
        "language": ("In {}, most people speak", "The language of {} is called"),
        "continent": ("{} is a country on the continent of", "On a map, you will find {} in"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Case(Task):
    """One family of prompts."""

    query: str
    """The prompt that is asked about unless another is given."""
    positions: Mapping[str, Position]
    """Which tokens are asked about, by what they are called."""
    heads: Mapping[str, tuple[tuple[int, int], ...]]
    """Position -> (layer, head) of GPT-2 small's known circuit."""


CIRCUIT = MappingProxyType(
    {
        "END": ((9, 6), (9, 9), (10, 0), (7, 3), (7, 9), (8, 6), (8, 10)),
        "S2": ((5, 5), (6, 9), (0, 1), (3, 0)),
        "S1+1": ((2, 2), (4, 11)),
    }
)
"""Name movers and S-inhibition heads at the end; induction and duplicate-token heads at the repeated name;
previous-token heads after its first mention (Wang et al. 2023)."""


@dataclass(frozen=True)
class Gift:
    """A prompt of the IOI family, taken apart."""

    template: int
    first: str
    second: str
    giver: str
    place: str
    thing: str

    @property
    def receiver(self) -> str:
        """The name that was said once: the answer."""
        return self.second if self.giver == self.first else self.first


def ioi() -> Case:
    """Indirect object identification: of two people, one gives something to the other."""
    asked: dict[str, Callable[[Gift], object]] = {
        "receiver": lambda gift: gift.receiver,
        "giver": lambda gift: gift.giver,
        "both names": lambda gift: frozenset((gift.first, gift.second)),
        "giver said first": lambda gift: gift.giver == gift.first,
        "place": lambda gift: gift.place,
        "thing": lambda gift: gift.thing,
        "template": lambda gift: gift.template,
    }

    def draw(n: int, seed: int) -> list[str]:
        rng = random.Random(seed)
        return [_gift(rng) for _ in range(n)]

    return Case(
        "ioi",
        draw,
        features_of(parse_gift, asked),
        lambda text: parse_gift(text) is not None,
        query=IOI[0].format(a="Lily", b="Tom", c="Tom", place="park", thing="ball"),
        positions={"END": -1, "S2": _second_mention, "S1+1": _after_first_mention},
        heads=CIRCUIT,
    )


def factual_recall() -> Case:
    """Capitals, languages and continents of countries."""
    known = _facts()
    asked: dict[str, Callable[[tuple[str, str, int]], object]] = {
        "country": lambda fact: fact[0],
        "relation": lambda fact: fact[1],
        "template": lambda fact: fact[1:],
        "answer": lambda fact: COUNTRIES[fact[0]][tuple(RELATIONS).index(fact[1])],
        "continent": lambda fact: COUNTRIES[fact[0]][2],
    }
    return Case(
        "facts",
        sampler(known),
        features_of(known.get, asked),
        known.__contains__,
        query=RELATIONS["capital"][0].format("France"),
        positions={"END": -1, "subject": _subject},
        heads={},
    )


def parse_gift(text: str) -> Gift | None:
    """A prompt of the IOI family taken apart, or None."""
    for number, pattern in enumerate(_patterns()):
        found = pattern.fullmatch(text.strip())
        if found and found["a"] != found["b"] and found["c"] in (found["a"], found["b"]):
            return Gift(number, found["a"], found["b"], found["c"], found["place"], found["thing"])
    return None


def _gift(rng: random.Random) -> str:
    a, b = rng.sample(NAMES, 2)
    return rng.choice(IOI).format(a=a, b=b, c=rng.choice((a, b)), place=rng.choice(PLACES), thing=rng.choice(THINGS))


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    words = {"a": NAMES, "b": NAMES, "c": NAMES, "place": PLACES, "thing": THINGS}
    groups = {name: f"(?P<{name}>{'|'.join(options)})" for name, options in words.items()}
    return tuple(re.compile(re.escape(each).replace(r"\{", "{").replace(r"\}", "}").format(**groups)) for each in IOI)


@cache
def _facts() -> dict[str, tuple[str, str, int]]:
    """Prompt -> country, relation, template."""
    return {
        template.format(country): (country, relation, number)
        for country in COUNTRIES
        for relation, templates in RELATIONS.items()
        for number, template in enumerate(templates)
    }


def _token_at(tokens: list[str], end: int) -> int | None:
    """Which token holds the character before `end` of the joined tokens."""
    return next((index for index, seen in enumerate(accumulate(map(len, tokens))) if seen >= end), None)


def _mentions(text: str, tokens: list[str]) -> list[int]:
    """Where the giver's name ends, in characters of the joined tokens."""
    gift = parse_gift(text)
    return [] if gift is None else [found.end() for found in re.finditer(rf"\b{gift.giver}\b", "".join(tokens))]


def _second_mention(text: str, tokens: list[str]) -> int | None:
    ends = _mentions(text, tokens)
    return _token_at(tokens, ends[-1]) if len(ends) > 1 else None


def _after_first_mention(text: str, tokens: list[str]) -> int | None:
    ends = _mentions(text, tokens)
    return _token_at(tokens, ends[0] + 1) if ends else None


def _subject(text: str, tokens: list[str]) -> int | None:
    country, joined = _facts().get(text, (None,))[0], "".join(tokens)
    if country is None or country not in joined:
        return None
    return _token_at(tokens, joined.rindex(country) + len(country))
