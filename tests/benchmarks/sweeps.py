"""A sweep against the bare capture of the same batch."""

from contextlib import contextmanager

import torch

import tl_backward as tlb
from tests.benchmarks.measure import gpt2_shape, interleaved, row
from tl_backward.gradients.examples import encode_examples
from tl_backward.lens.sweeps import sweep

N_TOKENS = 32


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
    beside = interleaved(
        {
            "control": lambda: sweep(model, prompts, targets, show_progress=False),
            "alone": lambda: sweep(model, prompts, targets, control=None, show_progress=False),
        },
        rounds=3,
    )
    detail = f"{beside['control']:.1f} s, {beside['alone']:.1f} s; five draws of {_millions(model):.0f} million numbers"
    row("sweep of 8 prompts with its control / without", beside["control"] / beside["alone"], "<= 1.5", detail)


def _millions(model) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


if __name__ == "__main__":
    main()
