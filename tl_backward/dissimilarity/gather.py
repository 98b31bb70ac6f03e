"""One pass of the data through both models, accumulating the sums and samples that a comparison needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.memory import keep_freed_memory
from tl_backward._support.processes import gathered, process, several, sum_over
from tl_backward._support.storage import fingerprint
from tl_backward._support.warnings import warn_user
from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity.checkpoint import load_checkpoint, save_checkpoint
from tl_backward.dissimilarity.grouped import GroupedStatistics
from tl_backward.dissimilarity.minibatch import MinibatchCKA
from tl_backward.dissimilarity.options import Sample
from tl_backward.dissimilarity.plan import Models, Plan
from tl_backward.dissimilarity.statistics import CovarianceStatistics, Rows
from tl_backward.dissimilarity.tokens import PairedTokens, pair_batch
from tl_backward.text.data import TextData, batches_of
from tl_backward.text.encoding import warn_of_two_beginnings
from tl_backward.text.prompts import Batch

SAVE_EVERY = 20  # batches between checkpoints
_MULTIPLIER = 1_000_003  # a prime, so that (seed, batch) pairs do not collide for any data one could run through
COUNTS = (
    "batches", "texts", "samples", "pairs", "tokens_a", "tokens_b", "unknown_a", "unknown_b", "truncated", "empty",
    "by_characters",
)  # fmt: skip


class Tally:
    """Counts of batches, texts and tokens, and each layer's sum |x|^2; additive over batches and processes."""

    def __init__(self, n_a: int, n_b: int) -> None:
        self.counts = torch.zeros(len(COUNTS), dtype=torch.float64)
        self.first = torch.zeros(n_a + n_b, dtype=torch.float64)
        self.squares = torch.zeros(n_a + n_b, dtype=torch.float64)

    def update(self, pairs: PairedTokens, rows: Sequence[Float[Tensor, "sample _"]]) -> None:
        """Add a batch's counts and activations [sample, d]: A's layers, then B's."""
        counts = {
            "batches": 1,
            "samples": len(rows[0]),
            "pairs": len(pairs.text),
            "by_characters": pairs.counts["texts"] if pairs.aligned == "characters" else 0,
            **pairs.counts,
        }
        self.counts += torch.tensor([counts[name] for name in COUNTS], dtype=torch.float64)
        if len(pairs.first) != len(rows[0]):  # means over texts hold no token apart
            return
        for layer, row in enumerate(rows):
            squares = torch.linalg.vector_norm(row, dim=1, dtype=torch.float64).square().cpu()
            self.squares[layer] += squares.sum()
            self.first[layer] += squares[pairs.first].sum()

    def __getitem__(self, name: str) -> int:
        return int(self.counts[COUNTS.index(name)])

    def share(self, some: str, of: str) -> float:
        """The count named `some` as a share of the one named `of`."""
        return self[some] / max(1, self[of])

    def first_share(self) -> Float[Tensor, "layer"]:
        """How much of sum |x|^2 the first tokens make up in each layer, A's and then B's."""
        return self.first / self.squares.clamp(min=1e-300)

    def reduce(self) -> None:
        """Sum over all processes."""
        if several():
            for part in (self.counts, self.first, self.squares):
                sum_over(part)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        return {"counts": self.counts, "first": self.first, "squares": self.squares}

    def state(self) -> dict[str, object]:
        """Nothing beside the tensors."""
        return {}

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Set the counts from what `tensors` returned."""
        self.counts, self.first, self.squares = (tensors[name].cpu() for name in ("counts", "first", "squares"))


class RowSample:
    """At most `size` samples of every layer, each as likely as any other, the same ones in every layer.

    Each sample draws a key from a generator seeded with (seed, batch number), and those with the smallest keys stay:
    the sample depends neither on how the data are shared out among processes nor on where a run was interrupted.
    """

    def __init__(
        self, widths: Sequence[int], *, size: int, seed: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        self.size, self.seed = size, seed
        self.keys = torch.zeros(0, dtype=torch.float64)
        self.batch = torch.zeros(0, dtype=torch.long)
        self.layers = [torch.zeros(0, width, dtype=dtype, device=device) for width in widths]
        self.n_seen = 0

    def __len__(self) -> int:
        return len(self.keys)

    def update(self, number: int, rows: Rows) -> None:
        """Draw keys for a batch's samples and add those that stay: rows [sample, d] of A's layers, then of B's."""
        n = len(rows[0])
        self.n_seen += n
        generator = torch.Generator().manual_seed(self.seed * _MULTIPLIER + number)
        keys = torch.rand(n, generator=generator, dtype=torch.float64)
        offered = (keys < self.keys.max()).nonzero().flatten() if len(self) >= self.size else torch.arange(n)
        if not len(offered):
            return
        self._select(
            torch.cat([self.keys, keys[offered]]),
            torch.cat([self.batch, torch.full((len(offered),), number)]),
            [torch.cat([had, row[offered.to(row.device)].to(had)]) for had, row in zip(self.layers, rows, strict=True)],
        )

    def _select(self, keys: Tensor, batch: Tensor, layers: list[Tensor]) -> None:
        """Reduce to the samples with the smallest keys, in order of (batch, key)."""
        best = keys.argsort()[: self.size]
        best = best[batch[best].argsort(stable=True)]
        self.keys, self.batch = keys[best], batch[best]
        self.layers = [layer[best.to(layer.device)] for layer in layers]

    def first(self, size: int) -> Int[Tensor, "sample"]:
        """Indices of the rows that a smaller sample would have drawn."""
        return self.keys.argsort()[:size].sort().values

    def reduce(self) -> None:
        """Replace the sample by that of all processes' data together, the same on each."""
        if not several():
            return
        self.n_seen = int(sum_over(torch.tensor([self.n_seen])))

        def every(part: Tensor, fill: float) -> Tensor:
            padded = torch.full((self.size, *part.shape[1:]), fill, dtype=part.dtype, device=part.device)
            padded[: len(part)] = part
            return torch.cat(gathered(padded))

        keys, batch = every(self.keys, 2.0), every(self.batch, -1)
        real = keys < 1
        layers = [every(layer, 0)[real.to(layer.device)] for layer in self.layers]
        self._select(keys[real], batch[real], layers)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        return {"keys": self.keys, "batch": self.batch} | {str(i): layer for i, layer in enumerate(self.layers)}

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps beside the tensors, and must find again."""
        return {"size": self.size, "seed": self.seed, "n_seen": self.n_seen}

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Set the sample from what `tensors` and `state` returned."""
        self.keys, self.batch, self.n_seen = tensors["keys"].cpu(), tensors["batch"].cpu(), state["n_seen"]
        self.layers = [tensors[str(i)].to(layer) for i, layer in enumerate(self.layers)]


