"""The largest and smallest of products with a whole vocabulary, and ranks among them, a tile at a time.

Reading 1,000 vectors in 50,257 words makes 50 million logits and keeps 10 of each end and a rank or two of each row.
The product is most of the work if what follows it is done while a tile's rows are still in the processor's cache, and
if only those few entries are looked at that can be among the k.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.threads import n_threads, over_threads, steps
from tl_backward.model.head import Product

MAX_LOGIT_BYTES = 32 * 2**20
"""Logits held at once, and what is picked from them; the vocabulary is read in tiles through a buffer a thread."""

_ROWS = 1024  # vectors read together; more would narrow the tiles
_GROUP = 32  # entries compared before topk; those of a group lie far apart, which a processor compares side by side
_LEAST_STRIPE = 2048  # of the vocabulary's entries; fewer are not worth a thread
_CACHED = 2**17  # entries of a tile that are looked at together: 512 KiB, and as much scratch


@dataclass(frozen=True)
class Extremes:
    """Top k, bottom k [n, k] (values and ids) and ranks [n, m] of some vectors."""

    top: tuple[Tensor, Tensor]
    bottom: tuple[Tensor, Tensor]
    ranks: Tensor


def extremes(
    vectors: Tensor,
    unembedding: Product,
    k: int,
    *,
    wanted: Tensor | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    transform: Callable[[Tensor], Tensor] = lambda logits: logits,
    columns: Tensor | None = None,
    show_progress: bool = False,
) -> Extremes:
    """Extremes of logits that are never held whole: tiles of the vocabulary through one buffer.

    Wide tiles of many vectors keep the matrix product at its best; each leaves k candidates and a count.

    Args:
        vectors: [n, d_model], in the dtype of `unembedding`.
        unembedding: what they are multiplied with: a matrix [d_model, d_vocab], or a function that does it, of which
            fewer vectors are read at once since it makes their logits whole.
        k: how many of each end.
        wanted: [n, m], the ids to rank.
        scale: [d_vocab], what the logits are multiplied with first.
        offset: [d_vocab], added to the logits.
        transform: what is done to a tile of logits then, in place.
        columns: the only ids to consider, ascending; all by default (and where ids are ranked).
        show_progress: draw a progress bar if it takes longer than a second.
    """
    wanted = torch.zeros(len(vectors), 0, dtype=torch.long, device=vectors.device) if wanted is None else wanted
    allowed = MAX_LOGIT_BYTES // (vectors.element_size() + 4)
    if isinstance(unembedding, Tensor):
        d_vocab = unembedding.shape[1] if columns is None else len(columns)
        rows = min(len(vectors), _ROWS)
    else:
        d_vocab = unembedding(vectors[:1]).shape[1] if len(vectors) else k
        rows = min(len(vectors), max(1, allowed // d_vocab))
    copies = _copies(unembedding, wanted, scale, offset) if isinstance(unembedding, Tensor) else []
    read = partial(_read, k=k, scale=scale, offset=offset, transform=transform, copies=copies)
    parts = []
    starts = range(0, max(1, len(vectors)), max(1, rows))
    for start in tqdm(starts, disable=not show_progress, delay=1, leave=False, desc="vectors in words"):
        chunk, ids = vectors[start : start + rows], wanted[start : start + rows]
        if isinstance(unembedding, Tensor):
            own = _own(chunk, unembedding, ids)
            n = n_threads(vectors.device)
            tiles = partial(_products, chunk, unembedding, columns, max(1, allowed // (n * max(1, rows))))
            stripes = list(steps(d_vocab, max(_LEAST_STRIPE, -(-d_vocab // n)))) or [slice(0, 0)]
        else:
            whole = unembedding(chunk) if len(chunk) else vectors.new_zeros(0, d_vocab)
            own, tiles, stripes = whole.gather(1, ids), partial(_whole, whole), [slice(0, d_vocab)]
        own = own if scale is None else own * scale[ids]
        own = transform(own if offset is None else own + offset[ids])
        found = over_threads(partial(read, tiles, ids, own), stripes, vectors.device)
        parts.append(_together(list(found), k))
    top, top_ids, bottom, bottom_ids, ranks = (torch.cat(side) for side in zip(*parts, strict=True))
    for i, ids in enumerate(wanted.unbind(-1)):
        # The compared logit was computed apart and may differ in the last bit; a listed token's rank is the list's.
        listed, own = _listed(top, top_ids, ids)
        ranks[:, i] = torch.where(listed, (top > own).sum(1), ranks[:, i])
        listed, own = _listed(bottom, bottom_ids, ids)
        listed &= bottom[:, -1] > own[:, 0]  # what equals it is listed too
        ranks[:, i] = torch.where(listed, d_vocab - (bottom <= own).sum(1), ranks[:, i])
    if columns is not None:
        top_ids, bottom_ids = columns[top_ids], columns[bottom_ids]
    return Extremes((top, top_ids), (bottom, bottom_ids), ranks)


def _own(vectors: Tensor, matrix: Tensor, ids: Tensor) -> Tensor:
    """Logits of each vector at its own wanted tokens [n, m]."""
    few, which = ids.unique(return_inverse=True)
    if len(few) <= 64:
        return (vectors @ matrix[:, few]).gather(1, which)
    return torch.einsum("nd,dnm->nm", vectors, matrix[:, ids])


def _copies(matrix: Tensor, wanted: Tensor, scale: Tensor | None, offset: Tensor | None) -> list[tuple[int, Tensor]]:
    """(token, others) for each wanted token whose column others repeat: padded vocabularies are full of them.

    Their logits are equal, but the wanted one, which is computed apart, may differ from theirs by a rounding error.
    """
    copies = []
    for token in wanted.unique().tolist():
        same = (matrix[0] == matrix[0, token]).nonzero()[:, 0]  # mostly itself alone
        for row in range(1, len(matrix)):
            if len(same) == 1:
                break
            same = same[matrix[row, same] == matrix[row, token]]
        for each in (scale, offset):
            same = same if each is None else same[each[same] == each[token]]
        if len(same) > 1:
            copies.append((token, same[same != token]))
    return copies


def _products(vectors: Tensor, matrix: Tensor, columns: Tensor | None, width: int, stripe: slice) -> Iterator[Tensor]:
    """Tiles [n, width] of vectors @ matrix for a stripe of the vocabulary, each in the place of the last."""
    width -= width % _GROUP if width > _GROUP else 0
    buffer = vectors.new_empty(len(vectors) * min(width, stripe.stop - stripe.start))
    for tile in steps(stripe.stop, width, stripe.start):
        part = matrix[:, tile] if columns is None else matrix.index_select(1, columns[tile])
        yield torch.mm(vectors, part, out=buffer[: len(vectors) * part.shape[1]].view(len(vectors), part.shape[1]))


def _whole(logits: Tensor, _: slice) -> Iterator[Tensor]:
    yield logits


def _read(
    tiles: Callable[[slice], Iterator[Tensor]],
    ids: Tensor,
    own: Tensor,
    stripe: slice,
    *,
    k: int,
    scale: Tensor | None,
    offset: Tensor | None,
    transform: Callable[[Tensor], Tensor],
    copies: list[tuple[int, Tensor]],
) -> tuple[Tensor, ...]:
    """What the tiles of a stripe say: values and ids of both ends [n, k], and how many entries outrank the wanted."""
    first = stripe.start
    ranks, top_k, bottom_k = torch.zeros_like(ids), _Best(k, largest=True), _Best(k, largest=False)
    for logits in tiles(stripe):
        stop = first + logits.shape[1]
        logits = logits if scale is None else logits.mul_(scale[first:stop])
        logits = transform(logits if offset is None else logits.add_(offset[first:stop]))
        largest, smallest, greater = _look(logits, own)
        # The token itself, whose logit was computed apart, must not outrank itself by a rounding error.
        place = (ids - first).clamp(0, logits.shape[1] - 1)
        itself = (ids >= first) & (ids < stop) & (logits.gather(1, place) > own)
        ranks += greater - itself.long()
        for token, others in copies:
            here = logits[:, others[(others >= first) & (others < stop)] - first]
            ranks -= (ids == token) * (here[:, None] > own[:, :, None]).sum(2)
        top_k.add(logits, largest, first)
        bottom_k.add(logits, smallest, first)
        first = stop
    return *top_k.found(), *bottom_k.found(), ranks


def _together(stripes: list[tuple[Tensor, ...]], k: int) -> tuple[Tensor, ...]:
    """What the stripes of a vocabulary say, as if one had been read; of equal entries those of earlier stripes stay."""
    if len(stripes) == 1:
        return stripes[0]
    top, top_ids, bottom, bottom_ids, ranks = zip(*stripes, strict=True)
    ends = []
    for values, ids, largest in ((top, top_ids, True), (bottom, bottom_ids, False)):
        values, at = torch.cat(values, 1).sort(dim=1, descending=largest, stable=True)
        ends += [values[:, :k], torch.cat(ids, 1).gather(1, at[:, :k])]
    return *ends, torch.stack(ranks).sum(0)


def _look(tile: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima and minima of groups of entries, and counts above the wanted logits, in cache-sized blocks of rows.

    Returns:
        (largest, smallest, greater): what one pass over a tile [n, width] says of it. The largest and the smallest
        entry of each group [n, n_groups], entry j being in group j % n_groups, but for the last few; and how many
        entries are greater than each of the wanted values [n, m].
    """
    n, width = tile.shape
    n_groups = width // _GROUP
    rows = max(1, _CACHED // max(1, width)) if tile.device.type == "cpu" else max(1, n)
    scratch = tile.new_empty(min(rows, n), width, dtype=torch.float32)
    largest, smallest = (tile.new_empty(n, n_groups) for _ in range(2))
    greater = tile.new_zeros(n, own.shape[1], dtype=torch.float32)
    for first in range(0, n, rows):
        part, at = tile[first : first + rows], slice(first, first + rows)
        if n_groups:
            groups = part[:, : n_groups * _GROUP].unflatten(1, (_GROUP, n_groups))
            torch.amax(groups, 1, out=largest[at])
            torch.amin(groups, 1, out=smallest[at])
        for i, value in enumerate(own[at].unbind(-1)):
            # Counted in float: several times faster than summing booleans, and exact below 2^24 tokens.
            greater[at, i] = torch.gt(part, value[:, None], out=scratch[: len(part)]).sum(-1)
    return largest, smallest, greater.long()


class _Best:
    """Each row's k largest or smallest entries of what comes in tiles.

    Whatever is among the k is in one of the k groups of a tile with the most extreme entries. Of a first tile these are
    taken by topk; of later ones few groups have anything beyond the k-th entry so far, and only those are looked at.
    Of equal entries those of earlier tiles stay.
    """

    def __init__(self, k: int, *, largest: bool) -> None:
        self.k, self.largest = k, largest
        self._values: Tensor | None = None
        self._ids: Tensor | None = None
        """[n, k] so far, the most extreme first."""
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        """(row, value, id) of entries beyond the k-th so far, by tile; rows ascend."""

    def add(self, tile: Tensor, peaks: Tensor, first: int) -> None:
        """Consider a tile [n, width], whose first entry has the id `first`, with its groups' most extreme entries."""
        (n, width), n_groups = tile.shape, peaks.shape[1]
        rest = torch.arange(n_groups * _GROUP, width, device=tile.device)
        grouped = n_groups >= 4 * self.k
        if grouped and self._values is not None and self._values.shape[1] == self.k:
            row, group = self._beyond(peaks, self._values[:, -1:]).nonzero(as_tuple=True)
            if len(row) <= n * self.k and (not len(row) or int(row.bincount().max()) <= 4 * self.k):
                of_group = n_groups * torch.arange(_GROUP, device=tile.device)
                self._wait(tile, row, group[:, None] + of_group, first)
                if len(rest):
                    self._wait(tile, torch.arange(n, device=tile.device), rest.expand(n, -1), first)
                return
        if not grouped:
            values, ids = tile.topk(min(self.k, width), largest=self.largest)
        else:
            groups = peaks.topk(self.k, largest=self.largest).indices
            ids = (groups[:, None] + n_groups * torch.arange(_GROUP, device=tile.device)[:, None]).flatten(1)
            ids = torch.cat([ids, rest.expand(n, -1)], 1)
            values, at = tile.gather(1, ids).topk(self.k, largest=self.largest)
            ids = ids.gather(1, at)
        self._take()
        if self._values is not None and self._ids is not None:
            values, ids = torch.cat([self._values, values], 1), torch.cat([self._ids - first, ids], 1)
            values, at = values.topk(min(self.k, values.shape[1]), largest=self.largest)
            ids = ids.gather(1, at)
        self._values, self._ids = values, ids + first

    def found(self) -> tuple[Tensor, Tensor]:
        """(values, ids) [n, k], the most extreme first."""
        self._take()
        assert self._values is not None and self._ids is not None
        return self._values, self._ids

    def _beyond(self, entries: Tensor, last: Tensor) -> Tensor:
        return entries > last if self.largest else entries < last

    def _wait(self, tile: Tensor, row: Tensor, columns: Tensor, first: int) -> None:
        """Queue a row's entries at some columns [c, m] that are beyond the k-th so far."""
        assert self._values is not None
        entries = tile.flatten().index_select(0, (row[:, None] * tile.shape[1] + columns).flatten()).view_as(columns)
        at = self._beyond(entries, self._values[:, -1].index_select(0, row)[:, None]).flatten().nonzero()[:, 0]
        rows = row.index_select(0, at // columns.shape[1])
        self._waiting.append((rows, entries.flatten()[at], columns.flatten()[at] + first))
        if sum(len(rows) for rows, _, _ in self._waiting) > len(self._values) * self.k // 2:
            self._take()

    def _take(self) -> None:
        """Merge the queued entries into the best, as a padded table."""
        if not self._waiting or self._values is None or self._ids is None:
            return
        rows, values, ids = (torch.cat(side) for side in zip(*self._waiting, strict=True))
        self._waiting.clear()
        if not len(rows):
            return
        order = rows.argsort(stable=True)
        counts = rows.bincount(minlength=len(self._values))
        rows = rows[order]
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        shape = (len(self._values), int(counts.max()))
        table = values.new_full(shape, -torch.inf if self.largest else torch.inf), ids.new_full(shape, -1)
        table[0][rows, place], table[1][rows, place] = values[order], ids[order]
        values, ids = torch.cat([self._values, table[0]], 1), torch.cat([self._ids, table[1]], 1)
        # Stable, so that an entry that is infinite itself comes before the table's empty places.
        values, at = values.sort(dim=1, descending=self.largest, stable=True)
        self._values, self._ids = values[:, : self.k], ids.gather(1, at[:, : self.k])


def _listed(values: Tensor, ids: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each row lists the id that it is asked for [n], and with which value [n, 1]."""
    hit = ids == wanted[:, None]
    return hit.any(1), torch.where(hit, values, 0).sum(1, keepdim=True)


def placed(where: Tensor, shape: torch.Size, part: Tensor, fill: int) -> Tensor:
    """Values of some vectors [n, ...] placed into a tensor for all of them, with `fill` at the others."""
    everywhere = part.new_full((shape.numel(), *part.shape[1:]), fill)
    everywhere[where] = part
    return everywhere.reshape((*shape, *part.shape[1:]))
