"""Types in the words of messages."""

from collections.abc import Iterable, Sequence

import plain

from tl_backward._support.hints import in_words


def test_sets_are_no_lists():
    words = {set[str]: "set of str", frozenset[int] | None: "set of int | None", Sequence[str]: "list of str"}
    words |= {Iterable[int]: "list of int", list[set[str]]: "list of set of str"}
    assert {hint: in_words(hint) for hint in words} == words


SIGNATURES = """
import inspect
from typing import get_type_hints
import tl_backward as tlb
from tl_backward._support.types import Prompt
assert get_type_hints(tlb.shift_edit)["prompt"] == Prompt  # whole: what is checked
for function in (tlb.backward_lens, tlb.shift_edit, tlb.dissimilarity.compare, tlb.readout):
    print(inspect.signature(function))
"""


def test_help_shows_a_function_s_types_by_their_aliases():
    """Apart from the tests' own type checks, whose signatures are whole."""
    lens, edit, compare, readout = plain.run(SIGNATURES).stdout.splitlines()
    assert lens.startswith("(model: TransformerLensModel, prompt: Prompts, target: Target, *, layers: ")
    assert "names_filter: NamesFilter = (), fwd_hooks: HookList = ()" in lens and "Integer[" not in lens
    assert edit.startswith("(model: TransformerLensModel, prompt: Prompt, target: Target, layer: int, ")
    assert "hook: Places = 'resid_post'" in compare and "target: Id | Ids | str | None = None" in readout
