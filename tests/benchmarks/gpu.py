"""The ratios of `make bench` on one CUDA device: ``python -m tests.benchmarks.gpu``.

Random models of GPT-2 small's, 1.5B's and 7B's shapes in bfloat16 and float32: capture beside a full and an
activation-only backward pass, top pairs and all-pairs CKA beside their bare products. What does not fit is said.
"""

import argparse
import time
from collections.abc import Callable

import torch

import tl_backward as tlb
from tests.benchmarks import capture, compare, top_pairs
from tests.benchmarks.measure import interleaved, row
from tl_backward.vocabulary.top_pairs import GPU_TILE

SHAPES = {  # n_layers, d_model, n_heads, d_vocab
    "tiny": (2, 64, 4, 1000),  # to see that the script runs, on a CPU too
    "GPT-2 small": (12, 768, 12, 50257),
    "1.5B": (48, 1600, 25, 50257),
    "7B": (32, 4096, 32, 32000),
}
TOKENS = {"1 x 32": (1, 32), "4 x 128": (4, 128), "8 x 512": (8, 512)}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ROUNDS, D_HEAD, N_PAIRS = 5, 64, 50
LAYERS, SAMPLES, WIDTH = 13, 10_000, 768


def model_of(shape: str, dtype: torch.dtype, device: str) -> torch.nn.Module:
    """A random HookedTransformer, made where it will stay; weights of GPT-2's scale."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    n_layers, d_model, n_heads, d_vocab = SHAPES[shape]
    sizes = dict(n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_head=d_model // n_heads, d_vocab=d_vocab)
    config = HookedTransformerConfig(
        **sizes, n_ctx=1024, act_fn="gelu_new", normalization_type="LN", dtype=dtype, device=device, init_weights=False
    )
    with torch.device(device):
        model = HookedTransformer(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def clock_of(device: str) -> Callable[[], float]:
    """Wall seconds once the device has done what it was given; a CPU's own time."""
    if device == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def added(call: Callable[[], object]) -> int:
    """Most bytes that a call adds on the CUDA device."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def capture_rows(shape: str, name: str, device: str) -> None:
    """Capture of every matrix."""
    model, clock = model_of(shape, DTYPES[name], device), clock_of(device)
    for words, size in TOKENS.items():
        if device == "cpu" and words == "8 x 512":
            continue
        tokens = torch.randint(0, SHAPES[shape][3], size, generator=torch.Generator().manual_seed(0)).to(device)
        ways = {
            "full": lambda tokens=tokens: capture.full_backward(model, tokens),
            "bound": lambda tokens=tokens: capture.activation_only(model, tokens),
            "ours": lambda tokens=tokens: capture.capture(model, tokens),
        }
        what = f"{shape}, {name}, {words}"
        times = {}
        for way in (tuple(ways), ("bound", "ours")):  # without the full pass, where its gradients do not fit
            try:
                times = interleaved({each: ways[each] for each in way}, ROUNDS, clock)
                break
            except torch.OutOfMemoryError:
                model.zero_grad(set_to_none=True)
                print(f"{what}: {', '.join(way)} do not fit in the device's memory")
        if not times:
            continue
        seconds = ", ".join(f"{each} {1000 * value:.1f} ms" for each, value in times.items())
        if "full" in times:
            row(f"capture / loss.backward(), {what}", times["ours"] / times["full"], "<= 0.75", seconds)
        row(f"capture / forward + activation-only backward, {what}", times["ours"] / times["bound"], "<= 1.10", seconds)
        if device != "cpu":
            above = added(ways["ours"]) - added(ways["bound"])
            row(f"capture's peak memory above the bound's, MiB, {what}", above / 2**20, "", "")


def top_pairs_rows(name: str, device: str) -> None:
    """The 50 largest of V x V, V = 50,257, from factors of rank 64."""
    generator = torch.Generator().manual_seed(0)
    n = 5000 if device == "cpu" else top_pairs.D_VOCAB
    factors = [torch.randn(n, D_HEAD, generator=generator).to(device, DTYPES[name]) for _ in range(2)]
    ways = {
        "top_pairs": lambda: tlb.top_pairs(*factors, N_PAIRS, show_progress=False),
        "product": lambda: top_pairs.bare(*factors, GPU_TILE),
    }
    times = interleaved(ways, ROUNDS, clock_of(device))
    seconds = ", ".join(f"{each} {1000 * value:.1f} ms" for each, value in times.items())
    row(
        f"top_pairs / bare rank-{D_HEAD} product, V={n}, {name}",
        times["top_pairs"] / times["product"],
        "<= 1.6",
        seconds,
    )


def cka_rows(name: str, device: str) -> None:
    """Debiased CKA of 13 x 13 layers beside the one product X'Y of all of them."""
    samples, width = (1000, 32) if device == "cpu" else (SAMPLES, WIDTH)
    sides = [
        [rows.to(device, DTYPES[name]) for rows in compare.layers(samples, width, seed)] for seed in (0, 1)
    ]  # fmt: skip
    stacked = [torch.cat(side, dim=1).float() for side in sides]
    ways = {"all pairs": lambda: compare.all_pairs(*sides), "product": lambda: stacked[0].T @ stacked[1]}
    times = interleaved(ways, ROUNDS, clock_of(device))
    seconds = ", ".join(f"{each} {1000 * value:.1f} ms" for each, value in times.items())
    what = f"all-pairs CKA, {LAYERS} x {LAYERS} layers, d={width}, n={samples:,}, {name} / float32 X'Y"
    row(what, times["all pairs"] / times["product"], "<= 1.3", seconds)


def main(arguments: list[str] | None = None) -> None:
    """Print the table of one device."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="(default: all but tiny)")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="(default: both)")
    options = parser.parse_args(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --device cpu --shape tiny shows that the script runs")
    card = "CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"{card}, torch {torch.__version__}; medians of {ROUNDS} interleaved rounds")
    print(f"{'what':<62} {'ratio':>7}  {'goal':<9} detail")
    for name in options.dtype or DTYPES:
        for shape in options.shape or [each for each in SHAPES if each != "tiny"]:
            capture_rows(shape, name, options.device)
        top_pairs_rows(name, options.device)
        cka_rows(name, options.device)


if __name__ == "__main__":
    main()
