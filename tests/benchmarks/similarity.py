"""Similarity of gradients: against dense ones, against `torch.func.vmap(grad)`, and how it grows with the examples."""

import math
import random
import sys
import time
from functools import partial

import torch

import tl_backward as tlb
from tests.benchmarks.measure import gpt2_shape, in_fresh_process, interleaved, peak_memory, row
from tests.benchmarks.sweeps import N_TOKENS, one_thread, words
from tl_backward.gradients.examples import encode_examples
from tl_backward.gradients.gram import inner_products
from tl_backward.gradients.similarity import _parts, gradient_similarity

N = 64
LAYER = "blocks.5.mlp.W_out"
SHAPE = (256, 64, 128)
"""Texts, their tokens, d_model."""
MANY, MANY_BYTES = 10_000, 1 << 28
"""Texts, and the bytes of factors that they may hold at a time."""


def main() -> None:
    """Print the rows."""
    with one_thread():
        _peak()
        for shape in (SHAPE, *_drawn()):
            _against_vmap(*shape)
        _exponent()
        _many()
        model = gpt2_shape()
        texts = words(model)
        _products(model, texts(N), texts(N))


def _drawn() -> list[tuple[int, int, int]]:
    """Two more shapes, others at each run, so that nothing is tuned to one."""
    drawn = random.Random(time.time_ns())
    return [(drawn.randrange(100, 300), drawn.randrange(40, 100), 16 * drawn.randrange(6, 13)) for _ in range(2)]


def _small(d_model: int):
    """4 layers, 512 words, random weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    sizes = dict(n_layers=4, d_model=d_model, n_ctx=128, d_head=32, n_heads=4, d_vocab=512, act_fn="gelu_new")
    return HookedTransformer(HookedTransformerConfig(**sizes, normalization_type="LN")).eval()


def _texts(model, n: int, n_tokens: int) -> tuple[list[str], torch.Tensor]:
    words(model)
    tokens = torch.randint(1, 512, (n, n_tokens), generator=torch.Generator().manual_seed(1))
    return [" ".join(map(str, each)) for each in tokens.tolist()], tokens


def _against_vmap(n: int, n_tokens: int, d_model: int) -> None:
    """The Gram of all W_out of 4 layers over n texts, forwards and backwards included."""
    model = _small(d_model)
    texts, tokens = _texts(model, n, n_tokens)
    own = {name: value for name, value in model.named_parameters() if name.endswith("mlp.W_out")}
    found = {}

    def loss(parameters, ids):
        logits = torch.func.functional_call(model, parameters, (ids[None],), {"return_type": "logits"})
        return torch.nn.functional.cross_entropy(logits[0, :-1], ids[1:])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), chunk_size=16)

    def dense():
        gradients = each({name: value.detach() for name, value in own.items()}, tokens)
        rows = torch.cat([value.flatten(1) for value in gradients.values()], 1)
        found["dense"] = rows @ rows.T

    def ours():
        found["ours"] = gradient_similarity(model, texts, weights="W_out", show_progress=False).matrix

    times = interleaved({"dense": dense, "ours": ours}, rounds=3)
    worst = float((found["ours"] - found["dense"].detach()).abs().max() / found["dense"].detach().abs().max())
    assert worst < 1e-5, worst
    label = f"Gram of {n} texts x {n_tokens}, 4 layers of {d_model}: vmap(grad) / ours"
    detail = f"{times['dense']:.2f} s, {times['ours']:.2f} s; values differ by {worst:.0e}"
    row(label, times["dense"] / times["ours"], ">= 1.0", detail)


def _peak() -> None:
    n, n_tokens, d_model = SHAPE
    added = int(in_fresh_process("tests.benchmarks.similarity", "gram").split()[0])
    factors = 4 * 4 * n * n_tokens * (4 * d_model + d_model)
    above = (added - factors) / 2**20
    detail = f"{added / 2**20:.0f} MiB in all, {factors / 2**20:.0f} of factors"
    row("peak memory of that above the factors / 64 MiB", above / 64, "<= 1.0", detail)


def _many() -> None:
    """10,000 texts of 16 tokens within the memory that `gradient_similarity`'s docstring plans."""
    added, seconds = in_fresh_process("tests.benchmarks.similarity", "many").split()
    planned = MANY_BYTES + 8 * MANY**2 + 250e6
    detail = f"{int(added) / 1e6:.0f} MB of {planned / 1e6:.0f}, in {seconds} s"
    label = f"peak memory of the Gram of {MANY:,} texts of 16 tokens, one W_out / planned"
    row(label, int(added) / planned, "<= 1.0", detail)


