"""Some examples' gradients as a store keeps them, and what they say to a query.

Of each example and weight the unit gradient dL/dW / |dL/dW| is kept, as its factors in float32 where these are smaller
than the projection, else projected, in float16; its norm in float64. Of a projection the leading entries lie apart from
the others: a query reads them of every example, and the others of those that may be among its first (`Shard.leading`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.threads import steps
from tl_backward.gradients.gram import ExampleRows, inner_products
from tl_backward.gradients.similarity import Part
from tl_backward.training.projections import Projection, inverse

_BLOCK = 256
"""Kept examples that are converted to float32 at a time."""
ROUNDING = 2**-10
"""Of both norms' product, at most: how a score of one query, in float16, differs from the same among several."""


@dataclass(frozen=True)
class Query:
    """One or more gradients that are asked with, in both forms."""

    indices: Int[Tensor, "query"]
    """Where each is in the data set, if it is from there."""
    norms: Float[Tensor, "weight query"]
    rows: list[ExampleRows] | None
    """Of the unit gradients, for each weight; None of what has no factors."""
    projected: list[Float[Tensor, "query _"]]

    @classmethod
    def of(cls, part: Part, projections: Sequence[Projection]) -> "Query":
        """What a batch was captured as."""
        rows = [_unit(each, norms) for each, norms in zip(part.rows, part.norms, strict=True)]
        projected = [to.of(each).cpu() for to, each in zip(projections, rows, strict=True)]
        return cls(part.indices, part.norms, [_on_cpu(each) for each in rows], projected)

    @classmethod
    def joined(cls, queries: Sequence["Query"]) -> "Query":
        """Those of several batches: what is kept is then read once for all of them."""
        rows = [_joined(each) for each in zip(*(query.rows or () for query in queries), strict=True)]
        projected = [torch.cat(each) for each in zip(*(query.projected for query in queries), strict=True)]
        indices, norms = torch.cat([each.indices for each in queries]), torch.cat([each.norms for each in queries], 1)
        return cls(indices, norms, rows or None, projected)

    @cached_property
    def is_single(self) -> bool:
        """Whether it is one gradient."""
        return len(self.indices) == 1

    @cached_property
    def halves(self) -> list[Float[Tensor, "query _"]]:
        """`projected` in float16."""
        return [each.half() for each in self.projected]

    def rest_norms(self, projections: Sequence[Projection]) -> Float[Tensor, "weight query"]:
        """Of the entries that do not lead, in units of the gradient's own norm."""
        return torch.stack(
            [each[:, to.n_leading :].norm(dim=1).double() for to, each in zip(projections, self.projected, strict=True)]
        )

    def damped(self, projections: Sequence[Projection], damping: float) -> "Query":
        """Multiplied by the damped inverse covariances, within the projections."""
        found = [to.damped(each, damping) for to, each in zip(projections, self.projected, strict=True)]
        sizes = torch.stack([each.double().norm(dim=1) for each in found])
        units = [(each * own[:, None]).float() for each, own in zip(found, inverse(sizes), strict=True)]
        return Query(self.indices, self.norms * sizes, None, units)


