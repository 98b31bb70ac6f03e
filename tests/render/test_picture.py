"""Static pictures: what they show is the figure's, nothing runs, nothing of matplotlib's is left behind."""

import base64
import math
import re
import webbrowser
from xml.etree import ElementTree

import plain
import plotly.graph_objects as go
import pytest
import torch

from tl_backward import render
from tl_backward._support.html import UNKNOWN, color_for
from tl_backward.render.figures import heatmap_drawing
from tl_backward.render.picture import KINDS, drawable, picture
from tl_backward.render.plotly_texts import filler, number
from tl_backward.render.rank_curves import rank_curves
from tl_backward.render.still import still
from tl_backward.render.svg import PALETTE

SVG = "{http://www.w3.org/2000/svg}"
AWKWARD = [
    "$x_1$",
    "$",
    "a<b",
    '"q"',
    "'",
    "&amp;",
    "e\u0301",
    "\u0301",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u65e5\u672c",
    "\U0001f600",
    "\\frac",
    "{x}",
    "%{z}",
]


def read(svg: str) -> ElementTree.Element:
    """An XML parser's view of it."""
    return ElementTree.fromstring(svg.encode("utf-8", "backslashreplace"))


def titles(svg: str) -> list[str]:
    return [each.text or "" for each in read(svg).iter(f"{SVG}title")]


def texts(svg: str) -> list[str]:
    return [(each.text or "").strip("\u2068\u2069") for each in read(svg).iter(f"{SVG}text")]


def of(figure: go.Figure) -> str:
    return picture(figure.to_plotly_json())


def heat(values: torch.Tensor, **how: object) -> str:
    rows, columns = ([str(i) for i in range(n)] for n in values.shape)
    return of(render.heatmap(values, rows=rows, columns=columns, title="t", value_title="nats", **how))


