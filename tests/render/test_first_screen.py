"""Each page's first screen, in Chromium, on a desk, a tablet and a phone: the result's sentence, and a drawn picture."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from models import build, worlds

import tl_backward as tlb
from tl_backward import render
from tl_backward._support import html
from tl_backward.inversion import pool_preimage, read_preimage

from .browsing import Browser

TEXTS = ["w5 w6 w7 w8 w9", "w3 w3 w41", "w30 w31 w32", "w5 w6 w8"]
QUIET = {"show_progress": False}


def lens():
    found = tlb.backward_lens(build(worlds()[0]), TEXTS[0], "w10", k=3)
    return found.summary(), render.lens_report(found)


def edit():
    model = build(worlds()[0])
    effect = tlb.editing.edit_effect(model, tlb.shift_edit(model, TEXTS[0], "w10", layer=1, scale=1.0), TEXTS[0], k=5)
    cells = tlb.editing.shift_probabilities(model, TEXTS[0], "w10", scales=[0.5, 1.0])
    page = render.edit_report(
        effect, target="w10", how="the shift", cells=cells, layers=[0, 1], scales=[0.5, 1.0], chosen=(1, 1.0)
    )
    return effect.summary(), page


def gradient():
    model = build(worlds()[0])
    effect = tlb.editing.edit_effect(model, tlb.gradient_edit(model, TEXTS[0], "w10", lr=0.1), TEXTS[0], k=5)
    return effect.summary(), render.edit_report(effect, target="w10", how="one step")


def edits():
    model, cases = tlb.zoo.load("facts"), tlb.zoo.edit_cases("test")[:2]
    methods = {"no edit": lambda model, case: None, "shift": tlb.editing.shift_method(2, 0.75)}
    found = tlb.compare_edits(model, cases, methods, n_tokens=0, **QUIET)
    return found.summary(), render.comparison_report(found)


def words():
    found = tlb.embedding_space.parameter_words(build(worlds()[0]), "W_out", 1, k=4, **QUIET)
    return found.summary(), render.words_page(found)


def atlas():
    found = tlb.embedding_space.parameter_atlas(build(worlds()[0]), k=4, n_pairs=2, **QUIET)
    return found.summary(), render.atlas_page(found)


def comparison():
    model = build(worlds()[0])
    found = tlb.dissimilarity.compare(model, model, TEXTS, **QUIET)
    return found.summary(), render.compare_report(found)


def stitches():
    model = build(worlds()[0])
    found = tlb.dissimilarity.stitching_grid(model, model, TEXTS * 3, **QUIET)
    return found.summary(), render.stitching_report(found)


def model_map():
    model = build(worlds()[0])
    found = tlb.dissimilarity.model_distances({"a": model, "b": model}, TEXTS, **QUIET)
    return found.summary(), render.map_report(found)


def inversion():
    model = build(worlds()[0])
    found = pool_preimage(model, TEXTS[0], ("resid_mid", 1), -1, TEXTS, epsilon=5.0, **QUIET)
    reading = read_preimage(model, found, features={"length": len, "last": lambda text: text[-1]}, prior=TEXTS)
    return reading.summary(), render.invert_report(reading)


def sweep():
    found = tlb.sweep(build(worlds()[0]), TEXTS[:2], ["w10", "w11"], **QUIET)
    return found.summary(), render.sweep_report(found)


def similarity():
    found = tlb.gradient_similarity(build(worlds()[0]), TEXTS, **QUIET)
    return found.summary(), render.similarity_report(found)


def match():
    model = build(worlds()[0])
    found = tlb.alignment.match_parameters(model, model, "W_O", **QUIET)
    return found.summary(), render.match_report(found)


def watched():
    model = build(worlds()[0])
    before, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.1)
    with tlb.training.watch(model, optimizer=optimizer, k=3) as w:
        for _ in range(3):
            model(model.to_tokens(TEXTS[0]), return_type="loss").backward()
            optimizer.step()
    return before, model, w.result()


def training():
    found = watched()[2]
    return found.summary(), render.watch_report(found)


def change():
    before, after, _ = watched()
    found = tlb.training.difference(before, after, k=3)
    return found.summary(), render.difference_report(found)


def authors():
    data = [(text, "w10") for text in TEXTS]
    found = tlb.training.who_wrote(build(worlds()[0]), *data[0], data, k=3, **QUIET)
    return found.summary(), render.authors_report(found)


PAGES = [
    lens,
    edit,
    gradient,
    edits,
    words,
    atlas,
    comparison,
    stitches,
    model_map,
    inversion,
    sweep,
    similarity,
    match,
    training,
    change,
    authors,
]
PICTURE = """[...document.querySelectorAll('main img, main svg, main canvas')].some(each => {
  const box = each.getBoundingClientRect();
  return box.width >= 150 && box.height >= 80 && box.top >= 0 && box.top < innerHeight - 80 && box.left < innerWidth;
})"""
SENTENCE = "(() => { const box = document.querySelector('p.finding').getBoundingClientRect(); return box.bottom })()"


SCREENS = {1400: 1000, 800: 1000, 420: 900}
"""Width and height in CSS pixels."""


@contextmanager
def screen(browser: Browser, width: int) -> Iterator[None]:
    size = {"width": width, "height": SCREENS[width], "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_kind_of_page_is_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    reports = {name for name in render.__all__ if name.endswith(("_report", "_page"))}
    assert not [name for name in reports - {"params_report"} if f"{name}(" not in source]  # that is words_page's


@pytest.mark.parametrize("make", PAGES, ids=[make.__name__ for make in PAGES])
def test_the_first_screen_holds_the_finding_and_a_picture(browser: Browser, tmp_path: Path, make) -> None:
    said, page = make()
    path = page.save(tmp_path / "page.html")
    assert path.stat().st_size < 2.5e6
    for width in SCREENS:
        with screen(browser, width):
            browser.open(path)
            assert browser.texts("p.finding") == [said]
            assert 0 < float(str(browser.run(f"return {SENTENCE}"))) < 600
            browser.wait(PICTURE)
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
            assert "`" not in str(browser.run("return document.querySelector('main').innerText"))
            assert browser.console() == []


def test_paper_holds_every_row_and_column(tmp_path, browser: Browser):
    """Nothing scrolls on paper: what a screen cuts off goes on in the next line, or on the next page."""
    words = [[f"{row}ofcolumn{column}" for column in range(14)] for row in range(60)]
    page = tlb.render.Page("Wide", finding="A table.").section(
        "Rows", "", tlb.render.filter_table([f"column {i}" for i in range(14)], words, height=200)
    )
    grid = render.heatmap(torch.rand(2, 60), rows=["0", "1"], columns=["step"] * 60, title="", value_title="")
    page.section("Steps", "", render.figure_fragment(grid))
    data = render.data_block(["n"], [[1]], filename="n.csv")
    page.section("Method", "The method is on paper.", data, folded=True)
    path = page.save(tmp_path / "wide.html")
    size = browser.driver.get_window_size()
    try:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        browser.driver.set_window_size(718, 1000)  # A4 between its margins, in CSS pixels
        browser.open(path)
        assert browser.number("document.querySelector('table').parentElement.clientHeight") > 600
        assert browser.number("Math.ceil(document.querySelector('table').getBoundingClientRect().right)") <= 718
        assert browser.number("document.documentElement.scrollWidth") <= 718
        assert browser.run("return getComputedStyle(document.querySelector('input')).display") == "none"
        (method,) = browser.texts("details > p")
        assert method == "The method is on paper."
        assert browser.number("document.querySelector('details > p').getBoundingClientRect().height") > 10
        assert browser.run("return getComputedStyle(document.querySelector('details details')).display") == "none"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.driver.set_window_size(size["width"], size["height"])


def test_on_a_telephone_the_answer_and_the_colours_are_in_view(browser: Browser, tmp_path: Path) -> None:
    """A wide lens table keeps the column that is asked about at its right edge, a wide heat map its scale on the left."""
    tokens = [f"token{i}" for i in range(30)]
    lens = html.lens_table(["0"], tokens, [[render.Cell(each) for each in tokens]], marked=29)
    grid = render.heatmap(torch.rand(2, 60), rows=["0", "1"], columns=["step"] * 60, title="", value_title="the scale")
    page = render.Page("Wide").section("Table", "", render.page.Fragment(lens))
    path = page.section("Map", "", render.figure_fragment(grid)).save(tmp_path / "wide.html")
    right = "Math.ceil(document.querySelector('{}').getBoundingClientRect().right)"
    with screen(browser, 420):
        browser.open(path)
        assert browser.number("document.querySelector('table').parentElement.scrollWidth") > 1000
        for cell in ("th:last-child", "td:last-child"):
            assert 350 < browser.number(right.format(cell)) <= 420
        scale = "[...document.querySelectorAll('svg text')].find(each => each.textContent.includes('the scale'))"
        assert browser.number(f"Math.ceil({scale}.getBoundingClientRect().right)") <= 420
