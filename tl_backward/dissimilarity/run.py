"""One comparison over data: what it gathers, and how."""

import warnings
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity.activations import read_samples
from tl_backward.dissimilarity.checkpoint import Gathered, load_checkpoint, save_checkpoint
from tl_backward.dissimilarity.evaluation import Wanted, evaluate
from tl_backward.dissimilarity.grouped import GroupedStatistics
from tl_backward.dissimilarity.memory import MemoryPlan
from tl_backward.dissimilarity.minibatch import MinibatchCKA
from tl_backward.dissimilarity.reading import Digest, Reading, raw_batches
from tl_backward.dissimilarity.result import Comparison
from tl_backward.dissimilarity.sampling import RowSample
from tl_backward.dissimilarity.statistics import CovarianceStatistics
from tl_backward.dissimilarity.tally import Tally
from tl_backward.dissimilarity.tokens import pair_batch
from tl_backward.model.place import Place
from tl_backward.text.prompts import Batch, warn_of_two_beginnings

FEWEST_SAMPLES = 4  # the unbiased HSIC divides by n - 3
SAVE_EVERY = 20  # batches between checkpoints


class Run:
    """One comparison: what it gathers, and how."""

    def __init__(
        self,
        readers: tuple[PlaceReader, PlaceReader],
        labels: tuple[list[str], list[str]],
        reading: Reading,
        wanted: Wanted,
        plan: MemoryPlan,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.readers, self.labels, self.reading, self.wanted, self.plan = readers, labels, reading, wanted, plan
        self.models = (readers[0].model, readers[1].model)
        self.dtype, self.seed = dtype, seed
        device = self.models[0].W_U.device
        self.device = device if device.type != "mps" else torch.device("cpu")  # which has no float64
        self.alone = self.models[0] is self.models[1] and readers[0].places == readers[1].places

    def prepare(self, sample_size: int, n_samples: int | None) -> None:
        """Make what gathers."""
        self.begun_twice = False
        widths = [list(reader.widths.values()) for reader in self.readers]
        self.gathered: dict[str, Gathered] = {}
        self.tally = self.gathered["tally"] = Tally(len(widths[0]), len(widths[1]))
        size = n_samples or 0 if self.plan.route == "gram" else sample_size
        self.sample = RowSample(widths[0] + widths[1], size=size, seed=self.seed, dtype=self.dtype, device=self.device)
        self.gathered["sample"] = self.sample
        self.sums: GroupedStatistics | None = None
        if self.plan.route == "sums":
            products = torch.float64 if self.wanted.double else torch.float32
            empty = CovarianceStatistics(*widths, device=self.device, products=products)
            self.sums = self.gathered["sums"] = GroupedStatistics(empty, self.plan.n_groups)
        self.minibatch: MinibatchCKA | None = None
        if self.wanted.minibatch:
            self.minibatch = self.gathered["minibatch"] = MinibatchCKA(len(widths[0]), len(widths[1]))

    def stream(
        self,
        data: object,
        n_batches: int | None,
        rank: int,
        world: int,
        checkpoint: str | Path | None,
        show_progress: bool,
    ) -> None:
        """Read the data once, and gather; from a checkpoint on if there is one."""
        path = None if checkpoint is None else Path(f"{checkpoint}.{rank}of{world}" if world > 1 else checkpoint)
        digest, done, expected = Digest(), 0, ""
        if path is not None and path.exists():
            saved = load_checkpoint(path, self.gathered, self.identity(rank, world), str(self.device))
            done, expected = cast(int, saved["next_batch"]), cast(str, saved["digest"])
        batches = islice(raw_batches(data, self.reading), n_batches)
        total = -(-len(data) // self.reading.batching) if isinstance(data, list | tuple | Tensor) else n_batches
        seen = 0
        for number, item in enumerate(
            tqdm(batches, total=total, desc="compare", unit="batch", disable=not show_progress)
        ):
            digest.add(item)
            seen = number + 1
            if seen == done and digest.hexdigest() != expected:
                raise ValueError(
                    f"Expected the data of the interrupted run, got others within the first {done} batches; resume "
                    "with the same data in the same order, or choose another checkpoint."
                )
            if number < done:
                continue
            if number % world == rank:
                self.take(number, item)
            if path is not None and seen % SAVE_EVERY == 0:
                save_checkpoint(path, self.gathered, self.identity(rank, world, seen, digest.hexdigest()))
        if seen < done:
            raise ValueError(
                f"Expected the data of the interrupted run, which had read {done} batches, got {seen}; resume with the "
                "same data, or choose another checkpoint."
            )
        if n_batches is not None and seen < n_batches:
            warnings.warn(f"The data ended after {seen} batches of the {n_batches} asked for.", stacklevel=3)
        if path is not None and seen > done:
            save_checkpoint(path, self.gathered, self.identity(rank, world, seen, digest.hexdigest()))

    def take(self, number: int, item: list[str] | Batch) -> None:
        """Run both models on one batch."""
        pairs = pair_batch(*self.models, number, item, self.reading)
        if pairs is None or not len(pairs.text):
            return
        if isinstance(item, list) and not self.begun_twice:
            own = zip(self.models, (pairs.a, pairs.b), strict=True)
            self.begun_twice = any(warn_of_two_beginnings(model, batch.rows()) for model, batch in own)
        rows_a = read_samples(self.readers[0], pairs, "a", self.reading.sample)
        rows_b = rows_a if self.alone else read_samples(self.readers[1], pairs, "b", self.reading.sample)
        rows_a, rows_b = ([row.to(self.device) for row in rows] for rows in (rows_a, rows_b))
        self.tally.update(pairs, [*rows_a, *rows_b])
        self.sample.update(number, [*rows_a, *rows_b])
        if self.sums is not None:
            self.sums.update(number, rows_a, rows_b)
        if self.minibatch is not None:
            self.minibatch.update(number, rows_a, rows_b)

    def identity(self, rank: int, world: int, next_batch: int = 0, digest: str = "") -> dict[str, object]:
        """What a checkpoint must agree with."""
        reading = {name: value for name, value in vars(self.reading).items() if name != "mask"}
        return {
            "points": [[f"{p.name}:{p.head}:{width}" for p, width in each.widths.items()] for each in self.readers],
            "measures": self.wanted.names,
            "estimator": self.wanted.estimator,
            "route": self.plan.route,
            "groups": self.plan.n_groups,
            "sample_size": self.sample.size,
            "seed": self.seed,
            "process": [rank, world],
            **reading,
            "masked": self.reading.mask is not None,
            "next_batch": next_batch,
            "digest": digest,
        }

    def result(self, n_permutations: int, n_groups: int, show_progress: bool) -> Comparison:
        """Values, errors and nulls from what was gathered."""
        tally, n = self.tally, self.tally["samples"]
        if n < FEWEST_SAMPLES:
            raise ValueError(
                f"Expected at least {FEWEST_SAMPLES} samples, got {n}; give more texts, or sample every token."
            )
        if self.plan.route == "gram":
            self.sums = _from_rows(self.sample, len(self.labels[0]), self.plan.n_groups)
        self._check_varies()
        if self.minibatch is not None and self.minibatch.n_skipped:
            warnings.warn(
                f"{self.minibatch.n_skipped} batches of fewer than 4 samples have no unbiased HSIC and were left out.",
                stacklevel=3,
            )
        found = evaluate(
            self.wanted, sums=self.sums, sample=self.sample, minibatch=self.minibatch,
            layers=self.labels,
            n_permutations=n_permutations, n_groups=n_groups, seed=self.seed, show_progress=show_progress,
        )  # fmt: skip
        share = tally.first_share()
        self._warn_of_first(share)
        groups = 0 if self.sums is None else len(self.sums.groups)
        if self.minibatch is not None:
            groups = len(self.minibatch.numbers)
        return Comparison(
            measures=self.wanted.names,
            layers_a=tuple(self.labels[0]),
            layers_b=tuple(self.labels[1]),
            values=found.values,
            standard_errors=found.errors,
            null_means=found.nulls,
            permutation_means=found.permuted_means,
            permutation_deviations=found.permuted_deviations,
            computed_from=found.computed_from,
            estimator=self.wanted.estimator,
            sample=self.reading.sample,
            n_samples=n,
            n_texts=tally["texts"],
            n_batches=tally["batches"],
            n_groups=groups if groups > 1 else 0,
            n_sampled=len(self.sample),
            n_permuted=found.n_permuted,
            n_permutations=n_permutations,
            first_excluded=self.reading.exclude_first,
            first_share=(share[: len(self.labels[0])], share[len(self.labels[0]) :]),
            aligned="characters" if tally["by_characters"] else "tokens",
            coverage=(self._share("tokens_a"), self._share("tokens_b")),
            unknown=(self._unknown("a"), self._unknown("b")),
            n_truncated=tally["truncated"],
            n_empty=tally["empty"],
            plan=self.plan,
            seed=self.seed,
        )

    @property
    def _places(self) -> list[tuple[Place, str]]:
        return [(place, side) for side, reader in zip("AB", self.readers, strict=True) for place in reader.places]

    def _share(self, name: str) -> float:
        return self.tally["pairs"] / max(1, self.tally[name])

    def _unknown(self, side: str) -> float:
        return self.tally[f"unknown_{side}"] / max(1, self.tally[f"tokens_{side}"])

    def _check_varies(self) -> None:
        """Refuse a layer that is the same at every sample."""
        for index, (place, side) in enumerate(self._places):
            rows = self.sample.layers[index]
            if len(rows) and bool((rows == rows[0]).all()):
                raise ValueError(
                    f"Expected activations that vary, got one and the same vector at all {len(rows)} samples at "
                    f"{str(place)!r} of model {side}; choose another hook point, or other tokens (position 0 is always "
                    "the same)."
                )

    def _warn_of_first(self, share: Tensor) -> None:
        worst = int(share.argmax())
        if self.reading.exclude_first or float(share[worst]) <= 0.5:
            return
        place, side = self._places[worst]
        warnings.warn(
            f"The tokens at position 0 make up {float(share[worst]):.0%} of sum |x|^2 at {str(place)!r} of "
            f"model {side} and may decide the measures alone; pass exclude_first=True to leave them out.",
            stacklevel=4,
        )


def _from_rows(sample: RowSample, n_a: int, n_groups: int) -> GroupedStatistics:
    """Sums over fewer samples than a layer is wide, of each layer's coordinates in the space that its samples span."""
    n = len(sample)
    narrow = []
    for layer in sample.layers:
        rows = layer.double()
        if rows.shape[1] > n:
            rows = rows - rows.mean(0)
            rows = torch.linalg.qr(rows.T, mode="r").R.T
        narrow.append(rows)
    widths = [rows.shape[1] for rows in narrow]
    empty = CovarianceStatistics(widths[:n_a], widths[n_a:], device=narrow[0].device)
    # What coordinates are made of was rounded before, as the samples were.
    empty.eps["rows_a"] = empty.eps["rows_b"] = torch.finfo(sample.layers[0].dtype).eps
    grouped = GroupedStatistics(empty, n_groups)
    for number in sample.batch.unique().tolist():
        here = (sample.batch == number).to(narrow[0].device)
        rows = [layer[here] for layer in narrow]
        grouped.update(number, rows[:n_a], rows[n_a:])
    return grouped
