"""Token edits that a Metropolis walk proposes, each with its way back.

substitute: another token at one position. swap: two positions exchange their tokens. relabel: two tokens exchange all
their positions. insert, delete: one token more or less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tl_backward.inversion.options import EDITS, Edit


@dataclass(frozen=True)
class TokenEdits:
    """Which edits are proposed, each with equal probability, and what they may write."""

    edits: Sequence[Edit]
    """Of EDITS."""
    vocabulary: Sequence[int]
    """Tokens that are written and erased; others are kept, though a swap may move them."""
    start: int
    """The first position that is edited: 1 after a BOS."""
    longest: int
    """Most tokens of a text."""

    def __post_init__(self) -> None:
        """Check that every edit can be undone.

        Raises:
            ValueError: an unknown edit or none, insert without delete or the other way round, or no tokens to write.
        """
        unknown = [edit for edit in self.edits if edit not in EDITS]
        if unknown or not self.edits:
            raise ValueError(f"Expected token_edits among {', '.join(EDITS)}, got {list(self.edits)}; choose some.")
        if ("insert" in self.edits) != ("delete" in self.edits):
            raise ValueError(
                f"Expected insert and delete together, got {list(self.edits)}; a walk that cannot go back has no "
                "stationary distribution to speak of."
            )
        if not self.vocabulary:
            raise ValueError("Expected at least one token to write, got none; pass vocabulary=[...] of token ids.")

    def propose(self, row: tuple[int, ...], draws: Sequence[float]) -> tuple[tuple[int, ...], float] | None:
        """An edited row and log q(back) - log q(forth), from four uniform draws in [0, 1); None for no move.

        An insertion picks one of n + 1 gaps and one of |V| tokens, the deletion that undoes it one of n + 1 positions:
        their ratio is |V|. The others are their own ways back.
        """
        edit = self.edits[_pick(draws[0], len(self.edits))]
        n = len(row) - self.start
        token = self.vocabulary[_pick(draws[2], len(self.vocabulary))]
        if edit == "insert":
            if len(row) >= self.longest:
                return None
            at = self.start + _pick(draws[1], n + 1)
            return (*row[:at], token, *row[at:]), math.log(len(self.vocabulary))
        if n < 1:
            return None
        at = self.start + _pick(draws[1], n)
        if edit == "swap":
            other = self.start + _pick(draws[3], n)
            low, high = min(at, other), max(at, other)
            if row[low] == row[high]:
                return None
            return (*row[:low], row[high], *row[low + 1 : high], row[low], *row[high + 1 :]), 0.0
        if edit == "relabel":
            other = self.vocabulary[_pick(draws[3], len(self.vocabulary))]
            exchanged = (*row[: self.start], *({token: other, other: token}.get(i, i) for i in row[self.start :]))
            return None if exchanged == row else (exchanged, 0.0)
        if row[at] not in self._writable:
            return None
        if edit == "delete":
            shorter = (*row[:at], *row[at + 1 :])
            return (shorter, -math.log(len(self.vocabulary))) if shorter else None
        return None if token == row[at] else ((*row[:at], token, *row[at + 1 :]), 0.0)

    @cached_property
    def _writable(self) -> frozenset[int]:
        return frozenset(self.vocabulary)


def _pick(draw: float, n: int) -> int:
    return min(int(draw * n), n - 1)
