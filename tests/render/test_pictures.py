import base64
import csv
import io
import json
import math
import re
import struct
import zlib

import pandas
import pytest
import torch

from tl_backward import render
from tl_backward._support.html import color_for
from tl_backward.render.circuits import isolate
from tl_backward.render.static import heat_image
from tl_backward.render.tables import frame_block


def props_of(fragment: render.Fragment) -> dict[str, list[object] | float | str | bool]:
    (script,) = fragment.scripts
    found = re.search(r'"(?:CircuitsVis|Plotly)", (\{.*\}), function \(place', script, flags=re.DOTALL)
    assert found
    return json.loads(found[1])


def test_attention_bounds_are_the_data_s_own() -> None:
    patterns = torch.zeros(2, 3, 3)
    patterns[0, 1, 0], patterns[1, 2, 1] = 0.25, -0.5
    patterns[0, 0, 2] = 9.0  # above the diagonal: masked, so it must not set the scale
    props = props_of(render.attention(["a", "b", "c"], patterns, signed=True))
    assert (props["minValue"], props["maxValue"], props["maskUpperTri"]) == (-0.5, 0.5, True)
    props = props_of(render.attention(["a", "b", "c"], patterns, causal=False))
    assert props["maxValue"] == 9.0
    assert props_of(render.attention(["a"], torch.zeros(1, 1, 1)))["maxValue"] == 1.0
    assert props_of(render.attention(["a"], torch.ones(1, 1, 1), bound=4.0))["maxValue"] == 4.0


def test_whole_numbers_are_numbers() -> None:
    render.tokens(["a"], [1], value_label="rank", bound=2)
    render.lens_table(["0"], ["a"], [[render.Cell("a", value=1)]])
    render.curves([render.Curve("a", [1, 2.5])], title="t", x_title="x", y_title="y", x=[0, 1])
    render.heatmap(torch.tensor([[1]]), rows=["0"], columns=["a"], title="t", value_title="rank", bound=3)


def test_bad_shapes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"shape \[head, query, key\].*got \[1, 2, 2\] for 3 tokens"):
        render.attention(["a", "b", "c"], torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="Show fewer heads, or slice"):
        render.attention(["a"] * 400, torch.zeros(2, 400, 400))
    with pytest.raises(ValueError, match="got 1 names for 2 heads"):
        render.attention(["a"], torch.zeros(2, 1, 1), head_names=["L0"])
    with pytest.raises(ValueError, match="2 tokens and 1 values"):
        render.tokens(["a", "b"], [1.0], value_label="norm")
    with pytest.raises(ValueError, match=r"values of shape \[1, 2\], 1 rows and 1 columns"):
        render.heatmap(torch.zeros(1, 2), rows=["0"], columns=["a"], title="t", value_title="v")
    curve = render.Curve("a", [1.0, 2.0])
    for lines, message in (
        ([], "at least one curve"),
        ([curve, curve], "name of its own"),
        ([curve, render.Curve("b", [1.0])], "Expected 2 values for 'b'"),
        ([curve, render.Curve("b", [1.0, 1.0], control_of="c")], "control of 'c', which is not in"),
        ([render.Curve("a", [0.0, 1.0])], "plot rank \\+ 1"),
    ):
        with pytest.raises(ValueError, match=message):
            render.curves(lines, title="t", x_title="x", y_title="y", log_y=True)
    with pytest.raises(ValueError, match="Expected 2 labels"):
        render.curves([curve], title="t", x_title="x", y_title="y", x_labels=["a"])


