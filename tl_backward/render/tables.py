"""Static tables as page fragments; the HTML itself is made in `tl_backward._support.html`."""

from collections.abc import Sequence

from tl_backward._support import html
from tl_backward._support.html import Cell, Number, TableCell
from tl_backward.render.page import Fragment


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

    Example:
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


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[TableCell]],
    *,
    row_names: Sequence[str] | None = None,
    caption: str = "",
) -> Fragment:
    """Make a table of plain text, numbers (four digits, the exact value on hover) and coloured `Cell`s.

    Example:
        >>> '0.5' in tlb.render.table(['word', 'share'], [['Oslo', 0.5]]).html
        True
    """
    return Fragment(html.table(columns, rows, row_names=row_names, caption=caption))
