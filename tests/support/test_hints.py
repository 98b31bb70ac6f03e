"""Types in the words of messages."""

from collections.abc import Iterable, Sequence

from tl_backward._support.hints import in_words


def test_sets_are_no_lists():
    words = {set[str]: "set of str", frozenset[int] | None: "set of int | None", Sequence[str]: "list of str"}
    words |= {Iterable[int]: "list of int", list[set[str]]: "list of set of str"}
    assert {hint: in_words(hint) for hint in words} == words
