import json
import shutil

import plain
import pytest
import torch

from tl_backward import zoo
from tl_backward.model import loading
from tl_backward.model.loading import has_hooked_transformer
from tl_backward.model.shipped import TRAINED_ON_REQUEST, WEIGHTS
from tl_backward.zoo.facts_task import recall

PROMPTS = ["Anna Berg lives in the city of", "The pet of Noor Quispe is a"]


def plain_logits(prompt):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / "facts", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "facts", local_files_only=True)
    return model(**tokenizer(prompt, return_tensors="pt")).logits


def test_the_shipped_model_knows_its_world(kind, world):
    model = zoo.load("facts", kind=kind)
    measured = recall(model, model.tokenizer, world.examples())
    assert measured["train"]["all"] >= 0.99
    assert measured["held_out"]["all"] >= 0.98
    recorded = json.loads((WEIGHTS / "facts" / "metrics.json").read_text())["recall"]
    for split in measured:
        assert measured[split] == pytest.approx(recorded[split], abs=0.01)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_kind_computes_the_plain_models_logits(kind, prompt):
    model = zoo.load("facts", kind=kind)
    torch.testing.assert_close(model(model.to_tokens(prompt)), plain_logits(prompt), atol=1e-4, rtol=0)


def test_folding_moves_the_norms_weights_and_no_logit(kind):
    model = zoo.load("facts", kind=kind, fold_ln=True)
    weight = getattr(model.blocks[0].ln1, "w", None)  # a Bridge keeps a norm whose weight is 1
    assert weight is None or torch.equal(weight, torch.ones_like(weight))
    prompt = PROMPTS[0]
    torch.testing.assert_close(model(model.to_tokens(prompt)), plain_logits(prompt), atol=1e-4, rtol=0)


def test_the_default_kind_is_hooked_where_there_is_one():
    expected = "HookedTransformer" if has_hooked_transformer() else "TransformerBridge"
    assert type(zoo.load("facts")).__name__ == expected


def test_a_batch_of_unequal_prompts_is_padded_and_still_right(kind):
    model = zoo.load("facts", kind=kind)
    short, long = "Anna Berg resides in", "Anna Berg lives in the city of"
    both = model(model.to_tokens([short, long]))
    alone = model(model.to_tokens(short))
    torch.testing.assert_close(both[:1, : alone.shape[1]], alone, atol=1e-4, rtol=0)


def test_loading_is_silent_and_leaves_torchs_random_state(kind, capfd):
    zoo.load("facts", kind=kind)  # first imports may speak
    capfd.readouterr()
    state = torch.get_rng_state()
    zoo.load("facts", kind=kind)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


def test_no_random_state_is_touched():
    # In a process of its own: here, beartype draws from Python's generator at every checked call.
    code = """
import random, sys
import numpy as np, torch, transformer_lens
from tl_backward import zoo
def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
zoo.load("facts")
before = states()
zoo.facts.world(5)
zoo.load("facts")
sys.exit(before != states())
"""
    assert plain.run(code).returncode == 0


def test_loading_opens_no_connection(kind, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was attempted")

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    zoo.load("facts", kind=kind)


def test_a_fresh_model_every_time(kind):
    first, second = zoo.load("facts", kind=kind), zoo.load("facts", kind=kind)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


def test_a_directory_loads_like_a_name(kind, tmp_path):
    shutil.copytree(WEIGHTS / "facts", tmp_path / "copy")
    model = zoo.load(tmp_path / "copy", kind=kind)
    tokens = model.to_tokens(PROMPTS[0])
    assert torch.equal(model(tokens), zoo.load("facts", kind=kind)(tokens))


def test_the_shipped_files_are_small():
    assert zoo.names() == ("addition", "counting", "facts")
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 5e6


def test_importing_the_zoo_adds_neither_transformers_nor_transformer_lens():
    code = """
import sys
import tl_backward
before = set(sys.modules)
import tl_backward.zoo
sys.exit(bool({"transformers", "transformer_lens"} & (set(sys.modules) - before)))
"""
    assert plain.run(code).returncode == 0


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(
        ValueError, match=r"Expected a model of the zoo, one of 'addition', .*, got 'fatcs'; did you mean 'facts'\?"
    ):
        zoo.load("fatcs")


def test_a_recipe_that_does_not_ship_says_how_to_train_it():
    with pytest.raises(ValueError, match="do not ship .*python -m tl_backward.zoo.train facts-solu-2l"):
        zoo.load("facts-solu-2l")


def test_an_incomplete_directory_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="a directory with config.json, model.safetensors, tokenizer.json"):
        zoo.load(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    shutil.copytree(WEIGHTS / "facts", tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="GPT-2 shaped, got model_type 'llama'"):
        zoo.load(tmp_path)


def test_hooked_without_hooked_transformer_says_what_to_do(monkeypatch):
    monkeypatch.setattr(loading, "has_hooked_transformer", lambda: False)
    with pytest.raises(ImportError, match="install 'transformer-lens<4' or use kind 'bridge'"):
        zoo.load("facts", kind="hooked")


def test_the_recipes_that_do_not_ship_are_known_below():
    assert {*zoo.names(), *TRAINED_ON_REQUEST} == set(zoo.RECIPES)
