"""Results for other programs: CSV in which no cell is a formula and none breaks a reader, and numbers that JSON has."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_backward._support.html import AnyNumber, plain_number, visible_text
from tl_backward._support.public import public
from tl_backward._support.storage import replacing
from tl_backward._support.types import DataFrame, Series

_FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

Value = str | AnyNumber | None


@public
def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    r"""CSV in which no cell can become a formula and none breaks a reader.

    Text that starts (after spaces) with ``= + - @`` gets a leading apostrophe, which spreadsheets take as
    "this is text"; controls, invisible characters and lone surrogates are written as escapes. Numbers stay
    numbers.

    Examples:
        >>> tlb.render.csv_text(['word', 'n'], [['=1+1', -2]])
        "word,n\r\n'=1+1,-2\r\n"
    """
    return csv_lines([columns, *rows])


def csv_lines(rows: Iterable[Sequence[Value]]) -> str:
    """Rows of `csv_text`, to append to a file."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(map(_csv_cell, row) for row in rows)
    return out.getvalue()


def save_csv(frame: DataFrame, path: Path) -> Path:
    """Write a frame without its index as `csv_text`, NaN as nothing and lists as JSON; atomically."""
    columns, cells = frame_cells(frame)
    rows = [[_as_json(cell) if isinstance(cell, list | tuple) else cell for cell in row] for row in cells]
    with replacing(path) as partial:
        partial.write_text(csv_text(columns, rows), encoding="utf-8", newline="")
    return path


def frame_cells(frame: "DataFrame | Series") -> tuple[list[str], list[list[Any]]]:
    """A frame's columns and rows without its index, NaN as None."""
    return list(map(str, frame.columns)), filled(frame).values.tolist()


def filled(frame: Any) -> DataFrame:  # some rows of a frame are a Series too, to pandas' own types
    """The frame with Python objects as values and None for NaN."""
    return frame.astype(object).where(frame.notna(), None)


def finite(value: object) -> Any:
    """Values with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_json(values: Sequence[object]) -> str:
    words = [visible_text(value) if isinstance(value, str) else value for value in values]
    return json.dumps(words, ensure_ascii=False)


def _csv_cell(value: Value) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(plain_number(value))
    text = visible_text(value)
    return "'" + text if text.lstrip().startswith(_FORMULA_STARTS) else text
