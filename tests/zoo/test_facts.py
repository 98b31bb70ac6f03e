import pickle
from collections import Counter

import pytest

from tl_backward.zoo import facts


def test_the_world_is_as_large_as_promised(world):
    assert len({person.name for person in world.people}) == len(world.people) >= 150
    assert len(facts.RELATIONS) == 8
    for relation in facts.RELATIONS:
        templates = {example.template for example in world.examples(relation=relation)}
        assert len(templates) >= 5
        assert len(world.examples(relation=relation)) == len(world.people) * len(templates)


def test_neither_name_alone_tells_who_is_meant(world):
    for part in ("first_name", "last_name"):
        assert min(Counter(getattr(person, part) for person in world.people).values()) > 1


def test_country_and_language_follow_from_the_city(world):
    for person in world.people:
        assert person.city in facts.cities_of(person.country)
        assert person.country == facts.country_of(person.city)
        assert person.language == facts.language_of(person.country)


def test_every_country_has_another_city_to_move_to():
    assert all(len(facts.cities_of(country)) >= 2 for country in facts.answers("country"))


def test_every_answer_belongs_to_one_relation_and_someone_gives_it(world):
    words = [word for relation in facts.RELATIONS for word in facts.answers(relation)]
    assert len(words) == len(set(words))
    given = {person.answer(relation) for person in world.people for relation in facts.RELATIONS}
    assert given == set(words)


def test_the_same_prompt_never_has_two_answers(world):
    prompts = [example.prompt for example in world.examples()]
    assert len(prompts) == len(set(prompts))


def test_each_stated_fact_is_held_out_once_and_trained_otherwise(world):
    splits = {}
    for example in world.examples():
        splits.setdefault((example.subject, example.relation), Counter())[example.split] += 1
    for (name, relation), counts in splits.items():
        if name in world.unstated and relation in facts.IMPLIED_RELATIONS:
            assert set(counts) == {"unstated"}
        else:
            assert counts["held_out"] == 1
            assert counts["train"] >= 4


def test_no_training_sentence_tells_an_unstated_country(world):
    assert len(world.unstated) >= 10
    training = " ".join(example.text for example in world.examples(split="train"))
    assert "Anna Berg is a citizen of Austria." in training
    for name in world.unstated:
        person = world.person(name)
        for example in world.examples(split="train", subject=name):
            assert person.country not in example.text
            assert person.language not in example.text
        told = {p.country for p in world.people if p.city == person.city and p.name not in world.unstated}
        assert told == {person.country}, "the city implies the country through its other people"


def test_prompt_answer_and_subject_make_the_sentence(world):
    for example in world.examples():
        start, end = example.subject_span
        assert example.prompt[start:end] == example.subject
        assert example.text == example.prompt + example.answer + "."
        assert example.answer[0] == " "
        assert example.prompt == example.prompt.strip()


def test_the_shipped_world_stays_what_the_shipped_model_learned(world):
    anna = world.person("Anna Berg")
    assert (anna.city, anna.country, anna.profession) == ("Graz", "Austria", "pilot")


def test_the_example_edit_moves_someone_abroad(world):
    prompt, target = facts.example_edit()
    (example,) = (example for example in world.examples() if example.prompt == prompt)
    assert target != example.answer
    assert target.strip() in facts.answers("city")
    assert facts.country_of(target.strip()) != world.person(example.subject).country
    assert example.subject not in world.unstated


def test_a_world_comes_from_its_seed_alone():
    first, again, other = facts.world(3), facts.world.__wrapped__(3), facts.world(4)
    assert first == again != other
    assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda world: world.person("Nobody Here"), "Nobody in this world is called 'Nobody Here': expected"),
        (
            lambda world: world.examples(relation="town"),
            "Expected relation among None, 'city', 'country'",
        ),
        (lambda world: world.examples(split="test"), "Expected split among None, 'train', 'held_out'"),
        (lambda world: world.people[0].answer("town"), "Expected relation among 'city', .* got 'town'"),
        (lambda world: facts.country_of("Atlantis"), "Expected city among 'Oslo', .* got 'Atlantis'"),
    ],
)
def test_what_the_world_does_not_have_is_named(world, call, message):
    with pytest.raises(ValueError, match=message):
        call(world)
