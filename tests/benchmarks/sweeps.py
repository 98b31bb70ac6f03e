"""Sweeps against the bare capture of the same batches, and the similarity of gradients against dense ones."""

import time
from contextlib import contextmanager

import torch

import tl_backward as tlb
from tests.benchmarks.measure import gpt2_shape, interleaved, peak_memory, row
from tl_backward.gradients.examples import by_length, encode_examples
from tl_backward.gradients.similarity import _captured, gradient_similarity
from tl_backward.lens.sweeps import sweep

N, N_TOKENS = 64, 32


class _Words:
    """Enough of a tokenizer for prompts that are numbers."""

    bos_token_id = pad_token_id = eos_token_id = 0
    unk_token_id = None
    padding_side = "right"

    def decode(self, ids):
        return "".join(f" {i}" for i in ids)

    def convert_ids_to_tokens(self, i):
        return f" {i}"


@contextmanager
def one_thread():
    """Two threads that wait for each other on a busy machine count as work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def words(model):
    """Give a model prompts that are numbers; returns what draws some of N_TOKENS tokens."""
    model.tokenizer = _Words()
    model.to_tokens = lambda text, prepend_bos=True, truncate=False: torch.tensor([[int(i) for i in text.split()]])
    generator = torch.Generator().manual_seed(0)

    def texts(n):
        return [
            " ".join(map(str, torch.randint(1, 50257, (N_TOKENS,), generator=generator).tolist())) for _ in range(n)
        ]

    return texts


def main() -> None:
    """Print the rows."""
    model = gpt2_shape()
    texts = words(model)
    with one_thread():
        _sweep(model, texts(8))
        _similarity(model, texts(N), texts(N))


def _sweep(model, prompts):
    targets = ["7"] * len(prompts)
    examples = encode_examples(model, prompts, targets)
    weights = list(tlb.weight_sites(model))
    weights = [name for name in weights if name.endswith("W_out")]
    stacked, loss = torch.tensor([example.tokens for example in examples]), tlb.target_loss([[7]] * 8, reduction="sum")
    times = interleaved(
        {
            "capture": lambda: tlb.run_with_gradient_cache(model, stacked, loss, weights="W_out", names_filter=[]),
            "sweep": lambda: sweep(model, prompts, targets, control=None, show_progress=False),
        },
        rounds=5,
    )
    detail = f"{times['sweep']:.2f} s against {times['capture']:.2f} s for {len(prompts)} prompts of {N_TOKENS} tokens"
    row("sweep (default quantities) / bare capture", times["sweep"] / times["capture"], "<= 1.10", detail)


def _similarity(model, a, b):
    """All W_out of 12 layers, by factors; one layer's by dense per-example gradients, from the same factors."""
    name = "blocks.5.mlp.W_out"
    parts = []
    for side in (a, b):
        examples = encode_examples(model, side, ["7"] * len(side))
        batches = [_captured(model, batch, (name,)) for batch in by_length(model, examples, 8)]
        whole = batches[0]
        for batch in batches[1:]:
            whole = whole.joined(batch)
        parts.append(whole)
    one, two = parts
    found = {}

    def factors():
        found["factors"] = one.products(two)[0]

    def dense():
        sides = []
        for part in parts:
            x, d, _ = part.rows[0]
            sides.append(torch.bmm(x.view(N, N_TOKENS, -1).transpose(1, 2), d.view(N, N_TOKENS, -1)).flatten(1))
        found["dense"] = sides[0] @ sides[1].T

    times = interleaved({"factors": factors, "dense": dense}, rounds=5)
    worst = float((found["factors"] - found["dense"]).abs().max() / found["dense"].abs().max())
    memory = {"factors": peak_memory(factors), "dense": peak_memory(dense)}
    detail = (
        f"{times['dense']:.2f} s against {times['factors']:.2f} s, {N} x {N} examples; values differ by {worst:.0e}"
    )
    row(
        "similarity: dense gradients of one layer / factors, products alone",
        times["dense"] / times["factors"],
        "",
        detail,
    )
    detail = f"{memory['factors'] / 1e6:.0f} MB against {memory['dense'] / 1e6:.0f} MB"
    row("similarity: peak memory, factors / dense", memory["factors"] / memory["dense"], "<= 0.10", detail)
    _whole(model, a, b, name)


def _whole(model, a, b, name):
    """From texts to the matrix: all 12 layers by factors, one layer by a backward pass an example."""
    pairs_a, pairs_b = ([(text, "7") for text in side] for side in (a, b))
    parameter = tlb.weight_sites(model)[name].parameter
    few = 4  # dense gradients are as many times as costly as there are examples: the others are not run

    def dense():
        rows = []
        for text in a[:few]:
            logits = model(model.to_tokens(text))[0, -1].log_softmax(-1)
            rows.append(torch.autograd.grad(-logits[7], parameter)[0].flatten())
        return torch.stack(rows) @ torch.stack(rows).T

    def factors():
        return gradient_similarity(model, pairs_a, pairs_b, show_progress=False)

    start = time.process_time()
    factors()  # long enough to be run once
    all_layers = time.process_time() - start
    dense_all = interleaved({"dense": dense}, rounds=3)["dense"] * 2 * N / few
    each = all_layers / model.cfg.n_layers
    detail = f"{dense_all:.1f} s (from {few} examples) against {each:.2f} s a layer ({all_layers:.1f} s for 12)"
    row("similarity: dense route of one layer / factors, per layer, with passes", dense_all / each, ">= 10", detail)


if __name__ == "__main__":
    main()
