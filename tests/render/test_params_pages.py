"""Pages of parameters in words and of two models matched: true to their results, safe, and filterable."""

import base64
import csv
import io
import math
import re
from dataclasses import replace

import pytest
import torch
from models import bridge, build, worlds

from tests.alignment.twins import twins
from tl_backward import render
from tl_backward.alignment import match_parameters
from tl_backward.embedding_space import head_pairs, parameter_coherence, related_pairs
from tl_backward.render.coherence import density
from tl_backward.render.params_page import group_table

from .reading import read

quiet = {"show_progress": False}


class Hostile:
    """A tokenizer whose every word tries to be something else."""

    def __init__(self, words):
        self.words = words

    def decode(self, ids):
        return self.words[ids[0] % len(self.words)]

    def convert_ids_to_tokens(self, token):
        return self.decode([token])


def data_of(page, name):
    found = re.search(rf'download="{name}" href="data:text/csv;charset=utf-8;base64,([^"]*)"', page.to_html())
    assert found
    return list(csv.DictReader(io.StringIO(base64.b64decode(found[1]).decode())))


def cells(fragment):
    """Texts of every row of a fragment's first table."""
    rows = re.findall(r"<tr>(.*?)</tr>", fragment.html)
    return [re.findall(r'<span dir="auto">(.*?)</span>', row) for row in rows]


@pytest.mark.parametrize("world", worlds())
def test_the_page_of_a_neuron_weight(world):
    model = build(world)
    page = render.params_report(model, "W_out", 1, k=4, name="<b>mine</b>", **quiet)
    html = page.to_html()
    assert "blocks.1.mlp.W_out in words: &lt;b&gt;mine&lt;/b&gt;" in html and "OV pairs" not in html
    found = parameter_coherence(model, "W_out", 1, k=4, **quiet)
    rows = data_of(page, "blocks.1.mlp.W_out.csv")
    assert [int(row["index"]) for row in rows] == found.projection.index[found.order].tolist()
    assert [float(row["coherence"]) for row in rows] == pytest.approx(found.score[found.order].tolist())
    words = [" | ".join(tokens) for tokens in found.projection.top_tokens]
    assert [row["top_tokens"] for row in rows] == [words[i] for i in found.order.tolist()]
    aligned = related_pairs(model, "KV", 1, k=12, **quiet).aligned
    mean, error = float(aligned.mean()), float(aligned.std() / len(aligned) ** 0.5)
    digits = max(0, 1 - math.floor(math.log10(error)))
    assert f">{mean:.{digits}f} \N{PLUS-MINUS SIGN} {error:.{digits}f}<" in html


@pytest.mark.parametrize("world", worlds())
def test_the_page_of_an_attention_weight(world):
    model = build(world)
    page = render.params_report(model, "W_O", 0, k=3, n_pairs=9, **quiet)
    html = page.to_html()
    assert (
        html.count("<h2>OV pairs of head") == model.cfg.n_heads and html.count('<svg role="img"') == model.cfg.n_heads
    )
    one = render.params_report(model, "W_K", -1, head=1, k=3, n_pairs=9, **quiet).to_html()
    assert "QK pairs of head 1" in one and "QK pairs of head 0" not in one and "blocks.1.attn.W_K, head 1" in one
    assert "in words" in render.params_report(model, "W_E", k=3, **quiet).to_html()
    assert "in words" in render.params_report(model, "b_out", 0, k=3, **quiet).to_html()


@pytest.mark.parametrize("world", worlds())
def test_the_atlas_lists_the_most_coherent_first(world):
    model = build(world)
    page = render.atlas(model, k=3, n_vectors=25, n_pairs=2, name="tiny", **quiet)
    html = page.to_html()
    found = [
        parameter_coherence(model, w, layer, k=3, **quiet)
        for w in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")
        for layer in (0, 1)
    ]
    everything = torch.cat([each.score for each in found]).sort(descending=True).values
    shown = [float(row[2]) for row in cells(group_table(found, n_shown=25))[1:]]
    assert shown == pytest.approx(everything[:25].tolist(), abs=6e-4) and f"25 of {len(everything)} vectors" in html
    rows = data_of(page, "coherence.csv")
    assert len(rows) == 12
    for row in rows:
        each = next(
            e
            for e in found
            if e.projection.weight.endswith(row["weight"]) and f".{row['layer']}." in e.projection.weight
        )
        assert float(row["share above"]) == pytest.approx(
            float((each.score > each.gaussian.quantile(0.95)).float().mean())
        )
    assert "strongest token pairs" in html and f"{2 * 2 * model.cfg.n_heads}" in html
    assert "strongest token pairs" not in render.atlas(model, k=3, n_pairs=0, **quiet).to_html()
    few = render.atlas(model, weights=["W_out"], layers=[1], k=3, **quiet).to_html()
    assert "blocks.1.mlp.W_out" in few and "blocks.0" not in few and "strongest token pairs" not in few
    with pytest.raises(ValueError, match="Expected short names of weights in layers"):
        render.atlas(model, weights=["W_out", "W_gate"])
    with pytest.raises(IndexError, match="layers in"):
        render.atlas(model, layers=7)


def test_a_gated_model_and_grouped_queries():
    html = render.atlas(bridge("llama"), k=3, n_pairs=2, **quiet).to_html()
    assert "W_gate" in html and "1.3" in html  # four query heads over two stored ones
    page = render.params_report(bridge("llama"), "W_gate", 0, k=3, **quiet)
    assert "W_gate and blocks.0.mlp.W_out" in page.to_html()


