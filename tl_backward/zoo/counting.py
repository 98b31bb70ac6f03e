"""Counting: how often does one letter occur among others? ``vvzccvczvvvzvcvc|v:8``.

Three letters of the alphabet, each one to nine times, in random order; a bar, one of the three, a colon; then how often
that one occurred. The task of InversionView's first case study (Huang et al. 2024, sec. 3.1).
"""

import random
from dataclasses import dataclass
from string import ascii_lowercase

from tl_backward.zoo.tasks import AnswerTask

N_LETTERS, MOST = 3, 9


@dataclass(frozen=True)
class Count:
    """One counting question with its answer."""

    letters: str
    query: str

    @property
    def count(self) -> int:
        """The answer."""
        return self.letters.count(self.query)

    @property
    def prompt(self) -> str:
        """``"letters|query:"``."""
        return f"{self.letters}|{self.query}:"

    @property
    def text(self) -> str:
        """``"letters|query:count"``."""
        return f"{self.prompt}{self.count}"

    @property
    def group(self) -> str:
        """The count, the question's group in the table of shares."""
        return str(self.count)


def draw(rng: random.Random) -> Count:
    """A random question: letters, their numbers, their order and the query, each uniform."""
    kinds = rng.sample(ascii_lowercase, N_LETTERS)
    letters = [letter for letter in kinds for _ in range(rng.randint(1, MOST))]
    rng.shuffle(letters)
    return Count("".join(letters), rng.choice(kinds))


TASK = AnswerTask(characters=f"{ascii_lowercase}{''.join(map(str, range(1, MOST + 1)))}|:", draw=draw, name="counting")

prompts = TASK.prompts
"""(n=None, *, seed=0, split="train"): questions without their answers, `n` of them or without end."""


def parse(prompt: str) -> Count | None:
    """The question that a prompt asks, or None where it is not well formed.

    Well formed: exactly three different letters, each at most nine times, and a query among them.
    """
    letters, bar, query = prompt.partition("|")
    kinds = set(letters)
    well_formed = (
        bar
        and len(query) == 2
        and query[1] == ":"
        and query[0] in kinds
        and len(kinds) == N_LETTERS
        and kinds <= set(ascii_lowercase)
        and max(map(letters.count, kinds)) <= MOST
    )
    return Count(letters, query[0]) if well_formed else None
