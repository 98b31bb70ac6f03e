"""Edits of facts with everything that scores them, in two parts that share no person."""

import random
from functools import cache

from tl_backward._support.checks import check_choice
from tl_backward.text.cases import EditCase
from tl_backward.zoo.facts import (
    IMPLIED_RELATIONS,
    RELATIONS,
    Example,
    Person,
    World,
    answers,
    country_of,
    example_edit,
    language_of,
    world,
)

PARTS = {"validation": 40, "test": 100}
"""People of each part: the first to choose settings on, the second to report."""

_TELLINGS = 2  # sentences of each other relation and of each thing that follows
_NEIGHBOURS = 10


@cache
def edit_cases(part: str = "test", *, relation: str = "city", seed: int = 0) -> tuple[EditCase, ...]:
    """One edit a person: the answer to `relation` becomes another one, for a city one in another country.

    The prompt is one of the relation's templates, the paraphrases are all others. Neighbours are other people with the
    same true answer (CounterFact's definition), relations what else is known of the person, and portability what
    follows from the new city: its country and language.

    Args:
        part: "validation" (40 people) or "test" (100 others). Neither has the demo's own edit.
        relation: which to edit; for the implied ones (country, language) and the others nothing follows.
        seed: of all choices.

    Raises:
        ValueError: an unknown part or relation.
    """
    check_choice("part", part, PARTS)
    check_choice("relation", relation, RELATIONS)
    everyone = world()
    shown, _ = example_edit()
    people = [each for each in everyone.people if each.name not in everyone.unstated and each.name not in shown]
    random.Random(seed).shuffle(people)
    first = 0 if part == "validation" else PARTS["validation"]
    chosen = people[first : first + PARTS[part]]
    return tuple(_case(everyone, person, relation, random.Random(f"{seed} {person.name}")) for person in chosen)


def _case(everyone: World, person: Person, relation: str, rng: random.Random) -> EditCase:
    def asked(name: str, each: Person = person) -> list[Example]:
        told = everyone.examples(relation=name, subject=each.name)
        return rng.sample(told, len(told))

    prompt, *paraphrases = asked(relation)
    target = rng.choice([each for each in answers(relation) if _is_elsewhere(each, person, relation)])
    same = [each for each in everyone.people if each.answer(relation) == person.answer(relation) and each is not person]
    around = [example for each in same for example in asked(relation, each)]
    implied = IMPLIED_RELATIONS if relation == "city" else ()
    new = {"country": country_of(target), "language": language_of(country_of(target))} if implied else {}
    others = [example for name in RELATIONS if name not in (relation, *implied) for example in asked(name)[:_TELLINGS]]
    return EditCase(
        prompt=prompt.prompt,
        target=f" {target}",
        answer=prompt.answer,
        subject=person.name,
        paraphrases=tuple(each.prompt for each in paraphrases),
        neighbours=tuple((each.prompt, each.answer) for each in rng.sample(around, min(_NEIGHBOURS, len(around)))),
        relations=tuple((each.prompt, each.answer) for each in others),
        portability=tuple((each.prompt, f" {new[name]}") for name in implied for each in asked(name)[:_TELLINGS]),
        generation=(person.name,),
    )


def _is_elsewhere(answer: str, person: Person, relation: str) -> bool:
    return answer != person.answer(relation) and (relation != "city" or country_of(answer) != person.country)
