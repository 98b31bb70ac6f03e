"""Token spans of subjects in prompts, matched by characters, whole words first."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence, Set, Sized
from typing import SupportsIndex, TypeAlias, cast

from tl_backward._support.checks import is_integer, short
from tl_backward._support.hints import say_as, show_as
from tl_backward._support.types import Tokenizer
from tl_backward._support.warnings import warn_user
from tl_backward.text.extents import Extent, decoded_extents, extents_in_text, plain

Span: TypeAlias = str | Collection[SupportsIndex] | None
"""A subject's text, or its (start, end) as a tuple, a list or an array, or as range(start, end)."""
Subject: TypeAlias = Span | Collection[Span]
say_as(Span, "text | (start, end) tokens | None")
show_as(Span, "Span")
say_as(Subject, "text | (start, end) tokens | None | list of these")
show_as(Subject, "Subject")


class SubjectWarning(UserWarning):
    """A subject occurs in its prompt more than once, or only within a longer word."""


_NO_SUBJECT = (
    "Expected a subject as text that occurs in the prompt, or as (start, end) among its tokens, got {}; for example "
    "subject='Anna Berg'."
)


def subject_spans(
    tokenizer: Tokenizer | None,
    rows: Sequence[Sequence[int]],
    texts: Sequence[str] | None,
    subject: Subject,
    *,
    where: str = "the prompt",
) -> list[tuple[int, int] | None]:
    """Each prompt's subject as its (start, end) tokens, end excluded, BOS counted.

    Args:
        tokenizer: the model's.
        rows: each prompt's real token ids.
        texts: the prompts as they came; None where they came as ids.
        subject: text or span, one for all prompts or one each (in a list, an array or a table's column); None for none.
        where: what the rows are, in words.

    Raises:
        ValueError: see `find_span`; as many subjects as no prompts.
    """
    subjects = _one_each(subject, len(rows))
    sources: Sequence[str | None] = [None] * len(rows) if texts is None else texts
    return [
        None if each is None else find_span(tokenizer, ids, each, text, where=where)
        for ids, each, text in zip(rows, subjects, sources, strict=True)
    ]


def find_span(
    tokenizer: Tokenizer | None,
    ids: Sequence[int],
    subject: str | Collection[SupportsIndex],
    text: str | None = None,
    *,
    where: str = "the prompt",
) -> tuple[int, int]:
    """The (start, end) tokens that share a character with the subject, or a span checked against the prompt.

    Looked for in the prompt's own text by the tokenizer's offsets ("paris" where it reads "Paris" so too), else (ids
    alone) in what the ids decode to. An occurrence that is a word, or several, is preferred to one within a word; of
    several the first is taken, with a `SubjectWarning`.

    Args:
        tokenizer: the model's; a span needs none.
        ids: the prompt's real tokens.
        subject: text, its white space being any; or a span.
        text: the prompt, where it came as text.
        where: what the ids are, in words.

    Raises:
        ValueError: the subject is not in the prompt, or a span outside it; text without a tokenizer.
    """
    if not isinstance(subject, str):
        return _checked(subject, len(ids))
    if tokenizer is None:
        raise ValueError(
            f"Expected a model with a tokenizer, to find the subject {subject!r}, got one without; give its (start, "
            "end) among the prompt's tokens."
        )
    extents = None if text is None else extents_in_text(tokenizer, ids, text)
    if text is not None and extents is not None:
        places, whole = _in_text(tokenizer, text, subject)
    elif text is not None and not occurrences(plain(text), [plain(subject)])[0]:
        places, whole, extents = [], False, []
    else:
        decoded, extents = decoded_extents(tokenizer, ids)
        places, whole = occurrences(decoded, [subject, _as_read(tokenizer, subject)])
    spans = _tokens_of(places, extents)
    if not spans:
        reads = tokenizer.decode(list(ids)) if text is None else text
        raise ValueError(f"Expected the subject to occur in {where}, got {subject!r}; there it reads {reads!r}.")
    if len(spans) > 1:
        _warn(f"stands {len(spans)} times in the prompt, at tokens {spans}; the first is taken", ids, subject)
    elif not whole:
        _warn(f"stands in the prompt only within a longer word, at tokens {spans[0]}", ids, subject)
    return spans[0]


