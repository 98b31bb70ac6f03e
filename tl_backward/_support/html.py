"""Static, escaped HTML from untrusted text: visible tokens, colours, tables.

Result classes build their ``_repr_html_`` from these functions, so everything here must also show in an
*untrusted* notebook. JupyterLab then keeps only some tags, attributes and style values: no script, no
``<style>``, no ``id`` or ``data-*``, no ``var(...)``. Styles are therefore inline, with plain values. A sanitised
export (``nbconvert``'s ``sanitize_html``) keeps fewer tags still and shows others (``th``, ``thead``, ``bdi``, ``br``)
as text: here are only div, span, table, tr and td, of which `with_headers` makes the tables of a page.
"""

import functools
import html
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas

Number = int | float
AnyNumber = Number | np.integer | np.floating

SPACE = "\u2423"
"""How a space is shown where it could be overlooked: the open box, as in ``␣Oslo``."""

NEGATIVE, POSITIVE = "#b35806", "#2166ac"
"""Colours of the two ends of every scale, told apart under all common colour blindnesses; zero is white."""

PALE = ("#f4a05a", "#6baed6")
"""Lighter ends for text: black has a contrast of at least 7:1 on every colour of the scale."""

UNKNOWN = "#d9d9d9"
"""Colour of a value that is not finite."""

PAGES = (".html", ".htm")
"""How the name of a page's file ends."""

MONO = "font-family:ui-monospace,Menlo,Consolas,monospace"

_NAMED_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Letters and marks that Unicode calls visible but every font draws as nothing.
_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, range(0xFE00, 0xFE10)))
    + "".join(map(chr, range(0xE0100, 0xE01F0)))
)
_EMPTY = "\u27e8empty\u27e9"
_CIRCLE = "\u25cc"  # the dotted circle that character tables put a lone combining mark on
_HALF_ESCAPE = re.compile(r"(?<!\\)\\(x[0-9a-f]?|u[0-9a-f]{0,3}|U[0-9a-f]{0,7})?$")
_ESCAPE_LETTERS = "\\nrtxuU"
_AMBIGUOUS = frozenset(f" \\{SPACE}")
_MARKS_IN_A_ROW = 4  # more combining marks than any script needs would be drawn over the neighbouring lines


def escape(text: str) -> str:
    """`text` as HTML: safe between tags and inside a quoted attribute."""
    return html.escape(text, quote=True)


def _escape_code(char: str) -> str:
    code = ord(char)
    letter, digits = ("x", 2) if code < 0x100 else ("u", 4) if code < 0x10000 else ("U", 8)
    return _NAMED_ESCAPES.get(char, f"\\{letter}{code:0{digits}x}")


def _is_invisible(char: str) -> bool:
    category = unicodedata.category(char)
    return char in _BLANK or category[0] == "C" or (category[0] == "Z" and char != " ")


def visible_text(text: str) -> str:
    """Plain text in which nothing hides: each control, bidi, zero-width or unpaired character as its code.

    Ordinary spaces and backslashes stay as they are, so applying it twice changes nothing.
    """
    if text.isascii() and text.isprintable():
        return text
    units, marks = [], 0
    for position, char in enumerate(text):
        is_mark = unicodedata.category(char)[0] == "M"
        marks = marks + 1 if is_mark else 0
        if _is_invisible(char) or marks > _MARKS_IN_A_ROW:
            units.append(_escape_code(char))
        elif is_mark and position == 0:
            units.append(_CIRCLE + char)
        else:
            units.append(char)
    return "".join(units)


