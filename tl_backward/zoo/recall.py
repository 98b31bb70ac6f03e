"""Does a model know the facts? The share of prompts it answers right."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from tl_backward.zoo.facts import Example
from tl_backward.zoo.tasks import CHUNK, Forward, Shares


def answered(forward: Forward, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> dict[Example, bool]:
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


def recall(forward: Forward, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> Shares:
    """Share of prompts answered right: split -> relation -> share in [0, 1], ``"all"`` included.

    For the ``"unstated"`` split it says how often the model infers what it was never told.
    """
    groups: dict[tuple[str, str], list[bool]] = defaultdict(list)
    right = answered(forward, tokenizer, examples)
    for example in examples:
        for relation in ("all", example.relation):
            groups[example.split, relation].append(right[example])
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for (split, relation), rights in groups.items():
        shares[split][relation] = sum(rights) / len(rights)
    return dict(shares)
