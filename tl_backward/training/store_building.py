"""A store is built: bases from a sample, then shards, each by one process, each from its own examples alone.

Shards are cut before the work is divided, and are written at once, so that one process, several, and a run that was
killed and started again write the same bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm.auto import tqdm

from tl_backward._support.processes import process, together
from tl_backward._support.types import TransformerLensModel
from tl_backward.gradients.examples import Example, by_length
from tl_backward.gradients.similarity import Part, captured
from tl_backward.training.authors import drawn, interval
from tl_backward.training.projections import Moments, Projection, ProjectionKind
from tl_backward.training.shards import Kept, Query, Shard, kept_of
from tl_backward.training.store_folder import StoreFolder

SHARD_EXAMPLES = 1024
"""A shard ends with the batch that fills it; a killed run loses at most one."""


@dataclass(frozen=True)
class Building:
    """What a store is built from."""

    model: TransformerLensModel
    examples: Sequence[Example]
    names: tuple[str, ...]
    """Of the weights."""
    batch_size: int
    bytes_per_weight: int
    kind: ProjectionKind
    n_sample: int
    n_random: int
    seed: int

    def write(self, folder: StoreFolder, *, show_progress: bool) -> None:
        """Write all that is not there yet, this process its part of it."""
        rank, n_processes = process()
        with together():
            if rank == 0 and not folder.has_projections:
                folder.save_projections(self._projections())
        chunks = list(self._chunks())
        mine = [number for number in range(rank, len(chunks), n_processes) if not folder.has_shard(number)]
        with together(), tqdm(total=len(mine), desc="store", unit="shard", disable=not show_progress) as bar:
            projections = folder.projections(self.names)
            queries = self._queries(projections) if mine else None
            for number in mine:
                folder.save_shard(number, self._shard(chunks[number], projections, queries))
                bar.update()
        with together():
            if rank == 0:
                folder.finish(len(chunks))

    def _drawn(self, n: int, seed: int) -> list[Example]:
        return [self.examples[i] for i in drawn(len(self.examples), n, seed)]

    def _batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        return by_length(self.model, examples, self.batch_size)

    def _captured(self, examples: Sequence[Example]) -> Iterator[Part]:
        for batch in self._batches(examples):
            yield captured(self.model, batch, self.names)

    def _chunks(self) -> Iterator[list[list[Example]]]:
        """The batches of each shard."""
        chunk: list[list[Example]] = []
        for batch in self._batches(self.examples):
            chunk.append(batch)
            if sum(map(len, chunk)) >= SHARD_EXAMPLES:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _projections(self) -> dict[str, Projection]:
        moments: list[Moments] = []
        for part in self._captured(self._drawn(self.n_sample, self.seed)):
            for name, rows in zip(self.names, part.rows, strict=True):
                if not rows.inputs.is_floating_point():
                    raise ValueError(
                        f"Expected weights that read vectors, got {name}, which reads token ids; choose others."
                    )
            moments = moments or [Moments(rows.inputs.shape[1], rows.deltas.shape[1]) for rows in part.rows]
            for each, rows, norms in zip(moments, part.rows, part.norms, strict=True):
                each.add(rows, norms)
        generator, n_entries = torch.Generator().manual_seed(self.seed), self.bytes_per_weight // 2
        made = (each.projection(n_entries, self.kind, generator) for each in moments)
        return dict(zip(self.names, made, strict=True))

    def _queries(self, projections: Sequence[Projection]) -> Query | None:
        """The random queries that scores are set beside; None for none."""
        drawn_queries = self._captured(self._drawn(self.n_random, self.seed + 1))
        found = [Query.of(part, projections) for part in drawn_queries]
        return Query.joined(found) if found else None

    def _shard(
        self, batches: Sequence[Sequence[Example]], projections: Sequence[Projection], queries: Query | None
    ) -> Shard:
        parts, kept = [], []
        for batch in batches:
            part = captured(self.model, batch, self.names)
            parts.append((part.indices, part.norms))
            kept.append(kept_of(part, projections))
        indices, norms = torch.cat([each for each, _ in parts]), torch.cat([each for _, each in parts], 1)
        whole = [Kept.joined(each) for each in zip(*kept, strict=True)]
        low, high = (torch.full((2, len(indices)), float("nan"), dtype=torch.float64) for _ in range(2))
        rests = torch.stack([each.rest_norms() for each in whole]) * norms
        shard = Shard(indices, norms, rests.float(), whole, low, high)
        return shard if queries is None else _with_intervals(shard, projections, queries)


def _with_intervals(shard: Shard, projections: Sequence[Projection], queries: Query) -> Shard:
    """[metric, example]: the intervals of both metrics for random queries, each example left out of its own."""
    own = queries.indices[:, None] == shard.indices
    scores = shard.scores(queries, projections)
    low, high = zip(*(interval(each.masked_fill(own, float("nan"))) for each in scores), strict=True)
    return replace(shard, low=torch.stack(low), high=torch.stack(high))