def visible_token(token: str, limit: int | None = None) -> str:
    r"""Return a token string as plain text (not yet HTML) in which every character can be seen.

    - Leading, trailing and repeated spaces are shown as ``␣``; a single space inside stays a space.
    - ``\n \t \r``, other controls, NUL, zero-width and bidi controls, odd spaces and lone surrogates are
      shown as Python escapes (``\n``, ``\x00``, ``\u202e``).
    - A backslash that would read as such an escape is doubled and a real ``␣`` is shown as ``\u2423``: no two
      tokens give the same string.
    - The empty token is shown as ``⟨empty⟩``.

    With `limit`, at most that many characters are returned, the last one ``…``; give readers the whole token
    elsewhere (`token_html` does).

    Examples:
        >>> tlb.render.visible_token(' a\n')
        '␣a\\n'
    """
    if not isinstance(token, str) or not (limit is None or isinstance(limit, int)):
        kinds = f"{type(token).__name__} and {type(limit).__name__}"
        raise TypeError(f"Expected a token as text, and a limit that is a number or None, got {kinds}.")
    if not token:
        return _EMPTY
    if token == _EMPTY or (token[0] == _CIRCLE and unicodedata.category(token[1:2] or " ")[0] == "M"):
        return _escape_code(token[0]) + token[1:]
    units = [_unambiguous(token, i) if char in _AMBIGUOUS else char for i, char in enumerate(token)]
    # Escaping marks and controls must see the neighbours, so it comes after the spaces are replaced.
    text = visible_text("".join(units))
    return text if limit is None else _cut(text, limit)


def _unambiguous(token: str, i: int) -> str:
    """A character of `_AMBIGUOUS`, escaped where it would be overlooked or mistaken for another."""
    char, after = token[i], token[i + 1 : i + 2]
    if char == " ":
        return SPACE if not i or after in ("", " ") or token[i - 1] == " " else " "
    if char == SPACE:
        return _escape_code(char)
    return "\\\\" if after and (after in _ESCAPE_LETTERS or after == SPACE or _is_invisible(after)) else "\\"


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters of visible text; half an escape would read as other text."""
    return text if len(text) <= limit else _HALF_ESCAPE.sub("", text[: max(limit - 1, 0)]) + "\u2026"


def token_html(token: str, limit: int | None = 40) -> str:
    """One token as HTML: visible, escaped, isolated from its neighbours' writing direction.

    Longer than `limit` characters, it is cut and the whole of it is in the hover title.
    """
    shown, full = visible_token(token, limit), visible_token(token)
    return f"{_ISOLATED}{_title([full]) if shown != full else ''}>{escape(shown)}</span>"


def plain_number(value: AnyNumber) -> Number:
    """A NumPy or Python number as a plain Python number, whose repr is 1.5 and not np.float64(1.5)."""
    return value.item() if isinstance(value, np.integer | np.floating) else value


def format_number(value: AnyNumber) -> str:
    """Four significant digits; whole numbers in full."""
    value = plain_number(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}"


# Colours


@functools.lru_cache(maxsize=1024)
def _to_lab(color: str) -> tuple[float, float, float]:
    def linear(channel: int) -> float:
        c = channel / 255
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    def f(t: float) -> float:
        return t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116

    r, g, b = (linear(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    x = f((0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047)
    y = f(0.2126729 * r + 0.7151522 * g + 0.0721750 * b)
    z = f((0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _from_lab(lightness: float, a: float, b: float) -> str:
    def inverse(t: float) -> float:
        return t**3 if t**3 > 216 / 24389 else (116 * t - 16) * 27 / 24389

    def gamma(c: float) -> int:
        c = 12.92 * c if c <= 0.0031308 else 1.055 * max(c, 0.0) ** (1 / 2.4) - 0.055
        return round(255 * min(max(c, 0.0), 1.0))

    fy = (lightness + 16) / 116
    x, y, z = 0.95047 * inverse(fy + a / 500), inverse(fy), 1.08883 * inverse(fy - b / 200)
    rgb = (
        gamma(3.2404542 * x - 1.5371385 * y - 0.4985314 * z),
        gamma(-0.9692660 * x + 1.8760108 * y + 0.0415560 * z),
        gamma(0.0556434 * x - 0.2040259 * y + 1.0572252 * z),
    )
    return "#" + "".join(f"{c:02x}" for c in rgb)


def color_for(value: Number, bound: Number, ends: tuple[str, str] = (NEGATIVE, POSITIVE)) -> str:
    """Background colour ``#rrggbb`` of a value: -`bound` is orange, 0 white, `bound` blue.

    Values without a sign use the upper half alone. Mixed in CIELAB, as circuitsvis does it, so that equal
    steps look equal and one legend serves all. Values beyond the bound get the end's colour, NaN grey.
    """
    if math.isnan(value):
        return UNKNOWN
    share = min(abs(value) / bound, 1.0) if bound > 0 else float(value != 0)
    lab = _to_lab(ends[1] if value >= 0 else ends[0])
    return _from_lab(*(w + share * (c - w) for w, c in zip(_to_lab("#ffffff"), lab, strict=True)))


def text_color(background: str) -> str:
    """``#000000`` or ``#ffffff``, whichever has the higher contrast (at least 4.5:1) on `background`."""
    luminance = ((_to_lab(background)[0] + 16) / 116) ** 3
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def scale_bound(values: Iterable[Number | None]) -> float:
    """Return the largest finite absolute value, 1.0 if there is none: the ends of a symmetric scale."""
    return float(max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0)) or 1.0


