"""How time and peak memory grow, axis by axis: what docs/scaling.md quotes (``python -m tests.benchmarks.scaling``).

Each axis is doubled some times while the others stay; an exponent is the slope of log cost over log size, by least squares
over the sizes. Then what one machine's memory holds, computed from the page's formulas, and float32 beside bfloat16.
"""

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import tl_backward as tlb
from tests.benchmarks.measure import gpt2_shape, interleaved, peak_memory, word_tokenizer
from tests.benchmarks.sweeps import one_thread
from tl_backward.inversion import SearchOptions, enumerate_preimage, search_preimage
from tl_backward.text.options import TextOptions

QUIET = {"show_progress": False}
BASE = {"tokens": 64, "batch": 8, "layers": 4, "vocabulary": 1000, "d_model": 128}

Call = Callable[[], object]


def model_of(sizes: dict[str, int]):
    """A random HookedTransformer with one word a token."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    shape = dict(n_layers=sizes["layers"], d_model=sizes["d_model"], d_vocab=sizes["vocabulary"], d_head=32, n_heads=4)
    model = HookedTransformer(HookedTransformerConfig(**shape, n_ctx=1024, act_fn="gelu_new")).eval()
    model.set_tokenizer(word_tokenizer(sizes["vocabulary"]))
    return model


def ids(sizes: dict[str, int]) -> Tensor:
    """Random tokens [batch, pos]."""
    shape = (sizes["batch"], sizes["tokens"])
    return torch.randint(0, sizes["vocabulary"] - 1, shape, generator=torch.Generator().manual_seed(1))


def texts(sizes: dict[str, int]) -> list[str]:
    """The same as texts, which <bos> comes before."""
    return [" ".join(f"w{token}" for token in row[1:]) for row in ids(sizes).tolist()]


def capture(sizes: dict[str, int]) -> Call:
    """All matrices of a batch."""
    model, tokens = model_of(sizes), ids(sizes)
    return lambda: tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, names_filter=[])


def lens(sizes: dict[str, int]) -> Call:
    """One prompt."""
    model, (text, *_) = model_of(sizes), texts(sizes)
    return lambda: tlb.backward_lens(model, text, "w1")


def sweep(sizes: dict[str, int]) -> Call:
    """Default quantities of prompts."""
    model, prompts = model_of(sizes), texts(sizes)
    return lambda: tlb.sweep(model, prompts, ["w1"] * len(prompts), **QUIET)


def similarity(sizes: dict[str, int]) -> Call:
    """Of all W_out, within one set."""
    model, examples = model_of(sizes), texts(sizes)
    return lambda: tlb.gradient_similarity(model, examples, weights="W_out", **QUIET)


def readout(sizes: dict[str, int]) -> Call:
    """`batch` vectors."""
    model, vectors = model_of(sizes), torch.randn(sizes["batch"], sizes["d_model"])
    return lambda: tlb.readout(model, vectors)


def top_pairs(sizes: dict[str, int]) -> Call:
    """Of one head of 32 dimensions."""
    left, right = (torch.randn(sizes["vocabulary"], 32) for _ in range(2))
    return lambda: tlb.top_pairs(left, right, 50, **QUIET)


def compare(sizes: dict[str, int]) -> Call:
    """Debiased CKA of all pairs of layers, without jackknife or permutations."""
    model, tokens = model_of(sizes), ids(sizes)
    options = tlb.dissimilarity.RunOptions(jackknife=0, permutations=0)
    data = list(tokens.split(64))
    return lambda: tlb.dissimilarity.compare(model, model, data, run_options=options, **QUIET)


def enumeration(sizes: dict[str, int]) -> Call:
    """The exact preimage in a domain of `batch` inputs."""
    model, tokens = model_of(sizes), ids(sizes)
    text = TextOptions(batch_size=64)
    return lambda: enumerate_preimage(model, tokens[0], ("resid_post", 1), -1, tokens, text_options=text, **QUIET)


def search(sizes: dict[str, int]) -> Call:
    """Walks of `batch` chains."""
    model, tokens = model_of(sizes), ids(sizes)
    options = SearchOptions(chains=sizes["batch"], steps=20)
    return lambda: search_preimage(
        model, tokens[0], ("resid_post", 1), -1, tokens[:8], search_options=options, **QUIET
    )  # fmt: skip


AXES = (
    (capture, {}, {"tokens": (64, 128, 256, 512), "batch": (8, 16, 32, 64), "layers": (4, 8, 16), "vocabulary": (4000, 8000, 16000)}),
    (lens, {}, {"tokens": (64, 128, 256, 512), "layers": (4, 8, 16), "vocabulary": (4000, 8000, 16000)}),
    (sweep, {"tokens": 16}, {"batch": (128, 256, 512), "layers": (4, 8, 16)}),
    (similarity, {"tokens": 16, "batch": 128}, {"batch": (128, 256, 512), "tokens": (16, 32, 64)}),
    (readout, {"vocabulary": 8000, "batch": 128}, {"batch": (128, 256, 512), "vocabulary": (8000, 16000, 32000)}),
    (top_pairs, {}, {"vocabulary": (8000, 16000, 32000)}),
    (compare, {"tokens": 16, "batch": 512}, {"batch": (512, 1024, 2048), "layers": (4, 8, 16), "d_model": (128, 256, 512)}),
    (enumeration, {"tokens": 16, "batch": 512}, {"batch": (512, 1024, 2048), "layers": (4, 8, 16)}),
    (search, {"tokens": 16}, {"batch": (16, 32, 64)}),
)  # fmt: skip
"""What is measured, at which sizes, and along which axes."""


def exponent(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Slope of log cost over log size."""
    x, y = ([math.log(max(value, 1e-9)) for value in side] for side in (sizes, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def growth() -> None:
    """Print the exponents."""
    print(f"{'what':<12} {'axis':<11} {'time':>5} {'memory':>7}  sizes; CPU seconds; peak MiB added")
    for job, fixed, axes in AXES:
        for axis, sizes in axes.items():
            seconds, peaks = [], []
            for size in sizes:
                call = job(BASE | fixed | {axis: size})
                call()
                spent = []
                for _ in range(2):
                    start = time.process_time()
                    call()
                    spent.append(time.process_time() - start)
                seconds.append(min(spent))
                peaks.append(added(call))
            of_time, of_memory = exponent(sizes, seconds), exponent(sizes, peaks)
            measured = "; ".join(
                " ".join(each)
                for each in (map(str, sizes), (f"{s:.3g}" for s in seconds), (f"{p / 2**20:.0f}" for p in peaks))
            )
            print(f"{job.__name__:<12} {axis:<11} {of_time:5.2f} {of_memory:7.2f}  {measured}", flush=True)


def added(call: Call) -> int:
    """Peak memory of a call above what is in use, once what was freed has gone back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return max(1, peak_memory(call))


GB = 10**9
SHAPES = {  # n_layers, d_model, d_vocab, n_heads, parameters, bytes a number
    "GPT-2 small, float32": (12, 768, 50257, 12, 0.163e9, 4),
    "1.5B, bfloat16": (48, 1600, 50257, 25, 1.64e9, 2),
    "7B, bfloat16": (32, 4096, 32000, 32, 6.7e9, 2),
}


def capture_bytes(shape: tuple, tokens: int) -> float:
    """Of one text: what the pass holds, the factors of every matrix among it."""
    layers, d, vocabulary, heads, _, itemsize = shape
    rest = 5 * vocabulary + 40 * layers * d
    return itemsize * tokens * (rest + 3 * layers * heads * tokens)


def rooms() -> None:
    """Print what fits into memory, computed."""
    print("\ncomputed: what fits beside the weights")
    for budget in (24, 80):
        for name, shape in SHAPES.items():
            layers, d, vocabulary, _, parameters, itemsize = shape
            free = 0.9 * budget * GB - parameters * itemsize
            if free < 0:
                print(f"{budget} GB, {name}: the weights alone take {parameters * itemsize / GB:.1f} GB")
                continue
            n_texts = int(free / capture_bytes(shape, 512))
            longest = max((t for t in (2**k for k in range(5, 20)) if capture_bytes(shape, t) <= free), default=0)
            examples = int(free / (itemsize * 64 * 5 * d * layers))
            pairs = 8 * layers**2 * d**2
            print(
                f"{budget} GB, {name}: every matrix of {n_texts} texts x 512, or one of {longest} tokens; W_out's factors "
                f"of {examples} texts x 64; sums of all pairs of layers {pairs / GB:.1f} GB"
            )
    for budget in (24, 80):
        print(f"{budget} GB: similarity of one weight's {int(math.sqrt(0.8 * budget * GB / 8))} examples in its result")


def precisions() -> None:
    """Print float32 beside bfloat16: time of a capture, ranks of the targets, numerical ranks."""
    print("\nfloat32 beside bfloat16")
    cases = tlb.zoo.edit_cases("test")[:40]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tlb.zoo.load("facts").to(dtype)
        found[dtype] = tlb.sweep(model, cases, collect=["target_rank", "rank", "gradient_norm"], **QUIET)
    one, two = found.values()
    same = [(one.values[name] - two.values[name]).abs().flatten() for name in ("target_rank", "rank")]
    norms = (two.values["gradient_norm"] / one.values["gradient_norm"] - 1).abs().flatten()
    for name, differ in zip(("rank of the target (of 424)", "numerical rank of the gradient"), same, strict=True):
        differ = differ[~differ.isnan()]
        print(f"facts, {name}: equal in {float((differ == 0).double().mean()):.1%}, "
              f"differs by {float(differ.median()):.0f} in the median and {float(differ.max()):.0f} at most")  # fmt: skip
    print(f"facts, norm of the gradient: differs by {float(norms.nanmedian()):.1%} in the median")
    single, half = gpt2_shape(), gpt2_shape().to(torch.bfloat16)
    for shape in ((1, 32), (4, 16)):
        tokens = torch.randint(0, 50257, shape, generator=torch.Generator().manual_seed(0))
        runs = {
            name: partial(tlb.run_with_gradient_cache, model, tokens, tlb.next_token_loss, names_filter=[])
            for name, model in (("float32", single), ("bfloat16", half))
        }
        times = interleaved(runs, rounds=2)
        ratio = times["float32"] / times["bfloat16"]
        print(f"capture, GPT-2 small's shape, {shape}: {ratio:.2f} times as fast in bfloat16 ({times})", flush=True)


def main() -> None:
    """Print all, or the parts that are named."""
    parts = {"growth": growth, "rooms": rooms, "precisions": precisions}
    with one_thread():
        for name in sys.argv[1:] or parts:
            parts[name]()


if __name__ == "__main__":
    main()