def test_gradients_and_half_precision_are_taken_as_they_come() -> None:
    patterns = torch.rand(1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    render.attention(["a", "b"], patterns)
    render.tokens(["a", "b"], patterns[0, 0], value_label="norm")
    figure = render.heatmap(patterns[0], rows=["0", "1"], columns=["a", "a"], title="t", value_title="v")
    render.figure_fragment(figure)


def test_heatmap_is_symmetric_and_white_at_zero() -> None:
    z = torch.tensor([[0.0, -2.0, float("nan")]])
    signed = render.heatmap(
        z, rows=["0"], columns=["a", "a", "b"], title="t", value_title="v", signed=True
    ).to_plotly_json()["data"][0]
    assert (signed["zmin"], signed["zmax"]) == (-2.0, 2.0)
    assert dict(map(tuple, signed["colorscale"]))[0.5] == "#ffffff"
    plain = render.heatmap(z.abs(), rows=["0"], columns=["a", "a", "b"], title="t", value_title="v")
    trace = plain.to_plotly_json()["data"][0]
    assert trace["zmin"] == 0 and trace["colorscale"][0][1] == "#ffffff"


def test_controls_share_their_curve_s_colour_dashed() -> None:
    lines = [
        render.Curve("target", [3.0, 1.0], low=[2.0, 1.0], high=[4.0, 1.0]),
        render.Curve("target, random init", [9.0, 9.0], control_of="target"),
        render.Curve("old answer", torch.tensor([1, 2])),
    ]
    figure = render.curves(lines, title="t", x_title="layer", y_title="rank + 1", log_y=True, reverse_y=True)
    band, target, control, old = figure.to_plotly_json()["data"]
    assert target["line"]["color"] == control["line"]["color"] == band["fillcolor"] != old["line"]["color"]
    assert (target["line"]["dash"], control["line"]["dash"]) == ("solid", "dash")
    layout = figure.to_plotly_json()["layout"]
    assert layout["yaxis"]["type"] == "log" and layout["yaxis"]["autorange"] == "reversed"


def test_plot_text_has_no_markup_left(hostile: list[str]) -> None:
    for token in hostile:
        assert not re.search("[<>$]", render.plot_token(token))
    assert render.plot_token("<s>") == "&lt;s&gt;"
    assert isolate("שלום") == "\u2068שלום\u2069" and isolate("abc") == "abc"


def test_figure_data_cannot_leave_its_script(hostile: list[str]) -> None:
    figure = render.heatmap(
        torch.rand(1, len(hostile)), rows=["0"], columns=hostile, title="</script>", value_title="v"
    )
    figure.update_layout(annotations=[{"text": "</script><script>pwned()</script>\u2028"}])
    (script,) = render.figure_fragment(figure).scripts
    assert "</script" not in script and "\u2028" not in script


def test_csv_is_neutral_and_readable(hostile: list[str]) -> None:
    rows = [[i, token, -0.5, None] for i, token in enumerate(hostile)]
    text = render.csv_text(["i", "token", "=value", "none"], rows)
    text.encode("utf-8")
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read[0] == ["i", "token", "'=value", "none"] and len(read) == len(hostile) + 1
    for row in read[1:]:
        assert row[2:] == ["-0.5", ""]
        assert not row[1].lstrip().startswith(("=", "+", "-", "@"))
        assert row[1].lstrip("'").isprintable() or not row[1]
    assert "' =cmd|" in text and " Oslo" in text


def test_data_block_is_closed_and_names_a_plain_file() -> None:
    block = render.data_block(["a"], [[i] for i in range(300)], filename="../x y.csv").html
    assert 'download=".._x_y.csv"' in block and "first 200 of 300 rows" in block
    assert block.count("<tr>") == 201


def test_a_number_that_a_frame_lacks_is_an_empty_cell() -> None:
    block = frame_block(pandas.DataFrame({"layer": [0, 1], "rank": [2.5, math.nan]}), "ranks.csv").html
    (data,) = re.findall(r'base64,([^"]*)"', block)
    assert base64.b64decode(data).decode() == "layer,rank\r\n0,2.5\r\n1,\r\n" and ">nan<" not in block


def test_static_picture_is_a_png_of_the_scale() -> None:
    html = heat_image([[0.0, 1.0], [-1.0, float("nan")]], bound=1.0, label='"><script>', pixels=4)
    assert "<script" not in html
    png = base64.b64decode(html.split("base64,")[1].split('"')[0])
    assert struct.unpack(">II", png[16:24]) == (4, 4)
    palette = png[png.index(b"PLTE") + 4 :]
    data = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    pixels = [data[y * 5 + 1 + x] for y in (0, 2) for x in (0, 2)]
    colors = ["#" + palette[3 * i : 3 * i + 3].hex() for i in pixels]
    assert colors == [color_for(v, 1.0) for v in (0.0, 1.0, -1.0, float("nan"))]
