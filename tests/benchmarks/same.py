"""The same work twice, in turns: how far from 1 a ratio may be that says nothing."""

import torch

import tl_backward as tlb
from tests.benchmarks.measure import interleaved, row


def main() -> None:
    """Print the row."""
    model, tokens = tlb.zoo.load("facts"), torch.arange(20, 28)[None]

    def captures() -> None:
        for _ in range(10):
            tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, names_filter=[])

    times = interleaved({"one": captures, "two": captures}, rounds=20)
    row("A/A: ten captures of facts / the same again", times["one"] / times["two"], "1", f"{times['one']:.3f} s")
