"""Pages of an edit, of ways to edit, of a sweep and of a gradient similarity: true to their results, and safe."""

import base64
import csv
import io
import re
from html import unescape

import pytest
import torch
from models import build, worlds

import tl_backward as tlb
from tl_backward.editing import edit_effect, edit_methods, shift_probabilities
from tl_backward.lens.segments import NAMES
from tl_backward.render import comparison_report, edit_report, similarity_report, sweep_curves, sweep_report
from tl_backward.render.sweep_page import similarity_heatmap
from tl_backward.text.cases import EditCase

HOSTILE = "</script><img src=x onerror=alert(1)>"
CASE = EditCase(
    "w5 w6 w7", "w9", "w10", paraphrases=("w6 w5",), neighbours=(("w5 w8", "w10"),), relations=(("w3", "w4"),)
)


def model():
    return build(worlds()[-1])


def data_of(page, name):
    found = re.search(rf'download="{name}" href="data:text/csv;charset=utf-8;base64,([^"]*)"', page.to_html())
    return list(csv.DictReader(io.StringIO(base64.b64decode(found[1]).decode())))


def test_the_page_of_an_edit(tmp_path):
    bridge = model()
    edit = tlb.shift_edit(bridge, CASE.prompt, CASE.target, 1, 3.0)
    effect = edit_effect(bridge, edit, CASE.prompt, k=3)
    with torch.no_grad():
        before = bridge(bridge.to_tokens(CASE.prompt), return_type="logits")[0, -1].softmax(-1)
        with edit:
            after = bridge(bridge.to_tokens(CASE.prompt), return_type="logits")[0, -1].softmax(-1)
    torch.testing.assert_close(effect.before.double(), before, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(effect.after.double(), after, rtol=1e-5, atol=1e-7)
    frame = effect.to_frame()
    assert frame["rank_after"][0] == 0 and frame["after"][0] == pytest.approx(float(after.max()), rel=1e-5)
    grid = tlb.find_layer(bridge, "w20", "w21", validation=[CASE], scales=(1.0, 3.0), show_progress=False)
    scores = tuple(tlb.evaluate_edit(bridge, each, CASE, n_tokens=0) for each in (None, edit))
    page = edit_report(effect, target=CASE.target, how="a shift", grid=grid, scores=scores, name=HOSTILE)
    html = page.to_html()
    for heading in (
        "the prompt before and after",
        "Which layer, how strongly",
        "The same grid on other edits",
        "left alone",
    ):
        assert heading in html, heading
    cells = data_of(page, "cells.csv")
    assert len(cells) == 4 and float(cells[3]["probability"]) == pytest.approx(float(grid.probability[1, 1]))
    assert float(data_of(page, "grid.csv")[0]["objective"]) == pytest.approx(float(grid.objective[0, 0]))
    assert "onerror=alert(1)>" not in html and "<svg" in page.save(tmp_path / "a.html").read_text("utf-8")
    alone = edit_report(
        effect, target=HOSTILE, how=HOSTILE, cells=shift_probabilities(bridge, CASE.prompt, CASE.target, scales=(1.0,)),
        layers=range(2), scales=(1.0,),
    )  # fmt: skip
    assert "Which layer" in alone.to_html() and "onerror=alert(1)>" not in alone.to_html()
    assert "<table" in effect._repr_html_() and "EditEffect(" in repr(effect)
    with edit, pytest.raises(ValueError, match="Expected an edit that is not applied"):
        edit_effect(bridge, edit, CASE.prompt)


def test_the_page_of_ways_to_edit():
    bridge = model()
    found = tlb.compare_edits(bridge, [CASE], edit_methods(1, 3.0, 0.5, steps=2), n_tokens=0, show_progress=False)
    page = comparison_report(found, name=HOSTILE)
    rows = data_of(page, "methods.csv")
    shift = next(row for row in rows if row["method"] == "forward-pass shift" and row["metric"] == "efficacy")
    assert float(shift["mean"]) == float(found.scores[1, 0, found.metrics.index("efficacy")])
    assert "onerror=alert(1)>" not in page.to_html() and "forward-pass shift" in page.to_html()


def test_the_page_of_a_sweep():
    bridge = model()
    every = ("norm", "gradient_norm", "share", "rank", "target_rank", "answer_rank", "top_tokens")
    found = tlb.sweep(
        bridge, ["w5 w6 w7", "w8 w9"], ["w10", "w11"], subjects=["w6", None], collect=every, weights=["W_in", "W_out"],
        show_progress=False,
    )  # fmt: skip
    figure = sweep_curves(found, "norm")
    lines = {line.name: line for line in figure.data if line.name}
    assert set(lines) == {"first", "subject", "last", "other"} | {
        f"{s}, untrained control" for s in ("first", "subject", "last", "other")
    }
    means = found.values["norm"][:, 2:][:, :, NAMES.index("last")]  # W_out is the second pair of weights
    rows = [i for i, name in enumerate(found.weights) if name.endswith("W_out")]
    means = found.values["norm"][:, rows, NAMES.index("last")].nanmean(0)
    assert list(lines["last"].y) == pytest.approx(means.tolist())
    page = sweep_report(found, name=HOSTILE)
    above = page.to_html().partition("<section")[0]
    assert "A weight's VJP at a token" in unescape(above) and "its raw readout" in above
    html = page.to_html()
    assert html.count("<h2>Most often at the") == 8 and "onerror=alert(1)>" not in html
    data = data_of(page, "target_rank.csv")
    assert {row["weight"] for row in data} == set(found.weights)
    with pytest.raises(ValueError, match="Expected a weight of the sweep's layers, got 'W_U'"):
        sweep_curves(found, "norm", weight="W_U")
    with pytest.raises(ValueError, match="got 'rank'"):
        sweep_curves(tlb.sweep(bridge, ["w5"], ["w6"], collect=["norm"], show_progress=False), "rank")


@pytest.mark.parametrize("metric", ["inner", "cosine"])
def test_the_page_of_a_similarity(metric):
    bridge = model()
    texts = ["w5 w6 w7", "w8 w9", "w10 w11 w12"]
    found = tlb.gradient_similarity(bridge, texts, metric=metric, show_progress=False)
    figure = similarity_heatmap(found)
    torch.testing.assert_close(torch.tensor(figure.data[0].z, dtype=torch.float64), found.matrix)
    assert figure.data[0].zmin == -figure.data[0].zmax
    html = similarity_report(found, name=HOSTILE).to_html()
    assert "Most alike" in html and texts[2] in html and "onerror=alert(1)>" not in html
    what = {"inner": "The inner product between", "cosine": "The cosine between"}[metric]
    assert f"{what} the raw gradients" in html


def test_one_space_is_behind_the_arrow_of_an_example():
    found = tlb.gradient_similarity(model(), [("w5 w6", " w7"), ("w8", "w9")], show_progress=False)
    (first, second), _ = similarity_heatmap(found).data[0].customdata
    assert list(first[:2]) == ["w5 w6 -&gt; w7"] * 2 and second[1] == "w8 -&gt; w9"
