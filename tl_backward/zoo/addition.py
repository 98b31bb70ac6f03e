"""Addition of three-digit numbers, a digit a token: ``123+456=579`` (Huang et al. 2024, sec. 3.3)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tl_backward.zoo.tasks import AnswerTask

LEAST, MOST = 100, 999


@dataclass(frozen=True)
class Sum:
    """One addition question with its answer."""

    left: int
    right: int

    @property
    def prompt(self) -> str:
        """``"123+456="``."""
        return f"{self.left}+{self.right}="

    @property
    def text(self) -> str:
        """``"123+456=579"``."""
        return f"{self.prompt}{self.left + self.right}"

    @property
    def carries(self) -> int:
        """Number of carries, 0 to 3."""
        return sum(self.left % base + self.right % base >= base for base in (10, 100, 1000))

    @property
    def group(self) -> str:
        """``"0 carries"`` to ``"3 carries"``."""
        return f"{self.carries} carries"


def draw(rng: random.Random) -> Sum:
    """A random question, both numbers uniform."""
    return Sum(rng.randint(LEAST, MOST), rng.randint(LEAST, MOST))


TASK = AnswerTask(characters="0123456789+=", draw=draw, name="addition")

prompts = TASK.prompts
"""(n=None, *, seed=0, split="train"): questions without their answers, `n` of them or without end."""


def every_prompt() -> Iterator[str]:
    """All 810,000 questions without their answers, in order."""
    numbers = range(LEAST, MOST + 1)
    return (f"{left}+{right}=" for left in numbers for right in numbers)


def parse(prompt: str) -> Sum | None:
    """The question that a prompt asks, or None where it is not well formed."""
    left, plus, rest = prompt.partition("+")
    right, equals, nothing = rest.partition("=")
    numbers = (left, right)
    if not (plus and equals and not nothing and all(len(n) == 3 and n.isascii() and n.isdecimal() for n in numbers)):
        return None
    return Sum(int(left), int(right)) if min(map(int, numbers)) >= LEAST else None
