"""The facts as a training task of the zoo, and a model's recall of them."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch

from tl_backward.zoo.facts import Example, World
from tl_backward.zoo.recipes import Recipe
from tl_backward.zoo.tasks import CHUNK, Forward, Shares, TrainingBatch, shares_by_group

if TYPE_CHECKING:
    import transformers


@dataclass(frozen=True)
class FactsTask:
    """The training sentences about a `World`'s people; the loss covers every token."""

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
        # A sentence is encoded once, as it opens a row and as it follows another: no token reaches into two sentences.
        texts = list(chain.from_iterable(texts_of.values()))
        encode = partial(tokenizer, add_special_tokens=False)
        first = dict(zip(texts, encode(texts)["input_ids"], strict=True))
        later = dict(zip(texts, encode([f" {text}" for text in texts])["input_ids"], strict=True))
        bos = tokenizer.bos_token_id
        people = _shuffled_forever(list(texts_of.values()), rng)
        while True:
            rows = [rng.sample(texts, len(texts)) for texts in islice(people, recipe.batch_size)]
            ids = [[bos, *first[text], *chain.from_iterable(later[each] for each in more)] for text, *more in rows]
            tokens = torch.tensor([row[: recipe.n_ctx] for row in ids])
            yield TrainingBatch(tokens, tokens[:, 1:])

    def evaluate(self, forward: Forward) -> Shares:
        """Recall: split -> relation -> share."""
        return recall(forward, self.tokenizer(), self.world.examples())


def answered(
    forward: Forward, tokenizer: "transformers.PreTrainedTokenizerFast", examples: Sequence[Example]
) -> dict[Example, bool]:
    """Whether the most likely token after each prompt is its answer.

    Args:
        forward: token ids [batch, pos] -> logits [batch, pos, d_vocab]; a TransformerLens model is
            one.
        tokenizer: the model's own, which prepends BOS.
        examples: the prompts to ask.
    """
    by_length: dict[int, list[tuple[list[int], Example]]] = defaultdict(list)
    for example in examples:
        ids = tokenizer(example.prompt)["input_ids"]
        by_length[len(ids)].append((ids, example))
    right = {}
    for group in by_length.values():
        for start in range(0, len(group), CHUNK):
            ids, chunk = zip(*group[start : start + CHUNK], strict=True)
            with torch.no_grad():
                said = forward(torch.tensor(ids))[:, -1].argmax(-1).tolist()
            words = tokenizer.convert_ids_to_tokens(said)
            right |= {each: word == each.answer for each, word in zip(chunk, words, strict=True)}
    return right


def recall(forward: Forward, tokenizer: "transformers.PreTrainedTokenizerFast", examples: Sequence[Example]) -> Shares:
    """Share of prompts answered right: split -> relation -> share in [0, 1], ``"all"`` included.

    For the ``"unstated"`` split it says how often the model infers what it was never told.
    """
    right = answered(forward, tokenizer, examples)
    return {
        split: shares_by_group((each.relation, right[each]) for each in examples if each.split == split)
        for split in dict.fromkeys(each.split for each in examples)
    }


def _shuffled_forever(items: list[list[str]], rng: random.Random) -> Iterator[list[str]]:
    while True:
        yield from rng.sample(items, len(items))
