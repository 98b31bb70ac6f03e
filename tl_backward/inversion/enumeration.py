"""The exact preimage over a finite domain: every input is run, once for each query or once for many queries."""

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.checks import check_choice
from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion._old_calls import is_query, is_site, old_options, old_order
from tl_backward.inversion.activations import batches
from tl_backward.inversion.options import (
    EPSILON,
    TEXTS,
    Closeness,
    Match,
    Metric,
    check_text_options,
)
from tl_backward.inversion.positions import NOWHERE, Position, find_positions
from tl_backward.inversion.preimage import Preimage, Valid, assemble
from tl_backward.inversion.query import Query, QueryLike, Scorer, Scores, check_query, distances, read_query
from tl_backward.model.place import Place, PlaceLike, resolve_place
from tl_backward.text.encoded import Encoded, Inputs, encode
from tl_backward.text.options import TextOptions

MAX_MEMORY = 2_000_000_000
N_OUTSIDE = 100


@public
@old_order("inputs", "site", "position", "query", "epsilon", is_new=is_query)
@old_options
def enumerate_preimage(
    model: TransformerLensModel,
    query: QueryLike | Query,
    site: PlaceLike,
    position: Position,
    inputs: Inputs,
    *,
    epsilon: float | Closeness = EPSILON,
    valid: Valid | None = None,
    n_outside: int = N_OUTSIDE,
    seed: int = 0,
    text_options: TextOptions = TEXTS,
    show_progress: bool = True,
) -> Preimage:
    """All of a finite domain's inputs that lie in the query's epsilon-preimage: the exact answer, in one pass.

    No activation is held, so that a domain of any size fits; `ActivationIndex` answers many queries from one pass.

    Args:
        model: the probed model.
        query: the text whose activation is asked about, its tokens, or a `Query`.
        site: see `resolve_place`.
        position: of the query's token; see `positions.Position`.
        inputs: the whole domain; tokens [text, pos] are quicker than texts where there are many.
        epsilon: the threshold on D, or a `Closeness`.
        valid: text -> whether it is well-formed, asked of the texts that are given back; others have no weight.
        n_outside: how many inputs outside are given back beside those inside, drawn at random.
        seed: of that draw; the global RNG is left alone.
        text_options: batch size, and whether texts begin with BOS.
        show_progress: draw a progress bar if it takes longer than a second.

    Returns:
        Every input inside, in the domain's order, with equal weights, and `n_outside` others. `share_inside` is the
        domain's own, which is the chance rate of a uniform prior over it.

    Raises:
        ValueError: as for `preimage_of`.

    Examples:
        >>> counting = tlb.zoo.load("counting")
        >>> domain = ["aab|a:", "aba|a:", "abb|a:"]
        >>> p = tlb.inversion.enumerate_preimage(counting, "aab|a:", ("resid_mid", 1), -1, domain)
        >>> p.diagnostics.share_inside <= 1
        True
    """
    scorer = Scorer(model, query, site, position, epsilon, text_options)
    domain, scores = scorer(inputs, show_progress=show_progress)
    return exact_scored(scorer.query, scorer.closeness, domain, scores, valid, n_outside=n_outside, seed=seed)


def exact_scored(
    query: Query,
    closeness: Closeness,
    domain: Encoded,
    scores: Scores,
    valid: Valid | None,
    *,
    n_outside: int = N_OUTSIDE,
    seed: int = 0,
) -> Preimage:
    """The exact preimage in a domain whose distances are known."""
    inside = (scores.distances <= closeness.epsilon).nonzero().flatten()
    chosen = torch.cat([inside, _outside(len(domain), inside, n_outside, seed)])
    return _exact(query, closeness, domain, chosen, scores[chosen], len(inside), valid)


