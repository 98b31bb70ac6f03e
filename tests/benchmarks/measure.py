"""CPU time of alternatives, interleaved, and the memory that a run touches at its peak."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


class Ratio(float):
    """A ratio of medians, and the quartiles of the ratios within each round."""

    low: float
    high: float


class Seconds(float):
    """The median of some rounds; a quotient of two knows how far the rounds agree."""

    rounds: list[float]

    def __new__(cls, rounds: list[float]) -> "Seconds":
        """Of what each round took."""
        self = super().__new__(cls, statistics.median(rounds))
        self.rounds = rounds
        return self

    def __truediv__(self, other: float) -> float:
        """The ratio of the medians."""
        ratio = Ratio(float(self) / float(other))
        if not isinstance(other, Seconds) or not 1 < len(self.rounds) == len(other.rounds):
            return float(ratio)
        each = [mine / its for mine, its in zip(self.rounds, other.rounds, strict=True)]
        ratio.low, _, ratio.high = statistics.quantiles(each, n=4, method="inclusive")
        return ratio


def interleaved(
    alternatives: dict[str, Callable[[], object]], rounds: int = 7, clock: Callable[[], float] = time.process_time
) -> dict[str, Seconds]:
    """Median seconds of each alternative, after one warm-up, one call of each a round.

    CPU time, not wall time: the machine is shared and its clock says more about the neighbours. Pass another `clock` for
    what the CPU only starts.
    """
    times = {name: [] for name in alternatives}
    order = list(alternatives.items())
    for round_ in range(rounds + 1):
        order.reverse()  # what ran before leaves its memory behind, which must not always fall to the same one
        for name, call in order:
            start = clock()
            call()
            if round_:
                times[name].append(clock() - start)
    return {name: Seconds(values) for name, values in times.items()}


def peak_memory(call: Callable[[], object]) -> int:
    """Most memory, in bytes, that a call adds to what the process holds (Linux: the kernel's high-water mark)."""
    Path("/proc/self/clear_refs").write_text("5")  # start the mark anew
    before = _status("VmRSS")
    result = call()
    after = _status("VmHWM")
    del result
    return after - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def in_fresh_process(module: str, *arguments: str) -> str:
    """Last line printed by `python -m module arguments` in a process of its own."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


KEPT = []
"""The history that rows are added to, where `make bench` keeps one."""


def row(what: str, ratio: float, bound: str, detail: str) -> None:
    """Print one line of the table, with what it is of the last one that was kept.

    A target is met where the interval, of the rounds' own ratios, reaches it.
    """
    since = " ".join(history.add(what, ratio) for history in KEPT)
    interval = f"{ratio.low:.3f}..{ratio.high:.3f}" if isinstance(ratio, Ratio) else ""
    print(f"{what:<62} {ratio:7.3f} {interval:<14} {bound:<9} {detail} {since}".rstrip(), flush=True)


def word_tokenizer(d_vocab: int):
    """A tokenizer of `d_vocab` tokens: w0, w1, ..., and <bos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(d_vocab - 1)} | {"<bos>": d_vocab - 1}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<bos>", pad_token="<bos>", name_or_path="bench/words",
        add_bos_token=True,
    )  # fmt: skip


def gpt2_bridge():
    """A TransformerBridge of GPT-2 small's shape with random weights and one word a token."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    inner = GPT2LMHeadModel(GPT2Config()).eval()
    return TransformerBridge.boot_transformers("gpt2", hf_model=inner, tokenizer=word_tokenizer(50257), device="cpu")


def gpt2_shape(**options):
    """A HookedTransformer of GPT-2 small's shape with random weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    sizes = dict(n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_vocab=50257, act_fn="gelu_new")
    return HookedTransformer(HookedTransformerConfig(**sizes, normalization_type="LN", **options)).eval()
