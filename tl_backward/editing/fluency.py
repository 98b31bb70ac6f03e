"""Whether an edited model still writes: sampled continuations and the entropy of their n-grams."""

import re
from collections import Counter
from collections.abc import Sequence

import torch

from tl_backward._support.types import TransformerLensModel
from tl_backward.text.asked import mask_token
from tl_backward.text.prompts import encode_prompts, forward, pad

TOP_K = 5
"""Tokens sampled among, as in ROME's evaluation."""


def generation_entropy(text: str) -> float:
    """ROME's fluency (Meng et al. 2022, sec. 3.4): weighted mean of 2- and 3-gram entropies, in bits.

    GE = (2/3 H_2 + 4/3 H_3) / 2 with H_n = -sum_g f(g) log2 f(g), f(g) the share of n-gram g among the text's words
    (punctuation marks count as words). Repetition lowers it: 0 for one word over and over.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    pairs, triples = list(zip(words, words[1:], strict=False)), list(zip(words, words[1:], words[2:], strict=False))
    return (2 / 3 * _entropy(pairs) + 4 / 3 * _entropy(triples)) / 2


def _entropy(grams: Sequence[tuple[str, ...]]) -> float:
    shares = torch.tensor(list(Counter(grams).values()), dtype=torch.float64) / max(1, len(grams))
    return float(-(shares * shares.log2()).sum())


def sample(
    model: TransformerLensModel,
    prompts: Sequence[str],
    *,
    n_tokens: int = 100,
    top_k: int = TOP_K,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> list[str]:
    """Continue each prompt by sampling among the `top_k` most likely tokens, up to the model's context.

    The global RNG is not touched.

    Returns:
        The continuations alone, without their prompts.

    Raises:
        ValueError: a model that fills in masks, which continues no text.
    """
    if mask_token(model) is not None:
        raise ValueError(
            "Expected a model that continues a text, got one that fills in masks and sees what follows; leave fluency "
            "out with n_tokens=0."
        )
    rows = [encode_prompts(model, prompt, prepend_bos=prepend_bos).rows()[0] for prompt in prompts]
    lengths = [len(row) for row in rows]
    generator = torch.Generator(model.W_U.device).manual_seed(seed)
    for _ in range(min(n_tokens, model.cfg.n_ctx - max(lengths))):
        batch = pad(model, rows)
        with torch.no_grad():
            logits = forward(model, batch)[torch.arange(len(rows)), batch.last]
        values, ids = logits.topk(min(top_k, logits.shape[1]))
        drawn = torch.multinomial(values.float().softmax(-1), 1, generator=generator)
        for row, token in zip(rows, ids.gather(1, drawn).flatten().tolist(), strict=True):
            row.append(token)
    decode = getattr(model.tokenizer, "decode", str)
    return [decode(row[length:]) for row, length in zip(rows, lengths, strict=True)]
