"""Texts from the files that commands are given."""

import json
from pathlib import Path


def read_text(path: Path) -> str:
    """A file of UTF-8 as text with the line ends that it has, without the byte-order mark that some programs put first.

    Raises:
        UnicodeDecodeError: other bytes.
    """
    return path.read_bytes().decode("utf-8-sig")


def lines_of(content: str) -> list[str]:
    """A text's lines by their ends on Unix, Windows and old Macs alone: JSON may hold other separators in its texts."""
    return content.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_data(path: Path, text_key: str) -> list[str]:
    """The texts of a file: a line each (.txt, empty ones left out), a JSON list, or a JSON value a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, no JSON, no texts in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of texts, got {str(path)!r}, which is not there; give --data one.")
    if path.suffix not in (".txt", ".json", ".jsonl"):
        raise ValueError(f"Expected --data to end in .txt, .json or .jsonl, got {path.name!r}; convert it to one.")
    try:
        content = read_text(path)
        kept = [line for line in lines_of(content) if line.strip()]
        items = kept if path.suffix == ".txt" else json.loads(content) if path.suffix == ".json" else None
        items = [json.loads(line) for line in kept] if items is None else items
    except ValueError as error:  # of JSON and of UTF-8
        raise ValueError(f"Expected {path.suffix} in UTF-8 in {str(path)!r}, got something else: {error}.") from error
    if not isinstance(items, list) or not items:
        got = "no list" if items else "nothing"
        raise ValueError(f"Expected a list of texts in {str(path)!r}, got {got}; put texts in it.")
    texts = [item.get(text_key) if isinstance(item, dict) else item for item in items]
    bad = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
    if bad is not None:
        raise ValueError(
            f"Expected texts, or objects with {text_key!r}, in {str(path)!r}, got {type(items[bad]).__name__} as item "
            f"{bad}; name another --text-key or mend it."
        )
    return [text for text in texts if isinstance(text, str)]
