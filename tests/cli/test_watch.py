"""`tl-backward watch`: what it trains and shows, and what it refuses; without PEFT, adapters of our own that work alike."""

import csv
import json
import re
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from weights.test_adapters import Adapted

import tl_backward as tlb
from cli.test_commands import run

CASES = tlb.zoo.edit_cases("test")[:6]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "cases.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "target"), *((case.prompt, case.target) for case in CASES)])
    return path


def asked(data, *more):
    return ["watch", "--model", "facts", "--data", data, "--steps", "30", "--lr", "1e-3", "--no-open", *more]


def test_what_it_wrote_as_a_page_and_a_file(capsys, tmp_path, data):
    out, save = tmp_path / "wrote.html", tmp_path / "wrote.safetensors"
    code, said, complained = run(capsys, *asked(data, "--out", out, "--save", save))
    assert code == 0 and complained == ""
    result = tlb.load_result(save, tokenizer=tlb.zoo.load("facts").tokenizer)
    assert said.startswith(result.summary()) and result.steps == 30
    assert "no control was run, so any training may do the same" in result.summary()
    rows = [line.split()[0] for line in said.splitlines() if line.startswith("  blocks.")]
    by_size = sorted(result.weights, key=lambda name: -result.written[name].norm)
    assert rows == by_size[:8] and f"most into {rows[0]} (" in result.summary()  # table and sentence by one order
    assert "6 of the first 6 prompts answered with another token than before; " in said
    assert " of 6 answer with what was wanted, 0 before" in said
    first, last = re.search(r"loss (\d+\.\d+) -> (\d+\.\d+) nats in 30 steps", said).groups()
    assert len(first.partition(".")[2]) == len(last.partition(".")[2]) >= 2
    page = out.read_text(encoding="utf-8")
    assert "What a training wrote: facts" in page and "6 of 6 prompts have another answer now." in page
    # The losses of the same loop, by hand.
    code, said, _ = run(capsys, *asked(data, "--json"))
    losses, model = json.loads(said)["losses"], tlb.zoo.load("facts")
    with torch.no_grad():
        first = [
            -model(case.prompt)[0, -1].log_softmax(-1)[model.to_single_token(case.target)].item() for case in CASES
        ]
    assert losses[0] == pytest.approx(sum(first) / 6, rel=1e-5) and losses[-1] < 0.1 * losses[0]
    answers = json.loads(said)["answers"]
    assert [each["after"] for each in answers] == [case.target for case in CASES]
    assert [each["before"] for each in answers] == [case.answer for case in CASES]


class Config(SimpleNamespace):
    """Stands in for PEFT's `LoraConfig`."""


def adapt(model, config):
    """Stands in for PEFT's `get_peft_model`: its modules, with A drawn and B zero."""
    for name in config.target_modules:
        above, _, step = name.rpartition(".")
        made = Adapted(model.get_submodule(name), rank=config.r, scaling=config.lora_alpha / config.r)
        torch.nn.init.zeros_(made.lora_B["default"].weight)
        setattr(model.get_submodule(above), step, made)
    return SimpleNamespace(base_model=SimpleNamespace(model=model))


def test_lora(capsys, monkeypatch, tmp_path, data):
    if find_spec("peft") is None:
        stands_in = {"LoraConfig": Config, "get_peft_model": adapt, "__spec__": ModuleSpec("peft", None)}
        monkeypatch.setitem(sys.modules, "peft", SimpleNamespace(**stands_in))
    save, more = tmp_path / "wrote.safetensors", ("--lora", "--lora-rank", "3", "--lr", "1e-2")
    code, said, complained = run(capsys, *asked(data, *more, "--out", tmp_path / "wrote.html"))
    assert code == 0, complained
    # Rows with words alone, though the largest changes lie between a weight's two adapters, outside the stream.
    rows = [line for line in said.splitlines() if line.startswith("  blocks.")]
    assert len(rows) == 8 and all('"' in line and ("in.W_lora_A" in line or "out.W_lora_B" in line) for line in rows)
    left_out = re.search(
        r"Left out: \d weights? \(\d+ % of all change\) between these, with no words: outside the", said
    )
    page = (tmp_path / "wrote.html").read_text(encoding="utf-8")
    assert "not in the stream" not in page and "Left out: 8 weights (" in page
    more = (*more, "--save", save, "--json")
    code, said, complained = run(capsys, *asked(data, *more))
    assert code == 0, complained
    found = json.loads(said)
    assert found["losses"][-1] < 0.1 * found["losses"][0]
    result = tlb.load_result(save, tokenizer=tlb.zoo.load("facts").tokenizer)
    names = [line.split()[0] for line in rows]
    by_size = [name for name in result.shares() if name in names]
    assert names == by_size and left_out is not None
    assert len(result.weights) == 16 and all("lora" in name for name in result.weights)
    for name in result.weights:
        reads, writes = name.endswith("in.W_lora_A"), name.endswith("out.W_lora_B")
        each = result.written[name]
        assert (each.imprint is not None) == reads and (each.shift is not None) == writes and len(each.S) == 3
    last = result.written["blocks.3.mlp.out.W_lora_B"].shift
    assert {case.target for case in CASES} & set(last.top_tokens[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--lr", "0"), "Expected --lr above 0"),
        (("--data", "none.csv"), "none.csv"),
        (("--save", "nowhere/x.safetensors"), "Expected --save in a folder that exists"),
        (("--save", "x.csv"), "Expected --save to end in .safetensors, got 'x.csv'; the page is what --out names."),
        (("--save", "x.HTML"), "Expected --save to end in .safetensors, got 'x.HTML'"),
    ],
)
def test_bad_input(capsys, monkeypatch, tmp_path, data, more, message):
    monkeypatch.setattr("tl_backward.cli.watch.load_asked", lambda arguments: pytest.fail("loaded"))
    code, said, complained = run(capsys, *asked(data, *more, "--out", tmp_path / "a.html"))
    assert code == 1 and said == "" and message in complained and complained.count("\n") == 1


def test_without_peft(capsys, monkeypatch, tmp_path, data):
    monkeypatch.setitem(sys.modules, "peft", None)
    code, _, complained = run(capsys, *asked(data, "--lora", "--out", tmp_path / "a.html"))
    assert code == 1 and "Expected PEFT for --lora, got none installed; `pip install peft`" in complained


def test_learning_rates_that_teach_nothing(capsys, data):
    code, said, complained = run(capsys, *asked(data, "--lr", "1e30", "--json"))
    assert (code, said) == (1, "") and "Expected weights that stay finite, got NaN or inf after step" in complained
    code, said, _ = run(capsys, *asked(data, "--lr", "1e-30", "--steps", "1", "--out", data.with_suffix(".html")))
    assert code == 0 and "wrote nothing" in said and "blocks." not in said  # no words of directions of no size