def occurrences(text: str, forms: Iterable[str]) -> tuple[list[Extent], bool]:
    """Occurrences of the first spelling that occurs in a text, and whether they are whole words.

    Where it stands as whole words anywhere, those places alone.
    """
    for form in dict.fromkeys(unicodedata.normalize(how, form) for form in forms for how in ("NFC", "NFD")):
        pattern = r"\s+".join(map(re.escape, form.split()))
        if not pattern:
            continue
        places = [match.span(1) for match in re.finditer(f"(?=({pattern}))", text)]
        whole = [(start, end) for start, end in places if not _joined(text, start) and not _joined(text, end)]
        if whole or places:
            return whole or places, bool(whole)
    return [], False


def _joined(text: str, place: int) -> bool:
    """Whether a word goes on over a place in a text, as far as its script shows: Chinese or Japanese words do not."""
    return 0 < place < len(text) and all(_in_word(char) for char in text[place - 1 : place + 1])


def _in_word(char: str) -> bool:
    wide = unicodedata.east_asian_width(char) in "WF"
    return (char.isalnum() and not wide) or char == "_" or unicodedata.category(char).startswith("M")


def _tokens_of(places: Iterable[Extent], extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """The tokens that share a character with each place."""
    touched = (
        [k for k, (first, last) in enumerate(extents) if first < min(end, last) and last > start]
        for start, end in places
    )
    return list(dict.fromkeys((own[0], own[-1] + 1) for own in touched if own))


def _in_text(tokenizer: Tokenizer, text: str, subject: str) -> tuple[list[Extent], bool]:
    """Occurrences of a subject in a text, literal or else after the tokenizer's normalisation."""
    places, whole = occurrences(text, [subject])
    if places:
        return places, whole
    read = _as_read(tokenizer, subject)
    places, whole = occurrences(plain(text), [plain(subject)])
    return [place for place in places if _as_read(tokenizer, text[slice(*place)]) == read], whole


def _as_read(tokenizer: Tokenizer, text: str) -> str:
    """A text after the tokenizer's normalisation: lower case, accents removed, characters separated."""
    encode = getattr(tokenizer, "encode", None)
    return text if encode is None else tokenizer.decode(list(encode(text, add_special_tokens=False)))


def _warn(what: str, ids: Sequence[int], subject: str) -> None:
    warn_user(
        f"The subject {subject!r} {what}; give subject=(start, end) among the {len(ids)} tokens for another.",
        SubjectWarning,
    )


def _checked(span: Collection[SupportsIndex], n_tokens: int) -> tuple[int, int]:
    # A range is the tokens themselves: its end is excluded as a span's is.
    places = [span.start, span.stop, span.step][: 2 + (span.step != 1)] if isinstance(span, range) else _listed(span)
    if len(places) != 2 or not all(map(is_integer, places)):
        raise TypeError(_NO_SUBJECT.format(short(span)))
    start, end = (int(place) for place in cast(list[SupportsIndex], places))
    if not 0 <= start < end <= n_tokens:
        raise ValueError(
            f"Expected a subject span within the prompt's {n_tokens} tokens, got {(start, end)}; give (start, end) "
            "with the end excluded."
        )
    return start, end


def _one_each(subject: Subject, n: int) -> Sequence[Span]:
    if subject is None or isinstance(subject, str | range):
        return [subject] * n
    subjects = _listed(subject)
    if subjects and is_integer(subjects[0]):
        return [cast(Span, subject)] * n
    if len(subjects) != n:
        raise ValueError(f"Expected one subject, or one for each of {n} prompts, got {len(subjects)}; pair them.")
    return cast(list[Span], subjects)


def _listed(given: object) -> list[object]:
    """The items of a list, a tuple, a range, an array or a table's column.

    Raises:
        TypeError: it is none of these.
    """
    ordered = isinstance(given, Iterable) and isinstance(given, Sized) and not isinstance(given, str | Mapping | Set)
    if not ordered or getattr(given, "ndim", 1) == 0:
        raise TypeError(_NO_SUBJECT.format(short(given)))
    return list(cast(Iterable, given))