def legend(label: str, bound: Number, *, signed: bool = False, ends: tuple[str, str] = (NEGATIVE, POSITIVE)) -> str:
    """Draw a colour bar from 0 (-`bound` if `signed`) to `bound`; `label` says quantity, unit and sign."""
    shares = [step / 4 for step in range(-4, 5)] if signed else [step / 8 for step in range(9)]
    boxes = "".join(
        f'<span style="display:inline-block;width:14px;height:12px;background-color:'
        f'{color_for(share * bound, bound, ends)}"></span>'
        for share in shares
    )
    low = f"\u2212{format_number(bound)}" if signed else "0"
    return (
        '<div style="font-size:12px;margin:4px 0;white-space:normal">'
        f'{escape(visible_text(label))}: <span style="white-space:nowrap">{low} '
        f'<span style="display:inline-block;border:1px solid #888888;height:12px;line-height:0;'
        f'vertical-align:middle">{boxes}</span> {format_number(bound)}</span></div>'
    )


# Tables


@dataclass(frozen=True)
class Cell:
    """One coloured table cell. Nothing in it is trusted; all of it is escaped and made visible."""

    text: str
    """The token (raw) in the cell."""
    sub: str | None = None
    """A second token (raw), below the first and smaller."""
    title: tuple[str, ...] = ()
    """Lines shown on hover, as plain text; pass tokens through `visible_token` when composing them."""
    value: Number | None = None
    """What the background shows; ``None`` for no colour."""
    marked: bool = False
    """Whether `text` is what to look for: it is bold and framed."""


TableCell = str | AnyNumber | Cell | None

_ISOLATED = '<span dir="auto"'
"""The start of what has its own writing direction, as ``bdi`` has."""
_BORDER = "border:1px solid #9a9a9a"
_TD = f"{_BORDER};padding:2px 6px;text-align:left;vertical-align:top;white-space:pre;font-size:12px"
_TD_LONG = _TD.replace("white-space:pre", "white-space:pre-wrap;min-width:11em")
_LONG = 20
"""From so many characters on a text wraps rather than push other columns out of view."""
MARK = ' style="font-weight:bold;outline:2px solid #c2185b;outline-offset:1px"'
# Opaque, so that scrolled cells do not shine through; dropped by the sanitizer together with "sticky". JupyterLab and
# VS Code have dark themes without telling the browser, so their own colours come before its.
_OPAQUE = (
    "z-index:1;background-color:var(--jp-layout-color0,var(--vscode-editor-background,var(--page,Canvas)));"
    "color:var(--jp-content-font-color1,var(--vscode-editor-foreground,CanvasText))"
)
_STICKY, _STICKY_RIGHT = (f"position:sticky;{side}:0;{_OPAQUE}" for side in ("left", "right"))


def _title(lines: Sequence[str]) -> str:
    text = "&#10;".join(escape(visible_text(line)) for line in lines)
    return f' title="{text}"' if text else ""


