"""Every result and every report of hostile tokens, texts and names: nothing runs, nothing is fetched, nothing is lost."""

import base64
import csv
import io
import json
import re
import time
from pathlib import Path

import pytest
from hostile import TOKENS

from tl_backward import render

from .browsing import Browser, clean, hover_everything
from .hostile_results import NAMES, PAGES, RESULTS, page, result
from .reading import PICTURE, read

VOCABULARY = [token or f"[{i}]" for i, token in enumerate(TOKENS)]
TAGS = PICTURE | set(
    "html head meta link title style script body main h1 h2 p section footer div span b a img details summary input "
    "table thead tbody tr th td svg line text nav code i sub sup".split()
)
# What nbconvert keeps with sanitize_html=True: of other tags it makes text.
SANITISED_KEEPS = set("a abbr acronym b blockquote code div em i li ol pre span strong table td tr ul".split())
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
POLICY = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')
QUICK = {"effect", "grid", "scores", "methods", "similarity", "coherence", "projection", "pairs", "comparison", "preimage",
         "features", "sites", "reading", "patching", "edit", "compare", "invert",
         "watch", "difference", "authors"}  # fmt: skip


def some(names, quick=QUICK):
    """Those that take a second or two; the rest are for the long run."""
    return pytest.mark.parametrize(
        "name", [n if n in quick else pytest.param(n, marks=pytest.mark.long) for n in names]
    )


def check_markup(html: str) -> None:
    """Only this package's elements, no handlers, and nothing that is fetched."""
    reader = read(html)
    assert set(reader.tags) <= TAGS
    assert not [
        name
        for name, _ in reader.attributes
        if name.startswith("on") or name in ("srcdoc", "srcset", "action", "formaction")
    ]
    assert all(value.startswith(("data:", "#")) for name, value in reader.attributes if name in ("href", "src"))
    assert not [
        value for name, value in reader.attributes if name == "style" and ("url(" in value or "expression(" in value)
    ]


def check_csv(text: str) -> None:
    """No cell is a formula, unless it is a number; no control character; a reader gets every row."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len({len(row) for row in rows}) == 1
    for cell in {cell for row in rows for cell in row}:
        assert cell.isprintable() and "np." not in cell
        if cell.lstrip().startswith(FORMULA):
            float(cell)


def test_they_are_many_and_all_different() -> None:
    assert len(TOKENS) >= 300 and len({render.visible_token(token) for token in TOKENS}) == len(TOKENS)


@some(RESULTS)
def test_what_a_notebook_and_a_terminal_show(name: str) -> None:
    assert repr(result(name)).isprintable()
    if hasattr(result(name), "_repr_html_"):
        html = result(name)._repr_html_()
        check_markup(html)
        assert set(read(html).tags) <= SANITISED_KEEPS
        html.encode("utf-8", "strict")


@some(RESULTS)
def test_frames_as_csv_and_json(name: str, tmp_path: Path) -> None:
    from tl_backward._support.csv import save_csv

    if not hasattr(result(name), "to_frame"):
        return
    frame = result(name).to_frame()
    save_csv(frame, tmp_path / "frame.csv")
    check_csv((tmp_path / "frame.csv").read_bytes().decode("utf-8"))
    cells = frame.astype(object).where(frame.notna(), None).values.tolist()
    text = json.dumps(cells, allow_nan=False)
    assert text.isascii() and json.loads(text) == json.loads(json.dumps(json.loads(text)))
    for row, again in zip(cells, json.loads(text), strict=True):
        assert [cell for cell in again if isinstance(cell, str)] == [cell for cell in row if isinstance(cell, str)]


@some(PAGES)
def test_the_markup_and_the_downloads_of_a_page(name: str) -> None:
    html = page(name).to_html()
    without = re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)
    check_markup(without)
    assert len(POLICY.findall(html)) == 1
    for data in re.findall('href="data:text/csv;charset=utf-8;base64,([^"]*)"', without):
        check_csv(base64.b64decode(data).decode("utf-8", "strict"))


def opened(browser: Browser, page: render.Page, path: Path, *, policy: bool) -> None:
    html = page.to_html()
    path.write_bytes((html if policy else POLICY.sub("", html)).encode("utf-8", "backslashreplace"))
    browser.open(path)
    browser.run("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    browser.wait(
        "[...document.querySelectorAll('[data-tlb]')].every(place => (place.id || place.dataset.tlbReady) && place.children.length)",
        60,
    )


def check_quiet(browser: Browser, path: Path) -> None:
    if browser.number("document.querySelectorAll('.tlb-picture').length"):
        hover_everything(browser)
    time.sleep(0.3)
    assert browser.number("window.pwnedCount") == 0
    assert browser.console() == []
    assert browser.foreign_requests(path) == []
    assert browser.run("return location.href") == path.as_uri()


@pytest.mark.parametrize(
    "names", [QUICK, pytest.param({*PAGES, *RESULTS} - {"lens"}, marks=pytest.mark.long)], ids=["quick", "all"]
)
def test_all_at_once_without_the_policy(browser: Browser, tmp_path: Path, names: set[str]) -> None:
    """One pass over reports (the lens's has its own test) and over what results show in a notebook."""
    joined = render.Page(NAMES[0], intro=" ".join(NAMES), footer=NAMES[1])
    for name in sorted(names & PAGES.keys()):
        joined._sections += page(name)._sections
    for name in sorted(names & RESULTS.keys()):
        if hasattr(result(name), "_repr_html_"):
            joined.section(name, "", render.Fragment(result(name)._repr_html_()))
    path = tmp_path / "all.html"
    opened(browser, joined, path, policy=False)
    texts = set(map(clean, browser.texts("td [dir=auto], th [dir=auto]")))
    lost = [token for token in VOCABULARY if render.visible_token(token, 18) not in texts]
    assert not lost  # of the edit's tokens before and after
    ticks = set(map(clean, browser.texts(".tlb-picture text")))
    assert {render.visible_token(each, 16) for each in NAMES[:40]} <= ticks
    check_quiet(browser, path)


@pytest.mark.long
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("policy", [True, False], ids=["policy", "escaping-alone"])
def test_each_page(browser: Browser, tmp_path: Path, name: str, policy: bool) -> None:
    path = tmp_path / "page.html"
    opened(browser, page(name), path, policy=policy)
    check_quiet(browser, path)


@pytest.mark.long
@pytest.mark.parametrize("kind, name", [("result", name) for name in RESULTS] + [("page", name) for name in PAGES])
def test_each_output_of_a_notebook(browser: Browser, tmp_path: Path, kind: str, name: str) -> None:
    shown = result(name) if kind == "result" else page(name)
    if not hasattr(shown, "_repr_html_"):
        return
    cells = [render.setup_notebook()._repr_html_(), shown._repr_html_()]
    path = tmp_path / "notebook.html"
    path.write_bytes(f"<!DOCTYPE html><meta charset=utf-8>{'<hr>'.join(cells)}".encode("utf-8", "backslashreplace"))
    browser.open(path)
    check_quiet(browser, path)
