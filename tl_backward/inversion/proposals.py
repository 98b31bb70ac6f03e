"""Where a search starts, and the baseline without one: real inputs by their nearest activations."""

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

from tl_backward._support.types import TransformerLensModel
from tl_backward.inversion.activations import BATCH_SIZE
from tl_backward.inversion.distances import EPSILON, check_epsilon
from tl_backward.inversion.positions import Position
from tl_backward.inversion.preimage import Preimage, Valid, assemble
from tl_backward.inversion.query import Query, QueryLike, read_query
from tl_backward.inversion.scoring import Scorer, Scores
from tl_backward.model.place import PlaceLike
from tl_backward.text.encoded import Encoded, Inputs, encode


@runtime_checkable
class Sampler(Protocol):
    """A decoder: anything that writes texts for a query."""

    def sample(self, query: Query, n: int, *, seed: int) -> Inputs:
        """`n` texts, as text or tokens."""
        ...


Proposals: TypeAlias = Inputs | Callable[[int, int], Inputs] | Sampler
"""A pool of inputs; a task's own generator (n, seed) -> inputs; or a decoder with `sample(query, n, seed=...)`."""


def proposed(
    model: TransformerLensModel,
    proposals: Proposals,
    query: Query,
    n: int,
    *,
    seed: int,
    prepend_bos: bool | None = None,
) -> Encoded:
    """The texts of a pool, or `n` of a generator or decoder.

    Raises:
        ValueError: there are none; and as for `encode`.
    """
    if isinstance(proposals, Sampler):
        return encode(model, proposals.sample(query, n, seed=seed), prepend_bos=prepend_bos)
    if callable(proposals):
        return encode(model, proposals(n, seed), prepend_bos=prepend_bos)
    return encode(model, proposals, prepend_bos=prepend_bos)


def pool_preimage(
    model: TransformerLensModel,
    pool: Inputs,
    query: QueryLike | Query,
    site: PlaceLike,
    position: Position,
    *,
    n: int = 200,
    epsilon: float = EPSILON,
    metric: str = "euclidean",
    match: str = "any",
    valid: Valid | None = None,
    prepend_bos: bool | None = None,
    batch_size: int = BATCH_SIZE,
    show_progress: bool = True,
) -> Preimage:
    """The `n` inputs of a pool with the nearest activations: retrieval, the baseline of every other way.

    Args:
        model: the probed model.
        pool: real inputs.
        query: the text whose activation is asked about, its tokens, or a `Query`.
        site: see `resolve_place`.
        position: of the query's token; see `positions.Position`.
        n: how many are kept, nearest first; all of a smaller pool.
        epsilon: the threshold on D.
        metric: as for `preimage_of`.
        match: as for `preimage_of`.
        valid: as for `preimage_of`.
        prepend_bos: as TransformerLens means it, for texts.
        batch_size: texts a forward pass.
        show_progress: draw a progress bar if it takes longer than a second.

    Returns:
        A preimage whose `chance` and `share_inside` are the whole pool's.

    Raises:
        ValueError: as for `preimage_of`, or n < 1.

    Example:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> tlb.inversion.pool_preimage(counting, pool, pool[0], ("resid_mid", 1), -1, n=1).texts == (pool[0],)
        True
    """
    check_epsilon(epsilon)
    if n < 1:
        raise ValueError(f"Expected n of at least 1, got {n}; 200 is the default.")
    asked = read_query(model, query, site, position, prepend_bos=prepend_bos)
    texts = encode(model, pool, prepend_bos=prepend_bos)
    scorer = Scorer(model, asked, metric=metric, match=match, batch_size=batch_size)
    scores = scorer(texts, show_progress=show_progress)
    share = float((scores.distances <= epsilon).double().mean())
    order = scores.distances.argsort(stable=True)[:n]
    return assemble(
        asked, texts.select(order), Scores(scores.distances[order], scores.best_positions[order]), epsilon=epsilon,
        metric=metric, match=match, method="pool", valid=valid, diagnostics={"share_inside": share, "chance": share},
    )  # fmt: skip
