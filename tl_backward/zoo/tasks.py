"""Training tasks of the zoo: a task defines a tokenizer, batches and an evaluation."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from zlib import crc32

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.checks import check_choice
from tl_backward.zoo.recipes import Recipe

if TYPE_CHECKING:
    import transformers

Forward = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d_vocab"]]
Shares = dict[str, dict[str, float]]
"""Split -> group -> share of prompts answered right, in [0, 1]; ``"all"`` is a group of every split."""

IGNORED = -100
CHUNK = 512
HELD_OUT_ONE_IN = 20


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Rows of tokens with the target of each."""

    tokens: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos-1"]
    """The next token, IGNORED where nothing is to be learned."""
    reading: Int[Tensor, "batch pos-1"] | None = None
    """The next token of the text itself, question and answer, IGNORED after its end: see `Recipe.reading_weight`."""


@runtime_checkable
class Task(Protocol):
    """A task of the zoo."""

    def tokenizer(self) -> "transformers.PreTrainedTokenizerFast":
        """The task's own tokenizer."""
        ...

    def batches(self, recipe: Recipe) -> Iterator[TrainingBatch]:
        """Endless batches, whose content and order come from the recipe's `data_seed` alone."""
        ...

    def evaluate(self, forward: Forward) -> Shares:
        """Shares of right answers by split and group."""
        ...


@runtime_checkable
class Asked(Protocol):
    """One question of an `AnswerTask`."""

    @property
    def prompt(self) -> str:
        """The text up to the answer."""
        ...

    @property
    def text(self) -> str:
        """Prompt and answer."""
        ...

    @property
    def group(self) -> str:
        """The question's group in the table of shares."""
        ...


@dataclass(frozen=True)
class AnswerTask:
    """Questions without end, of which a model learns the answers and nothing else.

    The loss covers the answer's tokens and the end of text after them. One question in HELD_OUT_ONE_IN is never
    trained on: which ones follows from their texts alone (`is_held_out`).
    """

    characters: str
    """Of which texts consist."""
    draw: Callable[[random.Random], Asked]
    name: str
    n_evaluated: int = 2000
    """Questions of each split that `evaluate` asks."""

    def tokenizer(self) -> "transformers.PreTrainedTokenizerFast":
        """One token a character."""
        from tl_backward.zoo.tokenizer import character_tokenizer

        return character_tokenizer(self.characters, self.name)

    def batches(self, recipe: Recipe) -> Iterator[TrainingBatch]:
        """Fresh questions, padded to the longest of their batch."""
        tokenizer = self.tokenizer()
        questions = self.questions(seed=recipe.data_seed, split="train")
        while True:
            yield answer_batch(tokenizer, list(islice(questions, recipe.batch_size)))

    def evaluate(self, forward: Forward) -> Shares:
        """Share of questions whose whole answer is the most likely, fresh training questions and held-out ones."""
        tokenizer = self.tokenizer()
        shares = {}
        for split in ("train", "held_out"):
            # Not the seed of any training: these questions of the training split are new to the model, too.
            questions = list(islice(self.questions(seed=-1, split=split), self.n_evaluated))
            right = answered_whole(forward, tokenizer, questions)
            shares[split] = shares_by_group(sorted(zip((each.group for each in questions), right, strict=True)))
        return shares

    def questions(self, *, seed: int, split: str) -> Iterator[Asked]:
        """Endless questions of one split, ``"train"`` or ``"held_out"``, drawn from the seed alone.

        Raises:
            ValueError: a split other than those.
        """
        check_choice("split", split, ("train", "held_out"))
        rng = random.Random(f"{self.name} {split} {seed}")
        while True:
            question = self.draw(rng)
            if is_held_out(question) == (split == "held_out"):
                yield question

    def prompts(self, n: int | None = None, *, seed: int = 0, split: str = "train") -> Iterator[str]:
        """Questions without their answers, `n` of them or without end.

        Raises:
            ValueError: a split other than ``"train"`` and ``"held_out"``.
        """
        return (question.prompt for question in islice(self.questions(seed=seed, split=split), n))


def is_held_out(question: Asked) -> bool:
    """Whether a question of an `AnswerTask` is kept out of training: its text's CRC-32 says."""
    return crc32(question.text.encode()) % HELD_OUT_ONE_IN == 0


def answer_batch(tokenizer: "transformers.PreTrainedTokenizerFast", questions: Sequence[Asked]) -> TrainingBatch:
    """Texts as rows, which end in `<unk>` as the longest needs; the pad that ends an answer is only a target."""
    ids = tokenizer.get_vocab()
    bos, pad, filler = (ids[str(token)] for token in (tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token))
    width = max(len(question.text) for question in questions) + 2
    rows, targets, reading = [], [], []
    for question in questions:
        text = [ids[character] for character in question.text]
        n_given, n_after = len(question.prompt), width - 2 - len(text)
        rows.append([bos, *text, filler] + [filler] * n_after)
        targets.append([IGNORED] * n_given + text[n_given:] + [pad] + [IGNORED] * n_after)
        reading.append(text + [IGNORED] * (n_after + 1))
    return TrainingBatch(torch.tensor(rows), torch.tensor(targets), torch.tensor(reading))


def answered_whole(
    forward: Forward, tokenizer: "transformers.PreTrainedTokenizerFast", questions: Sequence[Asked]
) -> list[bool]:
    """Whether every token of each answer, and the end after it, is the most likely one."""
    right = []
    for start in range(0, len(questions), CHUNK):
        batch = answer_batch(tokenizer, questions[start : start + CHUNK])
        with torch.no_grad():
            said = forward(batch.tokens)[:, :-1].argmax(-1)
        right += ((said == batch.targets) | (batch.targets == IGNORED)).all(1).tolist()
    return right


def shares_by_group(answers: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """The share of answers that are right, ``"all"`` of them and each group's, given as (group, is right)."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for group, is_right in answers:
        groups["all"].append(is_right)
        groups[group].append(is_right)
    return {group: sum(right) / len(right) for group, right in groups.items()}
