"""A store of gradients of `facts`: what building and asking it take, and how many of the exact first five it finds."""

import random
import statistics
import tempfile
import time
from pathlib import Path

import tl_backward as tlb
from tests.benchmarks.measure import Ratio, row
from tests.benchmarks.sweeps import one_thread
from tl_backward.gradients.similarity import captured
from tl_backward.text.options import TextOptions
from tl_backward.training import GradientStore
from tl_backward.zoo.families import sentence_rows

N, N_RECALL, N_QUERIES, SEEDS = 10_000, 2_000, 100, (0, 1, 2)
HOW = {"text_options": TextOptions(batch_size=32), "show_progress": False}


def main() -> None:
    """Print the rows."""
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        model = tlb.zoo.load("facts")
        every = [name for name, site in tlb.weight_sites(model).items() if site.is_default]
        for weights in (None, every):
            _costs(model, weights, Path(folder) / str(weights is None))
        for kind in ("texts", "pairs", "facts"):
            recall(model, every, kind, Path(folder))


def texts(model, n: int, seed: int) -> list[str]:
    """Sentences about people, of 16 tokens with BOS."""
    return [model.tokenizer.decode(ids[1:16].tolist()) for ids in sentence_rows(n, seed=seed)]


def _costs(model, weights, out: Path) -> None:
    data = texts(model, N, 0)
    start = time.process_time()
    store = GradientStore.build(model, data, out=out, weights=weights, **HOW)
    seconds, n = time.process_time() - start, len(store.weights)
    detail = f"{seconds:.1f} s, {store.n_bytes / N / n / 1024:.2f} KiB an example and weight"
    row(f"store: building {N:,} texts x 16 tokens, {n} weights / 1 CPU minute", seconds / 60, "<= 1.0", detail)
    query = ("Anna Berg lives in the city of", " Oslo")
    names, asked = list(store.weights), store._asked(*query)
    part = captured(model, [asked], names)
    own, whole = (
        _times(call)
        for call in (
            lambda: captured(model, [asked], names),
            lambda: store.scores_of(part, range(n), metric="cosine"),
        )
    )
    ms = Ratio(1000 * statistics.median(whole))
    ms.low, _, ms.high = (1000 * each for each in statistics.quantiles(whole, n=4))
    bound = 60 if n == 24 else 5 * n
    detail = f"{ms / n:.2f} ms a weight, beyond its own pass of {1000 * statistics.median(own):.1f} ms"
    row(f"store: ms of a query of {n} weights, {N:,} texts", ms, f"<= {bound}", detail)
    if n > 8:  # a quick query, which reads the leading entries of most examples
        quick = 1000 * statistics.median(_times(lambda: store.leading_scores(part, range(n), 50, metric="cosine")))
        row(
            f"store: ms of a quick query of {n} weights, {N:,} texts",
            Ratio(quick),
            f"<= {bound}",
            "the first of all can be missed",
        )


def _times(call) -> list[float]:
    """CPU seconds, after one call that reads the files."""
    call()
    times = []
    for _ in range(11):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return times


def recall(model, every, kind: str, folder: Path) -> None:
    """The share of the exact first five that a store finds, of all weights and of those that blocks write with."""
    asked = tlb.zoo.facts.world().examples()
    trained, held = (
        [(each.prompt, each.answer) for each in asked if each.split == split] for split in ("train", "held_out")
    )
    found = {}
    for seed in SEEDS:
        draw = random.Random(seed)
        data = draw.sample(trained, N_RECALL) if kind == "facts" else texts(model, N_RECALL, seed)
        queries = texts(model, N_QUERIES, 100 + seed) if kind == "texts" else draw.sample(held, N_QUERIES)
        exact = tlb.gradient_similarity(model, queries, data, weights=every, metric="cosine", show_progress=False)
        store = GradientStore.build(
            model, data, out=folder / f"{kind}{seed}", weights=every, seed=seed, n_random=0, **HOW
        )
        for label, chosen in (("24", every), ("4 W_out", [name for name in every if name.endswith("W_out")])):
            at = [every.index(name) for name in chosen]
            norms = exact.norms_b[at].square().sum(0).sqrt()
            truth = (exact.inner[at].sum(0) / norms).topk(5).indices.tolist()
            for each, five in zip(queries, truth, strict=True):
                prompt, target = each if isinstance(each, tuple) else (each, None)
                part = store._captured(prompt, target, chosen)
                scores = store.scores_of(*part, metric="cosine")
                for first in (5, 50):
                    share = len({*five} & {*scores.topk(first).indices.tolist()}) / 5
                    found.setdefault((label, first), {}).setdefault(seed, []).append(share)
    for label in ("24", "4 W_out"):
        means = [statistics.mean(shares) for shares in found[label, 5].values()]
        mean = Ratio(statistics.mean(means))
        mean.low, mean.high = min(means), max(means)
        within = statistics.mean(map(statistics.mean, found[label, 50].values()))
        name = {
            "texts": "texts, asked with texts",
            "pairs": "texts, asked with facts",
            "facts": "facts, asked with facts",
        }
        label = f"store: recall of the exact first five, {label} weights, {name[kind]}"
        row(label, mean, ">= 0.8", f"{len(SEEDS)} x {N_QUERIES} queries, {N_RECALL:,} examples; {within:.3f} within 50")


if __name__ == "__main__":
    main()