@dataclass(frozen=True, repr=False, eq=False)
class ActivationIndex:
    """A domain's activations at one site, held once for many queries; make one with `ActivationIndex.of`."""

    model: TransformerLensModel
    texts: Encoded
    site: Place
    rule: Position
    """The position of queries, and with match="same" of the domain's inputs."""
    match: Match
    values: Float[Tensor, "sample d"]
    """In the model's dtype, on the CPU, in the texts' order: one a text, or one a token with match="any"."""
    squares: Float[Tensor, "sample"]
    """|value|^2."""
    starts: Int[Tensor, "text_and_one"]
    """The first sample of each text, and the end; a text without the position has none."""

    @classmethod
    @old_order("inputs", "site", "position", is_new=is_site, after=2)
    @old_options
    def of(
        cls,
        model: TransformerLensModel,
        site: PlaceLike,
        position: Position,
        inputs: Inputs,
        *,
        match: Match = "any",
        max_memory: int = MAX_MEMORY,
        text_options: TextOptions = TEXTS,
        show_progress: bool = True,
    ) -> "ActivationIndex":
        """Collect a domain's activations; arguments as for `enumerate_preimage`.

        Args:
            model: the probed model; the index holds its activations as they are now.
            site: see `resolve_place`.
            position: of queries, and with match="same" of the domain's inputs.
            inputs: the domain.
            match: "any" holds every token's activation, "same" one a text.
            max_memory: bytes that the activations may take.
            text_options: batch size, and whether texts begin with BOS.
            show_progress: draw a progress bar if it takes longer than a second.

        Raises:
            ValueError: the domain does not fit in `max_memory`, the message says what it takes and what would fit;
                and as for `preimage_of`.
        """
        check_choice("match", match, get_args(Match))
        check_text_options(text_options)
        texts = encode(model, inputs, prepend_bos=text_options.prepend_bos)
        at = None if match == "any" else find_positions(texts, position)
        resolved = resolve_place(model, site)
        reader = PlaceReader(model, resolved)
        counts = texts.lengths if at is None else (at > NOWHERE).long()
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        n_samples, width = int(starts[-1]), reader.widths[resolved]
        _check_memory(n_samples, len(texts), width, reader.dtype.itemsize, match, max_memory)
        values = torch.empty(n_samples, width, dtype=reader.dtype)
        for part in batches(texts, at, text_options.batch_size, show_progress=show_progress):
            rows = starts[part.index[part.text]] + (part.at if at is None else 0)
            values[rows] = reader(part.tokens, part.text, part.at, lengths=part.lengths)[resolved].to(values)
        return cls(model, texts, resolved, position, match, values, torch.linalg.vecdot(values, values), starts)

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
        metric: Metric = "euclidean",
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
        closeness = Closeness(epsilon, metric, self.match)
        asked = read_query(self.model, query, self.site, self.rule)
        near = self._may_be_within(asked.activation, closeness).nonzero().flatten()
        scores = self._scores(near, asked, metric)
        within = scores.distances <= epsilon
        inside = near[within]
        outside = _outside(len(self.texts), inside, n_outside, seed)
        others = self._scores(outside, asked, metric)
        some = Scores(
            torch.cat([scores.distances[within], others.distances]),
            torch.cat([scores.best_positions[within], others.best_positions]),
        )
        return _exact(asked, closeness, self.texts, torch.cat([inside, outside]), some, len(inside), valid)

    def nearest(self, query: QueryLike | Query, n: int, *, metric: Metric = "euclidean") -> Int[Tensor, "n"]:
        """The `n` texts nearest to the query, nearest first (up to rounding in the model's dtype).

        Raises:
            ValueError: fewer texts than that have the position.
        """
        check_choice("metric", metric, get_args(Metric))
        asked = read_query(self.model, query, self.site, self.rule)
        closeness = self._per_text(self._approximate(asked.activation, metric))
        there = int(closeness.isfinite().sum())
        if not 1 <= n <= there:
            raise ValueError(f"Expected n in [1, {there}], the texts that have the position, got {n}; take fewer.")
        return closeness.topk(n, largest=False).indices

    def _approximate(self, z: Float[Tensor, "d"], metric: Metric) -> Float[Tensor, "sample"]:
        """D^2 (euclidean) or D (cosine) of every sample, with the rounding errors of its dtype."""
        check_query(z)
        z = z.to(self.values)
        square, product = float(z @ z), self.values @ z
        if metric == "euclidean":
            return product.mul_(-2).add_(self.squares).add_(square).div_(square)
        return product.div_(self.squares.sqrt().clamp_min_(torch.finfo(z.dtype).tiny)).div_(-(square**0.5)).add_(1)

    def _may_be_within(self, z: Float[Tensor, "d"], closeness: Closeness) -> Tensor:
        """Texts [text] that may be within epsilon, allowing for every rounding error of `_approximate`."""
        epsilon, approximate = closeness.epsilon, self._approximate(z, closeness.metric)
        # |x| <= (1 + epsilon) |z| within epsilon; a sum of d products errs by at most d roundings of its terms.
        unit = (self.values.shape[1] + 8) * torch.finfo(approximate.dtype).eps
        limit = epsilon**2 + 4 * (1 + epsilon) ** 2 * unit if closeness.metric == "euclidean" else epsilon + 2 * unit
        return self._per_text(approximate) <= limit

    def _per_text(self, values: Float[Tensor, "sample"]) -> Float[Tensor, "text"]:
        """The smallest of each text's samples; infinite where it has none."""
        if len(values) == len(self.texts) and self.match == "same":
            return values
        return torch.segment_reduce(values, "min", offsets=self.starts, initial=torch.inf)

    def _scores(self, chosen: Int[Tensor, "chosen"], query: Query, metric: Metric) -> Scores:
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
        if self.match == "same" and len(chosen):
            return Scores(smallest, find_positions(self.texts.select(chosen), query.rule))
        return Scores(smallest, torch.where(counts > 0, at, NOWHERE))


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
    closeness: Closeness,
    domain: Encoded,
    chosen: Int[Tensor, "chosen"],
    scores: Scores,
    n_inside: int,
    valid: Valid | None,
) -> Preimage:
    share = n_inside / len(domain)
    return assemble(
        query, closeness, domain.select(chosen), scores, "enumeration", valid=valid, share_inside=share, chance=share,
        recall=1.0,
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
