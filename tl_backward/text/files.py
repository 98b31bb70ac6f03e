"""Reading texts and records from files (.txt, .json, .jsonl, .csv)."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

TEXT_COLUMNS = ("text", "prompt")
"""Where a table has its texts, unless told otherwise."""


def as_known(record: Mapping[str, object], known: Iterable[str]) -> dict[str, object]:
    """A record with those of its names that are known ones in another case, or with spaces around, as they are known.

    Examples:
        >>> from tl_backward.text.files import as_known
        >>> as_known({"Prompt": "a", " TARGET": "b", "Other": 3}, ["prompt", "target"])
        {'prompt': 'a', 'target': 'b', 'Other': 3}
    """
    usual = {name.lower(): name for name in known if name not in record}
    return {usual.pop(str(name).strip().lower(), str(name)): value for name, value in record.items()}


def read_text(path: Path) -> str:
    """A file of UTF-8 as text with the line ends that it has, without the byte-order mark that some programs put first.

    Raises:
        ValueError: other bytes.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected UTF-8 text in {path.name!r}, got other bytes ({error}); save it anew.") from error


def lines_of(content: str) -> list[str]:
    """A text's lines by their ends on Unix, Windows and old Macs alone: JSON may hold other separators in its texts."""
    return content.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_records(path: Path) -> Iterator[tuple[str, object]]:
    """The values of a JSON list, or of a file with a value a line (.jsonl), each with where it stands, for messages.

    Raises:
        ValueError: no UTF-8, no JSON or no list; the message names the line.
    """
    content = read_text(path)
    if path.suffix.lower() == ".jsonl":
        lines = [(f"{path.name!r}, line {n}", line) for n, line in enumerate(lines_of(content), 1) if line.strip()]
        yield from ((where, _parsed(line, where)) for where, line in lines)
        return
    records = _parsed(content, path.name) if content.strip() else []
    if not isinstance(records, list):
        raise ValueError(f"Expected {path.name!r} to hold a list of records, got {type(records).__name__}.")
    yield from ((f"{path.name!r}, record {index}", record) for index, record in enumerate(records))


def read_table(path: Path, required: Sequence[str]) -> Iterator[tuple[str, object]]:
    """The rows of a table (.csv) without empty cells, each with where it stands, for messages.

    Raises:
        ValueError: no UTF-8, no CSV, or a header without one of the columns `required`.
    """
    with io.StringIO(read_text(path), newline="") as file:
        reader = _CheckedRows(file, path.name)
        missing = set(required) - as_known(dict.fromkeys(reader.fieldnames or ()), required).keys()
        if reader.fieldnames and missing:
            raise ValueError(
                f"Expected the columns {' and '.join(required)} in {path.name!r}, line 1, got {reader.fieldnames}; add "
                f"{', '.join(sorted(missing))}."
            )
        for row in reader:
            filled = {key: value for key, value in row.items() if value}
            yield f"{path.name!r}, line {reader.line_num}", as_known(filled, required)


class _CheckedRows(csv.DictReader):
    """CSV rows, refused where a quote does not end or a row has more cells than there are columns."""

    def __init__(self, file: io.StringIO, name: str) -> None:
        super().__init__(file, strict=True)
        self._name = name

    def __next__(self) -> dict:
        try:
            row = super().__next__()
        except csv.Error as error:
            raise ValueError(
                f"Expected CSV in {self._name!r}, line {self.line_num}, got {error}; look for a quote that never ends."
            ) from error
        if None in row:
            raise ValueError(
                f"Expected at most {len(self.fieldnames or ())} cells in {self._name!r}, line {self.line_num}, got "
                f"{len(row) - 1 + len(row[None])}; put text with a comma in quotes."
            )
        return row


def read_data(path: Path, text_key: str) -> list[str]:
    """The texts of a file: a line each (.txt, empty ones left out), a JSON list, a JSON value a line, or a .csv.

    Of objects and of a table's rows what stands under `text_key`; of a table without the usual one, their prompts.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, no JSON, no texts in it, a table without the column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of texts, got {str(path)!r}, which is not there; give --data one.")
    kind = path.suffix.lower()
    if kind not in (".txt", ".json", ".jsonl", ".csv"):
        raise ValueError(
            f"Expected --data to end in .txt, .json, .jsonl or .csv, got {path.name!r}; convert it to one."
        )
    if kind == ".txt":
        items = [line for line in lines_of(read_text(path)) if line.strip()]
    else:
        items = [record for _, record in (read_table(path, ()) if kind == ".csv" else read_records(path))]
    items = [as_known(item, (text_key, *TEXT_COLUMNS)) if isinstance(item, dict) else item for item in items]
    if kind == ".csv" and not any(isinstance(item, dict) and text_key in item for item in items):
        columns = list(dict.fromkeys(name for item in items if isinstance(item, dict) for name in item))
        wanted = TEXT_COLUMNS if text_key == TEXT_COLUMNS[0] else (text_key,)
        if columns and wanted[-1] not in columns:
            raise ValueError(
                f"Expected the column {' or '.join(map(repr, wanted))} in {path.name!r}, got {columns}; name one with "
                "--text-key."
            )
        text_key = TEXT_COLUMNS[1]
    if not items:
        raise ValueError(f"Expected a list of texts in {str(path)!r}, got nothing; put texts in it.")
    texts = [item.get(text_key) if isinstance(item, dict) else item for item in items]
    bad = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
    if bad is not None:
        raise ValueError(
            f"Expected texts, or objects with {text_key!r}, in {str(path)!r}, got {type(items[bad]).__name__} as item "
            f"{bad}; name another --text-key or mend it."
        )
    return [text for text in texts if isinstance(text, str)]


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"Expected JSON in {where}, got {error.msg} (line {error.lineno}); mend the file.") from error