def test_each_square_says_its_value_and_has_its_colour() -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[1, 2] = math.nan
    svg = heat(values, signed=True)
    bound = float(values.nan_to_num(0).abs().max())
    rects = [each for each in read(svg).iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    assert len(rects) == 15
    for i, rect in enumerate(rects):
        value = float(values.flatten()[i])
        assert rect.findtext(f"{SVG}title") == f"layer: {i // 5}\ntoken: {i % 5}\nnats: {value:.6g}"
        expected = UNKNOWN if math.isnan(value) else color_for(value, bound)
        pairs = zip(
            *([int(color[k : k + 2], 16) for k in (1, 3, 5)] for color in (rect.get("fill"), expected)), strict=True
        )
        assert all(abs(a - b) <= 4 for a, b in pairs)
    # The first row is at the bottom, the first column on the left.
    place = [(float(rect.get("x")), float(rect.get("y"))) for rect in rects]
    assert place[0][1] > place[5][1] > place[10][1] and place[0][0] < place[1][0] < place[4][0]


def test_squares_as_white_as_the_page_lie_in_a_frame() -> None:
    def framed(svg: str) -> tuple[list[float], list[float]]:
        drawn = [each for each in read(svg).iter(f"{SVG}path") if each.get("stroke") == "currentColor"]
        lines = [
            each.get("d").replace("M", "").replace("L", "").split() for each in drawn if each.get("d").count("L") == 1
        ]
        return tuple([float(place) for line in lines for place in line[side::2]] for side in (0, 1))

    svg = heat(torch.zeros(3, 4))
    squares = [each for each in read(svg).iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    assert {each.get("fill") for each in squares} == {"#ffffff"}
    for places, side in zip(framed(svg), ("x", "y"), strict=True):
        own = [float(each.get(side)) for each in squares]
        assert min(places) <= min(own) + 0.01 and max(places) > max(own)


def test_details_come_below_the_value() -> None:
    svg = heat(torch.tensor([[0.5]]), details=[["standard error < 0.1 & more"]])
    assert titles(svg) == ["layer: 0\ntoken: 0\nnats: 0.5\nstandard error < 0.1 & more"]


def test_a_place_along_x_says_the_values_of_all_curves() -> None:
    lines = [
        render.Curve("target", [0.25, math.nan, 3.0], low=[0.1] * 3, high=[4.0] * 3),
        render.Curve("target, control", [1 / 3, 2.0, 3.0], control_of="target"),
    ]
    svg = of(render.curves(lines, title="t", x_title="layer", y_title="y", x=[0, 1, 5]))
    assert titles(svg) == [
        "layer 0\ntarget: 0.25\ntarget, control: 0.333333",
        "layer 1\ntarget: nan\ntarget, control: 2",
        "layer 5\ntarget: 3\ntarget, control: 3",
    ]
    named = of(render.curves(lines, title="t", x_title="token", y_title="y", x_labels=["a", " b", "c" * 40]))
    # On the axis a long label is cut; the band says which place it is.
    assert [title.split("\n")[0] for title in titles(named)][:2] == ["token a", "token \u2423b"]


def test_ranks_are_whole_numbers_on_hover() -> None:
    drawing = rank_curves([render.Curve("target", [0, math.nan, 99])], d_vocab=100, x=[0, 1, 2], title="t")
    assert titles(picture(drawing)) == [
        "layer 0\ntarget: rank 0",
        "layer 1\ntarget: rank none",
        "layer 2\ntarget: rank 99",
    ]


def test_points_of_a_map_say_theirs() -> None:
    figure = go.Figure()
    figure.add_scatter(x=[0.5, 1.5], y=[2.0, 4.0], name="m", text=["L0", "L1"], mode="lines+markers+text", customdata=["L0", "L1"],
                       hovertemplate="m %{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>")  # fmt: skip
    svg = of(figure)
    assert titles(svg) == ["m L0\n0.5, 2", "m L1\n1.5, 4"] and {"L0", "L1"} <= set(texts(svg))


def test_bars_and_errors_are_drawn() -> None:
    figure = go.Figure(
        [go.Bar(x=[0, 1], y=[1.0, 2.0]), go.Scatter(x=[0, 1], y=[1.0, 2.0], error_y={"array": [0.1, 0.2]})]
    )
    assert drawable(figure.to_plotly_json()) and len(titles(of(figure))) == 4


def test_awkward_tokens_are_shown_as_they_are(recwarn: pytest.WarningsRecorder) -> None:
    figure = render.heatmap(
        torch.rand(1, len(AWKWARD)),
        rows=["$a$"],
        columns=AWKWARD,
        title="$t$ <b>",
        value_title="$v$",
        column_title="<i>",
    )
    svg = of(figure)
    shown = [render.visible_token(token) for token in AWKWARD]
    assert [text for text in texts(svg) if text in shown] == shown
    for said, token in zip(titles(svg), shown, strict=True):
        assert f"\n<i>: {token}\n" in said.replace("\u2068", "").replace("\u2069", "") and said.startswith("layer: $a$")
    assert {"$t$ <b>", "$v$", "$a$", "<i>"} <= set(texts(svg))
    assert not recwarn.list


def test_hostile_tokens_start_no_markup(hostile: list[str]) -> None:
    columns = hostile[:60]
    svg = of(render.heatmap(torch.rand(1, 60), rows=["0"], columns=columns, title=hostile[1], value_title=hostile[3]))
    allowed = {"svg", "g", "rect", "path", "text", "title", "use", "defs", "clipPath"}
    root = read(svg)
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= allowed
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on")]
    links = [value for each in root.iter() for name, value in each.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    for token, said in zip(columns, titles(svg), strict=True):
        assert render.visible_token(token) in said.replace("\u2068", "").replace("\u2069", "")


def test_other_kinds_are_refused_in_a_sentence_and_left_to_plotly() -> None:
    pie = go.Figure(go.Pie(values=[1, 2]))
    with pytest.raises(ValueError, match=r"Expected one heat map, or lines, points and bars.*got \['pie'\]; show"):
        of(pie)
    noted = render.curves([render.Curve("a", [1.0])], title="A", x_title="x", y_title="y").add_annotation(
        text="here", x=0, y=1
    )
    empty = go.Figure()
    for figure in (pie, noted, empty):
        fragment = render.figure_fragment(figure)
        assert not drawable(figure.to_plotly_json()) and fragment.needs == {"plotly"} and "<svg" not in fragment.html


def test_the_same_figure_gives_the_same_picture_and_names_of_its_own() -> None:
    values = torch.rand(2, 3)
    first, again, other = heat(values), heat(values), heat(values + 1)
    assert first == again != other
    line = [render.Curve("a", [1.0, 2.0])]
    pictures = [of(render.curves(line, title=title, x_title="x", y_title="y")) for title in "AB"]
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in pictures]
    assert names[0] and not names[0] & names[1]
    for svg, own in zip(pictures, names, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) and all(f'id="{name}"' in svg for name in own)


def test_nothing_of_matplotlib_s_is_left_behind() -> None:
    """Whatever a user has set shows neither in the picture nor is it changed; no window system is asked for."""
    code = """
import sys, warnings
import torch
from tl_backward import render
from tl_backward.render.picture import picture
figure = render.heatmap(torch.eye(2), rows=["a", "b"], columns=["$x$", "\\u65e5"], title="t", value_title="v")
assert "matplotlib" not in sys.modules
warnings.simplefilter("error")
first = picture(figure.to_plotly_json())
import matplotlib
from matplotlib import rcsetup
fresh = dict(matplotlib.rcParamsDefault)
same = all(dict.__getitem__(matplotlib.rcParams, name) == value for name, value in fresh.items() if name != "backend")
assert same and dict.__getitem__(matplotlib.rcParams, "backend") is rcsetup._auto_backend_sentinel
own = {"text.usetex": True, "font.size": 30, "axes.facecolor": "black", "svg.fonttype": "path", "axes.prop_cycle": matplotlib.cycler(color="r")}
matplotlib.rcParams.update(own)
before = dict(dict.items(matplotlib.rcParams))
assert picture(figure.to_plotly_json()) == first
assert dict(dict.items(matplotlib.rcParams)) == before and before["font.size"] == 30
assert "matplotlib.pyplot" not in sys.modules
print("as it was")
"""
    done = plain.run(code)
    assert done.stdout.strip() == "as it was", done.stderr


def test_a_fragment_needs_no_script_and_its_image_is_the_picture() -> None:
    fragment = render.figure_fragment(
        heatmap_drawing(torch.eye(2), rows=["0", "1"], columns=["a", "b"], title="T < U", value_title="v")
    )
    assert fragment.scripts == () and not fragment.needs
    output = fragment._repr_html_()
    assert "<svg" not in output and 'alt="T &lt; U"' in output
    (data,) = re.findall(r'<img[^>]* src="data:image/svg\+xml;base64,([^"]+)"', output)
    root = ElementTree.fromstring(base64.b64decode(data))
    assert root.tag == f"{SVG}svg" and "background:#ffffff" in root.get("style", "")
    assert [each.text for each in root.iter(f"{SVG}title")] == titles(
        re.findall("<svg.*</svg>", fragment.html, re.DOTALL)[0]
    )


def test_a_file_of_its_own_is_opaque() -> None:
    svg = heat(torch.eye(2))
    assert still(svg).startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "background:#ffffff" in still(svg)[:600]


def test_a_terminal_without_a_browser(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    import plotly.io

    def none(*options: object, **more: object) -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(plotly.io.renderers, "default", "browser")
    monkeypatch.setattr(plotly.io, "show", none)
    render.heatmap(torch.eye(2), rows=["0", "1"], columns=["a", "b"], title="t", value_title="v")._ipython_display_()
    said = capsys.readouterr().out
    assert said.startswith("No browser was found") and "write_html(" in said and said.count("\n") == 1


def test_what_a_saved_notebook_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display
    import plotly.io

    given = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: given.append(bundle))
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    figure = render.heatmap(torch.eye(2), rows=["0", "1"], columns=["a", "b"], title="t", value_title="v")
    figure._ipython_display_()
    render.figure_fragment(figure)._ipython_display_()
    render.tokens(["a"], [1.0], value_label="norm")._ipython_display_()
    assert [sorted(bundle) for bundle in given] == [
        ["application/vnd.plotly.v1+json", "image/svg+xml"], ["image/svg+xml", "text/plain"], ["text/html", "text/plain"],
    ]  # fmt: skip
    assert all(bundle["image/svg+xml"] == still(of(figure)) for bundle in given[:2])
    assert isinstance(figure, go.Figure)


def test_numbers_on_an_axis_have_no_false_digits() -> None:
    assert [number(v) for v in (0, 1, 0.25, -2, 12345, 1e5, 2.5e-7, -1e6)] == [
        "0", "1", "0.25", "\u22122", "12345", "10\u2075", "2.5\u00d710\u207b\u2077", "\u221210\u2076",
    ]  # fmt: skip
    assert (
        filler("%{y:.3g} at %{x}, %{customdata[1]}<br>%{z}<extra>no</extra>")(
            {"y": 0.12345, "x": 2.0, "customdata": ["", "&lt;s&gt;"], "z": math.nan}
        )
        == "0.123 at 2, <s>\nnan"
    )


@pytest.mark.parametrize("n", [1, 2, 40, 200])
def test_any_size_is_drawn(n: int) -> None:
    root = read(heat(torch.zeros(n, n)))
    assert len(root.findall(f".//{SVG}rect")) == n * n if n > 1 else True
    line = render.Curve("a", [float("nan")] * n)
    assert "nan" in titles(of(render.curves([line], title="", x_title="x", y_title="y")))[0]


def test_kinds_and_colours() -> None:
    assert set(KINDS) == {"heatmap", "scatter", "bar"} and len(set(PALETTE)) == 7
