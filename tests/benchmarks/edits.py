"""The forward-pass shift against one bare forward pass, on GPT-2 small's shape."""

import torch

import tl_backward as tlb
from tests.benchmarks.measure import gpt2_shape, interleaved, row
from tests.benchmarks.sweeps import N_TOKENS, one_thread, words


def main() -> None:
    """Print the rows."""
    model = gpt2_shape()
    (prompt,) = words(model)(1)
    tokens = model.to_tokens(prompt)

    def forward():
        with torch.no_grad():
            model(tokens)

    edit = tlb.shift_edit(model, prompt, "7", layer=6)
    with one_thread():
        times = interleaved(
            {
                "forward": forward,
                "shift": lambda: tlb.shift_edit(model, prompt, "7", layer=6),
                "apply and revert": lambda: edit.apply().revert(),
            },
            rounds=9,
        )
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in times.items())
    row(f"shift_edit / forward pass, {N_TOKENS} tokens", times["shift"] / times["forward"], "<= 1.20", seconds)


if __name__ == "__main__":
    main()