@dataclass(frozen=True)
class Kept:
    """One weight's unit gradients of all examples of a shard."""

    is_exact: Bool[Tensor, "example"]
    """Whose factors are kept; the others are projected."""
    exact: ExampleRows
    leading: Float[Tensor, "other leading"]
    rest: Float[Tensor, "other following"]

    @classmethod
    def of(cls, rows: ExampleRows, norms: Float[Tensor, "example"], projection: Projection) -> "Kept":
        """Each example in one form, divided by its norm."""
        n_bytes = 4 * (rows.inputs.shape[1] + rows.deltas.shape[1])
        is_exact = rows.counts.cpu() * n_bytes <= 2 * projection.n_entries
        exact = _unit(_only(rows, is_exact), norms[is_exact])
        projected = projection.of(_only(rows, ~is_exact), norms[~is_exact]).half().cpu()
        n = projection.n_leading
        projected = projected.reshape(-1, projection.n_entries)
        return cls(is_exact, _on_cpu(exact), projected[:, :n], projected[:, n:])

    @classmethod
    def joined(cls, parts: Sequence["Kept"]) -> "Kept":
        """Those of several batches."""
        is_exact, leading, rest = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("is_exact", "leading", "rest")
        )
        return cls(is_exact, _joined([part.exact for part in parts]), leading, rest)

    def inner(
        self, query: Query, place: int, projection: Projection, *, leading: bool = False
    ) -> Float[Tensor, "query example"]:
        """Inner products of the unit gradients: exact where both have factors, else of what both become projected.

        Args:
            query: whose factors and projections are those of this weight at `place`.
            place: among the weights that it was captured of.
            projection: of this weight.
            leading: of what is projected, to take the leading entries alone.
        """
        n = self.leading.shape[1]
        others = _products(self.leading, query, place, slice(n))
        if self.rest.numel() and not leading:
            others = others.float() + _products(self.rest, query, place, slice(n, None))
        if not self.exact.counts.numel():
            return others
        found = others.new_empty(len(others), len(self.is_exact), dtype=torch.float64)
        found[:, ~self.is_exact] = others.double()
        if query.rows is None:
            found[:, self.is_exact] = (query.projected[place] @ projection.of(self.exact).T).double()
        else:
            found[:, self.is_exact] = inner_products(query.rows[place], self.exact)
        return found

    def rest_norms(self) -> Float[Tensor, "example"]:
        """Of the entries that do not lead; 0 of factors."""
        found = torch.zeros(len(self.is_exact))
        norms = [self.rest[rows].float().norm(dim=1) for rows in steps(len(self.rest), _BLOCK)]
        found[~self.is_exact] = torch.cat([found[:0], *norms])
        return found

    def following(self, query: Query, place: int, chosen: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen"]:
        """What the entries that do not lead add to a single query's inner products with some examples."""
        asked = query.halves[place][0, self.leading.shape[1] :]
        if not self.exact.counts.numel():
            if 3 * len(chosen) > len(self.rest):  # gathering them would take longer
                return (self.rest @ asked)[chosen]
            return self.rest.index_select(0, chosen) @ asked
        is_projected = ~self.is_exact
        at, mine = is_projected.cumsum(0) - 1, is_projected[chosen]
        found = asked.new_zeros(len(chosen))
        found[mine] = self.rest.index_select(0, at[chosen[mine]]) @ asked
        return found


@dataclass(frozen=True)
class Shard:
    """Some examples of a store."""

    indices: Int[Tensor, "example"]
    """Where each is in the data set."""
    norms: Float[Tensor, "weight example"]
    rests: Float[Tensor, "weight example"]
    """|dL/dW| times the norm of the unit gradient's entries that do not lead; 0 of factors."""
    kept: list[Kept]
    """Of each weight."""
    low: Float[Tensor, "metric example"]
    """2.5 % quantile of each example's inner products, and cosines, with random queries."""
    high: Float[Tensor, "metric example"]

    def sizes(self) -> Float[Tensor, "example"]:
        """|dL/dW| over all weights."""
        return self.norms.square().sum(0).sqrt()

    def scores(
        self, query: Query, projections: Sequence[Projection]
    ) -> tuple[Float[Tensor, "query example"], Float[Tensor, "query example"]]:
        """Inner products and cosines with queries over all weights."""
        total = torch.zeros(len(query.indices), len(self.indices), dtype=torch.float64)
        for number, kept in enumerate(self.kept):
            each = kept.inner(query, number, projections[number])
            total += each * (query.norms[number, :, None] * self.norms[number])
        both = query.norms.square().sum(0).sqrt()[:, None] * self.sizes()
        return total, torch.where(both > 0, total / both, 0.0)

    def inner(
        self, query: Query, projections: Sequence[Projection], chosen: Sequence[int], *, leading: bool = False
    ) -> Float[Tensor, "weight example"]:
        """Inner products of the unit gradients of the weights with those numbers, which a single query is of.

        Args:
            query: of one gradient.
            projections: of the chosen weights.
            chosen: their numbers.
            leading: of what is projected, to take the leading entries alone.
        """
        numbered = enumerate(chosen)
        found = [self.kept[n].inner(query, place, projections[place], leading=leading) for place, n in numbered]
        return torch.cat(found)

    def following(
        self, query: Query, chosen: Sequence[int], examples: Int[Tensor, "chosen"]
    ) -> Float[Tensor, "chosen"]:
        """What the other entries of some examples add to these inner products."""
        found = [self.kept[number].following(query, place, examples) for place, number in enumerate(chosen)]
        return query.norms[:, 0] @ (torch.stack(found).double() * self.norms[chosen].index_select(1, examples))

    def tensors(self) -> dict[str, Tensor]:
        """All that it is, by name."""
        named = {name: getattr(self, name) for name in ("indices", "norms", "rests", "low", "high")}
        for number, kept in enumerate(self.kept):
            named |= {
                f"{number}/{name}": value
                for name, value in (
                    ("is_exact", kept.is_exact),
                    ("inputs", kept.exact.inputs),
                    ("deltas", kept.exact.deltas),
                    ("counts", kept.exact.counts),
                    ("leading", kept.leading),
                    ("rest", kept.rest),
                )
            }
        return named

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Shard":
        """The same again."""
        kept = []
        for number in range(len(tensors["norms"])):
            exact = ExampleRows(*(tensors[f"{number}/{name}"] for name in ("inputs", "deltas", "counts")))
            is_exact, leading, rest = (tensors[f"{number}/{name}"] for name in ("is_exact", "leading", "rest"))
            kept.append(Kept(is_exact, exact, leading, rest))
        indices, norms, rests = (tensors[name] for name in ("indices", "norms", "rests"))
        return cls(indices, norms, rests, kept, tensors["low"], tensors["high"])


def _products(
    kept: Float[Tensor, "example _"], query: Query, place: int, entries: slice
) -> Float[Tensor, "query example"]:
    """In float32; one query alone is multiplied in float16, which sums in float32 and reads half the memory."""
    if query.is_single:
        return (kept @ query.halves[place][0, entries])[None]
    asked = query.projected[place][:, entries]
    found = [kept[rows].float() @ asked.T for rows in steps(len(kept), _BLOCK)]
    return torch.cat(found).T if found else torch.zeros(len(asked), 0)


def _unit(rows: ExampleRows, norms: Float[Tensor, "example"]) -> ExampleRows:
    """The rows of dL/dW / |dL/dW| in float32; of a gradient of 0, zeros."""
    scale = inverse(norms).to(rows.deltas.device)
    deltas = rows.deltas * scale.repeat_interleave(rows.counts)[:, None]
    return ExampleRows(rows.inputs.float(), deltas.float(), rows.counts)


def _only(rows: ExampleRows, chosen: Bool[Tensor, "example"]) -> ExampleRows:
    if chosen.all():
        return rows
    if not chosen.any():
        return rows[:0]
    chosen = chosen.to(rows.counts.device)
    of_rows = chosen[rows.owners()]
    return ExampleRows(rows.inputs[of_rows], rows.deltas[of_rows], rows.counts[chosen])


def _joined(parts: Sequence[ExampleRows]) -> ExampleRows:
    return ExampleRows(*(torch.cat([getattr(each, name) for each in parts]) for name in ("inputs", "deltas", "counts")))


def _on_cpu(rows: ExampleRows) -> ExampleRows:
    return ExampleRows(rows.inputs.cpu(), rows.deltas.cpu(), rows.counts.cpu())


def kept_of(part: Part, projections: Sequence[Projection]) -> list[Kept]:
    """A batch as it is kept, for each weight."""
    return [Kept.of(*each) for each in zip(part.rows, part.norms, projections, strict=True)]
