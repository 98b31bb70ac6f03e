"""Text overlap, the control that knows no model: BM25."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

K1, B = 1.5, 0.75


def words(text: str) -> list[str]:
    """Its words, without case."""
    return re.findall(r"\w+", text.casefold())


def bm25(query: str, texts: Sequence[str]) -> Float[Tensor, "text"]:
    """Okapi BM25 of each text for the query (Robertson and Zaragoza 2009, 3.4; idf and scale as Lucene has them).

    sum over words w of the query of idf(w) f / (f + K1 (1 - B + B l / mean l)), where f is how often the text has w, l
    its number of words, and idf(w) = log(1 + (N - n + 0.5) / (n + 0.5)) of a word in n of N texts.
    """
    counts = [Counter(words(text)) for text in texts]
    lengths = torch.tensor([float(count.total()) for count in counts], dtype=torch.float64)
    damped = K1 * (1 - B + B * lengths / lengths.mean())
    scores = torch.zeros(len(texts), dtype=torch.float64)
    for word in words(query):
        often = torch.tensor([float(count[word]) for count in counts], dtype=torch.float64)
        n = (often > 0).sum()
        scores += torch.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) * often / (often + damped)
    return scores
