"""Pages of two models compared, of stitching grids and of maps: true to their results, safe, readable without scripts."""

import base64
import csv
import io
import math
import re
from dataclasses import replace

import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, bridge, build, worlds

from tl_backward import render
from tl_backward.dissimilarity import RunOptions, classical_mds, compare, model_distances, stitching_grid
from tl_backward.render.compare_page import best_partners, caveats, chance_of, comparison_map, facts, unit_of
from tl_backward.text.options import TextOptions

from .reading import PICTURE, read

quiet = {"show_progress": False}
TEXTS = [
    "w5 w6 w7 w8 w9", "w3 w3 w41 w10 w12 w13 w20 w22", "w9", "w30 w31 w32", "w11 w8 w7 w5 w5 w5 w40",
    "w21 w22 w23 w24 w25 w26 w27 w28 w29 w30 w31 w32", "w44 w43 w42", "w17 w18 w3 w4 w39 w38", "w35 w36 w37 w33",
]  # fmt: skip
MEASURES = ("cka", "procrustes", "mutual_knn", "shape_angular")


@pytest.fixture(scope="module", params=worlds())
def found(request):
    return compare(
        build(request.param),
        bridge("llama"),
        TEXTS,
        measures=MEASURES,
        text_options=TextOptions(batch_size=2),
        run_options=RunOptions(permutations=6),
        **quiet,
    )


@pytest.fixture(scope="module")
def grid():
    return stitching_grid(
        build(worlds()[0]), bridge("llama"), TEXTS * 3, layers_b=[1], text_options=TextOptions(batch_size=3), **quiet
    )


def traces(figure):
    return figure.to_plotly_json()["data"]


def data_of(page, name):
    (found,) = re.findall(rf'download="{name}" href="data:text/csv;charset=utf-8;base64,([^"]*)"', page.to_html())
    return list(csv.DictReader(io.StringIO(base64.b64decode(found).decode())))


@pytest.mark.parametrize("measure", MEASURES)
def test_the_heat_map_is_the_values(found, measure):
    figure = render.comparison_heatmap(found, measure)
    heat, *circles = traces(figure)
    torch.testing.assert_close(torch.tensor(heat["z"], dtype=torch.float64), found[measure])
    best = found[measure].argmax(1) if measure in ("cka", "mutual_knn") else found[measure].argmin(1)
    assert [list(each["x"]) for each in circles] == 2 * [best.tolist()]
    m = found.measures.index(measure)
    assert f"standard error {found.standard_errors[m, 1, 0]:.3g}" in heat["customdata"][1][0][2]
    assert f"random pairings {found.permutation_means[m, 1, 0]:.3g}" in heat["customdata"][1][0][2]
    ends = {"cka": 1.0, "mutual_knn": 1.0, "shape_angular": math.pi / 2, "procrustes": float(found["procrustes"].max())}
    assert heat["zmax"] == pytest.approx(ends[measure])
    low = -heat["zmax"] if (found[measure] < -1e-3).any() else 0.0
    assert heat["zmin"] == low and unit_of(measure) in figure.layout.title.text


def test_signed_maps_are_symmetric(found):
    values = found.values.clone()
    values[0, 0, 0] = -0.4
    heat = traces(render.comparison_heatmap(replace(found, values=values), "cka"))[0]
    assert (heat["zmin"], heat["zmax"]) == (-1.0, 1.0)
    middle = dict(map(tuple, heat["colorscale"]))[0.5]
    assert middle == "#ffffff"


