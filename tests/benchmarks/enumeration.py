"""Exact preimages: the cost of a domain beside its bare forward passes, and of one query of an index."""

import time

import torch

from tests.benchmarks.measure import interleaved, row
from tl_backward.inversion import ActivationIndex, Closeness, enumerate_preimage, read_query
from tl_backward.text.options import TextOptions

SITE, BATCH = ("resid_post", 1), 1024


def main() -> None:
    """Print this part of the table."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    sizes = dict(n_layers=2, d_model=64, n_ctx=12, d_head=32, n_heads=2, d_mlp=256, d_vocab=14, act_fn="gelu")
    model = HookedTransformer(HookedTransformerConfig(**sizes)).eval()
    tokens = torch.randint(14, (8_000, 8), generator=torch.Generator().manual_seed(0))
    options = {"text_options": TextOptions(batch_size=BATCH), "show_progress": False}

    def bare() -> None:
        with torch.no_grad():
            for part in tokens.split(BATCH):
                model(part, stop_at_layer=2)

    for match in ("same", "any"):
        times = interleaved(
            {
                "bare": bare,
                "index": lambda match=match: ActivationIndex.of(model, SITE, -1, tokens, match=match, **options),
                "pass": lambda match=match: enumerate_preimage(
                    model, tokens[0], SITE, -1, tokens, epsilon=Closeness(match=match), **options
                ),
            },
            rounds=3,
        )
        for name in ("index", "pass"):
            detail = f"{times[name] / len(tokens) * 1e6:.1f} us an input"
            row(
                f"enumeration, {name}, match={match} / bare forward passes",
                times[name] / times["bare"],
                "<= 1.5",
                detail,
            )
    query()


def query() -> None:
    """One query of 810,000 activations of 32 dimensions, beside one product with all of them."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = dict(n_layers=1, d_model=32, n_ctx=4, d_head=16, n_heads=2, d_mlp=32, d_vocab=1000, act_fn="gelu")
    model = HookedTransformer(HookedTransformerConfig(**sizes)).eval()
    tokens = torch.randint(1000, (810_000, 1), generator=torch.Generator().manual_seed(0))
    index = ActivationIndex.of(
        model,
        ("resid_post", 0),
        -1,
        tokens,
        match="same",
        text_options=TextOptions(batch_size=8192),
        show_progress=False,
    )
    asked = read_query(model, tokens[0], ("resid_post", 0), -1)
    times = interleaved(
        {"product": lambda: index.values @ asked.activation, "query": lambda: index.preimage(asked), "text": lambda: index.preimage(tokens[0])},
    )  # fmt: skip
    start = time.perf_counter()
    found = index.preimage(asked)
    wall = time.perf_counter() - start
    detail = (
        f"{times['query'] * 1e3:.1f} ms (wall {wall * 1e3:.1f}), {times['text'] * 1e3:.1f} with the query's own pass"
    )
    row("one query of 810,000 x 32 / one product with all", times["query"] / times["product"], "-", f"{detail}; {found.diagnostics.distinct} distinct inside")  # fmt: skip