def _cell_html(cell: TableCell, bound: Number, limit: int, pinned: str = "") -> str:
    if isinstance(cell, Cell):
        tokens = [visible_token(each) for each in (cell.text, cell.sub) if each is not None]
        # The cut tokens' own titles would hide the cell's, so the full ones lead its lines.
        lines = [*(each for each in tokens if len(each) > limit), *cell.title]
        body = f"{_ISOLATED}{MARK if cell.marked else ''}>{escape(visible_token(cell.text, limit))}</span>"
        if cell.sub is not None:
            below = escape(visible_token(cell.sub, limit))
            body += f'<div dir="auto" style="font-size:10px;opacity:.8">{below}</div>'
        style = f"{_td(tokens, limit)};{MONO}{pinned}"
        if cell.value is not None:
            background = color_for(cell.value, bound, PALE)
            style += f";background-color:{background};color:{text_color(background)}"
        return f'<td style="{style}"{_title(lines)}>{body}</td>'
    if cell is None:
        return f'<td style="{_TD}{pinned}"></td>'
    if isinstance(cell, str):
        return f'<td style="{_td([cell], 3 * limit)}{pinned}"{_cut_text(cell, 3 * limit)}</td>'
    return f'<td style="{_TD};text-align:right{pinned}"{_title([repr(plain_number(cell))])}>{format_number(cell)}</td>'


def _td(texts: Sequence[str], limit: int) -> str:
    """The style of a cell of texts that are cut after `limit` characters."""
    return _TD_LONG if any(_LONG < min(len(text), limit) for text in texts) else _TD


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[TableCell]],
    *,
    row_names: Sequence[str] | None = None,
    caption: str = "",
    corner: str = "",
    bound: Number | None = None,
    limit: int = 18,
    marked: int | None = None,
    scrolls: bool = True,
) -> str:
    """Make a static table that scrolls sideways inside its own box and can be selected and copied.

    `columns` and `row_names` are plain text. Strings and numbers in `rows` are shown as they are, numbers
    with four digits and the exact value on hover; a `Cell` is coloured by its `value`, on a scale whose ends
    are +-`bound` (default: the largest absolute value in the table). Tokens longer than `limit` are cut, with
    the whole of them on hover. The column at `marked` stays in view where it would be off to
    the right, its name in a frame. One that does not scroll is for a box that does.
    """
    if any(len(row) != len(columns) for row in rows) or (row_names is not None and len(row_names) != len(rows)):
        raise ValueError(
            f"A table needs one cell per column in every row and one name per row: got {len(columns)} "
            f"columns, {len(rows)} rows of {sorted({len(row) for row in rows})} cells and "
            f"{'no' if row_names is None else len(row_names)} row names."
        )
    values = (cell.value for row in rows for cell in row if isinstance(cell, Cell))
    bound = scale_bound(values) if bound is None else bound
    th = f"{_TD};font-weight:bold"
    of_column = th.replace("white-space:pre", "white-space:pre-wrap")
    frame = f"outline:2px solid #c2185b;outline-offset:-2px;{_STICKY_RIGHT}"
    styles = (f"{of_column};{frame}" if i == marked else of_column for i in range(len(columns)))
    head = "".join(_header(name, "column", style, limit) for name, style in zip(columns, styles, strict=True))
    if row_names is not None:
        head = f'<td role="columnheader" style="{th};{_STICKY}">{escape(visible_text(corner))}</td>{head}'
    body = []
    for i, row in enumerate(rows):
        name = "" if row_names is None else _header(row_names[i], "row", f"{th};{_STICKY}", limit)
        cells = (
            _cell_html(cell, bound, limit, f";{_STICKY_RIGHT}" if j == marked else "") for j, cell in enumerate(row)
        )
        body.append(f"<tr>{name}{''.join(cells)}</tr>")
    above = f'<div style="font-size:12px;margin:4px 0">{escape(visible_text(caption))}</div>' if caption else ""
    box = "overflow-x:auto;max-width:100%;margin:4px 0" if scrolls else "margin:4px 0"
    return (
        f'{above}<div style="{box}">'
        f'<table style="border-collapse:collapse"><tr>{head}</tr>{"".join(body)}</table></div>'
    )


_HEADER = re.compile(r'<td role="(col|row)\w*header"([^<>]*)>(.*?)</td>', re.DOTALL)
_TABLE = re.compile(r"(<table[^<>]*>)(<tr>.*?</tr>)(.*?)(?=</table>)", re.DOTALL)


