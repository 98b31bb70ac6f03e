"""Where a search starts, and the baseline without one: real inputs by their nearest activations."""

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

from tl_backward._support.types import TransformerLensModel
from tl_backward.inversion._old_calls import is_query, old_options, old_order
from tl_backward.inversion.options import EPSILON, TEXTS, Closeness
from tl_backward.inversion.positions import Position
from tl_backward.inversion.preimage import Preimage, Valid, assemble
from tl_backward.inversion.query import Query, QueryLike
from tl_backward.inversion.scoring import Scorer, Scores
from tl_backward.model.place import PlaceLike
from tl_backward.text.encoded import Encoded, Inputs
from tl_backward.text.options import TextOptions


@runtime_checkable
class Sampler(Protocol):
    """A decoder: anything that writes texts for a query."""

    def sample(self, query: Query, n: int, *, seed: int) -> Inputs:
        """`n` texts, as text or tokens."""
        ...


Proposals: TypeAlias = Inputs | Callable[[int, int], Inputs] | Sampler
"""A pool of inputs; a task's own generator (n, seed) -> inputs; or a decoder with `sample(query, n, seed=...)`."""


def proposed(scorer: Scorer, proposals: Proposals, n: int, *, seed: int) -> Encoded:
    """The texts of a pool, or `n` of a generator or decoder.

    Raises:
        ValueError: there are none; and as for `encode`.
    """
    if isinstance(proposals, Sampler):
        return scorer.encode(proposals.sample(scorer.query, n, seed=seed))
    return scorer.encode(proposals(n, seed) if callable(proposals) else proposals)


@old_order("pool", "query", "site", "position", is_new=is_query)
@old_options
def pool_preimage(
    model: TransformerLensModel,
    query: QueryLike | Query,
    site: PlaceLike,
    position: Position,
    pool: Inputs,
    *,
    n: int = 200,
    epsilon: float | Closeness = EPSILON,
    valid: Valid | None = None,
    text_options: TextOptions = TEXTS,
    show_progress: bool = True,
) -> Preimage:
    """The `n` inputs of a pool with the nearest activations: retrieval, the baseline of every other way.

    Args:
        model: the probed model.
        query: the text whose activation is asked about, its tokens, or a `Query`.
        site: see `resolve_place`.
        position: of the query's token; see `positions.Position`.
        pool: real inputs.
        n: how many are kept, nearest first; all of a smaller pool.
        epsilon: the threshold on D, or a `Closeness`.
        valid: as for `preimage_of`.
        text_options: batch size, and whether texts begin with BOS.
        show_progress: draw a progress bar if it takes longer than a second.

    Returns:
        A preimage whose `chance` and `share_inside` are the whole pool's.

    Raises:
        ValueError: as for `preimage_of`, or n < 1.

    Example:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool, n=1).texts == (pool[0],)
        True
    """
    if n < 1:
        raise ValueError(f"Expected n of at least 1, got {n}; 200 is the default.")
    scorer = Scorer(model, query, site, position, epsilon, text_options)
    texts = scorer.encode(pool)
    scores = scorer(texts, show_progress=show_progress)
    share = scorer.share_within(scores)
    order = scores.distances.argsort(stable=True)[:n]
    nearest = Scores(scores.distances[order], scores.best_positions[order])
    return assemble(
        scorer.query,
        scorer.closeness,
        texts.select(order),
        nearest,
        "pool",
        valid=valid,
        share_inside=share,
        chance=share,
    )
