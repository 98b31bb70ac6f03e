import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_backward._support.html import (
    NEGATIVE,
    PALE,
    POSITIVE,
    UNKNOWN,
    Cell,
    color_for,
    escape,
    legend,
    lens_table,
    scale_bound,
    table,
    text_color,
    token_html,
    token_strip,
    visible_text,
    visible_token,
    with_headers,
)

from .reading import read

STATIC_TAGS = {"div", "span", "table", "tr", "td"}  # nbconvert, sanitising, makes text of th, thead, bdi and br

any_text = st.text(st.characters(codec=None), max_size=12)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Oslo", "␣Oslo"),
        (" ", "␣"),
        ("a b", "a b"),
        ("a  b ", "a␣␣b␣"),
        ("\n", "\\n"),
        ("\\n", "\\\\n"),
        ("\\alpha", "\\alpha"),
        ("\t\r\x00", "\\t\\r\\x00"),
        ("\u202eabc", "\\u202eabc"),
        ("\u200b", "\\u200b"),
        ("\xa0", "\\xa0"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("<s>", "<s>"),
        ("<bos>", "<bos>"),
        ("", "⟨empty⟩"),
        ("␣", "\\u2423"),
        ("\u0301", "◌\u0301"),
        ("日本語", "日本語"),
        ("�", "�"),
    ],
)
def test_visible_token(token: str, shown: str) -> None:
    assert visible_token(token) == shown


@given(any_text)
def test_everything_shown_is_visible(token: str) -> None:
    shown = visible_token(token)
    assert shown.isprintable() and shown.strip() == shown and shown
    shown.encode("utf-8")
    assert visible_text(shown) == shown


