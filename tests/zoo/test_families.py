"""Recipes that differ in what they say, the world they learn, and models kept in a directory."""

from dataclasses import asdict, replace

import pytest
import torch

from tl_backward.zoo.families import ACTIVATION_PAIRS, SMALL, WIDTHS_AND_DEPTHS, seeded, sentence_rows, small_world
from tl_backward.zoo.tokenizer import facts_tokenizer
from tl_backward.zoo.train import folder_name, recalled, trained

TINY = replace(SMALL, n_layers=1, d_model=8, n_heads=2, steps=2, warmup_steps=1, batch_size=4)


def difference(a, b):
    return {key for key, value in asdict(a).items() if asdict(b)[key] != value}


def test_members_differ_in_what_they_are_called():
    for pair in ACTIVATION_PAIRS.values():
        assert difference(pair["gelu"], pair["solu"]) == {"activation"}
    for name, recipe in WIDTHS_AND_DEPTHS.items():
        assert name == f"{recipe.d_model}d-{recipe.n_layers}l"
        assert difference(recipe, SMALL) <= {"d_model", "n_layers"}
    assert difference(seeded(SMALL, 3), SMALL) == {"init_seed", "data_seed"}
    every = [seeded(r, s) for s in (0, 1) for r in (*WIDTHS_AND_DEPTHS.values(), ACTIVATION_PAIRS["4l"]["solu"])]
    assert len({folder_name(recipe) for recipe in every}) == len(every)


def test_the_small_world(world):
    small = small_world()
    assert len(small.people) == 60 and set(small.people) < set(world.people)
    first = [person.first_name for person in small.people]
    assert {first.count(name) for name in first} == {3}
    assert set(small.examples()) < set(world.examples())


def test_rows_of_sentences():
    rows, again, other = (sentence_rows(5, seed=seed) for seed in (1, 1, 2))
    assert rows.shape == (5, SMALL.n_ctx) and torch.equal(rows, again) and not torch.equal(rows, other)
    tokenizer, said = facts_tokenizer(), {example.text for example in small_world().examples(split="train")}
    for row in rows:
        *whole, _ = tokenizer.decode(row[1:]).split(". ")
        assert whole and {f"{sentence}." for sentence in whole} <= said


def test_models_are_trained_once(tmp_path, kind):
    model = trained(TINY, small_world(), tmp_path, kind=kind, show_progress=False)
    stamp = (tmp_path / folder_name(TINY) / "model.safetensors").stat().st_mtime_ns
    again = trained(TINY, small_world(), tmp_path, kind=kind, show_progress=False)
    assert (tmp_path / folder_name(TINY) / "model.safetensors").stat().st_mtime_ns == stamp
    tokens = sentence_rows(2, seed=0)
    assert torch.equal(model(tokens), again(tokens))
    assert 0 <= recalled(TINY, tmp_path) <= 0.3


@pytest.mark.parametrize("change", ["recipe", "world"])
def test_another_model_in_the_folder_is_refused(tmp_path, world, change):
    trained(TINY, small_world(), tmp_path, show_progress=False)
    recipe = replace(TINY, steps=3) if change == "recipe" else TINY
    with pytest.raises(ValueError, match="Expected the model of Recipe.* got one of another recipe or data; choose an"):
        trained(recipe, small_world() if change == "recipe" else world, tmp_path, show_progress=False)
