import base64
import hashlib
import os
import re
import sys
from pathlib import Path

import plain
import plotly.graph_objects as go
import pytest
import torch

from tl_backward import render
from tl_backward.render import Fragment, Page
from tl_backward.render.circuits import component_token
from tl_backward.render.libraries import inline, library_source
from tl_backward.render.outline import prose
from tl_backward.render.page import setup_notebook
from tl_backward.render.scripts import escape_json, to_json
from tl_backward.render.shared_styles import shared

from .reading import read


def scripts_of(html: str) -> list[str]:
    # How an HTML parser ends a script element, as long as no "<!--" occurs in one.
    return re.findall(r"<script>(.*?)</script", html, flags=re.DOTALL | re.IGNORECASE)


def full_page(tokens: list[str]) -> Page:
    n = len(tokens)
    page = Page("title </title><script>pwned()</script>", intro="\ud800<b>", footer="\u202e</footer>")
    page.section(tokens[0], "\n\n".join(tokens), render.tokens(tokens, torch.rand(n), value_label="norm"))
    page.section("attention", "", render.attention(tokens, torch.randn(2, n, n), signed=True))
    figure = render.heatmap(torch.rand(1, n), rows=["0"], columns=tokens, title=tokens[1], value_title="norm")
    page.section("figure", "", render.figure_fragment(figure))
    slices = go.Figure(go.Pie(labels=[render.plot_token(token) for token in tokens], values=[1.0] * n))
    page.section("of another kind", "", render.figure_fragment(slices))
    page.section("data", "", render.data_block(["token"], [[token] for token in tokens], filename="../a b.csv"))
    return page


def test_policy_allows_exactly_the_scripts_in_the_file(hostile: list[str]) -> None:
    html = full_page(hostile).to_html()
    scripts = scripts_of(html)
    assert len(scripts) == 5 and not any("<!--" in script for script in scripts)
    allowed = re.findall(r"'sha256-([^']+)'", html.split("</title>")[0])
    found = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert allowed == found
    assert "default-src 'none'" in html and "connect-src" not in html and "unsafe-eval" not in html


def test_one_copy_of_each_library_and_only_if_needed(hostile: list[str]) -> None:
    page = full_page(hostile)
    page.section("again", "", render.attention(["a"], torch.ones(1, 1, 1)))
    html = page.to_html()
    assert html.count(library_source("circuitsvis")) == html.count(library_source("plotly")) == 1
    plain = Page("plain").section("table", "", render.table(["a"], [["b"]])).to_html()
    assert "<script" not in plain and "script-src 'none'" in plain and len(plain) < 5000


def test_no_tag_loads_anything(hostile: list[str]) -> None:
    html = full_page(hostile).to_html()
    for script in scripts_of(html):
        html = html.replace(script, "")
    loading = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction"}
    sources = [value for name, value in read(html).attributes if name in loading]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    styles = [value for name, value in read(html).attributes if name == "style"]
    styles += re.findall("<style>(.*?)</style>", html, flags=re.DOTALL)
    assert styles and not [style for style in styles if "@import" in style or "url(" in style]


def test_repeated_styles_are_said_once():
    """With their classes written out again, a page's sections are what they were; what is looked for by style stays."""
    table = render.table(
        ["a", "b"], [["x" * 40, 0.5], [render.Cell("y", value=1.0), None]] * 100, row_names=["r"] * 200
    )
    own = '<p class="of-its-own" style="color:red">a</p>' * 5 + '<p style="color:&quot;">b</p>' * 5
    css, html = shared(table.html + own)
    rules = dict(re.findall(r"^\.(\w+) \{ (.*) \}$", css, flags=re.MULTILINE))
    assert rules and len(rules) == len(set(rules.values())) == css.count("\n")
    assert re.sub('class="(s\\d+)"', lambda found: f'style="{rules[found[1]]}"', html) == table.html + own
    assert "overflow" not in css and own in html and "overflow-x:auto" in html
    assert len(html) + len(css) < len(table.html + own) / 2


def test_the_letters_of_formulas_are_typeset():
    shown = prose("x_i, delta_j and e_s of `x_i`: |x|^2, W_out, blocks_in and p^2")
    assert "<i>x<sub>i</sub></i>, <i>\u03b4<sub>j</sub></i> and <i>e<sub>s</sub></i>" in shown
    assert "|x|<sup>2</sup>, W_out, blocks_in and p<sup>2</sup>" in shown


def test_source_maps_are_not_mentioned() -> None:
    for name in ("circuitsvis", "plotly"):
        assert "sourceMappingURL" not in library_source(name)


def test_props_cannot_leave_their_script(hostile: list[str]) -> None:
    payload = to_json({"tokens": hostile + [component_token(token) for token in hostile]})
    assert not re.search("[<>&\u2028\u2029]", payload) and payload.isascii()
    assert escape_json('{"a": "</script>"}') == '{"a": "\\u003c/script\\u003e"}'
    assert to_json({"v": [float("nan"), float("inf"), 1.5, True]}) == '{"v":[null,null,1.5,true]}'
    assert inline("a\r\nb = '</SCRIPT><!--'") == "a\nb = '<\\/SCRIPT><\\!--'"


def test_component_tokens_start_no_tag_and_no_entity(hostile: list[str]) -> None:
    for token in hostile:
        shown = component_token(token)
        assert not re.search(r"[<&][^\u2060]|[<&]$", shown)


def test_same_input_same_page(hostile: list[str]) -> None:
    torch.manual_seed(0)
    first = full_page(hostile).to_html()
    torch.manual_seed(0)
    assert full_page(hostile).to_html() == first


def test_save_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    page = Page("one \ud800")
    assert page.save(target) == target
    before = target.read_text(encoding="utf-8")
    assert before == str(page)

    def fail(source: object, destination: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        Page("two").save(target)
    assert target.read_text(encoding="utf-8") == before
    assert os.listdir(tmp_path) == ["report.html"]


def test_save_respects_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        mode = Page("x").save(tmp_path / "x.html").stat().st_mode
    finally:
        os.umask(old)
    assert mode & 0o777 == 0o640


def test_save_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere.*; create it first"):
        Page("x").save(tmp_path / "nowhere" / "report.html")


def test_notebook_output_is_small_and_still_shows_without_scripts(hostile: list[str]) -> None:
    fragment = render.tokens(hostile, torch.rand(len(hostile)), value_label="norm")
    fragment += render.attention(hostile[:9], torch.rand(1, 9, 9))
    output = fragment._repr_html_()
    assert len(output) < 200_000 and library_source("circuitsvis") not in output
    assert "&lt;s&gt;" in fragment.html and "<script" not in fragment.html
    assert library_source("circuitsvis") in setup_notebook()._repr_html_()
    page = full_page(hostile)
    assert library_source("plotly") not in page._repr_html_()


def test_colab_gets_the_library_with_every_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert library_source("circuitsvis") in render.attention(["a"], torch.ones(1, 1, 1))._repr_html_()


def test_fragments_add_up() -> None:
    both = Fragment("a", ("1", "2")) + Fragment("b", ("2",), frozenset({"plotly"}))
    assert both == Fragment("ab", ("1", "2"), frozenset({"plotly"}))
    assert repr(both) == "Fragment(html=2 chars, scripts=2, needs=['plotly'])"


def test_import_is_light() -> None:
    code = (
        "import sys, tl_backward; before = set(sys.modules); import tl_backward.render;"
        "print(sorted({'plotly', 'matplotlib', 'circuitsvis', 'pandas', 'IPython'} & (set(sys.modules) - before)))"
    )
    result = plain.run(code)
    assert result.stdout.strip() == "[]"
