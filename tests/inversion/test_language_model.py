"""The language-model script: its prompts, where it looks, and its figures against the functions it calls."""

import csv
import json
import re
from types import SimpleNamespace

from torch.nn import Module

import tl_backward as tlb
from tests.shared import shared
from tl_backward.inversion import enumerate_preimage, pool_preimage
from tl_backward.inversion.language_cases import CIRCUIT, IOI, NAMES, factual_recall, ioi, parse_gift
from tl_backward.inversion.language_model import main, sites_of
from tl_backward.text.encoded import encode


def test_prompts_are_what_they_say():
    case = ioi()
    prompts = case.draw(500, 3)
    assert prompts == case.draw(500, 3) != case.draw(500, 4) and all(map(case.valid, prompts))
    gifts = [parse_gift(prompt) for prompt in prompts]
    assert {gift.template for gift in gifts} == set(range(len(IOI))) and {gift.giver for gift in gifts} == set(NAMES)
    for prompt, gift in zip(prompts, gifts, strict=True):
        assert (
            len(re.findall(rf"\b{gift.giver}\b", prompt)) == 2 and len(re.findall(rf"\b{gift.receiver}\b", prompt)) == 1
        )
    first = parse_gift(case.query)
    assert (first.receiver, first.giver, first.place, first.thing) == ("Lily", "Tom", "park", "ball")
    assert not case.valid(case.query.replace("Lily", "Tom")) and not case.valid(case.query + " Lily")
    assert not case.valid(case.query.replace("Tom gave", "Max gave")) and case.features["receiver"]("nonsense") is None


def test_positions_of_mentions():
    tokens = "<s>|When| Li|ly| and| To|m| went| to| the| park|,| To|m| gave| a| ball| to".split("|")
    case = ioi()
    assert case.positions["S2"](case.query, tokens) == 13 and case.positions["S1+1"](case.query, tokens) == 7
    assert (
        case.positions["S2"]("another text", tokens) is None and case.positions["S1+1"]("another text", tokens) is None
    )
    facts = factual_recall()
    assert (
        facts.positions["subject"](
            facts.query, ["The", " capital", " of", " Fr", "ance", " is", " the", " city", " of"]
        )
        == 4
    )
    assert facts.positions["subject"]("another text", []) is None


def test_facts_are_consistent():
    case = factual_recall()
    everything = case.draw(10_000, 0)
    assert len(everything) == len(set(everything)) == 108 and all(map(case.valid, everything))
    assert case.features["answer"](case.query) == "Paris" and case.features["continent"](case.query) == "Europe"
    assert case.features["relation"]("On a map, you will find Peru in") == "continent"


def test_sites_of_gpt2_small_are_the_circuits_heads():
    model = Module()
    model.cfg = SimpleNamespace(n_layers=12, n_heads=12, d_model=768)
    found = sites_of(ioi(), model)
    assert {name: [site[1:] for site in sites] for name, sites in found.items()} == {
        name: list(heads) for name, heads in CIRCUIT.items()
    }
    assert found["END"][0] == ("result", 9, 6)
    model.cfg.n_layers, model.cfg.d_model = 48, 1600
    assert sites_of(ioi(), model)["S2"] == [("resid_post", layer) for layer in (0, 9, 19, 28, 38, 47)]
    assert list(sites_of(factual_recall(), model)) == ["END", "subject"]


def test_stories_through_the_script(capsys, tmp_path):
    folder, data = str(shared("models", "stories260K")), str(shared("data", "tinystories-1000.json"))
    small = ["--model", folder, "--pool", "60", "--n", "20", "--steps", "6", "--chains", "4", "--site", "resid_post,1"]
    out = tmp_path / "new"
    assert main([*small, "--data", data, "--max-tokens", "8", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((out / "figures.json").read_text())
    assert [row["case"] for row in rows] == ["ioi"] * 6 + ["facts"] * 4 + ["texts"] * 2
    assert [row["method"] for row in rows] == ["pool", "search"] * 6 and "'When Lily and Tom" in printed
    model = tlb.load(folder)
    case = factual_recall()
    pool = encode(model, case.draw(60, 0))
    near = pool_preimage(
        model,
        case.query,
        ("resid_post", 1),
        case.positions["subject"],
        pool,
        n=20,
        valid=case.valid,
        show_progress=False,
    )
    row = next(row for row in rows if (row["case"], row["position"], row["method"]) == ("facts", "subject", "pool"))
    assert row["inside"] == int(near.inside.sum()) and row["chance"] == near.diagnostics.chance
    exact = enumerate_preimage(
        model, case.query, ("resid_post", 1), case.positions["subject"], pool, show_progress=False
    )
    assert row["inside"] == int(exact.inside.sum())
    with (out / "texts.csv").open(newline="") as file:
        texts = [
            line
            for line in csv.DictReader(file)
            if (line["case"], line["position"], line["method"]) == ("facts", "subject", "pool")
        ]
    assert [float(line["distance"]) for line in texts] == near.distances.tolist() and [
        line["text"] for line in texts
    ] == list(near.texts)
    assert (
        main([*small, "--out", str(out)]) == 1
        and "Expected --out to be a new or empty folder" in capsys.readouterr().err
    )
    assert main([*small, "--case", "texts", "--out", str(tmp_path / "b")]) == 1
    assert "Expected --data FILE with --case texts" in capsys.readouterr().err
    assert main([*small, "--site", "resid_post,x", "--out", str(tmp_path / "c")]) == 1
    assert (
        "Expected a hook point of the model, got 'resid_post,x'" in capsys.readouterr().err
        and not (tmp_path / "c").exists()
    )
