"""The numbers behind a figure: a CSV download and a table, without a script."""

import base64
import csv
import io
from collections.abc import Sequence

from tl_backward._html import Number, escape, table, visible_text
from tl_backward.render.page import Fragment

_FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_MOST_ROWS = 200

Value = str | Number | None


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    """CSV in which no cell can become a formula and none breaks a reader.

    Text that starts (after spaces) with ``= + - @`` gets a leading apostrophe, which spreadsheets take as
    "this is text"; controls, invisible characters and lone surrogates are written as escapes. Numbers stay
    numbers.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    for row in (columns, *rows):
        writer.writerow([_csv_cell(value) for value in row])
    return out.getvalue()


def _csv_cell(value: Value) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    text = visible_text(value)
    return "'" + text if text.lstrip().startswith(_FORMULA_STARTS) else text


def data_block(columns: Sequence[str], rows: Sequence[Sequence[Value]], *, filename: str) -> Fragment:
    """Make a closed "Data" box, to put under a figure: a CSV of all `rows`, a table of the first 200."""
    data = base64.b64encode(csv_text(columns, rows).encode("utf-8")).decode("ascii")
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in filename)
    more = f" (first {_MOST_ROWS} of {len(rows)} rows shown)" if len(rows) > _MOST_ROWS else ""
    href = f"data:text/csv;charset=utf-8;base64,{data}"
    return Fragment(
        '<details style="font-size:12px;margin:4px 0"><summary style="cursor:pointer">Data</summary>'
        f'<div style="margin:4px 0"><a download="{escape(name)}" href="{href}">Download CSV</a>{more}</div>'
        f"{table(columns, rows[:_MOST_ROWS])}</details>"
    )
