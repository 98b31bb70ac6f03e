"""Pages of hostile text in a real Chromium with the network blocked: nothing runs, nothing is lost."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import bridge

from tl_backward import render
from tl_backward.dissimilarity import ModelDistances, compare
from tl_backward.render.circuits import circuitsvis
from tl_backward.render.libraries import library_source
from tl_backward.text.options import TextOptions

from .browsing import Browser, clean, hover_everything


def shown(token: str, limit: int | None = None) -> str:
    return render.visible_token(token, limit)


def build_page(tokens: list[str]) -> render.Page:
    n = len(tokens)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(n, generator=generator)
    cells = [
        render.Cell(t, sub=t, title=(f"1. {shown(t)}",), value=float(v)) for t, v in zip(tokens, values, strict=True)
    ]
    page = render.Page("Hostile <b>title</b>", intro=" ".join(tokens), footer=tokens[1])
    page.section("Tokens <s>", "\n\n".join(tokens), render.tokens(tokens, values, value_label="norm <b>"))
    page.section("Signed", "", render.tokens(tokens, values - 0.5, value_label="dL/dx", signed=True))
    page.section("Table", "", render.lens_table(["layer <0>"], tokens, [cells], value_label="norm"))
    # Few enough tokens per chart that none of their names is skipped on the axis.
    for part in [tokens[i : i + 20] for i in range(0, n, 20)]:
        small = torch.randn(2, len(part), len(part), generator=generator) * 1e-3
        page.section("", "", render.attention(part, small, signed=True, head_names=["<img/src='x'>", "H1"]))
    heat = render.heatmap(values[None], rows=[tokens[0]], columns=tokens, title=tokens[1], value_title=tokens[5])
    curve = [
        render.Curve(f"{i} {token[:60]}", [float(i), 1.0, 2.0], low=[0.0] * 3, high=[3.0] * 3)
        for i, token in enumerate(tokens)
        if len(token) < 90
    ]
    lines = render.curves(curve[:60], title=tokens[2], x_title=tokens[3], y_title="y", x_labels=tokens[:3])
    page.section("Figures", "", render.figure_fragment(heat), render.figure_fragment(lines))
    page.section("Data", "", render.data_block(tokens, [list(tokens)], filename=tokens[0]))
    return page


DRAWN = "window.canvasTexts.size > 20 && document.querySelectorAll('.tlb-picture').length === 2"


@pytest.mark.parametrize(
    "with_policy", [pytest.param(True, marks=pytest.mark.long, id="policy"), pytest.param(False, id="escaping-alone")]
)
def test_hostile_page(browser: Browser, hostile: list[str], tmp_path: Path, with_policy: bool) -> None:
    """The policy and the escaping are two walls: each must hold without the other."""
    path = build_page(hostile).save(tmp_path / "page.html")
    if not with_policy:
        html = path.read_text(encoding="utf-8")
        start = html.index("<meta http-equiv")
        path.write_text(html[:start] + html[html.index(">", start) + 1 :], encoding="utf-8")
    browser.open(path)
    browser.wait(DRAWN)
    browser.wait(f"window.canvasTexts.size > {0.9 * len(hostile)}")

    strips = browser.texts("main div > span[dir=auto]")
    assert [clean(text) for text in strips] == 2 * [shown(token, 200) for token in hostile]

    cells = browser.texts("td [dir=auto], th [dir=auto]")
    canvas = clean(str(browser.run("return [...window.canvasTexts].join(' ')")))
    ticks = {clean(tick) for tick in browser.texts(".tlb-picture text")}
    body = str(browser.run("return document.body.innerText"))
    for token in hostile:
        assert cells.count(shown(token, 18)) >= 3
        assert shown(token, 24).replace(" ", "␣") in canvas
        assert shown(token, 16) in ticks
    for visible in ("Hostile <b>title</b>", "Tokens <s>", "norm <b>", "layer <0>"):
        assert visible in body

    said = hover_everything(browser)
    for token in hostile:
        assert any(shown(token) in clean(text) for text in said), token
    assert browser.number("window.pwnedCount") == 0
    assert browser.console() == []
    assert browser.foreign_requests(path) == []


def test_two_models_compared(browser: Browser, hostile: list[str], tmp_path: Path) -> None:
    """Hostile names of hook points and models: in heat maps with details on hover, curves with bands, and a map."""
    model = bridge("gpt2")
    found = compare(
        model,
        model,
        ["w5 w6 w7 w8 w9", "w3 w3 w41", "w30 w31 w32"],
        text_options=TextOptions(batch_size=1),
        show_progress=False,
    )
    names = tuple(each for each in hostile if "onerror" in each or "</script" in each)[:12]
    values = torch.linspace(0, 1, 144, dtype=torch.float64).reshape(1, 12, 12)
    grids = {
        each: values
        for each in ("values", "standard_errors", "null_means", "permutation_means", "permutation_deviations")
    }
    shares = (torch.zeros(12),) * 2
    page = render.compare_report(
        replace(found, layers_a=names, layers_b=names, first_share=shares, **grids), name=names[0]
    )
    points = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = ModelDistances("m", names, names, torch.cdist(points, points), ("tokens",), (9, 9))
    page.section("Map", names[1], render.figure_fragment(render.models_map(distances)))
    path = page.save(tmp_path / "page.html")
    browser.open(path)
    browser.wait("document.querySelectorAll('.tlb-picture').length === 3")
    assert any("standard error 0." in text for text in hover_everything(browser))
    ticks = {clean(tick) for tick in browser.texts(".tlb-picture text")}
    assert {shown(name, 16) for name in names} <= ticks
    assert browser.number("window.pwnedCount") == 0
    assert browser.console() == [] and browser.foreign_requests(path) == []


def test_the_watch_sees_what_unprotected_circuitsvis_runs(browser: Browser, tmp_path: Path) -> None:
    """Without this, 0 executions above could mean that nothing was watching."""
    raw = circuitsvis("ColoredTokens", {"tokens": ["<img/src='x'/onerror=pwned()>"], "values": [1.0]}, "")
    path = tmp_path / "raw.html"
    scripts = "".join(f"<script>{s}</script>" for s in (library_source("circuitsvis"), *raw.scripts))
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8>{raw.html}{scripts}", encoding="utf-8")
    browser.open(path)
    browser.wait("window.pwnedCount === 1")
    # The policy of a saved page stops even that.
    render.Page("raw").section("", "", raw).save(path)
    browser.open(path)
    browser.wait("document.querySelector('.colored-tokens img')")
    time.sleep(0.3)
    assert browser.number("window.pwnedCount") == 0
    assert browser.console() != []


def test_notebook_outputs_draw_whenever_the_library_comes(browser: Browser, tmp_path: Path) -> None:
    """Outputs before and after the one that loads the library, and one output shown twice."""
    first = circuitsvis("ColoredTokens", {"tokens": ["a", "b"], "values": [0.5, 1.0]}, "")._repr_html_()
    second = render.attention(["a", "b"], torch.ones(1, 2, 2).tril())._repr_html_()
    cells = [first, render.setup_notebook()._repr_html_(), second, first]
    path = tmp_path / "notebook.html"
    path.write_text("<!DOCTYPE html><meta charset=utf-8>" + "<hr>".join(cells), encoding="utf-8")
    browser.open(path)
    browser.wait("document.querySelectorAll('.colored-tokens').length === 2")
    browser.wait("document.querySelectorAll('canvas').length >= 2")
    assert browser.console() == []


def test_static_part_shows_without_scripts(browser: Browser, tmp_path: Path) -> None:
    tokens = [" Anna", "<s>", "\n"]
    fragments = (
        render.tokens(tokens, [0.1, 0.5, 1.0], value_label="norm"),
        render.attention(tokens, torch.rand(2, 3, 3)),
    )
    path = tmp_path / "static.html"
    path.write_text("<!DOCTYPE html><meta charset=utf-8>" + "".join(f.html for f in fragments), "utf-8")
    browser.open(path)
    assert "␣Anna" in str(browser.run("return document.body.innerText"))
    sizes = browser.run("return [...document.images].map(i => [i.complete, i.naturalWidth])")
    assert sizes == [[True, 159], [True, 159]]


def look(browser: Browser, scheme: str) -> None:
    emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)


def test_a_picture_shows_without_scripts_and_as_an_image(browser: Browser, tmp_path: Path) -> None:
    """In a page whose scripts are switched off, and as what a notebook saves."""
    figure = render.heatmap(torch.eye(3), rows=["0", "1", "2"], columns=["$a$", "<b>", "c"], title="T", value_title="v")
    fragment = render.figure_fragment(figure)
    path = tmp_path / "still.html"
    path.write_text("<!DOCTYPE html><meta charset=utf-8>" + fragment._repr_html_(), "utf-8")
    browser.open(path)
    browser.wait("document.images.length === 1 && document.images[0].complete && document.images[0].naturalWidth > 200")
    page = render.Page("T").section("", "", fragment).save(tmp_path / "page.html")
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(page)
        from selenium.webdriver.common.by import By

        shown_texts = [each.text for each in browser.driver.find_elements(By.CSS_SELECTOR, ".tlb-picture text")]
        assert {"$a$", "<b>", "c", "T"} <= set(shown_texts)
        assert all(each.is_displayed() for each in browser.driver.find_elements(By.CSS_SELECTOR, ".tlb-hits rect"))
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_values_by_mouse_by_keyboard_and_in_the_dark(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    figure = render.heatmap(
        torch.arange(4.0).reshape(2, 2), rows=["0", "1"], columns=["a", "b"], title="T", value_title="v"
    )
    line = render.curves([render.Curve("m", [1.5, 2.5])], title="U", x_title="layer", y_title="y")
    page = render.Page("T").section("", "", render.figure_fragment(figure), render.figure_fragment(line))
    browser.open(page.save(tmp_path / "page.html"))

    def tip() -> str:
        return "|".join(browser.texts(".tlb-tip"))

    squares = browser.driver.find_elements(By.CSS_SELECTOR, ".tlb-hits rect")
    ActionChains(browser.driver).move_to_element(squares[1]).perform()
    assert tip() == "layer: 0\ntoken: b\nv: 1"
    browser.run("document.querySelector('.tlb-picture').focus()")
    keys = {Keys.ARROW_LEFT: "layer: 0\ntoken: a\nv: 0", Keys.ARROW_UP: "layer: 1\ntoken: a\nv: 2", Keys.ESCAPE: ""}
    for key, expected in keys.items():
        ActionChains(browser.driver).send_keys(key).perform()
        assert tip() == expected
    second = browser.driver.find_elements(By.CSS_SELECTOR, ".tlb-picture")[1]
    browser.run("document.querySelectorAll('.tlb-picture')[1].focus()")
    second.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert tip() == "layer 1\nm: 2.5"
    inks = []
    for scheme in ("light", "dark"):
        look(browser, scheme)
        inks.append(browser.run("return getComputedStyle(document.querySelector('.tlb-picture text')).fill"))
    look(browser, "light")
    assert inks == ["rgb(26, 26, 26)", "rgb(228, 228, 228)"]
    assert browser.console() == []


@pytest.mark.parametrize("width", [420, 1400])
def test_page_never_scrolls_sideways(browser: Browser, hostile: list[str], tmp_path: Path, width: int) -> None:
    path = build_page(hostile[:60]).save(tmp_path / "page.html")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.open(path)
        browser.wait(DRAWN)
        assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_filtered_table_keeps_the_rows_with_all_words(hostile: list[str], browser: Browser, tmp_path: Path) -> None:
    rows = [[render.Cell(token), f"row {i}"] for i, token in enumerate(hostile)]
    page = render.Page("Filter").section("", "", render.filter_table(["token", "name"], rows))
    browser.open(page.save(tmp_path / "filter.html"))
    browser.wait("document.querySelector('input[type=search]')")

    def shown() -> list[str]:
        visible = "[...document.querySelectorAll('tbody tr')].filter(r => r.style.display !== 'none')"
        found = browser.run(f"return {visible}.map(r => r.lastChild.textContent)")
        assert isinstance(found, list)
        return found

    def typed_in(text: str) -> None:
        browser.run(
            f"const box = document.querySelector('input'); box.value = {json.dumps(text)};"
            "box.dispatchEvent(new Event('input'))"
        )

    assert shown() == [f"row {i}" for i in range(len(hostile))]
    typed_in("<SCRIPT> pwned")
    expected = [
        i
        for i, t in enumerate(hostile)
        if "<script>" in render.visible_token(t, 18).lower() and "pwned" in render.visible_token(t, 18)
    ]
    assert shown() == [f"row {i}" for i in expected] and expected
    typed_in("no such words")
    assert shown() == []
    typed_in("")
    assert len(shown()) == len(hostile)
    assert browser.number("window.pwnedCount") == 0 and not browser.console()
