"""The exact preimage over a finite domain: every input is looked at, once for a query or once for many."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion.activations import BATCH_SIZE, batches, progress
from tl_backward.inversion.distances import EPSILON, check_epsilon, check_metric, check_query, distances
from tl_backward.inversion.positions import NOWHERE, Position, find_positions
from tl_backward.inversion.preimage import Preimage, Valid, assemble
from tl_backward.inversion.query import Query, QueryLike, read_query
from tl_backward.inversion.scoring import Scorer, Scores, check_match
from tl_backward.model.place import Place, PlaceLike, resolve_place
from tl_backward.text.encoded import Encoded, Inputs, encode

MAX_MEMORY = 2_000_000_000
N_OUTSIDE = 100


def enumerate_preimage(
    model: TransformerLensModel,
    inputs: Inputs,
    site: PlaceLike,
    position: Position,
    query: QueryLike | Query,
    epsilon: float = EPSILON,
    *,
    metric: str = "euclidean",
    match: str = "any",
    valid: Valid | None = None,
    n_outside: int = N_OUTSIDE,
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_size: int = BATCH_SIZE,
    show_progress: bool = True,
) -> Preimage:
    """All of a finite domain's inputs that lie in the query's epsilon-preimage: the exact answer, in one pass.

    No activation is held, so that a domain of any size fits; `ActivationIndex` answers many queries from one pass.

    Args:
        model: the probed model.
        inputs: the whole domain; tokens [text, pos] are quicker than texts where there are many.
        site: see `resolve_place`.
        position: of the query's token; see `positions.Position`.
        query: the text whose activation is asked about, its tokens, or a `Query`.
        epsilon: the threshold on D.
        metric: "euclidean", relative to the query's norm, or "cosine".
        match: "any": D is the smallest over all of an input's positions, as in the paper; "same": at `position` alone,
            as it is found in each input.
        valid: text -> whether it is well-formed, asked of the texts that are kept; others have no weight.
        n_outside: how many inputs outside are kept beside those inside, drawn at random.
        seed: of that draw; the global RNG is left alone.
        prepend_bos: as TransformerLens means it, for texts.
        batch_size: inputs a forward pass.
        show_progress: draw a progress bar if it takes longer than a second.

    Returns:
        Every input inside, in the domain's order, with equal weights, and `n_outside` others. `share_inside` is the
        domain's own, which is the chance rate of a uniform prior over it.

    Raises:
        ValueError: as for `preimage_of`.

    Example:
        >>> counting = tlb.zoo.load("counting")
        >>> domain = ["aab|a:", "aba|a:", "abb|a:"]
        >>> p = tlb.inversion.enumerate_preimage(counting, domain, ("resid_mid", 1), -1, "aab|a:")
        >>> p.diagnostics.share_inside <= 1
        True
    """
    check_epsilon(epsilon)
    asked = read_query(model, query, site, position, prepend_bos=prepend_bos)
    domain = encode(model, inputs, prepend_bos=prepend_bos)
    scorer = Scorer(model, asked, metric=metric, match=match, batch_size=batch_size)
    scores = scorer(domain, show_progress=show_progress)
    inside = (scores.distances <= epsilon).nonzero().flatten()
    outside = _outside(len(domain), inside, n_outside, seed)
    kept = torch.cat([inside, outside])
    some = Scores(scores.distances[kept], scores.best_positions[kept])
    return _exact(asked, domain, kept, some, len(inside), epsilon, metric, match, valid)


@dataclass(frozen=True, repr=False, eq=False)
class ActivationIndex:
    """A domain's activations at one site, held once for many queries; make one with `ActivationIndex.of`."""

    model: TransformerLensModel
    texts: Encoded
    site: Place
    rule: Position
    """The position of queries, and with match="same" of the domain's inputs."""
    match: str
    values: Float[Tensor, "sample d"]
    """In the model's dtype, on the CPU, in the texts' order: one a text, or one a token with match="any"."""
    squares: Float[Tensor, "sample"]
    """|value|^2."""
    starts: Int[Tensor, "text_and_one"]
    """The first sample of each text, and the end; a text without the position has none."""

    @classmethod
    def of(
        cls,
        model: TransformerLensModel,
        inputs: Inputs,
        site: PlaceLike,
        position: Position,
        *,
        match: str = "any",
        max_memory: int = MAX_MEMORY,
        prepend_bos: bool | None = None,
        batch_size: int = BATCH_SIZE,
        show_progress: bool = True,
    ) -> "ActivationIndex":
        """Collect a domain's activations; arguments as for `enumerate_preimage`.

        Args:
            model: the probed model; the index holds its activations as they are now.
            inputs: the domain.
            site: see `resolve_place`.
            position: of queries, and with match="same" of the domain's inputs.
            match: "any" holds every token's activation, "same" one a text.
            max_memory: bytes that the activations may take.
            prepend_bos: as TransformerLens means it, for texts.
            batch_size: inputs a forward pass.
            show_progress: draw a progress bar if it takes longer than a second.

        Raises:
            ValueError: the domain does not fit in `max_memory`, the message says what it takes and what would fit;
                and as for `preimage_of`.
        """
        check_match(match)
        texts = encode(model, inputs, prepend_bos=prepend_bos)
        at = None if match == "any" else find_positions(texts, position)
        resolved = resolve_place(model, site)
        reader = PlaceReader(model, resolved)
        counts = texts.lengths if at is None else (at > NOWHERE).long()
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        n_samples, width = int(starts[-1]), reader.widths[resolved]
        _check_memory(n_samples, len(texts), width, reader.dtype.itemsize, match, max_memory)
        values = torch.empty(n_samples, width, dtype=reader.dtype)
        for part in progress(batches(texts, at, batch_size), len(texts), batch_size, show_progress):
            rows = starts[part.index[part.text]] + (part.at if at is None else 0)
            values[rows] = reader(part.tokens, part.text, part.at)[resolved].to(values)
        squares = torch.linalg.vecdot(values, values)
        return cls(model, texts, resolved, position, match, values, squares, starts)

    def __repr__(self) -> str:
        return (
            f"ActivationIndex({len(self.texts)} texts at {self.site}, match={self.match!r}, "
            f"{self.values.nbytes / 1e6:.4g} MB)"
        )

    def preimage(
        self,
        query: QueryLike | Query,
        epsilon: float = EPSILON,
        *,
        metric: str = "euclidean",
        valid: Valid | None = None,
        n_outside: int = N_OUTSIDE,
        seed: int = 0,
    ) -> Preimage:
        """The exact preimage of a query; arguments and result as of `enumerate_preimage`.

        A product with all activations says which texts can be inside; the distances of those, and so who is inside, are
        then computed in float64 without cancellation.

        Raises:
            ValueError: as for `preimage_of`.
        """
        check_epsilon(epsilon)
        asked = read_query(self.model, query, self.site, self.rule)
        near = self._may_be_within(asked.activation, epsilon, metric).nonzero().flatten()
        scores = self._scores(near, asked, metric)
        found = scores.distances <= epsilon
        inside = near[found]
        outside = _outside(len(self.texts), inside, n_outside, seed)
        others = self._scores(outside, asked, metric)
        some = Scores(
            torch.cat([scores.distances[found], others.distances]),
            torch.cat([scores.best_positions[found], others.best_positions]),
        )
        kept = torch.cat([inside, outside])
        return _exact(asked, self.texts, kept, some, len(inside), epsilon, metric, self.match, valid)

    def nearest(self, query: QueryLike | Query, n: int, *, metric: str = "euclidean") -> Int[Tensor, "n"]:
        """The `n` texts nearest to the query, nearest first (up to rounding in the model's dtype).

        Raises:
            ValueError: fewer texts than that have the position.
        """
        asked = read_query(self.model, query, self.site, self.rule)
        closeness = self._per_text(self._approximate(asked.activation, metric))
        there = int(closeness.isfinite().sum())
        if not 1 <= n <= there:
            raise ValueError(f"Expected n in [1, {there}], the texts that have the position, got {n}; take fewer.")
        return closeness.topk(n, largest=False).indices

    def _approximate(self, z: Float[Tensor, "d"], metric: str) -> Float[Tensor, "sample"]:
        """D^2 (euclidean) or D (cosine) of every sample, with the rounding errors of its dtype."""
        check_metric(metric)
        check_query(z)
        z = z.to(self.values)
        square = float(z @ z)
        product = self.values @ z
        if metric == "euclidean":
            return product.mul_(-2).add_(self.squares).add_(square).div_(square)
        return product.div_(self.squares.sqrt().clamp_min_(torch.finfo(z.dtype).tiny)).div_(-(square**0.5)).add_(1)

    def _may_be_within(self, z: Float[Tensor, "d"], epsilon: float, metric: str) -> Tensor:
        """Texts [text] that may be within epsilon, allowing for every rounding error of `_approximate`."""
        approximate = self._approximate(z, metric)
        # |x| <= (1 + epsilon) |z| within epsilon; a sum of d products errs by at most d roundings of its terms.
        unit = (self.values.shape[1] + 8) * torch.finfo(approximate.dtype).eps
        limit = epsilon**2 + 4 * (1 + epsilon) ** 2 * unit if metric == "euclidean" else epsilon + 2 * unit
        return self._per_text(approximate) <= limit

    def _per_text(self, values: Float[Tensor, "sample"]) -> Float[Tensor, "text"]:
        """The smallest of each text's samples; infinite where it has none."""
        if len(values) == len(self.texts) and self.match == "same":
            return values
        return torch.segment_reduce(values, "min", offsets=self.starts, initial=torch.inf)

    def _scores(self, chosen: Int[Tensor, "chosen"], query: Query, metric: str) -> Scores:
        """Distances of some texts, in float64."""
        counts = self.starts[chosen + 1] - self.starts[chosen]
        ends = counts.cumsum(0)
        which = torch.arange(len(chosen)).repeat_interleave(counts)
        offset = torch.arange(int(ends[-1]) if len(ends) else 0) - (ends - counts)[which]
        each = distances(self.values[self.starts[chosen][which] + offset], query.activation, metric)
        edges = torch.cat([ends.new_zeros(1), ends])
        smallest = torch.segment_reduce(each, "min", offsets=edges, initial=torch.inf)
        at = torch.full((len(chosen),), torch.iinfo(torch.long).max)
        best = each == smallest[which]
        at.scatter_reduce_(0, which[best], offset[best], "amin")
        at = torch.where(counts > 0, at, NOWHERE)
        if self.match == "same" and len(chosen):
            at = find_positions(self.texts.select(chosen), query.rule)
        return Scores(smallest, at)


