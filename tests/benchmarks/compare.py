"""All-pairs CKA of 13 x 13 layers against the bare matrix products of X'Y, and what it holds in memory."""

import json
import os
import time

import torch

import tl_backward as tlb
from tests.benchmarks.measure import in_fresh_process, interleaved, peak_memory, row
from tests.benchmarks.served import SHARED
from tl_backward.dissimilarity import ADDITIVE, CovarianceStatistics

LAYERS, BATCH = 13, 2000


def layers(samples: int, width: int, seed: int) -> list[torch.Tensor]:
    """Random activations of every layer, float32."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(samples, width, generator=generator) for _ in range(LAYERS)]


def all_pairs(x: list[torch.Tensor], y: list[torch.Tensor]) -> torch.Tensor:
    """Debiased CKA of every pair, the samples fed in batches."""
    widths_a, widths_b = ([rows.shape[1] for rows in side] for side in (x, y))
    stats = CovarianceStatistics(widths_a, widths_b, device=x[0].device, products=torch.float32)
    for start in range(0, len(x[0]), BATCH):
        stats.update([rows[start : start + BATCH] for rows in x], [rows[start : start + BATCH] for rows in y])
    return torch.tensor([[ADDITIVE["cka_debiased"](stats.pair(i, j)) for j in range(LAYERS)] for i in range(LAYERS)])


def one_row(x: list[torch.Tensor], y: list[torch.Tensor], out: torch.Tensor) -> None:
    """The products X_0'Y of one layer with all: a thirteenth of them all."""
    for rows in y:
        torch.mm(x[0].T, rows, out=out)


def direct(x: torch.Tensor, y: torch.Tensor) -> float:
    """Debiased CKA of one pair in float64, from U-centred Gram matrices."""
    from tl_backward.dissimilarity.minibatch import u_centred

    a, b = u_centred(x.double()), u_centred(y.double())
    return float((a * b).sum() / (a.norm() * b.norm()))


def wide() -> None:
    """d = 768, 10,000 samples: the products dominate."""
    x, y = layers(10_000, 768, 0), layers(10_000, 768, 1)
    y[3] = x[2] + 0.5 * y[3]
    out = torch.empty(768, 768)
    bare, spent, found = [], [], []

    def ours() -> None:
        start = time.process_time()
        found.append(all_pairs(x, y))
        spent.append(time.process_time() - start)

    memory = []
    for _ in range(2):
        bare.append(interleaved({"row": lambda: one_row(x, y, out)}, rounds=1)["row"] * LAYERS)
        memory.append(peak_memory(ours))
    few = slice(0, 1500)
    check = all_pairs([rows[few] for rows in x], [rows[few] for rows in y])[2, 3]
    assert abs(float(check) - direct(x[2][few], y[3][few])) < 1e-5
    ratio = min(spent) / min(bare)
    detail = f"{min(spent):.1f} s / {min(bare):.1f} s, {max(memory) / 1e9:.2f} GB above the inputs (goal 1.3)"
    row("all-pairs CKA, 13 x 13 layers, d=768, n=10,000 / its GEMMs", ratio, "<= 1.3", detail)


def narrow() -> None:
    """d = 64: layers side by side against one product a pair."""
    x, y = layers(10_000, 64, 0), layers(10_000, 64, 1)
    out = torch.empty(64, 64)

    def pairwise() -> None:
        for a in x:
            for b in y:
                torch.mm(a.T, b, out=out)

    times = interleaved({"ours": lambda: all_pairs(x, y), "pairwise": pairwise}, rounds=3)
    detail = f"{times['ours']:.2f} s / {times['pairwise']:.2f} s one pair at a time"
    row("all-pairs CKA, 13 x 13 layers, d=64, n=10,000 / its GEMMs", times["ours"] / times["pairwise"], "", detail)


def system_share() -> float:
    """Of the CPU time of a process's first `compare`, of 100 stories, what the kernel takes to give it memory."""
    torch.set_num_threads(1)
    stories = json.loads((SHARED / "data" / "tinystories-1000.json").read_text())[:100]
    models = [tlb.load(SHARED / "models" / "stories260K", kind="bridge") for _ in range(2)]
    before = os.times()
    tlb.dissimilarity.compare(*models, stories, show_progress=False)
    after = os.times()
    system = after.system - before.system
    return system / (system + after.user - before.user)


def main() -> None:
    """Print the rows of the comparison, in one thread: time that a second one waits would count as spent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        share = float(in_fresh_process("tests.benchmarks.compare"))
        row("compare, 100 stories, 5 x 5 layers: system time / CPU time, a process's first", share, "<= 0.15", "")
        narrow()
        wide()
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    print(system_share())
