"""Arguments of another type are answered in a sentence, whichever public function is called."""

import subprocess
import sys

import pytest
import wrong_types


def unanswered(*how):
    command = [sys.executable, "-W", "ignore", wrong_types.__file__, *how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_what_none_takes_is_answered_in_a_sentence():
    assert unanswered() == []


@pytest.mark.long
def test_many_values_in_every_room():
    assert unanswered("every") == []


def test_what_is_no_sentence_is_found(monkeypatch):
    """The search sees a function that lets Python speak."""

    def bare(text: str):
        """Length.

        Examples:
            >>> tlb.bare("a")
            1
        """
        return len(text)

    monkeypatch.setattr(wrong_types.tlb, "bare", bare, raising=False)
    (line,) = wrong_types.unanswered(bare, "tl_backward.bare", wrong_types.FEW)
    assert "bare(text=object): TypeError" in line