@pytest.mark.parametrize("measure", MEASURES)
def test_curves_have_bands_and_chance(found, measure):
    m = found.measures.index(measure)
    lines = {line["name"]: line for line in traces(render.comparison_curves(found, measure)) if "name" in line}
    best = best_partners(found, measure)
    if best.tolist() == list(range(len(best))):  # one curve, not one behind the other
        assert set(lines) == {"same place, the best in B too", "same place, the best in B too, chance"}
        assert lines["same place, the best in B too"]["y"] == pytest.approx(found[measure].diagonal().tolist())
        return
    assert set(lines) == {"same place", "same place, chance", "best layer of B"}
    assert lines["same place"]["y"] == pytest.approx(found[measure].diagonal().tolist())
    assert lines["best layer of B"]["y"] == pytest.approx(found[measure].gather(1, best[:, None])[:, 0].tolist())
    closed = found.null_means[m]
    chance = closed if closed.isfinite().all() else found.permutation_means[m]
    assert lines["same place, chance"]["y"] == pytest.approx(chance.diagonal().tolist())
    assert lines["same place, chance"]["line"]["dash"] == "dash"
    bands = [line for line in traces(render.comparison_curves(found, measure)) if line.get("fill") == "toself"]
    n, error, value = len(found.layers_a), found.standard_errors[m].diagonal(), found[measure].diagonal()
    assert bands[0]["y"][:n] == pytest.approx((value + 1.959964 * error).tolist())
    assert bands[0]["y"][n:] == pytest.approx((value - 1.959964 * error).flip(0).tolist())
    assert len(bands) == 3


def test_models_of_different_depths_have_no_same_place(found):
    some = compare(
        bridge("llama"), bridge("gpt2"), TEXTS, layers_b=1, run_options=RunOptions(jackknife=0, permutations=0), **quiet
    )
    lines = traces(render.comparison_curves(some, "cka"))
    assert [line["name"] for line in lines] == ["best layer of B", "best layer of B, chance"]  # no bands: none known
    assert chance_of(some, "cka").words.endswith("in closed form")
    none = compare(
        bridge("llama"),
        bridge("gpt2"),
        TEXTS,
        measures="procrustes",
        run_options=RunOptions(jackknife=0, permutations=0),
        **quiet,
    )
    assert chance_of(none, "procrustes") is None
    page = render.compare_report(none).to_html()
    assert "no standard error was asked for" in page and "Chance (dashed)" not in page


def test_a_measure_that_was_not_computed(found):
    with pytest.raises(KeyError, match="Expected a measure that was computed, got 'cca'"):
        render.comparison_heatmap(found, "cca")


def test_the_page_says_what_was_compared(found, grid):
    page = render.compare_report(found, stitches=grid, name="<i>two</i>")
    html = page.to_html()
    assert "&lt;i&gt;two" in html and "<i>two" not in html and html.count("Content-Security-Policy") == 1
    assert len(html) < 500_000 and html.count('class="tlb-picture') == 2 * len(MEASURES) + 5
    said = {row[0]: row[1] for row in facts(found)}
    assert said["samples"] == str(found.n_samples) and said["texts"] == f"{found.n_texts} in {found.n_batches} batches"
    for measure in MEASURES:
        rows = data_of(page, f"{measure}.csv")
        values = [float(row["value"]) for row in rows]
        assert values == pytest.approx(found[measure].flatten().tolist()) and len(rows) == 4
        assert found.computed_from[found.measures.index(measure)] in html
    assert "Position 0" in html
    assert "Position 0" not in render.compare_report(replace(found, first_excluded=True)).to_html()
    rows = data_of(page, "stitches.csv")
    assert [float(row["penalty_nats"]) for row in rows] == pytest.approx(grid.to_frame()["penalty_nats"].tolist())


def test_caveats():
    model = build(worlds()[0])
    plain = compare(model, model, TEXTS, run_options=RunOptions(permutations=0), **quiet)
    assert caveats(replace(plain, first_share=(torch.zeros(2), torch.zeros(2)))) == []
    worst = replace(
        plain, coverage=(1.0, 0.08), unknown=(0.0, 0.67), n_truncated=3, first_share=(torch.tensor([0.9, 0.1]), torch.zeros(2))
    )  # fmt: skip
    text = " ".join(caveats(worst))
    assert "Only 8% of B's tokens became" in text and "67% of B's tokens are unknown" in text
    both = " ".join(caveats(replace(plain, coverage=(0.3, 0.4), unknown=(0.2, 0.0))))
    assert "Only 30% of A's tokens and 40% of B's tokens became" in both and "20% of A's tokens are unknown" in both
    assert "90%" in text and "3 texts were cut" in text
    assert "90%" not in " ".join(caveats(replace(worst, first_excluded=True)))


