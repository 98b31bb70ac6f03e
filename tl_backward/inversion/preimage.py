"""Preimage: the texts that give nearly the same activation as a query, of given ones or a pool (Huang et al. 2024)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import check_at_least_one
from tl_backward._support.html import Cell, TableCell, table, visible_text
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import count_text, percent
from tl_backward._support.shown import check_no_page
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.inversion._old_calls import is_query, old_options, old_order
from tl_backward.inversion.options import EPSILON, TEXTS, Closeness, Match, Metric
from tl_backward.inversion.positions import Position
from tl_backward.inversion.query import Query, QueryLike, Scorer, Scores
from tl_backward.model.place import Place, PlaceLike
from tl_backward.text.encoded import Encoded, Inputs
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import text_column

Method: TypeAlias = Literal["decoder", "enumeration", "search", "pool", "given"]
Valid: TypeAlias = Callable[[str], bool]

_HTML_ROWS, _HTML_TEXT = 12, 60


@dataclass(frozen=True)
class Diagnostics(Saved):
    """How much of the preimage a result has seen; None where it is not known."""

    share_inside: float
    """Share of the texts looked at (all of a domain, all samples) within epsilon."""
    distinct: int
    """Different texts within epsilon."""
    effective_sample_size: float
    """Of the texts within epsilon: (sum w)^2 / sum w^2, or that of the chains where a search made them."""
    chance: float | None = None
    """Share within epsilon of the task's prior: what drawing inputs without looking at z gives."""
    well_formed: float | None = None
    """Share of the texts that the validity predicate accepts."""
    acceptance: float | None = None
    """Share of the proposals that a search accepted."""
    recall: float | None = None
    """Share of the exact preimage's texts that are among those found."""
    total_variation: Mapping[str, float] = field(default_factory=dict)
    """Feature -> total-variation distance between its marginals here and in the exact preimage."""