def test_pairs_are_listed_and_drawn(hostile):
    model = build(worlds()[-1])
    pairs = replace(head_pairs(model, "QK", 0, 1, k=12, **quiet), tokenizer=None)
    listed = cells(render.pair_list(pairs))[1:]
    assert [(row[1], row[2]) for row in listed] == list(zip(pairs.first_tokens, pairs.second_tokens, strict=True))
    picture = render.pair_picture(pairs, n=7)
    assert picture.html.count("<line") == 7 and not picture.scripts
    titles = re.findall(r"<line.*?<title>(.*?)</title>", picture.html)
    expected = [
        f"{a} → {b}: {s:.4g}"
        for a, b, s in zip(pairs.first_tokens, pairs.second_tokens, pairs.pairs.values.tolist(), strict=True)
    ]
    assert sorted(titles) == sorted(expected[:7])
    for a, b in zip(pairs.pairs.rows[:7].tolist(), pairs.pairs.cols[:7].tolist(), strict=True):
        y1, y2 = ends(picture.html, f"[{a}]", f"[{b}]")
        (line,) = re.findall(rf'y1="([\d.]+)" x2="\d+" y2="([\d.]+)"[^>]*><title>\[{a}\] → \[{b}\]:', picture.html)
        assert line == (y1, y2)
    for start in range(0, len(hostile), 10):
        evil = replace(pairs, tokenizer=Hostile(hostile[start : start + 10]))
        for fragment in (render.pair_list(evil), render.pair_picture(evil)):
            reader = read(fragment.html)
            assert set(reader.tags) <= set("div svg title line text table tr td span".split())
            assert not any(name.startswith("on") or name in ("src", "href") for name, _ in reader.attributes)


def ends(html, first, second):
    """The heights of a left token's and a right token's labels."""
    left = re.findall(r'<text x="182.0" y="([\d.]+)"[^>]*><title>([^<]*)</title>', html)
    right = re.findall(r'<text x="378.0" y="([\d.]+)"[^>]*><title>([^<]*)</title>', html)
    return next(y for y, token in left if token == first), next(y for y, token in right if token == second)


def test_hostile_tokens_stay_text(hostile):
    model = build(worlds()[-1])
    found = parameter_coherence(model, "W_out", 0, k=5, n_gaussian=10, **quiet)
    for start in range(0, len(hostile), 25):
        evil = replace(found, projection=replace(found.projection, tokenizer=Hostile(hostile[start : start + 25])))
        fragment = group_table([evil])
        page = render.Page("t").section("s", "", fragment)
        reader = read(fragment.html)
        assert set(reader.tags) <= {"div", "table", "tr", "td", "span"}
        assert page.to_html().count("<script>") == 2 and "pwned()</script>" not in page.to_html()
        assert all("pwned" not in script for script in fragment.scripts)


def test_density_integrates_to_one_and_is_the_kernel_sum():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, generator=generator, dtype=torch.float64)
    x = torch.linspace(-6, 6, 400, dtype=torch.float64)
    found = density(values, x)
    assert torch.trapezoid(found, x).item() == pytest.approx(1, abs=1e-3)
    low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    h = 0.9 * min(values.std().item(), (high - low).item() / 1.34) * 500**-0.2
    assert found[200].item() == pytest.approx(
        (torch.distributions.Normal(values, h).log_prob(x[200]).exp().mean()).item()
    )
    assert density(torch.tensor([1.0], dtype=torch.float64), x).isnan().all()
    assert density(torch.ones(5, dtype=torch.float64), x).isfinite().all()


def test_the_coherence_figure_has_the_baseline_behind():
    generator = torch.Generator().manual_seed(0)
    figure = render.coherence_figure(
        {"W_in": torch.rand(50, generator=generator), "<b>": torch.tensor([0.1, float("nan"), 0.3])},
        torch.rand(80, generator=generator),
    )
    first, *others = figure.to_plotly_json()["data"]
    assert (
        first["name"] == "Gaussian vectors"
        and first["fill"] == "tozeroy"
        and [each["name"] for each in others] == ["W_in", "&lt;b&gt;"]
    )


def test_matching_pages():
    model, twin, _, _ = twins("bridge")
    match = match_parameters(model, twin, "W_out", n_chance=3, **quiet)
    figure = render.match_heatmap(match).to_plotly_json()
    excess = match.embedding.score - match.embedding.chance.mean(0)
    torch.testing.assert_close(torch.tensor(figure["data"][0]["z"]), excess.float(), atol=1e-6, rtol=0)
    assert (figure["data"][1]["x"], figure["data"][1]["y"]) == ([0, 1], [0, 1])  # the assignment
    lines = {line["name"]: line for line in render.match_curves(match).to_plotly_json()["data"] if "name" in line}
    assert lines["embedding space"]["y"] == pytest.approx([1.0, 1.0])
    assert lines["feature space, chance"]["y"] == pytest.approx(match.feature.chance.mean(0).diagonal().tolist())
    page = render.match_report([match], name="<i>two</i>")
    rows = data_of(page, "match_W_out.csv")
    assert len(rows) == 8 and "&lt;i&gt;two" in page.to_html()
    wide = twins("bridge", wider=8)
    other = match_parameters(wide[0], wide[1], "W_out", n_chance=2, **quiet)
    assert render.match_report(other).to_html().count("in embedding space") >= 1
    with pytest.raises(ValueError, match="Expected one of embedding, got 'feature'"):
        render.match_heatmap(other, "feature")
