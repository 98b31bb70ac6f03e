"""Top pairs at GPT-2's vocabulary against the bare product of the factors, and against the product of the vocabulary."""

import sys
from functools import partial

import torch

import tl_backward as tlb
from tests.benchmarks.measure import in_fresh_process, interleaved, peak_memory, row
from tl_backward.vocabulary.top_pairs import TILE, TopPairs

D_VOCAB, D_MODEL, D_HEAD, K = 50257, 768, 64, 50
SAMPLED = 1024  # rows of the slow route that are measured, in blocks; the rest is scaled up
BLOCK = 256


def weights(heavy: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An embedding [d_vocab, d_model] and one head's W_V and W_O; tokens of lognormal norm if `heavy`."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(D_VOCAB, D_MODEL, generator=generator).mul_(0.02)
    if heavy:
        embedding *= torch.randn(D_VOCAB, 1, generator=generator).exp()
    value, output = (
        torch.randn(*shape, generator=generator).mul_(0.02) for shape in ((D_MODEL, D_HEAD), (D_HEAD, D_MODEL))
    )
    return embedding, value, output


def bare(left: torch.Tensor, right: torch.Tensor, tile: tuple[int, int] = TILE) -> None:
    """The product of the factors, tile by tile in one buffer, and nothing else."""
    height, width = tile
    buffer = torch.empty(height * width, device=left.device, dtype=left.dtype)
    for i in range(0, len(left), height):
        rows = left[i : i + height]
        for j in range(0, len(right), width):
            cols = right[j : j + width]
            torch.mm(rows, cols.T, out=buffer[: len(rows) * len(cols)].view(len(rows), len(cols)))


def vocabulary_product(embedding: torch.Tensor, middle: torch.Tensor, threshold: float, rows: int) -> torch.Tensor:
    """The paper's route: (E W_VO) E^T through d_model in blocks of rows, and what exceeds a threshold known beforehand."""
    found, block = [], torch.empty(BLOCK, D_VOCAB)
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        product = torch.mm(embedding[start:stop] @ middle, embedding.T, out=block[: stop - start])
        hits = (product >= threshold).nonzero()
        found.append(torch.cat([product[hits.unbind(1)][:, None].double(), hits + torch.tensor([start, 0])], dim=1))
    return torch.cat(found)


def main() -> None:
    """Print the rows of top pairs, on one thread: two that wait for each other at every tile burn CPU time unevenly."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows()
    finally:
        torch.set_num_threads(threads)


def rows() -> None:
    """Measure and print."""
    route = product = None
    for heavy in (False, True):
        name = "heavy-tailed" if heavy else "Gaussian"
        embedding, value, output = weights(heavy)
        left, right, middle = embedding @ value, embedding @ output.T, value @ output
        found = tlb.top_pairs(left, right, K, show_progress=False)
        check(embedding, middle, found)
        ours = partial(tlb.top_pairs, left, right, K, show_progress=False)
        times = interleaved({"ours": ours} | ({} if product else {"bare": partial(bare, left, right)}), rounds=3)
        product = product or times["bare"]  # its time does not depend on the values, nor does the route's
        if route is None:
            threshold = found.values[-1].item()
            sampled = interleaved(
                {"route": partial(vocabulary_product, embedding, middle, threshold, SAMPLED)}, rounds=3
            )
            route = sampled["route"] * D_VOCAB / SAMPLED
        share = f"{found.n_skipped} of {found.n_tiles} tiles skipped ({found.n_skipped / found.n_tiles:.1%})"
        detail = f"top_pairs {times['ours']:.2f} s, bare product {product:.2f} s; {share}"
        row(f"top_pairs / bare rank-{D_HEAD} product, V={D_VOCAB}, {name}", times["ours"] / product, "<= 1.6", detail)
        detail = f"{route:.0f} s, scaled up from {SAMPLED} of {D_VOCAB} rows; values equal to 1e-4; one thread"
        row(f"the paper's V x d_model x V route / top_pairs, {name}", route / times["ours"], ">= 12", detail)
    mebibytes = int(in_fresh_process("tests.benchmarks.top_pairs", "gpt2")) / 2**20
    row(
        "peak memory of top_pairs above the factors, MiB",
        mebibytes,
        "<= 256",
        f"the product is {D_VOCAB**2 * 4 / 2**30:.1f} GiB",
    )


def check(embedding: torch.Tensor, middle: torch.Tensor, found: TopPairs) -> None:
    """The slow route, on the rows of the pairs found, gives the same values and nothing better."""
    rows = found.rows.unique()
    entries = (embedding[rows] @ middle) @ embedding.T
    own = entries[torch.searchsorted(rows, found.rows), found.cols]
    scale = own.abs().max()
    assert (own - found.values).abs().max() <= 1e-4 * scale
    assert (entries.flatten().topk(K).values - found.values).abs().max() <= 1e-4 * scale


def peak(case: str) -> None:
    """In a process of its own: print the peak memory above the factors."""
    generator = torch.Generator().manual_seed(0)
    n, d = (D_VOCAB, D_HEAD) if case == "gpt2" else (20_000, 32)
    left, right = (torch.randn(n, d, generator=generator) for _ in range(2))
    if case == "ties":
        left, right = torch.zeros_like(left), torch.ones_like(right[:2000]).repeat(10, 1)
        left[:600] = 1  # 600 x 20,000 equal entries at the top
    if case == "bfloat16":
        left, right = left.bfloat16(), right.bfloat16()
    tlb.top_pairs(left[:600], right[:1100], 20, show_progress=False)  # the first call sets up buffers that stay
    print(peak_memory(lambda: tlb.top_pairs(left, right, 1000, show_progress=False)))


if __name__ == "__main__":
    peak(*sys.argv[1:])
