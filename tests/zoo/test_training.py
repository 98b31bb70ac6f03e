import contextlib
import io
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tl_backward import zoo
from tl_backward.model.shipped import WEIGHTS
from tl_backward.zoo.facts_task import FactsTask
from tl_backward.zoo.recipes import RECIPES, Recipe
from tl_backward.zoo.tokenizer import facts_tokenizer
from tl_backward.zoo.train import main, train, untrained

TINY = Recipe(n_layers=1, d_model=16, n_heads=2, steps=5, warmup_steps=2, batch_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return facts_tokenizer()


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_training_is_deterministic_and_leaves_the_random_state(world):
    state = torch.get_rng_state()
    first = train(TINY, FactsTask(world), show_progress=False)
    torch.rand(3)
    again = train(TINY, FactsTask(world), show_progress=False)
    torch.set_rng_state(state)
    train(TINY, FactsTask(world), show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(first), weights(again))
    assert not first.training


def test_the_two_seeds_are_separate(world, tokenizer):
    def first_batch(recipe):
        return next(FactsTask(world).batches(recipe)).tokens

    other_init, other_data = replace(TINY, init_seed=1), replace(TINY, data_seed=1)
    start, batch = weights(untrained(TINY, tokenizer)), first_batch(TINY)
    assert not torch.equal(weights(untrained(other_init, tokenizer)), start)
    assert torch.equal(weights(untrained(other_data, tokenizer)), start)
    assert torch.equal(first_batch(other_init), batch)
    assert not torch.equal(first_batch(other_data), batch)


def test_siblings_share_their_initial_weights(tokenizer):
    gelu, solu = (untrained(RECIPES[name], tokenizer) for name in ("facts-gelu-2l", "facts-solu-2l"))
    assert torch.equal(weights(gelu), weights(solu))


def test_rows_are_training_sentences_about_one_person(world, tokenizer):
    trained = {example.text for example in world.examples(split="train")}
    names = {person.name for person in world.people}
    batches = FactsTask(world).batches(TINY)
    for row in torch.cat([next(batches).tokens for _ in range(20)]):
        assert row[0] == tokenizer.bos_token_id
        assert len(row) == TINY.n_ctx
        assert tokenizer.pad_token_id not in row
        *whole, _ = tokenizer.decode(row[1:]).split(". ")
        assert whole
        assert {f"{sentence}." for sentence in whole} <= trained
        assert sum(all(name in sentence for sentence in whole) for name in names) == 1


@pytest.fixture(scope="module", params=["gelu_new", "solu"])
def command_output(request, tmp_path_factory):
    """The directory that a short run of the command wrote, and what it printed."""
    out = tmp_path_factory.mktemp("zoo") / request.param
    command = "facts --steps 3 --n-layers 1 --d-model 16 --n-heads 2 --seed 7 --data-seed 8 --activation"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*command.split(), request.param, "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_the_command_reports_and_records(command_output):
    out, printed = command_output
    assert {"held_out", "city", str(out)} <= set(printed.split())
    recorded = json.loads((out / "metrics.json").read_text())
    assert (recorded["recipe"]["init_seed"], recorded["recipe"]["data_seed"]) == (7, 8)
    assert set(recorded["recall"]) == {"train", "held_out", "unstated"}


def test_what_the_command_saves_loads_in_both_worlds(command_output, kind, world):
    out, _ = command_output
    model = zoo.load(out, kind=kind)
    recipe = Recipe(**json.loads((out / "metrics.json").read_text())["recipe"])
    trained = train(recipe, FactsTask(world), show_progress=False)
    tokens = model.to_tokens("Anna Berg lives in the city of")
    torch.testing.assert_close(model(tokens), trained(tokens).logits, atol=1e-4, rtol=0)


def test_tied_embeddings_are_saved_once():
    saved = load_file(WEIGHTS / "facts" / "model.safetensors")
    assert ("lm_head.weight" in saved) != ("transformer.wte.weight" in saved)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_a_trained_directory_is_not_overwritten_unasked(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(SystemExit):
        main(["facts", "--out", str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 30}, "d_model is a multiple of n_heads, got d_model=30 and n_heads=4"),
        ({"steps": 0}, "A recipe's steps is at least 1, got 0"),
        ({"n_ctx": 8}, "n_ctx is at least 16"),
        ({"activation": "swish"}, "Expected activation among 'gelu_new', 'solu', 'relu', got 'swish'"),
    ],
)
def test_an_impossible_recipe_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


def test_the_command_says_what_is_wrong_with_its_options(capsys):
    with pytest.raises(SystemExit):
        main(["facts", "--d-model", "30"])
    assert "d_model is a multiple of n_heads" in capsys.readouterr().err