@dataclass(frozen=True, eq=False)
class Accumulated:
    """All that a comparison accumulates: counts, a bounded sample, sums over samples, HSICs batch by batch."""

    tally: Tally
    sample: RowSample
    sums: GroupedStatistics | None
    minibatch: MinibatchCKA | None

    @property
    def parts(self) -> dict[str, Tally | RowSample | GroupedStatistics | MinibatchCKA]:
        """The accumulators that this comparison uses, by name."""
        return {name: part for name, part in vars(self).items() if part is not None}

    def update(self, number: int, pairs: PairedTokens, a: list[Tensor], b: list[Tensor]) -> None:
        """Add a batch by its number, with the activations of A's places and of B's."""
        self.tally.update(pairs, [*a, *b])
        self.sample.update(number, [*a, *b])
        for part in (self.sums, self.minibatch):
            if part is not None:
                part.update(number, a, b)


def _empty_accumulators(plan: Plan) -> Accumulated:
    a, b = (list(reader.widths.values()) for reader in plan.readers)
    products = torch.float64 if plan.wanted.double else torch.float32
    sums = CovarianceStatistics(a, b, device=plan.device, products=products) if plan.memory.route == "sums" else None
    return Accumulated(
        Tally(len(a), len(b)),
        RowSample(a + b, size=plan.n_held, seed=plan.options.seed, dtype=plan.dtype, device=plan.device),
        None if sums is None else GroupedStatistics(sums, plan.memory.n_groups),
        MinibatchCKA(len(a), len(b)) if plan.wanted.minibatch else None,
    )