@dataclass(frozen=True, repr=False, eq=False)
class Preimage(Saved):
    """Texts inside and outside a query's epsilon-preimage, every distance computed by the probed model.

    A page shows the texts token by token, which the model reads: `tlb.inversion.read_preimage(model, preimage).show()`.
    """

    query: Query
    epsilon: float
    metric: Metric
    match: Match
    """"any": D is the smallest over a text's positions (the paper's); "same": at the query's own position."""
    method: Method
    """How the texts were found."""
    inputs: Encoded
    """The texts as the model read them."""
    distances: Float[Tensor, "text"]
    best_positions: Int[Tensor, "text"]
    """Where each text comes nearest; -1 for one that does not have the position."""
    inside: Bool[Tensor, "text"]
    """Whether its distance is at most epsilon."""
    weights: Float[Tensor, "text"]
    """Each text's share of the preimage: they sum to 1 over well-formed texts inside, and are 0 elsewhere."""
    diagnostics: Diagnostics
    shading: Float[Tensor, "text pos"] | None = None
    """p(token | earlier ones, z) minus p(token | earlier ones, no information), where a decoder wrote the texts."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, inside and outside."""
        return self.inputs.texts

    @property
    def tokens(self) -> Int[Tensor, "text pos"]:
        """Their tokens as the model read them, 0 beyond each text's end."""
        return self.inputs.tokens

    @property
    def lengths(self) -> Int[Tensor, "text"]:
        """How many tokens each text has."""
        return self.inputs.lengths

    @property
    def site(self) -> Place:
        """Where the activation was read."""
        return self.query.site

    @property
    def position(self) -> int:
        """Index of the query's token."""
        return self.query.position

    def __repr__(self) -> str:
        return (
            f"Preimage({self.query.text!r:.40} at {self.site}, position {self.position}: {int(self.inside.sum())} of "
            f"{len(self)} texts within {self.epsilon:g}, by {self.method})"
        )

    def summary(self) -> str:
        """In one sentence: how many texts lie within epsilon, and how many of the task's prior do by chance."""
        n, chance = int(self.inside.sum()), self.diagnostics.chance
        found = (
            f"{n:,} of {count_text(len(self), 'text')} give nearly the same activation at {self.site} as "
            f'"{visible_text(self.query.text)[:80]}" (within {self.epsilon:g}, by {self.method})'
        )
        drawn = "" if chance is None else f", {percent(chance)} of texts drawn without looking do"
        return f"{found}{drawn}; features=... of read_preimage says what they share."

    def __len__(self) -> int:
        return len(self.inputs)

    def save(self, path: str | Path) -> Path:
        """Write all numbers and texts as safetensors, atomically; `tlb.load_result` reads them.

        Raises:
            ValueError: a name that promises a page, a picture or a table.
        """
        check_no_page(path, "a preimage", "tlb.inversion.read_preimage(model, preimage).save(path)")
        return super().save(path)

    def to_frame(self) -> DataFrame:
        """One row a text: text, distance, position (where it comes nearest), inside, weight."""
        import pandas

        return pandas.DataFrame(
            {
                "text": text_column(self.texts),
                "distance": self.distances.tolist(),
                "position": self.best_positions.tolist(),
                "inside": self.inside.tolist(),
                "weight": self.weights.tolist(),
            }
        )

    def _repr_html_(self) -> str:
        """A static table: the nearest texts inside and outside side by side with their distances."""
        d = self.diagnostics
        known = {
            "effective sample size": d.effective_sample_size,
            "chance": d.chance,
            "well-formed": d.well_formed,
            "accepted": d.acceptance,
            "recall": d.recall,
            **{f"TV of {name}": value for name, value in d.total_variation.items()},
        }
        facts = [f"{d.share_inside:.4g} within {self.epsilon:g}", f"{d.distinct} distinct"]
        facts += [f"{name} {value:.4g}" for name, value in known.items() if value is not None]
        caption = (
            f"{self.query.text} at {self.site}, position {self.position}; {self.metric} distance, "
            f"match={self.match!r}, by {self.method}: {', '.join(facts)}"
        )
        order = self.distances.argsort(stable=True)
        sides = [order[self.inside[order] == inside][:_HTML_ROWS].tolist() for inside in (True, False)]
        rows = [[*self._shown(near), *self._shown(far)] for near, far in zip_longest(*sides)]
        return table(["inside", "D", "at", "outside", "D", "at"], rows, caption=caption, bound=1.0, limit=_HTML_TEXT)

    def _shown(self, index: int | None) -> tuple[TableCell, TableCell, TableCell]:
        if index is None:
            return None, None, None
        return Cell(self.inputs.text(index)), float(self.distances[index]), int(self.best_positions[index])


@public
@old_order("texts", "query", "site", "position", is_new=is_query)
@old_options
def preimage_of(
    model: TransformerLensModel,
    query: QueryLike | Query,
    site: PlaceLike,
    position: Position,
    texts: Inputs,
    *,
    epsilon: float | Closeness = EPSILON,
    method: Method = "given",
    weights: Float[Tensor, "text"] | None = None,
    valid: Valid | None = None,
    prior: Inputs | None = None,
    text_options: TextOptions = TEXTS,
    show_progress: bool = True,
) -> Preimage:
    """Which of some texts lie in the query's epsilon-preimage {x : D(z, f(x)) <= epsilon}, by the probed model's word.

    Args:
        model: the probed model.
        query: the text whose activation is asked about, its tokens, or a `Query`.
        site: see `resolve_place`.
        position: of the query's token; see `positions.Position`.
        texts: whatever proposed them; see `texts.encode`.
        epsilon: the threshold on D, or a `Closeness`, which says what D is too.
        method: how the texts were found.
        weights: of each text, not yet normalised; None for equal ones.
        valid: text -> whether it is well-formed; texts that are not have no weight.
        prior: inputs drawn without looking at the query, whose share within epsilon is the chance rate.
        text_options: batch size, and whether texts begin with BOS.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        TypeError: a query that is no text, tokens or `Query`.
        ValueError: epsilon <= 0, an unknown metric or match, a site that the model lacks, a position outside the query,
            a query of zero norm, no texts, an empty one or one longer than n_ctx, or a predicate that raises.

    Examples:
        >>> texts = ["Anna Berg lives in", "Anna Berg resides in", "The pet of Anna Berg is a"]
        >>> p = tlb.inversion.preimage_of(model, "Anna Berg lives in", ("resid_post", 1), -1, texts)
        >>> p.inside.tolist()
        [True, False, False]
    """
    scorer = Scorer(model, query, site, position, epsilon, text_options)
    encoded, scores = scorer(texts, show_progress=show_progress)
    chance = (
        None if prior is None else scorer(prior, show_progress=show_progress)[1].share_within(scorer.closeness.epsilon)
    )
    return assemble(
        scorer.query, scorer.closeness, encoded, scores, method, weights=weights, valid=valid, chance=chance
    )


