"""Read the data once through both models, and gather what the plan of a comparison asks for."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.warnings import warn_user
from tl_backward.dissimilarity._processes import process
from tl_backward.dissimilarity.activations import read_samples
from tl_backward.dissimilarity.checkpoint import load_checkpoint, save_checkpoint
from tl_backward.dissimilarity.grouped import GroupedStatistics
from tl_backward.dissimilarity.minibatch import MinibatchCKA
from tl_backward.dissimilarity.plan import Models, Plan
from tl_backward.dissimilarity.reading import data_digest
from tl_backward.dissimilarity.sampling import RowSample
from tl_backward.dissimilarity.statistics import CovarianceStatistics
from tl_backward.dissimilarity.tally import Tally
from tl_backward.dissimilarity.tokens import PairedTokens, pair_batch
from tl_backward.text.data import TextData, batches_of
from tl_backward.text.encoding import warn_of_two_beginnings

SAVE_EVERY = 20  # batches between checkpoints


@dataclass(frozen=True, eq=False)
class Accumulated:
    """What is known of the data, batch after batch."""

    tally: Tally
    sample: RowSample
    sums: GroupedStatistics | None
    minibatch: MinibatchCKA | None

    @property
    def parts(self) -> dict[str, Tally | RowSample | GroupedStatistics | MinibatchCKA]:
        """Those that there are, by name."""
        return {name: part for name, part in vars(self).items() if part is not None}

    def update(self, number: int, pairs: PairedTokens, a: list[Tensor], b: list[Tensor]) -> None:
        """Add a batch by its number, with the activations of A's places and of B's."""
        self.tally.update(pairs, [*a, *b])
        self.sample.update(number, [*a, *b])
        for part in (self.sums, self.minibatch):
            if part is not None:
                part.update(number, a, b)


def _nothing_yet(plan: Plan) -> Accumulated:
    a, b = plan.widths
    sums = None
    if plan.memory.route == "sums":
        products = torch.float64 if plan.wanted.double else torch.float32
        sums = GroupedStatistics(
            CovarianceStatistics(a, b, device=plan.device, products=products), plan.memory.n_groups
        )
    return Accumulated(
        Tally(len(a), len(b)),
        RowSample(a + b, size=plan.n_kept, seed=plan.options.seed, dtype=plan.dtype, device=plan.device),
        sums,
        MinibatchCKA(len(a), len(b)) if plan.wanted.minibatch else None,
    )


def gather(data: TextData, plan: Plan, show_progress: bool) -> Accumulated:
    """Run both models over the data, from a checkpoint on if there is one; the same on every process.

    Raises:
        ValueError: NaN or inf (the hook point and the batch are named), or other data than the checkpoint's.
    """
    found, (rank, world) = _nothing_yet(plan), process()
    models = (plan.readers[0].model, plan.readers[1].model)
    path = None
    if plan.options.checkpoint is not None:
        path = Path(f"{plan.options.checkpoint}.{rank}of{world}" if world > 1 else plan.options.checkpoint)
    digest, seen, done, expected = "", 0, 0, ""
    if path is not None and path.exists():
        saved = load_checkpoint(path, found.parts, _identity(plan), str(plan.device))
        done, expected = cast(int, saved["next_batch"]), cast(str, saved["digest"])

    def save(path: Path) -> None:
        save_checkpoint(path, found.parts, _identity(plan) | {"next_batch": seen, "digest": digest})

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
        pairs = pair_batch(*models, number, item, plan.reading) if number % world == rank else None
        if pairs is not None and len(pairs.text):
            warned = warned or isinstance(item, list) and _begins_twice(models, pairs)
            found.update(number, pairs, *_activations(plan, pairs))
        if path is not None and seen % SAVE_EVERY == 0:
            save(path)
    if seen < done:
        raise ValueError(
            f"Expected the data of the interrupted run, which had read {done} batches, got {seen}; resume with the "
            "same data, or choose another checkpoint."
        )
    if plan.n_batches is not None and seen < plan.n_batches:
        warn_user(f"The data ended after {seen} batches of the {plan.n_batches} asked for.")
    if path is not None and seen > done:
        save(path)
    for part in found.parts.values():
        part.reduce()
    return found


def _batches(data: TextData, plan: Plan, show_progress: bool) -> tqdm:
    batches = islice(batches_of(data, plan.reading.batching, plan.reading.text_key), plan.n_batches)
    total = -(-len(data) // plan.reading.batching) if isinstance(data, list | tuple | Tensor) else plan.n_batches
    return tqdm(batches, total=total, desc="compare", unit="batch", disable=not show_progress)


def _begins_twice(models: Models, pairs: PairedTokens) -> bool:
    own = zip(models, (pairs.a, pairs.b), strict=True)
    return any(warn_of_two_beginnings(model, batch.rows()) for model, batch in own)


def _activations(plan: Plan, pairs: PairedTokens) -> tuple[list[Tensor], list[Tensor]]:
    """A's and B's at a batch's samples; one pass where both are the same places of the same model."""
    one, other = plan.readers
    a = read_samples(one, pairs, "a", plan.reading.sample)
    alone = one.model is other.model and one.places == other.places
    b = a if alone else read_samples(other, pairs, "b", plan.reading.sample)
    return [row.to(plan.device) for row in a], [row.to(plan.device) for row in b]


def _identity(plan: Plan) -> dict[str, object]:
    """What a checkpoint must agree with."""
    reading = {name: value for name, value in vars(plan.reading).items() if name != "mask"}
    return {
        "points": [[f"{p.name}:{p.head}:{width}" for p, width in each.widths.items()] for each in plan.readers],
        "measures": plan.wanted.names,
        "estimator": plan.wanted.estimator,
        "route": plan.memory.route,
        "groups": plan.memory.n_groups,
        "sample_size": plan.n_kept,
        "seed": plan.options.seed,
        "process": list(process()),
        **reading,
        "masked": plan.reading.mask is not None,
    }