def _outside(n_texts: int, inside: Int[Tensor, "inside"], n: int, seed: int) -> Int[Tensor, "outside"]:
    """A draw of texts that are not inside, in the domain's order, at no cost in the domain's size.

    Floyd's sampling without replacement of their ranks among all that are outside.
    """
    n_out = n_texts - len(inside)
    n = min(n, n_out)
    draws = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    ranks: set[int] = set()
    for last, draw in zip(range(n_out - n, n_out), draws, strict=True):
        rank = min(int(draw * (last + 1)), last)
        ranks.add(last if rank in ranks else rank)
    drawn = torch.tensor(sorted(ranks), dtype=torch.long)
    before = inside - torch.arange(len(inside))  # texts outside before each one inside
    return drawn + torch.searchsorted(before, drawn, right=True)


def _exact(
    query: Query,
    domain: Encoded,
    kept: Int[Tensor, "kept"],
    scores: Scores,
    n_inside: int,
    epsilon: float,
    metric: str,
    match: str,
    valid: Valid | None,
) -> Preimage:
    share = n_inside / len(domain)
    return assemble(
        query, domain.select(kept), scores, epsilon=epsilon, metric=metric, match=match, method="enumeration",
        valid=valid, diagnostics={"share_inside": share, "chance": share, "recall": 1.0},
    )  # fmt: skip


def _check_memory(n_samples: int, n_texts: int, width: int, itemsize: int, match: str, max_memory: int) -> None:
    needed = n_samples * (width + 1) * itemsize
    if needed <= max_memory:
        return
    one = n_texts * (width + 1) * itemsize
    smaller = f"pass match='same' ({one / 1e9:.3g} GB), " if match == "any" and one <= max_memory else ""
    raise ValueError(
        f"Expected a domain whose activations fit in max_memory={max_memory / 1e9:.3g} GB, got {n_samples} of width "
        f"{width}, which take {needed / 1e9:.3g} GB; {smaller}use enumerate_preimage, which holds none, index "
        f"{max(1, int(n_texts * max_memory / needed))} texts at a time, or raise max_memory."
    )
