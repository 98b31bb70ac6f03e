"""Capture of all matrices of a GPT-2-small-shape model, and of a small one, against a full and an activation-only pass."""

import sys

import torch
from torch.autograd.graph import get_gradient_edge

import tl_backward as tlb
from tests.benchmarks.measure import gpt2_bridge, gpt2_shape, in_fresh_process, interleaved, peak_memory, row

SHAPES = {"1 x 32": (1, 32), "4 x 128": (4, 128)}


def tokens_of(shape: str) -> torch.Tensor:
    """Random tokens."""
    return torch.randint(0, 50257, SHAPES[shape], generator=torch.Generator().manual_seed(0))


def loss_of(model, tokens):
    """The language-model loss of a forward pass."""
    return tlb.next_token_loss(model(tokens, return_type="logits"), tokens)


def activation_only(model, tokens):
    """The lower bound: forward, and backward to the embedding alone; no weight's gradient, nothing kept."""
    entered = []

    def remember(module, args, output):
        output = output if output.requires_grad else output.requires_grad_()  # of a frozen model
        entered.append(get_gradient_edge(output))
        return output

    handle = model.embed.register_forward_hook(remember)
    try:
        return torch.autograd.grad(loss_of(model, tokens), entered)
    finally:
        handle.remove()


def full_backward(model, tokens):
    """What everybody does: loss.backward() with every weight trainable."""
    loss_of(model, tokens).backward()
    model.zero_grad(set_to_none=True)


def capture(model, tokens, names_filter=()):
    """All matrices."""
    return tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, names_filter=list(names_filter))


def factor_bytes(cache) -> int:
    """Bytes of all inputs and deltas, those that several weights share once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for f in cache.factors.values() for t in (f.inputs, f.deltas)}  # fmt: skip
    return sum(storages.values())


WORLDS = {"HookedTransformer": gpt2_shape, "Bridge": gpt2_bridge}


def main() -> None:
    """Print the rows of capture."""
    for world, build in WORLDS.items():
        model = build()
        for shape, limit in (("1 x 32", "<= 0.60"), ("4 x 128", "<= 0.75")):
            _times(world, model, shape, limit)
        del model
    for kind in ("hooked", "bridge"):
        _times_of_facts(kind)
    for world in WORLDS:
        for trainable in ("trainable", "frozen"):
            _peaks(world, "4 x 128" if trainable == "frozen" else "1 x 32", trainable)
        _peaks(world, "4 x 128", "trainable")


def _times(world: str, model, shape: str, limit: str) -> None:
    tokens = tokens_of(shape)
    rounds = 9 if shape == "1 x 32" else 5
    ours = {"ours": lambda: capture(model, tokens)}
    rest = {
        "full": lambda: full_backward(model, tokens),
        "with hook points": lambda: tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss),
    }
    times = interleaved(rest | ours, rounds=rounds)
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in times.items())
    row(f"{world}: capture / loss.backward(), {shape} tokens", times["ours"] / times["full"], limit, seconds)
    every = times["with hook points"] / times["full"]
    row(f"{world}: capture with every hook point / loss.backward(), {shape}", every, "", "")
    # In turns with nothing else: after the memory that all weights' gradients took, either is slower.
    times = interleaved({"bound": lambda: activation_only(model, tokens)} | ours, rounds=2 * rounds + 1)
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in times.items())
    bound = times["ours"] / times["bound"]
    row(f"{world}: capture / forward + activation-only backward, {shape}", bound, "<= 1.06", seconds)


def _times_of_facts(kind: str) -> None:
    """Of a small model, whose pass is mostly python's: the package's own share shows."""
    model, tokens = tlb.zoo.load("facts", kind=kind), torch.arange(20, 28)[None]
    times = interleaved(
        {
            "full": lambda: full_backward(model, tokens),
            "ours": lambda: capture(model, tokens),
            "with hook points": lambda: tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss),
        },
        rounds=101,
    )
    milliseconds = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in times.items())
    row(
        f"facts, {kind}: capture / loss.backward(), 1 x 8 tokens",
        times["ours"] / times["full"],
        "<= 1.05",
        milliseconds,
    )
    every = times["with hook points"] / times["full"]
    row(f"facts, {kind}: capture with every hook point / loss.backward(), 1 x 8", every, "<= 1.25", "")


def _peaks(world: str, shape: str, trainable: str) -> None:
    kinds = ("bound", "ours", "bytes")
    peaks = {kind: int(in_fresh_process("tests.benchmarks.capture", kind, shape, world, trainable)) for kind in kinds}
    above = peaks["ours"] - peaks["bound"]
    detail = f"{above / 2**20:.0f} MiB above the bound, factors {peaks['bytes'] / 2**20:.0f} MiB"
    what = f"{world}, {trainable}: peak above the bound / factors, {shape}"
    row(what, above / peaks["bytes"], "<= 1.15", detail)


def peak(kind: str, shape: str, world: str, trainable: str) -> None:
    """In a process of its own: print the peak memory of one way, or the bytes of the factors."""
    model, tokens = WORLDS[world](), tokens_of(shape)
    if trainable == "frozen":
        model.requires_grad_(False)
    if kind == "bytes":
        print(factor_bytes(capture(model, tokens)[1]))
        return
    run = {"bound": activation_only, "ours": capture}[kind]
    run(model, tokens[:, :4])  # the first pass sets up buffers that stay
    print(peak_memory(lambda: run(model, tokens)))


if __name__ == "__main__":
    peak(*sys.argv[1:])