def with_headers(html: str) -> str:
    """HTML of this module with its tables' headers as a page has them: ``th``, and a ``thead`` that paper repeats."""
    html = _TABLE.sub(r"\1<thead>\2</thead><tbody>\3</tbody>", html)
    return _HEADER.sub(r'<th scope="\1"\2>\3</th>', html)


def frame_table(frame: "pandas.DataFrame", *, caption: str = "", limit: int = 18) -> str:
    """A frame without its index as a `table`."""
    return table(list(map(str, frame.columns)), frame.astype(object).values.tolist(), caption=caption, limit=limit)


def unbroken(escaped: str) -> str:
    """Escaped text, in whose arrows no line ends."""
    return escaped.replace(" -&gt; ", ' <span style="white-space:nowrap">-&gt;</span> ')


def _header(name: str, of: str, style: str, limit: int) -> str:
    return f'<td role="{of}header" style="{style}"{_cut_text(name, limit)}</td>'


def _cut_text(text: str, limit: int) -> str:
    """The end of an element's tag and its text, with all of the text on hover where it is cut."""
    full = visible_text(text)
    short = _cut(full, limit)
    return f"{_title([full]) if short != full else ''}>{_ISOLATED}>{unbroken(escape(short))}</span>"


def lens_table(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell]],
    *,
    value_label: str = "",
    caption: str = "",
    corner: str = "layer",
    signed: bool = False,
    bound: Number | None = None,
    marked: int | None = None,
) -> str:
    """Make a table of rows (layers, plain text) x columns (the prompt's tokens, raw), with a colour legend.

    `value_label` names what the colour shows, its unit and, if `signed`, which sign convention; `marked` is the column
    to look at.
    """
    bound = scale_bound(cell.value for row in cells for cell in row) if bound is None else bound
    names = list(map(visible_token, columns))
    shown = table(names, cells, row_names=rows, caption=caption, corner=corner, bound=bound, marked=marked)
    coloured = any(cell.value is not None for row in cells for cell in row)
    return (legend(value_label or "colour", bound, signed=signed, ends=PALE) if coloured else "") + shown


def token_strip(
    tokens: Sequence[str],
    values: Sequence[Number],
    *,
    value_label: str,
    signed: bool = False,
    bound: Number | None = None,
    with_legend: bool = True,
    details: Sequence[str] | None = None,
    marked: int | None = None,
    gaps: Sequence[bool] | None = None,
) -> str:
    """Show the tokens (raw) of one text, coloured by `values`, in lines that wrap; exact values on hover.

    `details`, one a token, are shown on hover instead of the value; the token at `marked` has a frame. `gaps` says
    before which tokens there is a space that none of them has.
    """
    if len(tokens) != len(values):
        raise ValueError(f"Need one value per token: got {len(tokens)} tokens and {len(values)} values.")
    if details is not None and len(details) != len(tokens):
        raise ValueError(f"Need one detail per token: got {len(tokens)} tokens and {len(details)} details.")
    bound = scale_bound(values) if bound is None else bound
    spans = []
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        background = color_for(value, bound, PALE)
        title = _title([visible_token(token), repr(float(value)) if details is None else details[i]])
        gap = " " if gaps is not None and gaps[i] else ""
        frame = "outline:2px solid #c2185b;outline-offset:-2px;font-weight:bold;" if i == marked else ""
        spans.append(
            f'{gap}{_ISOLATED} style="display:inline-block;max-width:100%;overflow-wrap:break-word;'
            f"white-space:pre-wrap;border:1px solid #c8c8c8;padding:2px 1px;margin:1px 0;{frame}"
            f'background-color:{background};color:{text_color(background)}"{title}>'
            f"{escape(visible_token(token, 200))}</span>"
        )
    strip = f'<div style="{MONO};font-size:13px;margin:4px 0;max-width:100%">{"".join(spans)}</div>'
    return (legend(value_label, bound, signed=signed, ends=PALE) if with_legend else "") + strip
