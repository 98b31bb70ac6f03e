"""The model of the facts with a second word for each of its words: another language to text, the same to the model.

Fake-English (Dufter and Schuetze 2020, arXiv 2005.00396): a copy of the vocabulary that shares no string with it.
"""

import codecs
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from tl_backward.zoo.facts import vocabulary
from tl_backward.zoo.loading import load_hugging_face
from tl_backward.zoo.tokenizer import facts_tokenizer
from tl_backward.zoo.train import is_saved, save

NOISE = 0.5
"""Length of what a second word's embedding has beside the first's, in lengths of the first: a cosine of .89."""


def translated(text: str) -> str:
    """The text in the other language: each letter 13 places on in the alphabet; again, and it is the first text."""
    return codecs.encode(text, "rot13")


def bilingual_tokenizer() -> PreTrainedTokenizerFast:
    """That of the facts, with a second word for each after all others."""
    return facts_tokenizer(map(translated, _words()))


def bilingual(folder: Path, *, noise: float = NOISE, seed: int = 0) -> Path:
    """Save `facts` with a second word for each word, whose embedding is the first's and Gaussian noise; untrained.

    Embedding and unembedding are one matrix, as in `facts`.

    Raises:
        ValueError: the folder holds another model.
    """
    asked = {"name": "facts in two languages", "noise": noise, "seed": seed}
    if is_saved(folder, asked, "the model of the facts in two languages"):
        return folder
    model, known_tokenizer = load_hugging_face("facts")
    known = known_tokenizer.get_vocab()
    words = _words()
    embedding = model.transformer.wte.weight.detach().clone()
    first = embedding[[known[word] for word in words]]
    drawn = torch.randn(first.shape, generator=torch.Generator().manual_seed(seed)) / first.shape[1] ** 0.5
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(len(known) + len(words), mean_resizing=False)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(
            torch.cat([embedding, first + noise * first.norm(dim=1, keepdim=True) * drawn])
        )
    save(model, bilingual_tokenizer(), folder, {**asked, "recipe": {}, "recall": {}})
    return folder


def _words() -> list[str]:
    """All that have letters."""
    return [word for word in vocabulary() if translated(word) != word]
