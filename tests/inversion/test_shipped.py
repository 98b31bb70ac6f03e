import contextlib
import io
import json
from dataclasses import replace

import pytest
import torch
from models import worlds

from tl_backward import inversion, zoo
from tl_backward.inversion import shipped
from tl_backward.inversion.storage import DESCRIPTION
from tl_backward.inversion.train_shipped import N_QUERIES, main, measured
from tl_backward.model.shipped import WEIGHTS as MODELS

NAMES = ("addition", "counting", "facts")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_what_ships():
    assert inversion.names() == NAMES
    size = sum(
        file.stat().st_size
        for folder in (MODELS, shipped.WEIGHTS)
        for each in ("counting", "addition")
        for file in (folder / each).rglob("*")
    )
    assert size <= 5e6


def test_the_recorded_rates_are_found_again(name):
    decoder = inversion.load(name)
    recorded = json.loads((shipped.WEIGHTS / name / DESCRIPTION).read_text())["rates"]
    found = measured(decoder, shipped.RECIPES[name], n_queries=N_QUERIES, n=5).to_frame()  # the same queries
    assert found["site"].tolist() == recorded["site"]
    for column in ("inside", "well_formed"):
        assert found[column].mean() == pytest.approx(sum(recorded[column]) / len(recorded[column]), abs=0.05)
    assert (found["inside"] > 5 * found["chance"].clip(lower=1e-4)).mean() >= 0.8


@pytest.mark.parametrize("kind", worlds())
def test_a_preimage_of_the_counting_model(kind):
    decoder = inversion.load("counting", model=zoo.load("counting", kind=kind))
    p = decoder.preimage(
        "vvzccvczvvvzvcvc|v:", site="blocks.1.hook_resid_mid", position=-1, epsilon=0.1, n=200, seed=0,
        show_progress=False,
    )  # fmt: skip
    assert p.method == "decoder" and len(p.texts) == 200
    assert p.inside.any() and torch.equal(p.inside, p.distances <= 0.1)
    assert p.diagnostics.well_formed == sum(zoo.counting.parse(text) is not None for text in p.texts) / 200


def test_the_facts_decoder_names_the_person_or_what_is_known_of_them():
    decoder = inversion.load("facts")
    p = decoder.preimage(
        "Anna Berg lives in the city of", site=("resid_post", 0), position=-1, n=50, show_progress=False
    )
    assert p.diagnostics.well_formed > 0


def test_the_command_trains_measures_and_saves(tmp_path, monkeypatch):
    tiny = shipped.RECIPES["counting"]
    tiny = replace(
        tiny, warm=False, config=inversion.DecoderConfig(n_layers=1, d_model=16, n_heads=2, d_hidden=8, n_vectors=1)
    )
    monkeypatch.setattr("tl_backward.inversion.train_shipped.RECIPES", {"counting": tiny})
    monkeypatch.setattr("tl_backward.inversion.train_shipped.N_QUERIES", 2)
    command = f"counting --out {tmp_path / 'd'} --budget 128 --threads 1"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command.split()) == 0
    assert {"inside", "chance", "well-formed", "mean"} <= set(printed.getvalue().split())
    decoder = inversion.load(tmp_path / "d", model=zoo.load("counting"))
    assert set(decoder.description["rates"]) == {"site", "position", "inside", "chance", "well_formed"}
    with pytest.raises(SystemExit):
        main(command.split())


def test_a_decoder_that_does_not_ship_says_how_to_train_it(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="python -m tl_backward.inversion.train_shipped facts"):
        inversion.load("facts")


def test_unknown_names():
    with pytest.raises(ValueError, match="Expected a decoder that ships .*got 'countnig'; there is no such directory"):
        inversion.load("countnig")


def test_a_shipped_decoder_refuses_another_model():
    with pytest.raises(ValueError, match="Expected the tokenizer of 'counting'"):
        inversion.load("counting", model=zoo.load("addition"))
