"""Learning the facts world by heart, as a task of the zoo."""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tl_backward.zoo.facts import World
from tl_backward.zoo.recipes import Recipe
from tl_backward.zoo.tasks import Forward, Shares, TrainingBatch

if TYPE_CHECKING:
    import transformers


@dataclass(frozen=True)
class FactsTask:
    """The training sentences of a world; the loss covers every token."""

    world: World

    def tokenizer(self) -> "transformers.PreTrainedTokenizerFast":
        """One token a word."""
        from tl_backward.zoo.tokenizer import facts_tokenizer

        return facts_tokenizer()

    def batches(self, recipe: Recipe) -> Iterator[TrainingBatch]:
        """Endless batches of rows: BOS, then sentences about one person until the row is full.

        Every row opens with a whole sentence, because that is how prompts are asked: right after BOS.
        The last sentence is cut where the row ends. The order comes from `data_seed` alone.
        """
        tokenizer = self.tokenizer()
        rng = random.Random(recipe.data_seed)
        texts_of = defaultdict(list)
        for example in self.world.examples(split="train"):
            texts_of[example.subject].append(example.text)
        people = _shuffled_forever(list(texts_of.values()), rng)
        while True:
            rows = [" ".join(rng.sample(texts, len(texts))) for texts in islice(people, recipe.batch_size)]
            tokens = tokenizer(rows, truncation=True, max_length=recipe.n_ctx, return_tensors="pt")["input_ids"]
            yield TrainingBatch(tokens, tokens[:, 1:])

    def evaluate(self, forward: Forward) -> Shares:
        """Recall: split -> relation -> share."""
        from tl_backward.zoo.recall import recall

        return recall(forward, self.tokenizer(), self.world.examples())


def _shuffled_forever(items: list[list[str]], rng: random.Random) -> Iterator[list[str]]:
    while True:
        yield from rng.sample(items, len(items))
