"""Edit cases: each an edit with the prompts that score it, built in Python or read from CounterFact, JSONL or CSV."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from tl_backward._support.checks import as_path, short
from tl_backward._support.public import public
from tl_backward.text.files import as_known, read_records, read_table
from tl_backward.text.subjects import occurrences

Value = TypeVar("Value")
Asked = tuple[tuple[str, str], ...]
"""(prompt, answer) pairs."""
FILES = (".json", ".jsonl", ".csv")
"""How the names of files of cases end."""


@public
@dataclass(frozen=True, repr=False)
class EditCase:
    """One edit and the prompts that score it, in CounterFact's terms (Meng et al. 2022, sec. 3.4).

    Answers are the text that follows the prompt, usually with its leading space.
    """

    prompt: str
    target: str
    """The new answer, o*."""
    answer: str = ""
    """The true answer before the edit, o_c; "" for whatever the model says."""
    subject: str | None = None
    """The subject's text within the prompt."""
    paraphrases: tuple[str, ...] = ()
    """The same question in other words: the answer should be the target."""
    neighbours: Asked = ()
    """Other subjects with the same true answer: it should stay."""
    relations: Asked = ()
    """The same subject asked other things: the answers should stay."""
    portability: Asked = ()
    """What should follow from the edit (the country of the new city), with its new answer."""
    generation: tuple[str, ...] = ()
    """Openings to continue freely, for fluency; empty for the prompt itself."""

    def __post_init__(self) -> None:
        """Refuse an edit without a prompt, a target, or anything to change."""
        for name in ("prompt", "target", "answer"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"Expected {name} of an edit case as text, got {short(value)}; write it out.")
        if self.subject is not None and not isinstance(self.subject, str):
            raise TypeError(f"Expected subject of an edit case as text, got {short(self.subject)}; write it out.")
        for name, read in _COLUMNS.items():
            given = getattr(self, name)
            column = None if isinstance(given, str) or not isinstance(given, Iterable) else read(tuple(given))
            if column is None:
                what = "texts" if read is _as_texts else "(prompt, answer) pairs"
                raise TypeError(
                    f"Expected {name} of an edit case as a list of {what}, got {short(given)}; one is a list of one."
                )
            object.__setattr__(self, name, column)
        if not self.prompt or not self.target:
            raise ValueError(
                f"Expected an edit case with a prompt and a target, got {self.prompt!r} and {self.target!r}; give both."
            )
        if self.target == self.answer:
            raise ValueError(
                f"Expected a target other than the true answer, got {self.target!r} for both; there is nothing to edit."
            )
        if self.subject is not None and not occurrences(self.prompt, [self.subject])[0]:
            raise ValueError(f"Expected the subject within the prompt, got {self.subject!r} for {self.prompt!r}.")

    def __repr__(self) -> str:
        asked = ("paraphrases", "neighbours", "relations", "portability")
        counts = "".join(f", {len(getattr(self, name))} {name}" for name in asked if getattr(self, name))
        return f"EditCase({self.prompt!r}: {self.answer or '?'!r} -> {self.target!r}{counts})"


@public
def load_cases(path: str | Path) -> list[EditCase]:
    """Read edit cases from a file.

    `.json`: CounterFact's list of records (`requested_rewrite`, `paraphrase_prompts`, `neighborhood_prompts`, optional
    `generation_prompts`); its answers get the leading space they are meant to have. `.jsonl`: one record a line,
    CounterFact's or an object with the fields of `EditCase`. `.csv`: a header with `prompt` and `target`, optionally
    `answer` and `subject`; columns and fields are taken in any case ("Prompt").

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty or malformed file; the message names the record (or line) and the field.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("cases.jsonl").write_text('{"prompt": "Anna Berg lives in the city of", "target": " Oslo"}')
        >>> tlb.load_cases("cases.jsonl")
        [EditCase('Anna Berg lives in the city of': '?' -> ' Oslo')]
    """
    path = as_path(path)
    if path.suffix.lower() not in FILES:
        raise ValueError(f"Expected a file of edit cases as {', '.join(FILES)}, got {path.name!r}; convert it first.")
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of edit cases, got {str(path)!r}; there is no such file.")
    records = read_table(path, ("prompt", "target")) if path.suffix.lower() == ".csv" else read_records(path)
    cases = [case_of(record, where) for where, record in records]
    if not cases:
        raise ValueError(f"Expected at least one edit case in {path.name!r}, got none; the file is empty.")
    return cases


