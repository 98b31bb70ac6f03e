"""A static table that a script, where scripts run, lets one filter by what its rows say."""

from collections.abc import Sequence

from tl_backward._support import html
from tl_backward._support.html import TableCell
from tl_backward.render.page import Fragment
from tl_backward.render.scripts import place, place_key

# Only text nodes are made, from texts that the page already shows.
_FILTER = """(function (key) {
  document.querySelectorAll('[data-tlb="' + key + '"]').forEach(function (place) {
    if (place.dataset.tlbReady) { return; }
    place.dataset.tlbReady = "1";
    var rows = Array.from(place.querySelectorAll("tbody tr"));
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

    Example:
        >>> 'Oslo' in tlb.render.filter_table(['word', 'share'], [['Oslo', 0.5]]).html
        True
    """
    table = html.table(columns, rows, row_names=row_names, caption=caption, corner=corner)
    key = place_key("filter", table)
    box = f'<div style="max-height:{height}px;overflow:auto;max-width:100%">{table}</div>'
    return Fragment(place(key, box, "max-width:100%"), (f'{_FILTER}("{key}");',))