def test_a_picture_stands_where_scripts_do_not_run(found):
    fragment = comparison_map(found, "cka")
    reader = read(fragment.html)
    assert not fragment.scripts and reader.tags.count("svg") == 1
    assert dict(reader.attributes)["aria-label"] == "cka (1 = the same)"


def test_hostile_labels_stay_text(found, hostile):
    kept = [each for each in hostile if not any("\ud800" <= c <= "\udfff" for c in each)]  # pandas refuses surrogates
    for start in range(0, len(kept), 20):
        labels = tuple(kept[start : start + 20])
        grids = {
            name: getattr(found, name)[:1, :1, :1].expand(1, len(labels), len(labels))
            for name in ("values", "standard_errors", "null_means", "permutation_means", "permutation_deviations")
        }
        shares = (torch.zeros(len(labels)),) * 2
        evil = replace(
            found, layers_a=labels, layers_b=labels[::-1], computed_from=labels[:1], measures=("cka",), first_share=shares, **grids
        )  # fmt: skip
        page = render.compare_report(evil, name=labels[0])
        reader = read("".join(section.html for section in page._sections))
        own = set("section h2 p sup div table thead tbody tr th td span img details summary a".split())
        assert set(reader.tags) <= own | PICTURE
        assert not any(name.startswith("on") for name, _ in reader.attributes)
        assert all(value.startswith(("data:", "#")) for name, value in reader.attributes if name in ("src", "href"))


# ---- stitching


def test_grids_share_one_scale_and_say_everything(grid):
    bound = max(float(grid.nats(direction).abs().max()) for direction in grid.penalties)
    for direction in grid.penalties:
        heat = traces(render.stitching_heatmap(grid, direction))[0]
        torch.testing.assert_close(torch.tensor(heat["z"], dtype=torch.float64), grid.nats(direction))
        assert heat["zmax"] == pytest.approx(bound)
        each = grid.penalties[direction][0][0]
        assert f"95 %: {each.interval[0]:.3g} to {each.interval[1]:.3g}" in heat["customdata"][0][0][2]
    with pytest.raises(KeyError, match="Expected a direction among"):
        render.stitching_heatmap(grid, "A->C")


def test_curves_of_stitches_follow_relative_depth():
    a, b = build(worlds()[0]), bridge("llama")
    grid = stitching_grid(a, b, TEXTS * 3, text_options=TextOptions(batch_size=3), **quiet)
    figure = render.stitching_curves(grid)
    lines = {line["name"]: line for line in traces(figure) if "name" in line}
    assert set(lines) == {"A-&gt;B", "B-&gt;B", "B-&gt;A", "A-&gt;A"}
    for direction in grid.penalties:
        diagonal = [grid.penalties[direction][i][i] for i in range(2)]
        assert lines[direction.replace(">", "&gt;")]["y"] == pytest.approx([each.nats for each in diagonal])
    bands = [line for line in traces(figure) if line.get("fill") == "toself"]
    first = grid.penalties["A->B"]
    assert bands[0]["y"][:2] == pytest.approx([first[i][i].interval[1] for i in range(2)])
    page = render.stitching_report(grid, name="two").to_html()
    assert "Two models stitched: two" in page