def case_of(record: object, where: str) -> EditCase:
    """An edit case from one record, CounterFact's or one with the fields of `EditCase`.

    Raises:
        ValueError: a field is missing, unknown or of another type; `where` names the record.
    """
    if not isinstance(record, dict):
        raise ValueError(f"Expected an object in {where}, got {type(record).__name__}; one record is one edit.")
    fields = _counterfact(record, where) if "requested_rewrite" in record else _plain(record, where)
    try:
        return EditCase(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _counterfact(record: dict, where: str) -> dict[str, Any]:
    rewrite = record["requested_rewrite"]
    template, subject = (_field(rewrite, f"requested_rewrite.{name}", _text, where) for name in ("prompt", "subject"))
    if "{}" not in template:
        raise ValueError(
            f"Expected requested_rewrite.prompt with {{}} for the subject in {where}, got {template!r}; CounterFact's "
            "prompts are templates."
        )
    new, true = (
        _spaced(_field(_field(rewrite, f"requested_rewrite.{name}", _object, where), f"{name}.str", _text, where))
        for name in ("target_new", "target_true")
    )
    paraphrases, neighbours, openings = (
        _field(record, name, _texts, where, default=())
        for name in ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
    )
    return {
        "prompt": template.replace("{}", subject, 1),
        "target": new,
        "answer": true,
        "subject": subject,
        "paraphrases": paraphrases,
        "neighbours": tuple((prompt, true) for prompt in neighbours),
        "generation": openings,
    }


def _plain(record: dict, where: str) -> dict[str, Any]:
    record = as_known(record, _READERS)
    unknown = [name for name in record if name not in _READERS]
    if unknown:
        raise ValueError(f"Expected only {', '.join(_READERS)} in {where}, got {unknown[0]!r} too; rename or drop it.")
    return {
        name: _field(record, name, read, where)
        for name, read in _READERS.items()
        if name in record or name in ("prompt", "target")
    }


def _field(
    record: object, name: str, read: Callable[[object], Value], where: str, default: Value | None = None
) -> Value:
    """Parse one field of a record; the last part of a dotted `name` is its key."""
    key = name.rpartition(".")[2]
    if not isinstance(record, dict) or key not in record:
        if default is not None:
            return default
        raise ValueError(f"Expected the field {name} in {where}, got a record without it; add it.")
    try:
        return read(record[key])
    except TypeError as error:
        raise ValueError(f"Expected {error} for {name} in {where}, got {record[key]!r}; mend the record.") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("some text")
    return value


def _object(value: object) -> dict:
    if not isinstance(value, dict):
        raise TypeError("an object")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError("a list of texts")
    return tuple(_text(item) for item in value)


def _pairs(value: object) -> Asked:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError("a list of [prompt, answer] pairs")
    pairs = [_texts(item) for item in value]
    if any(len(pair) != 2 for pair in pairs):
        raise TypeError("a list of [prompt, answer] pairs")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _spaced(text: str) -> str:
    return text if text[0].isspace() else f" {text}"


def _as_texts(items: tuple) -> tuple[str, ...] | None:
    return items if all(isinstance(item, str) for item in items) else None


def _as_pairs(items: tuple) -> Asked | None:
    pairs = [None if isinstance(item, str) or not isinstance(item, Iterable) else tuple(item) for item in items]
    fit = all(pair is not None and len(pair) == 2 and _as_texts(pair) for pair in pairs)
    return cast(Asked, tuple(pairs)) if fit else None


_COLUMNS: dict[str, Callable[[tuple], tuple | None]] = {
    "paraphrases": _as_texts,
    "neighbours": _as_pairs,
    "relations": _as_pairs,
    "portability": _as_pairs,
    "generation": _as_texts,
}
"""What a case holds several of: as it is kept, None where it is something else."""

_READERS: dict[str, Callable[[object], object]] = {
    "prompt": _text,
    "target": _text,
    "answer": _text,
    "subject": _text,
    "paraphrases": _texts,
    "neighbours": _pairs,
    "relations": _pairs,
    "portability": _pairs,
    "generation": _texts,
}
"""How each field of an edit case is read."""
