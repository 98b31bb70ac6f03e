"""Tables of edit cases and texts: a pandas DataFrame, a `datasets` split, rows as dictionaries, or a file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import numpy as np

from tl_backward._support.hints import say_as, show_as
from tl_backward.text.cases import FILES, EditCase, case_of, load_cases
from tl_backward.text.files import TEXT_COLUMNS, as_known

Item = TypeVar("Item")


@runtime_checkable
class Frame(Protocol):
    """The part of a pandas DataFrame that is used here."""

    @property
    def columns(self) -> Iterable:
        """Their names."""
        ...

    def to_dict(self, orient: str) -> list[dict]:
        """The rows, for orient="records"."""
        ...


Cases: TypeAlias = Iterable[EditCase] | Iterable[Mapping[str, object]] | Frame | str | Path
"""Edit cases; a DataFrame, a `datasets` split or rows as dictionaries, with the fields of `EditCase` as columns; or the
path of a file for `load_cases`."""
say_as(Cases, "list or table of edit cases | path of a file of them")
show_as(Cases, "Cases")


def cases_of(cases: Cases) -> Sequence[EditCase]:
    """Edit cases from whatever holds them; empty cells of a table are left out.

    Raises:
        ValueError: a row without a prompt or target, or with another column; no such file.
        TypeError: something else.

    Examples:
        >>> from tl_backward.text.tables import cases_of
        >>> cases_of([{"prompt": "Anna Berg lives in the city of", "target": " Oslo", "answer": None}])
        [EditCase('Anna Berg lives in the city of': '?' -> ' Oslo')]
    """
    if is_file(cases):
        return load_cases(cast("str | Path", cases))
    rows = rows_of(cases)
    if rows is None:
        items = None if isinstance(cases, str | Mapping) or not isinstance(cases, Iterable) else list(cases)
        if items is None or not all(isinstance(item, EditCase) for item in items):
            got = type(cases).__name__ if not items else f"one with {type(next(_others(items))).__name__}"
            raise TypeError(
                f"Expected edit cases as a list, a table with the columns prompt and target, or a path, got {got}; see "
                "tlb.EditCase and tlb.load_cases."
            )
        return cast(list[EditCase], items)
    return [case_of(_filled(row), f"row {index} of the table") for index, row in enumerate(rows)]


def is_file(value: object) -> bool:
    """Whether a value is meant as a file of cases: a Path, or a text that ends as one does."""
    return isinstance(value, Path) or (
        isinstance(value, str) and Path(value).suffix.lower() in FILES and "\n" not in value
    )


def rows_of(value: object) -> Sequence[Mapping[str, object]] | None:
    """The rows of a table; None where a value is none."""
    if isinstance(value, Frame):
        return value.to_dict("records")
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence | _Split):
        return None
    rows = list(cast(Iterable, value)) if isinstance(value, _Split) or isinstance(_first(value), Mapping) else []
    return rows if rows and all(isinstance(row, Mapping) for row in rows) else None


def texts_of(value: Item, column: str | None = None) -> Item | list[str]:
    """The texts of a table; what is no table as it is.

    Raises:
        ValueError: a table without the column, or without any of text and prompt.
        TypeError: a row without a text.
    """
    rows = rows_of(value)
    if rows is None:
        return value
    wanted = TEXT_COLUMNS if column is None else (column,)
    columns, rows = [*rows[0]] if rows else "no rows", [as_known(row, wanted) for row in rows]
    name = next((each for each in wanted if any(each in row for row in rows)), None)
    if name is None:
        raise ValueError(
            f"Expected a table with the column {' or '.join(wanted)}, got {columns}; rename "
            "one, or give its texts as a list."
        )
    texts = [row.get(name) for row in rows]
    bad = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
    if bad is not None:
        raise TypeError(f"Expected a text in {name} of row {bad}, got {texts[bad]!r:.60}; leave the row out.")
    return cast(list[str], texts)


@runtime_checkable
class _Split(Protocol):
    """The part of a `datasets` split that tells it from other iterables."""

    column_names: list[str]

    def __getitem__(self, index: int, /) -> object: ...
    def __len__(self) -> int: ...


def _first(value: Sequence) -> object:
    return value[0] if len(value) else None


def _others(items: Iterable[object]) -> Iterator[object]:
    return (item for item in items if not isinstance(item, EditCase))


def _filled(row: Mapping[str, object]) -> dict[str, object]:
    """A row without its empty cells: None, NaN, pandas.NA and ""."""
    empty = ("NoneType", "NAType", "NaTType")
    return {
        str(name): value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in row.items()
        if type(value).__name__ not in empty and not (isinstance(value, float) and value != value) and str(value)
    }
