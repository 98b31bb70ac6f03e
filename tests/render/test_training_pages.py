"""Pages of a watched training, of a difference and of authors: true to their results, read from a file too, and safe."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from models import build, worlds

import tl_backward as tlb
from tl_backward import render
from tl_backward.editing import edit_effect

from .test_edit_and_sweep_pages import HOSTILE, data_of

TEXTS = ["w5 w6 w7 w8 w9", "w3 w3 w41", "w30 w31 w32", "w5 w6 w8"]
every_world = pytest.mark.parametrize("world", worlds())


def trained(world, weights=None, steps=3):
    model = build(world)
    before, optimizer = copy.deepcopy(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    with tlb.training.watch(model, weights, optimizer=optimizer, k=4) as w:
        for step in range(steps):
            model(model.to_tokens(TEXTS[step % 4]), return_type="loss").backward()
            optimizer.step()
            optimizer.zero_grad()
    return before, model, w.result()


@every_world
def test_the_page_of_a_training(world, tmp_path):
    before, model, result = trained(world)
    page = result.page(name=HOSTILE)
    html = page.to_html()
    assert page.finding == result.summary() and "onerror=alert(1)>" not in html and "<svg" in html
    norms = data_of(page, "norms.csv")
    assert len(norms) == len(result.weights)
    for row, name in zip(norms, result.weights, strict=True):
        assert [float(row[str(step)]) for step in range(3)] == pytest.approx(result.norms[name].tolist())
    written = data_of(page, "written.csv")
    frame = result.to_frame()
    assert [row["weight"] for row in written] == frame["weight"].tolist()
    assert json.loads(written[0]["before"]) == [render.visible_token(each) for each in frame["before"][0]]
    largest = max(result.weights, key=lambda name: result.written[name].norm)
    kept = result.contributions(largest)
    assert [float(row["norm"]) for row in data_of(page, "tokens.csv")] == pytest.approx(kept["norm"].tolist())
    assert "Answers before and after" not in html and "Not watched" not in html
    edit = tlb.shift_edit(before, TEXTS[0], "w10", layer=1, scale=3.0)
    answers = [edit_effect(before, edit, TEXTS[0], k=3)]
    lost = replace(result, missing={HOSTILE: HOSTILE})
    html = render.watch_report(lost, answers=answers).to_html()
    assert "Answers before and after" in html and "Not watched" in html and "onerror=alert(1)>" not in html
    assert ">wanted<" not in html
    (effect,) = answers
    for target, met in ((int(effect.top_after[0]), "1 of 1 answer with what was wanted"), (0, "0 of 1 answer with")):
        html = render.watch_report(lost, answers=answers, targets=[target]).to_html()
        assert met in html and ">wanted<" in html
    back = tlb.training.load_watch(result.save(tmp_path / "w.safetensors"), tokenizer=model.tokenizer)
    assert str(back.page(name=HOSTILE)) == str(page)
    assert result.save(tmp_path / "w.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert result.plot().data[0].type == "heatmap"


@every_world
def test_words_before_and_after_are_those_of_the_weights(world):
    before, model, result = trained(world)
    old, new = tlb.weight_sites(before), tlb.weight_sites(model)
    assert (
        set(result.before)
        == set(result.after)
        == {name for name in result.weights if result.written[name].imprint or result.written[name].shift}
    )
    for name, words in result.before.items():
        each = result.written[name]
        for sites, read in ((old, words), (new, result.after[name])):
            site = sites[name]
            weight = site.layout.from_stored(site.parameter.detach())
            weight = (weight.transpose(0, 1) if site.layout.heads == "out" else weight).reshape(
                len(each.U), len(each.V)
            )
            vectors = each.U.T @ weight if each.shift is not None else (weight @ each.V).T
            expected = tlb.readout(model, vectors, k=4)
            assert torch.equal(read.top_ids, expected.top_ids), name
            torch.testing.assert_close(read.norm, expected.norm, rtol=1e-6, atol=1e-9)


@every_world
def test_a_training_that_wrote_nothing(world):
    model = build(world)
    with tlb.training.watch(model, "W_out", k=3) as w:
        model(model.to_tokens(TEXTS[0]), return_type="loss").backward()
    html = w.result().page().to_html()
    assert "1 backward pass wrote nothing" in html and "writes " in html  # what the gradients asked for


@every_world
def test_a_long_training_of_many_weights_is_drawn_in_stretches(world):
    result = trained(world, steps=2)[2]
    many = {f"blocks.{layer}.mlp.W_{i}": torch.full((95,), float(layer + 1)) for layer in range(6) for i in range(9)}
    first = result.weights[0]
    parts = {of: dict.fromkeys(many, getattr(result, of)[first])
             for of in ("gradient", "written", "tokens", "examples", "sums")}  # fmt: skip
    long = replace(result, weights=tuple(many), norms=many, before={}, after={}, **parts)
    rows = data_of(long.page(), "norms.csv")
    assert [row["of"] for row in rows] == [f"layer {layer}" for layer in range(6)]
    assert list(rows[0])[1:] == [str(start) for start in range(0, 95, 3)]  # of one length each, so that ticks are even
    assert float(rows[2]["0"]) == pytest.approx(3 * 9**0.5)


def test_padding_is_no_part_of_the_text():
    result = trained(worlds()[0])[2]
    name = result.weights[0]
    first = result.tokens[name][0]
    padded = first._replace(ids=(*first.ids, 1, 1))
    long = replace(result, tokens={**result.tokens, name: (padded,)})
    text, token = (long.contributions(name).iloc[0][column] for column in ("text", "token"))
    assert "<pad>" not in text and text == result.contributions(name).iloc[0]["text"]
    own = padded._replace(position=len(padded.ids) - 1)  # a pad that itself contributed is what it is
    assert replace(result, tokens={**result.tokens, name: (own,)}).contributions(name).iloc[0]["token"] == "<pad>"
    assert token == result.contributions(name).iloc[0]["token"]


@every_world
def test_the_page_of_a_difference(world, tmp_path):
    before, model, _ = trained(world)
    control = trained(world, steps=1)[1]
    found = tlb.training.difference(before, model, control=control, k=4)
    page = found.page(name=HOSTILE)
    assert page.finding == found.summary() and "onerror=alert(1)>" not in page.to_html()
    largest = max(found.weights, key=lambda name: found.changes[name].norm)
    rows = data_of(page, "spectrum.csv")
    for of, side in (("change", found), ("control", found.control), ("noise", found.noise)):
        each = side.changes[largest]
        expected = (each.spectrum[:24].square() / each.norm**2).tolist()
        assert [float(row[of]) for row in rows] == pytest.approx(expected, rel=1e-4)
    assert [row["weight"] for row in data_of(page, "directions.csv")] == found.to_frame()["weight"].tolist()
    assert len(found.plot().data) == 3
    back = tlb.load_result(found.save(tmp_path / "d.safetensors"), tokenizer=model.tokenizer)
    assert str(back.page(name=HOSTILE)) == str(page) and back.to_frame().equals(found.to_frame())
    with pytest.raises(ValueError, match="Expected a difference with its two models, got one from a file"):
        back.change(largest)
    alone = tlb.training.difference(before, model, noise=False).page().to_html()
    assert "Beside it" not in alone and tlb.training.difference(before, before).page().to_html()


@every_world
def test_the_page_of_authors(world, tmp_path):
    model, data = build(world), [(f"w5 w{i} w7", f"w{i + 9}") for i in range(4, 34)]
    found = tlb.training.who_wrote(model, *data[3], data, n=6, k=4, show_progress=False)
    page = found.page(name=HOSTILE)
    html = page.to_html()
    assert page.finding == found.summary() and "onerror=alert(1)>" not in html and "central 95 %" in html
    rows = data_of(page, "scores.csv")
    assert [float(row["cosine"]) for row in rows] == pytest.approx(found.scores.tolist())
    assert rows[3]["text"] == found.names[3] and len(found.plot().data) == 3
    back = tlb.load_result(found.save(tmp_path / "a.safetensors"), tokenizer=model.tokenizer)
    assert str(back.page(name=HOSTILE)) == str(page)
    few = tlb.training.who_wrote(model, *data[3], data, weights="W_Q", n_random=3, n=2, show_progress=False).page()
    assert "no interval" in few.to_html() and "answer&#x27;s rank" not in few.to_html()


def test_the_page_of_no_difference_draws_no_axes():
    model = build(worlds()[0])
    page = tlb.training.difference(model, model).page()
    html = page.to_html()
    assert "No picture is drawn, as nothing differs" in html and "<svg" not in html and "spectrum.csv" not in html
