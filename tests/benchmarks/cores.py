"""Two threads against one, on a machine with two idle cores: wall and CPU time, beside those of a plain product.

The goals are for idle cores, which a plain product of about 0.5 shows. Where others are at work, threads that wait for
each other at every small operation spin, and two can take many times as long as one.
"""

import statistics
import time
from collections.abc import Callable

import torch

import tl_backward as tlb
from tests.benchmarks.measure import row, word_tokenizer
from tl_backward.text.options import TextOptions

CLOCKS = (time.perf_counter, time.process_time)
ROUNDS = 5


def shares(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """(wall, CPU) of each call with two threads, over that with one: medians of pairs that are run in turn."""
    found: dict[str, list[list[float]]] = {name: [] for name in calls}
    threads = torch.get_num_threads()
    try:
        for round_ in range(rounds + 1):
            for name, call in calls.items():
                spent = {}
                for n in (1, 2) if round_ % 2 else (2, 1):
                    torch.set_num_threads(n)
                    before = [clock() for clock in CLOCKS]
                    call()
                    spent[n] = [clock() - start for clock, start in zip(CLOCKS, before, strict=True)]
                if round_:
                    found[name].append([two / one for one, two in zip(spent[1], spent[2], strict=True)])
    finally:
        torch.set_num_threads(threads)
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in found.items()}


def _model(n_layers: int, d_model: int, d_vocab: int, n_ctx: int = 128):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    sizes = dict(n_layers=n_layers, d_model=d_model, n_ctx=n_ctx, d_head=64, n_heads=d_model // 64, d_vocab=d_vocab)
    config = HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LN")
    return HookedTransformer(config, tokenizer=word_tokenizer(d_vocab)).eval()


def _readout() -> Callable[[], object]:
    """300 vectors in GPT-2's vocabulary."""
    model = _model(1, 768, 50257)
    vectors = torch.randn(300, 768, generator=torch.Generator().manual_seed(0))
    return lambda: tlb.readout(model, vectors, target=7)


def _top_pairs() -> Callable[[], object]:
    """10,000 x 10,000 pairs of a head's width."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(10_000, 64, generator=generator) for _ in range(2))
    return lambda: tlb.top_pairs(left, right, 50, show_progress=False)


def _compare() -> Callable[[], object]:
    """All layers of one model against all of another, over 4,096 tokens."""
    models = [_model(4, 256, 512), _model(4, 256, 512)]
    tokens = torch.randint(511, (32, 128), generator=torch.Generator().manual_seed(0))
    options = {"text_options": TextOptions(batch_size=16), "show_progress": False}
    return lambda: tlb.dissimilarity.compare(*models, tokens, **options)


def _similarity() -> Callable[[], object]:
    """The Gram of 64 texts of 64 tokens, W_out of 4 layers."""
    model = _model(4, 256, 512)
    tokens = torch.randint(511, (64, 63), generator=torch.Generator().manual_seed(0))
    texts = [" ".join(f"w{i}" for i in each) for each in tokens.tolist()]
    return lambda: tlb.gradient_similarity(model, texts, weights="W_out", show_progress=False)


def _enumeration() -> Callable[[], object]:
    """A domain of 8,000 inputs of 8 tokens."""
    model = _model(2, 64, 14, n_ctx=12)
    tokens = torch.randint(14, (8_000, 8), generator=torch.Generator().manual_seed(0))
    options = {"text_options": TextOptions(batch_size=1024), "show_progress": False}
    return lambda: tlb.inversion.enumerate_preimage(model, tokens[0], ("resid_post", 1), -1, tokens, **options)


def main() -> None:
    """Print the rows."""
    left, right = (torch.randn(*shape) for shape in ((512, 768), (768, 16_384)))
    out = torch.empty(512, 16_384)
    parts = {
        "top_pairs": _top_pairs,
        "readout": _readout,
        "compare": _compare,
        "gradient_similarity": _similarity,
        "enumerate_preimage": _enumeration,
    }
    for name, make in parts.items():
        found = shares({name: make(), "product": lambda: torch.mm(left, right, out=out)})
        (wall, cpu), (plain_wall, plain_cpu) = found[name], found["product"]
        row(f"{name}: wall time of two threads / one", wall, "<= 0.60", f"a plain product {plain_wall:.2f}")
        row(f"{name}: CPU time of two threads / one", cpu, "<= 1.15", f"a plain product {plain_cpu:.2f}")


if __name__ == "__main__":
    main()
