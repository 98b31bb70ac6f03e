"""Tables as page fragments: a lens's, plain ones, ones whose rows can be filtered, and the data behind a figure.

The HTML of a table is made in `tl_backward._support.html`; only the filter needs a script.
"""

import base64
from collections.abc import Sequence

from tl_backward._support import html
from tl_backward._support.csv import Value, csv_text, frame_cells
from tl_backward._support.html import Cell, Number, TableCell, escape
from tl_backward._support.public import public
from tl_backward._support.types import DataFrame, Series
from tl_backward.render.page import Fragment
from tl_backward.render.scripts import place, place_key

_MOST_ROWS = 200  # that a data block shows

# Only text nodes are made, from texts that the page already shows.
_FILTER = """(function (key) {
  document.querySelectorAll('[data-tlb="' + key + '"]').forEach(function (place) {
    if (place.dataset.tlbReady) { return; }
    place.dataset.tlbReady = "1";
    var rows = Array.from(place.querySelectorAll("tr")).filter(function (row) {
      return !row.querySelector('th[scope="col"], [role="columnheader"]');
    });
    var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
    var box = document.createElement("input"), count = document.createElement("span");
    box.type = "search";
    box.placeholder = "filter rows by words";
    box.setAttribute("aria-label", "filter rows by words");
    box.style.cssText = "font:inherit;font-size:13px;padding:2px 6px;margin:4px 8px 4px 0;width:22em;max-width:90%";
    count.style.fontSize = "12px";
    function apply() {
      var words = box.value.toLowerCase().split(" ").filter(Boolean), shown = 0;
      rows.forEach(function (row, i) {
        var fits = words.every(function (word) { return texts[i].indexOf(word) >= 0; });
        row.style.display = fits ? "" : "none";
        shown += fits ? 1 : 0;
      });
      count.textContent = shown + " of " + rows.length + " rows";
    }
    box.addEventListener("input", apply);
    place.insertBefore(count, place.firstChild);
    place.insertBefore(box, place.firstChild);
    apply();
  });
})"""


@public
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
) -> Fragment:
    """Make a table of rows (layers, plain text) x columns (the prompt's tokens, raw), with a colour legend.

    `value_label` names what the colour shows, its unit and, if `signed`, the sign convention. Colours end at
    +-`bound`, by default the largest absolute value. The table scrolls sideways, row names staying in view.

    Examples:
        >>> cells = [[tlb.render.Cell(' Oslo', value=1.0)]]
        >>> 'Oslo' in tlb.render.lens_table(['layer 0'], [' of'], cells).html
        True
    """
    return Fragment(
        html.lens_table(
            rows,
            columns,
            cells,
            value_label=value_label,
            caption=caption,
            corner=corner,
            signed=signed,
            bound=bound,
        )
    )


@public
def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[TableCell]],
    *,
    row_names: Sequence[str] | None = None,
    caption: str = "",
) -> Fragment:
    """Make a table of plain text, numbers (four digits, the exact value on hover) and coloured `Cell`s.

    Examples:
        >>> '0.5' in tlb.render.table(['word', 'share'], [['Oslo', 0.5]]).html
        True
    """
    return Fragment(html.table(columns, rows, row_names=row_names, caption=caption))


@public
def filter_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[TableCell]],
    *,
    row_names: Sequence[str] | None = None,
    caption: str = "",
    corner: str = "",
    height: int = 560,
) -> Fragment:
    """Make a table with a box above it that keeps the rows with all of the words typed in.

    The rows are static, escaped HTML and all there without a script. Cells as in `table`; the table scrolls within
    `height` pixels.

    Examples:
        >>> 'Oslo' in tlb.render.filter_table(['word', 'share'], [['Oslo', 0.5]]).html
        True
    """
    table = html.table(columns, rows, row_names=row_names, caption=caption, corner=corner, scrolls=False)
    key = place_key("filter", table)
    box = f'<div style="max-height:{height}px;overflow:auto;max-width:100%">{table}</div>'
    return Fragment(place(key, box, "max-width:100%"), (f'{_FILTER}("{key}");',))


@public
def data_block(columns: Sequence[str], rows: Sequence[Sequence[Value]], *, filename: str) -> Fragment:
    """Make a closed "Data" box, to put under a figure: a CSV of all `rows`, a table of the first 200.

    Examples:
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
        f"{html.table(columns, rows[:_MOST_ROWS])}</details>"
    )


def frame_block(frame: "DataFrame | Series", filename: str) -> Fragment:
    """A frame without its index as a `data_block`, NaN as nothing."""
    return data_block(*frame_cells(frame), filename=filename)