@given(
    st.lists(
        st.text(st.sampled_from(" ab\\nx0u2423\n\t\x00␣◌\u0301\u200b⟨"), max_size=5),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_different_tokens_look_different(pair: list[str]) -> None:
    assert visible_token(pair[0]) != visible_token(pair[1])


def test_long_token_is_cut_but_kept_in_the_title() -> None:
    token = "w" * 300
    reader = read(token_html(token, 40))
    assert len("".join(reader.texts)) == 40 and "".join(reader.texts).endswith("…")
    assert ("title", token) in reader.attributes


@given(any_text.filter(bool), st.integers(1, 20))
def test_limit_is_kept_and_never_halves_an_escape(token: str, limit: int) -> None:
    short = visible_token(token, limit)
    assert len(short) <= limit
    if short.endswith("…") and visible_token(token) != short:
        assert not re.search(r"(?<!\\)\\(x[0-9a-f]?|u[0-9a-f]{0,3}|U[0-9a-f]{0,7})?…$", short)


def test_escape_covers_attributes() -> None:
    assert escape("<a b=\"c\" d='e'>&") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"


def test_tables_hold_only_their_own_markup(hostile: list[str]) -> None:
    cells = [[Cell(t, sub=t, title=(t, t), value=float(i)) for i, t in enumerate(hostile)]] * 2
    for html in (
        lens_table(["layer 0", "<b>"], hostile, cells, value_label="<i>norm</i>", caption="<u>", corner="<s>"),
        table(hostile, [hostile], row_names=["<tr>"], caption="<u>"),
        token_strip(hostile, [1.0] * len(hostile), value_label="<b>"),
        "".join(token_html(t) for t in hostile),
        legend("</div><script>", 1.0, signed=True),
    ):
        reader = read(html)
        assert set(reader.tags) <= STATIC_TAGS
        assert {name for name, _ in reader.attributes} <= {"style", "title", "role", "dir"}
        assert html.count("<div") == html.count("</div>")
        html.encode("utf-8")
        assert not [value for name, value in reader.attributes if name == "style" and "url(" in value]


def test_a_page_has_the_headers_of_its_tables(hostile: list[str]) -> None:
    """A notebook's output has none, for the sake of those that are exported sanitised: a page's tables are made of it."""
    plain = table(["a", *hostile], [["</td></tr></table>", *hostile]] * 2, row_names=["row", "<th>"], corner="c")
    html = with_headers(f"<p>before</p>{plain}<p>between</p>{plain}")
    reader = read(html)
    assert reader.texts == ["before", *read(plain).texts, "between", *read(plain).texts]
    n_columns = len(hostile) + 2
    assert reader.tags.count("th") == 2 * (n_columns + 2) and reader.tags.count("td") == 2 * 2 * (n_columns - 1)
    assert html.count("<thead><tr><th") == html.count("</th></tr></thead><tbody><tr><th") == 2
    assert [value for name, value in reader.attributes if name == "scope"][:2] == ["col", "col"]
    assert "role" not in {name for name, _ in reader.attributes}


def test_lens_table_shows_every_token_and_its_hover(hostile: list[str]) -> None:
    cells = [[Cell(t, sub=t, title=(f"1. {visible_token(t)} 0.5",), value=1.0) for t in hostile]]
    reader = read(lens_table(["layer 0"], hostile, cells))
    titles = [value for name, value in reader.attributes if name == "title"]
    for token in hostile:
        shown = visible_token(token, 18)
        assert reader.texts.count(shown) >= 3  # header, top, bottom
        assert any(visible_token(token) in title for title in titles)


def test_a_cut_header_or_text_never_halves_an_escape() -> None:
    person = "\U0001f9d1\u200d" * 40
    reader = read(table([person], [[person]], row_names=["x" * 15 + "\u202e" * 9]))
    cut = [text for text in reader.texts if text.endswith("…")]
    assert len(cut) == 3 and cut[0].startswith("\U0001f9d1\\u200d\U0001f9d1") and cut[1] == "x" * 15 + "…"
    for text in cut:
        assert not re.search(r"\\(x[0-9a-f]?|u[0-9a-f]{0,3})?…$", text)


def test_no_line_ends_within_an_arrow() -> None:
    long = "x" * 60 + ' "quoted" -> end'
    html = table(["a"], [["one -> two"], [long]], limit=10)
    assert html.count('<span style="white-space:nowrap">-&gt;</span>') == 1  # the other's is cut off
    titles = [value for name, value in read(html).attributes if name == "title"]
    assert titles == [long] and "".join(read(html).texts).startswith("aone -> two")


def test_table_says_what_is_wrong_with_its_shape() -> None:
    with pytest.raises(ValueError, match="one cell per column in every row.*got 2 columns, 1 rows of \\[1\\]"):
        table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match="3 tokens and 1 values"):
        token_strip(["a", "b", "c"], [1.0], value_label="norm")


def test_numbers_keep_their_exact_value_on_hover() -> None:
    reader = read(table(["x"], [[0.123456789], [7], [None]]))
    assert ("title", "0.123456789") in reader.attributes
    assert {"0.1235", "7"} <= set(reader.texts)


def _lightness(color: str) -> float:
    return sum(int(color[i : i + 2], 16) for i in (1, 3, 5))


def test_scale_is_symmetric_and_monotone() -> None:
    assert color_for(0.0, 3.0) == "#ffffff"
    assert (color_for(-3.0, 3.0), color_for(3.0, 3.0)) == (NEGATIVE, POSITIVE)
    assert color_for(9.0, 3.0) == POSITIVE and color_for(float("-inf"), 3.0) == NEGATIVE
    assert color_for(float("nan"), 3.0) == UNKNOWN
    assert color_for(0.0, 0.0) == "#ffffff"
    for sign in (-1, 1):
        steps = [_lightness(color_for(sign * i / 20, 1.0)) for i in range(21)]
        assert steps == sorted(steps, reverse=True)
    assert scale_bound([-4.0, 1.0, float("nan"), None, float("inf")]) == 4.0
    assert scale_bound([]) == 1.0


def _contrast(background: str, text: str) -> float:
    def luminance(color: str) -> float:
        rgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(background), luminance(text)))
    return (light + 0.05) / (dark + 0.05)


def test_text_has_contrast_on_every_colour() -> None:
    for step in range(-50, 51):
        color = color_for(step / 50, 1.0)
        assert _contrast(color, text_color(color)) >= 4.5
        assert _contrast(color_for(step / 50, 1.0, PALE), "#000000") >= 7