@public
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
        n: how many are given back, nearest first; all of a smaller pool.
        epsilon: the threshold on D, or a `Closeness`.
        valid: as for `preimage_of`.
        text_options: batch size, and whether texts begin with BOS.
        show_progress: draw a progress bar if it takes longer than a second.

    Returns:
        A preimage whose `chance` and `share_inside` are the whole pool's.

    Raises:
        ValueError: as for `preimage_of`, or n < 1.

    Examples:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool, n=1).texts == (pool[0],)
        True
    """
    check_at_least_one("n", n, "200 is the default")
    scorer = Scorer(model, query, site, position, epsilon, text_options)
    texts, scores = scorer(pool, show_progress=show_progress)
    return nearest_scored(scorer.query, scorer.closeness, texts, scores, n, valid)


def nearest_scored(
    query: Query, closeness: Closeness, texts: Encoded, scores: Scores, n: int, valid: Valid | None
) -> Preimage:
    """The `n` nearest of a pool whose distances are known."""
    share, chosen = scores.share_within(closeness.epsilon), scores.distances.argsort(stable=True)[:n]
    return assemble(
        query, closeness, texts.select(chosen), scores[chosen], "pool", valid=valid, share_inside=share, chance=share
    )


def assemble(
    query: Query,
    closeness: Closeness,
    texts: Encoded,
    scores: Scores,
    method: Method,
    *,
    weights: Float[Tensor, "text"] | None = None,
    valid: Valid | None = None,
    **diagnostics: float | None,
) -> Preimage:
    """A `Preimage` from texts that were scored; `diagnostics` overrides or adds to what follows from them."""
    inside = scores.distances <= closeness.epsilon
    good = None if valid is None else torch.tensor([check_valid(valid, text) for text in texts.texts])
    counted = inside if good is None else inside & good
    raw = torch.where(counted, torch.ones_like(scores.distances) if weights is None else weights.double(), 0.0)
    total = raw.sum()
    own = Diagnostics(
        share_inside=float(inside.double().mean()),
        distinct=len({row.tobytes() for row in texts.tokens[inside].numpy()}),
        effective_sample_size=float(total**2 / raw.square().sum()) if total > 0 else 0.0,
        well_formed=None if good is None else float(good.double().mean()),
    )
    return Preimage(
        query=query, epsilon=closeness.epsilon, metric=closeness.metric, match=closeness.match, method=method,
        inputs=texts, distances=scores.distances, best_positions=scores.best_positions, inside=inside,
        weights=raw / total if total > 0 else raw, diagnostics=replace(own, **diagnostics),
    )  # fmt: skip


def check_valid(valid: Valid, text: str) -> bool:
    """What a validity predicate says of a text.

    Raises:
        ValueError: it raises; the text is named.
    """
    try:
        return bool(valid(text))
    except Exception as error:
        raise ValueError(
            f"Expected valid(text) to give a bool, got {type(error).__name__}: {error} for the text {text!r:.80}; give "
            "False for what is not well-formed."
        ) from error