def gram(n: int, n_tokens: int, weights: str, max_bytes: int = 1 << 30) -> str:
    """Peak bytes and seconds of the Gram of so many texts."""
    torch.set_num_threads(1)
    model = _small(128)
    texts, _ = _texts(model, n, n_tokens)
    options = {"weights": weights, "max_bytes": max_bytes, "show_progress": False}
    gradient_similarity(model, texts[:8], **options)  # what is learnt of a model once
    start = time.process_time()
    added = peak_memory(lambda: gradient_similarity(model, texts, **options))
    return f"{added} {time.process_time() - start:.0f}"


def _part(model, examples, name: str, batch_size: int):
    """The factors of one weight of all examples."""
    return next(_parts(model, examples, (name,), batch_size, 1 << 40))


def _exponent() -> None:
    """Of the time in the number of texts, products alone."""
    model, seconds = _small(128), []
    sizes = (250, 1000, 4000)
    for n in sizes:
        texts, _ = _texts(model, n, 8)
        examples = encode_examples(model, texts, tlb.next_token_loss)
        out, part = torch.zeros(1, n, n, dtype=torch.float64), _part(model, examples, "blocks.2.mlp.W_out", 64)
        products = partial(part.write_products, part, out, mirrored=True)
        seconds.append(interleaved({"ours": products}, rounds=1)["ours"])
    exponent = math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])
    detail = ", ".join(f"{n}: {each:.2f} s" for n, each in zip(sizes, seconds, strict=True))
    row("exponent in N of the products, 250 to 4,000 texts of 8 tokens", exponent, "<= 2.0", detail)


def _products(model, a, b):
    """One layer of GPT-2's shape, from the same factors: their own products against dense gradients'."""
    found: dict[str, torch.Tensor] = {}
    ways = _ways(model, a, b, found)
    times = interleaved(ways, rounds=5)
    worst = float((found["factors"] - found["dense"]).abs().max() / found["dense"].abs().max())
    memory = {way: int(in_fresh_process("tests.benchmarks.similarity", way)) for way in ways}
    ratio = times["dense"] / times["factors"]
    detail = f"{times['dense']:.2f} s, {times['factors']:.2f} s, {N} x {N} examples; values differ by {worst:.0e}"
    row("similarity: dense gradients of one layer / factors, products alone", ratio, "", detail)
    detail = f"{memory['factors'] / 1e6:.0f} MB against {memory['dense'] / 1e6:.0f} MB"
    row("similarity: peak memory, factors / dense", memory["factors"] / memory["dense"], "<= 0.10", detail)
    _whole(model, a, b, LAYER)


def _ways(model, a, b, found: dict[str, torch.Tensor]):
    """The products of one layer's gradients of two lists of texts, from factors and from dense gradients."""
    one, two = (_part(model, encode_examples(model, side, ["7"] * len(side)), LAYER, 8).rows[0] for side in (a, b))

    def factors():
        found["factors"] = inner_products(one, two)

    def dense():
        sides = []
        for part in (one, two):
            x, d = (each.view(N, N_TOKENS, -1) for each in (part.inputs, part.deltas))
            sides.append(torch.bmm(x.transpose(1, 2), d).flatten(1))
        found["dense"] = sides[0] @ sides[1].T

    return {"factors": factors, "dense": dense}


def peak(way: str) -> int:
    """Peak bytes of those products."""
    torch.set_num_threads(1)
    model = gpt2_shape()
    texts = words(model)
    return peak_memory(_ways(model, texts(N), texts(N), {})[way])


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

    start = time.process_time()
    gradient_similarity(model, pairs_a, pairs_b, show_progress=False)  # long enough to be run once
    all_layers = time.process_time() - start
    dense_all = interleaved({"dense": dense}, rounds=3)["dense"] * 2 * N / few
    each = all_layers / model.cfg.n_layers
    detail = f"{dense_all:.1f} s (from {few} examples) against {each:.2f} s a layer ({all_layers:.1f} s for 12)"
    row("similarity: dense route of one layer / factors, per layer, with passes", dense_all / each, ">= 10", detail)


if __name__ == "__main__":
    jobs = {"gram": lambda: gram(*SHAPE[:2], "W_out"), "many": lambda: gram(MANY, 16, "blocks.2.mlp.W_out", MANY_BYTES)}
    print(jobs[sys.argv[1]]() if sys.argv[1] in jobs else peak(sys.argv[1]))
