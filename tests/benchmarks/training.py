"""A training that is watched against the same training; what a watch holds; a difference against its bare SVDs."""

import sys

import torch

import tl_backward as tlb
from tests.benchmarks.measure import gpt2_shape, in_fresh_process, interleaved, peak_memory, row
from tl_backward.training import difference, watch
from tl_backward.training.record import as_matrix
from tl_backward.weights import weight_sites


def step_of(model, tokens):
    """A step of AdamW, and its optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step():
        model(tokens, return_type="loss").backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step, optimizer


def main() -> None:
    """Print the rows."""
    for kind in ("hooked", "bridge"):
        model = tlb.zoo.load("facts", kind=kind)
        tokens = torch.randint(3, 400, (8, 32), generator=torch.Generator().manual_seed(0))
        _overhead(f"facts, {kind}: watched step / step, 8 x 32 tokens", model, tokens, 15, steps=5)
    model = gpt2_shape()
    tokens = torch.randint(0, 50257, (8, 64), generator=torch.Generator().manual_seed(0))
    _overhead("GPT-2 small's shape: watched step / step, 8 x 64 tokens", model, tokens, 3)
    plain, watched = (int(in_fresh_process("tests.benchmarks.training", kind)) for kind in ("step", "watched"))
    factors, sketches = map(int, in_fresh_process("tests.benchmarks.training", "sizes").split())
    row(
        "GPT-2 small's shape: what a watch adds to the step's peak / a batch's factors and the sketches",
        max(1, watched - plain) / (factors + sketches),
        "<= 1.2",
        f"{(watched - plain) / 2**20:.0f} MiB, factors {factors / 2**20:.0f}, sketches {sketches / 2**20:.0f}",
    )
    other = gpt2_shape()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.001 * torch.randn_like(parameter))
    _difference(model, other)


def _overhead(name: str, model, tokens, rounds: int, steps: int = 1) -> None:
    """Of some steps in one watch, as a training is watched: hooks go on and off once."""
    step, optimizer = step_of(model, tokens)
    watching = watch(model, optimizer=optimizer)

    def plain():
        for _ in range(steps):
            step()

    def watched():
        with watching:
            plain()

    times = interleaved({"plain": plain, "watched": watched}, rounds=rounds)
    detail = ", ".join(f"{key} {1000 * value / steps:.1f} ms" for key, value in times.items())
    row(name, times["watched"] / times["plain"], "<= 1.15", detail)


def _difference(before, after) -> None:
    """Beside torch's own randomized SVDs, of as many columns and iterations, which a change of ours leaves alone."""
    sites = [(weight_sites(before)[name], site) for name, site in weight_sites(after).items() if site.is_default]

    def bare():
        for old, new in sites:
            one, two = (as_matrix(site, site.parameter.detach()) for site in (old, new))
            torch.svd_lowrank(two - one, 18, niter=2)

    times = interleaved({"bare": bare, "ours": lambda: difference(before, after, noise=False)}, rounds=3)
    detail = ", ".join(f"{key} {value:.1f} s" for key, value in times.items())
    row(
        "GPT-2 small's shape: difference / torch.svd_lowrank of its changes",
        times["ours"] / times["bare"],
        "<= 1.3",
        detail,
    )


def peak(kind: str) -> str:
    """Peak bytes of three steps, or how much a batch's factors and the sketches take."""
    torch.set_num_threads(1)
    model = gpt2_shape()
    tokens = torch.randint(0, 50257, (8, 64), generator=torch.Generator().manual_seed(0))
    if kind == "sizes":
        sites = [site for site in weight_sites(model).values() if site.is_default]
        factors = sum(4 * tokens.numel() * sum(site.layout.matrix_shape) for site in sites)
        records = watch(model).records.values()
        kept = sum(each.nbytes for record in records for each in record.start.tensors().values())
        return f"{factors} {int(1.5 * kept)}"  # the start in float64, the sum in float32
    step, optimizer = step_of(model, tokens)
    if kind == "step":
        return str(peak_memory(lambda: [step() for _ in range(3)]))

    def watched():
        with watch(model, optimizer=optimizer):
            for _ in range(3):
                step()

    return str(peak_memory(watched))


if __name__ == "__main__":
    print(peak(sys.argv[1]))
