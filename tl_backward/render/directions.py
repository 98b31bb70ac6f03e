"""Directions of a change of a weight as cells of a table: their share, and their words."""

import json

from tl_backward._support.html import visible_token
from tl_backward._support.sentences import percent
from tl_backward._support.types import DataFrame
from tl_backward.training.directions import Directions
from tl_backward.vocabulary.readout import Readout

_WORDS = 4


def words_of(read: Readout | None, place: int = 0) -> str:
    """The first words of one of several vectors; "" where it was not read."""
    return (
        ""
        if read is None or place >= len(read.norm)
        else ", ".join(map(visible_token, read.top_tokens[place][:_WORDS]))
    )


def direction_cells(each: Directions) -> list[str]:
    """Of the first direction: its share of the squared change, and what it writes or answers to."""
    if not each.norm:
        return ["none", "nothing"]
    side = each.shift or each.imprint
    verb = "writes" if each.shift is not None else "answers to"
    words = "not in the stream" if side is None else f"{verb} {words_of(side)}"
    return [percent(min(1.0, float(each.S[0]) ** 2 / each.norm**2)), words]


def listed_words(frame: DataFrame) -> DataFrame:
    """A frame with its lists of words as text that a program can take apart again."""
    words = [name for name in ("imprint", "shift", "before", "after", "writes") if name in frame]
    return frame.assign(**{name: [_text(each) for each in frame[name]] for name in words})


def _text(words: list[str] | None) -> str:
    return "" if words is None else json.dumps([visible_token(word) for word in words], ensure_ascii=False)
