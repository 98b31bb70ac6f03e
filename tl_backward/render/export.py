"""The numbers behind a figure: a CSV download and a table, without a script."""

import base64
from collections.abc import Sequence

from tl_backward._support.csv import Value, csv_text
from tl_backward._support.html import escape, table
from tl_backward.render.page import Fragment

_MOST_ROWS = 200


def data_block(columns: Sequence[str], rows: Sequence[Sequence[Value]], *, filename: str) -> Fragment:
    """Make a closed "Data" box, to put under a figure: a CSV of all `rows`, a table of the first 200.

    Example:
        >>> 'n.csv' in tlb.render.data_block(['n'], [[1]], filename='n.csv').html
        True
    """
    data = base64.b64encode(csv_text(columns, rows).encode("utf-8")).decode("ascii")
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in filename)
    more = f" (first {_MOST_ROWS} of {len(rows)} rows shown)" if len(rows) > _MOST_ROWS else ""
    href = f"data:text/csv;charset=utf-8;base64,{data}"
    return Fragment(
        '<details style="font-size:12px;margin:4px 0"><summary style="cursor:pointer">Data</summary>'
        f'<div style="margin:4px 0"><a download="{escape(name)}" href="{href}">Download CSV</a>{more}</div>'
        f"{table(columns, rows[:_MOST_ROWS])}</details>"
    )