def gather(data: TextData, plan: Plan, show_progress: bool) -> Accumulated:
    """Run both models over the data, resuming from a checkpoint if there is one; every process gets the same totals.

    Raises:
        ValueError: NaN or inf (the hook point and the batch are named), or other data than the checkpoint's.
    """
    keep_freed_memory()
    accumulated, (rank, n_processes) = _empty_accumulators(plan), process()
    models = (plan.readers[0].model, plan.readers[1].model)
    path = None
    if plan.options.checkpoint is not None:
        path = Path(f"{plan.options.checkpoint}.{rank}of{n_processes}" if n_processes > 1 else plan.options.checkpoint)
    digest, seen, done, expected = "", 0, 0, ""
    if path is not None and path.exists():
        saved = load_checkpoint(path, accumulated.parts, _identity(plan), str(plan.device))
        done, expected = cast(int, saved["next_batch"]), cast(str, saved["digest"])

    def save(path: Path) -> None:
        save_checkpoint(path, accumulated.parts, _identity(plan) | {"next_batch": seen, "digest": digest})

    warned = False
    for number, item in enumerate(_batches(data, plan, show_progress)):
        digest = data_digest(digest, item)
        seen = number + 1
        if seen == done and digest != expected:
            raise ValueError(
                f"Expected the data of the interrupted run, got others within the first {done} batches; resume "
                "with the same data in the same order, or choose another checkpoint."
            )
        if number < done:
            continue
        pairs = pair_batch(*models, number, item, plan.text, plan.sample) if number % n_processes == rank else None
        if pairs is not None and len(pairs.text):
            warned = warned or isinstance(item, list) and _begins_twice(models, pairs)
            accumulated.update(number, pairs, *_activations(plan, pairs))
        if path is not None and seen % SAVE_EVERY == 0:
            save(path)
    if seen < done:
        raise ValueError(
            f"Expected the data of the interrupted run, which had read {done} batches, got {seen}; resume with the "
            "same data, or choose another checkpoint."
        )
    if plan.text.n_batches is not None and seen < plan.text.n_batches:
        warn_user(f"The data ended after {seen} batches of the {plan.text.n_batches} asked for.")
    if path is not None and seen > done:
        save(path)
    for part in accumulated.parts.values():
        part.reduce()
    return accumulated


def data_digest(before: str, item: list[str] | Batch) -> str:
    """The fingerprint of the data read so far and one more batch, to notice that a resumed run is given others."""
    return fingerprint(before, *([item.tokens] if isinstance(item, Batch) else (f"{text}\0" for text in item)))


def _batches(data: TextData, plan: Plan, show_progress: bool) -> tqdm:
    batches = islice(batches_of(data, plan.text.batch_size, plan.text.text_key), plan.text.n_batches)
    total = -(-len(data) // plan.text.batch_size) if isinstance(data, list | tuple | Tensor) else plan.text.n_batches
    return tqdm(batches, total=total, desc="compare", unit="batch", disable=not show_progress)


def _begins_twice(models: Models, pairs: PairedTokens) -> bool:
    return any(
        warn_of_two_beginnings(model, batch.rows()) for model, batch in zip(models, (pairs.a, pairs.b), strict=True)
    )


def _activations(plan: Plan, pairs: PairedTokens) -> tuple[list[Tensor], list[Tensor]]:
    """A's and B's activations at a batch's samples, [sample, d] a place; one pass for the same places of one model."""
    one, other = plan.readers
    a = _samples(one, pairs, "a", plan.sample.sample)
    same = one.model is other.model and one.places == other.places
    b = a if same else _samples(other, pairs, "b", plan.sample.sample)
    return [row.to(plan.device) for row in a], [row.to(plan.device) for row in b]


def _samples(
    reader: PlaceReader, pairs: PairedTokens, side: Literal["a", "b"], sample: Sample
) -> list[Float[Tensor, "sample _"]]:
    """Each place's activations at a batch's samples; see `PlaceReader`."""
    batch, at = (pairs.a, pairs.at_a) if side == "a" else (pairs.b, pairs.at_b)
    lengths = None if batch.mask is None else batch.mask.sum(1)
    rows = list(reader(batch.tokens, pairs.text, at, lengths=lengths, number=pairs.number).values())
    return [_means(each, pairs.text) for each in rows] if sample == "mean" else rows


def _means(value: Tensor, text: Tensor) -> Tensor:
    """Mean over each text's samples [text, d], in order of the texts."""
    _, index, counts = torch.unique(text.to(value.device), return_inverse=True, return_counts=True)
    total = torch.zeros(len(counts), value.shape[1], dtype=torch.float64, device=value.device)
    total.index_add_(0, index, value.double())
    return (total / counts[:, None]).to(value.dtype)


def _identity(plan: Plan) -> dict[str, object]:
    """What must be the same in a run and in the checkpoint that it resumes from."""
    return {
        "points": [[f"{p.name}:{p.head}:{width}" for p, width in each.widths.items()] for each in plan.readers],
        "measures": plan.wanted.names,
        "estimator": plan.wanted.estimator,
        "route": plan.memory.route,
        "groups": plan.memory.n_groups,
        "sample_size": plan.n_held,
        "seed": plan.options.seed,
        "process": list(process()),
        **{name: value for name, value in vars(plan.text).items() if name != "n_batches"},
        "sample": plan.sample.sample,
        "align": plan.sample.align,
        "masked": plan.sample.mask is not None,
    }