def test_stitched_models_are_called_by_their_names(grid):
    names = ("run<1>", "run2")
    heat = render.stitching_heatmap(grid, "B->A", names=names)
    texts = [heat.layout.title.text, heat.layout.xaxis.title.text, heat.layout.yaxis.title.text]
    assert "run2&#39;s head, run&lt;1&gt;&#39;s tail" in texts[0] or "run2's head, run&lt;1&gt;'s tail" in texts[0]
    assert "tail: after layer of run&lt;1&gt;" in texts[1] and "head: last layer of run2" in texts[2]
    lines = [line["name"] for line in traces(render.stitching_curves(grid, names=names)) if "name" in line]
    assert sorted(lines) == sorted(f"{a}-&gt;{b}" for a in ("run&lt;1&gt;", "run2") for b in ("run&lt;1&gt;", "run2"))
    page = render.stitching_report(grid, names=names).to_html()
    assert "Two models stitched: run&lt;1&gt; and run2" in page and "run<1>" not in page
    assert grid.summary(names).startswith("At least, run<1> to layer ")
    twins = render.stitching_report(grid, names=("same", "same")).to_html()
    assert "same (A)&#x27;s head" in twins and "same (B)&#x27;s tail" in twins


def test_curves_of_models_of_other_depths(grid):
    figure = render.stitching_curves(grid)
    lines = {line["name"]: line for line in traces(figure) if "name" in line}
    assert lines["A-&gt;B"]["y"] == pytest.approx([grid.penalties["A->B"][i][0].nats for i in range(2)])
    assert lines["B-&gt;A"]["y"] == pytest.approx([grid.penalties["B->A"][0][j].nats for j in range(2)])
    # beside A's own head at B's only depth, which is the first of one
    assert lines["A-&gt;A"]["y"] == pytest.approx([grid.penalties["A->A"][0][j].nats for j in range(2)])
    assert "relative depth" in figure.layout.xaxis.title.text


# ---- maps of models


def test_the_map_is_that_of_the_distances():
    models = {"<b>gpt2</b>": bridge("gpt2"), "llama": bridge("llama")}
    if HAS_HOOKED_TRANSFORMER:
        models["hooked"] = build("hooked")
    distances = model_distances(models, TEXTS, **quiet)
    figure = render.models_map(distances)
    points = classical_mds(distances.values).points
    at = 0
    for trace, name in zip(traces(figure), ("&lt;b&gt;gpt2&lt;/b&gt;", "llama", "hooked")[: len(models)], strict=True):
        assert trace["name"] == name and len(trace["x"]) == 2
        assert trace["x"] == pytest.approx(points[at : at + 2, 0].tolist())
        assert trace["y"] == pytest.approx(points[at : at + 2, 1].tolist())
        at += 2
    assert figure.layout.yaxis.scaleanchor == "x"
    page = render.map_report(distances, name="three")
    rows = data_of(page, "distances.csv")
    n = len(distances.layers)
    assert len(rows) == n * (n - 1) // 2 and "<b>gpt2" not in page.to_html()
    assert "The angular shape metric" in page.to_html() and " lies on " not in page.to_html()


def test_models_that_hide_each_other_are_named():
    model = bridge("llama")
    page = render.map_report(model_distances({"a": model, "b": model, "other": bridge("gpt2")}, TEXTS, **quiet))
    assert re.search(r"On the map b lies on a \(at most [-\de.]+ apart, layer by layer\)\. The plane", page.to_html())


def test_untrained_networks_on_the_page():
    model = bridge("llama")
    options = RunOptions(jackknife=0, permutations=0, control="random_init")
    some = compare(model, bridge("gpt2"), TEXTS, measures=("cka", "procrustes"), run_options=options, **quiet)
    for m, (measure, best) in enumerate({"cka": torch.amax, "procrustes": torch.amin}.items()):
        lines = {line.get("name"): line for line in traces(render.comparison_curves(some, measure))}
        drawn = best(some.untrained[:, m], -1)
        assert lines["untrained networks"]["y"] == pytest.approx(drawn.mean(0).tolist())
        band = [line for line in traces(render.comparison_curves(some, measure)) if line.get("fill") == "toself"][-1]
        assert band["y"][: len(drawn[0])] == pytest.approx(drawn.amax(0).tolist())
    page = render.compare_report(some)
    assert "Untrained networks: 5 pairs of the same configurations" in page.to_html()
    row = data_of(page, "cka.csv")[0]
    assert float(row["untrained_high"]) == pytest.approx(float(some.untrained[:, 0, 0, 0].max()))
