"""The preimage by search: Metropolis walks of token edits, every step scored by the probed model (no training).

Each edit has its way back. substitute: another token at one position. swap: two positions exchange their tokens.
relabel: two tokens exchange all their positions. insert, delete: one token more or less.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel
from tl_backward.inversion._old_calls import old_options
from tl_backward.inversion.options import EDITS, EPSILON, TEXTS, Closeness, Edit, SearchOptions
from tl_backward.inversion.positions import Position
from tl_backward.inversion.preimage import Preimage, Valid, assemble, check_valid
from tl_backward.inversion.query import Query, QueryLike, Scorer, Scores
from tl_backward.model.place import PlaceLike
from tl_backward.text.encoded import Encoded, Inputs, decode, encode_rows
from tl_backward.text.options import TextOptions

_WARMEST, _STAGES = 50.0, 10  # the burn-in's first temperature in units of tau, and in how many it falls


@runtime_checkable
class Sampler(Protocol):
    """A decoder: anything that writes texts for a query."""

    def sample(self, query: Query, n: int, *, seed: int) -> Inputs:
        """`n` texts, as text or tokens."""
        ...


Proposals: TypeAlias = Inputs | Callable[[int, int], Inputs] | Sampler
"""A pool of inputs; a task's own generator (n, seed) -> inputs; or a decoder with `sample(query, n, seed=...)`."""

Row = tuple[int, ...]


@public
@old_options
def search_preimage(
    model: TransformerLensModel,
    query: QueryLike | Query,
    site: PlaceLike,
    position: Position,
    proposals: Proposals,
    *,
    epsilon: float | Closeness = EPSILON,
    search_options: SearchOptions = SearchOptions(),
    valid: Valid | None = None,
    seed: int = 0,
    text_options: TextOptions = TEXTS,
    show_progress: bool = True,
) -> Preimage:
    """Sample a query's preimage by random walks over texts, started from the nearest of some proposals.

    Each chain is a Metropolis-Hastings walk of token edits whose stationary distribution is

        pi(x)  ~  prior(x) exp(-max(D(z, f(x)) - plateau, 0) / tau)

    over all texts of at most n_ctx tokens that `valid` accepts and that edits reach. With `plateau` = epsilon (the
    default) it is the prior itself within the preimage; plateau=0 gives exp(-D / tau). `weights` undo what is left of
    the exponential, so that weighted texts inside are draws of prior(x) restricted to the preimage: not of p(x | z)
    that a decoder learns.

    During the burn-in the temperature falls from 50 tau to tau, and ten times the chains are drawn anew among
    themselves by the weights that its fall gives them (population annealing, Hukushima and Iba 2003), so that chains
    which are stuck far from the preimage give way to those within; afterwards each walks alone.

    Args:
        model: the probed model.
        query: the text whose activation is asked about, its tokens, or a `Query`.
        site: see `resolve_place`.
        position: of the query's token; see `positions.Position`.
        proposals: a pool of inputs, a generator (n, seed) -> inputs, or a decoder with `sample`; the chains start at
            the query and at the nearest of these that are valid.
        epsilon: the threshold on D, or a `Closeness`.
        search_options: how many chains walk how far, by which edits, at which temperature and prior.
        valid: text -> whether it is well-formed; the walk never leaves such texts. A grammar is such a predicate.
        seed: of the walks and the proposals; the global RNG is left alone.
        text_options: batch size, and whether texts begin with BOS.
        show_progress: draw a progress bar if it takes longer than a second.

    Returns:
        The states of all chains after the burn-in, each `thin`-th; all start at or near the query, so run other seeds,
        or longer, before you trust the share of a feature that edits change slowly. `diagnostics`: acceptance,
        effective sample size of D along the chains and of the weights together (chains that stand still on one text
        count as one), distinct texts inside, and as `chance` the share of a pool's or generator's texts within epsilon.

    Raises:
        ValueError: as for `preimage_of`; no valid proposal at a finite distance; settings out of range; a predicate or
            a prior that raises.

    Examples:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> few = tlb.inversion.SearchOptions(chains=4, steps=10)
        >>> p = tlb.inversion.search_preimage(
        ...     counting, pool[0], ("resid_mid", 1), -1, pool, search_options=few, show_progress=False
        ... )
        >>> p.method
        'search'
    """
    o = search_options
    scorer = Scorer(model, query, site, position, epsilon, text_options)
    if isinstance(proposals, Sampler):
        given = proposals.sample(scorer.query, o.n_proposals, seed=seed)
    else:
        given = proposals(o.n_proposals, seed) if callable(proposals) else proposals
    texts, first = scorer(given, show_progress=show_progress)
    chance = None if isinstance(proposals, Sampler) else first.share_within(scorer.closeness.epsilon)
    start = 1 if texts.tokens[0, 0] == getattr(model.tokenizer, "bos_token_id", None) else 0
    written = _occurring(texts, scorer.query, start) if o.vocabulary is None else list(dict.fromkeys(o.vocabulary))
    edits = TokenEdits(tuple(o.token_edits), written, start, model.cfg.n_ctx)
    walk = _Walk(model, scorer, edits, valid, o, seed)
    walk.start(texts, first)
    states: list[list[Row]] = []
    trace: list[Float[Tensor, "chain"]] = []
    for step in tqdm(range(o.steps), desc="search", unit="step", disable=not show_progress, delay=1):
        walk.step()
        if step < o.n_annealed:
            walk.anneal(step, o.n_annealed)
        else:
            trace.append(torch.tensor([walk.seen[row][1] for row in walk.rows], dtype=torch.float64))
            if (step - o.n_annealed) % o.thin == 0:
                states.append(list(walk.rows))
    return _result(walk, states, torch.stack(trace), chance)


@dataclass(frozen=True)
class TokenEdits:
    """Which edits are proposed, each with equal probability, and what they may write."""

    edits: Sequence[Edit]
    """The edits' names, see `options.EDITS`."""
    vocabulary: Sequence[int]
    """Tokens that are written and erased; others stay, though a swap may move them."""
    start: int
    """The first position that is edited: 1 after a BOS."""
    longest: int
    """Most tokens of a text."""

    def __post_init__(self) -> None:
        """Check that every edit can be undone.

        Raises:
            ValueError: an unknown edit or none, insert without delete or the other way round, or no tokens to write.
        """
        unknown = [edit for edit in self.edits if edit not in EDITS]
        if unknown or not self.edits:
            raise ValueError(f"Expected token_edits among {', '.join(EDITS)}, got {list(self.edits)}; choose some.")
        if ("insert" in self.edits) != ("delete" in self.edits):
            raise ValueError(
                f"Expected insert and delete together, got {list(self.edits)}; a walk that cannot go back has no "
                "stationary distribution to speak of."
            )
        if not self.vocabulary:
            raise ValueError("Expected at least one token to write, got none; pass vocabulary=[...] of token ids.")

    def propose(self, row: tuple[int, ...], draws: Sequence[float]) -> tuple[tuple[int, ...], float] | None:
        """An edited row and log q(back) - log q(forth), from four uniform draws in [0, 1); None for no move.

        An insertion picks one of n + 1 gaps and one of |V| tokens, the deletion that undoes it one of n + 1 positions:
        their ratio is |V|. The others are their own ways back.
        """
        edit = self.edits[_pick(draws[0], len(self.edits))]
        n = len(row) - self.start
        token = self.vocabulary[_pick(draws[2], len(self.vocabulary))]
        if edit == "insert":
            if len(row) >= self.longest:
                return None
            at = self.start + _pick(draws[1], n + 1)
            return (*row[:at], token, *row[at:]), math.log(len(self.vocabulary))
        if n < 1:
            return None
        at = self.start + _pick(draws[1], n)
        if edit == "swap":
            low, high = sorted((at, self.start + _pick(draws[3], n)))
            if row[low] == row[high]:
                return None
            return (*row[:low], row[high], *row[low + 1 : high], row[low], *row[high + 1 :]), 0.0
        if edit == "relabel":
            other = self.vocabulary[_pick(draws[3], len(self.vocabulary))]
            exchanged = (*row[: self.start], *({token: other, other: token}.get(i, i) for i in row[self.start :]))
            return None if exchanged == row else (exchanged, 0.0)
        if row[at] not in self._writable:
            return None
        if edit == "delete":
            shorter = (*row[:at], *row[at + 1 :])
            return (shorter, -math.log(len(self.vocabulary))) if shorter else None
        return None if token == row[at] else ((*row[:at], token, *row[at + 1 :]), 0.0)

    @cached_property
    def _writable(self) -> frozenset[int]:
        return frozenset(self.vocabulary)


def _pick(draw: float, n: int) -> int:
    return min(int(draw * n), n - 1)


class _Walk:
    """The chains, and of every text scored so far its log prior, distance and the position of that distance."""

    def __init__(
        self,
        model: TransformerLensModel,
        scorer: Scorer,
        edits: TokenEdits,
        valid: Valid | None,
        options: SearchOptions,
        seed: int,
    ) -> None:
        self.model, self.scorer, self.edits, self.valid, self.options = model, scorer, edits, valid, options
        self.plateau = scorer.closeness.epsilon if options.plateau is None else options.plateau
        self.generator = torch.Generator().manual_seed(seed)
        self.warmth = 1.0
        self.rows: list[Row] = []
        self.seen: dict[Row, tuple[float, float, int]] = {}
        self.proposed = self.accepted = 0

    def start(self, texts: Encoded, scores: Scores) -> None:
        """Put the chains at the query and the nearest valid texts, each once as long as there are enough."""
        n_chains, self.warmth = self.options.chains, _WARMEST if self.options.n_annealed else 1.0
        own = tuple(self.scorer.query.tokens.tolist())
        self._score([own])
        starts = [own] if self.seen[own][0] > -math.inf else []
        for index in scores.distances.argsort(stable=True).tolist():
            row, distance = tuple(texts.row(index)), float(scores.distances[index])
            if math.isinf(distance) or len(starts) == n_chains:
                break
            prior = self._prior(row)
            if prior > -math.inf and row not in starts:
                starts.append(row)
                self.seen[row] = (prior, distance, int(scores.best_positions[index]))
        if not starts:
            raise ValueError(
                f"Expected a proposal that is valid and has the position, got none among {len(texts)}; give others, or "
                "look at what valid(text) says of them."
            )
        self.rows = [starts[chain % len(starts)] for chain in range(n_chains)]

    def step(self) -> None:
        """One proposal for each chain."""
        draws = torch.rand(len(self.rows), 5, generator=self.generator, dtype=torch.float64).tolist()
        moves = [self.edits.propose(row, own[:4]) for row, own in zip(self.rows, draws, strict=True)]
        self._score([move[0] for move in moves if move is not None])
        self.proposed += len(moves)
        for chain, (move, own) in enumerate(zip(moves, draws, strict=True)):
            if move is not None:
                row, way_back = move
                gain = self._log_target(row) - self._log_target(self.rows[chain]) + way_back
                if gain >= 0 or own[4] < math.exp(gain):
                    self.rows[chain] = row
                    self.accepted += 1

    def anneal(self, step: int, steps: int) -> None:
        """Cool down after a step of the burn-in, its last leaving the walk at tau."""
        stage = (step + 1) * _STAGES // steps
        if stage == step * _STAGES // steps:
            return
        before, self.warmth = self.warmth, _WARMEST ** (1 - stage / _STAGES) if step + 1 < steps else 1.0
        colder = (1 / self.warmth - 1 / before) / self.options.tau
        energies = torch.tensor([self._energy(self.seen[row][1]) for row in self.rows], dtype=torch.float64)
        weights = torch.softmax(-energies * colder, 0)
        drawn = torch.rand(1, generator=self.generator, dtype=torch.float64)
        edges = (torch.arange(len(self.rows)) + drawn) / len(self.rows)  # systematic resampling
        picked = torch.searchsorted(weights.cumsum(0), edges).clamp(max=len(self.rows) - 1)
        self.rows = [self.rows[index] for index in picked.tolist()]

    def _score(self, rows: Sequence[Row]) -> None:
        """Score texts that have not been scored, but for those whose prior is 0."""
        priors = {row: self._prior(row) for row in dict.fromkeys(rows) if row not in self.seen}
        self.seen.update({row: (-math.inf, math.inf, -1) for row, prior in priors.items() if prior == -math.inf})
        allowed = [row for row, prior in priors.items() if prior > -math.inf]
        if not allowed:
            return
        _, scores = self.scorer(encode_rows(self.model, allowed))
        for row, distance, at in zip(allowed, scores.distances.tolist(), scores.best_positions.tolist(), strict=True):
            self.seen[row] = (priors[row], distance, at)

    def _log_target(self, row: Row) -> float:
        prior, distance, _ = self.seen[row]
        return prior - self._energy(distance) / (self.options.tau * self.warmth)

    def _energy(self, distance: float) -> float:
        return max(distance - self.plateau, 0.0)

    def _prior(self, row: Row) -> float:
        log_prior = self.options.log_prior
        if self.valid is None and log_prior is None:
            return 0.0
        text = decode(self.model.tokenizer, row)
        if self.valid is not None and not check_valid(self.valid, text):
            return -math.inf
        if log_prior is None:
            return 0.0
        try:
            return float(log_prior(text))
        except Exception as error:
            raise ValueError(
                f"Expected log_prior(text) to give a number, got {type(error).__name__}: {error} for the text "
                f"{text!r:.80}; give -inf for what cannot occur."
            ) from error


def _result(walk: _Walk, states: list[list[Row]], trace: Float[Tensor, "step chain"], chance: float | None) -> Preimage:
    rows = [row for state in states for row in state]
    distances = torch.tensor([walk.seen[row][1] for row in rows], dtype=torch.float64)
    scores = Scores(distances, torch.tensor([walk.seen[row][2] for row in rows]))
    query, closeness = walk.scorer.query, walk.scorer.closeness
    within = distances <= closeness.epsilon
    lift = torch.where(within, (distances - walk.plateau).clamp(min=0) / walk.options.tau, 0.0)
    weights = (lift - lift.max()).exp()
    inside = torch.where(within, weights, 0.0)
    usable = float(inside.sum() ** 2 / inside.square().sum() / len(rows)) if inside.any() else 0.0
    return assemble(
        query, closeness, encode_rows(walk.model, rows), scores, "search", weights=weights, valid=walk.valid,
        acceptance=walk.accepted / walk.proposed,
        effective_sample_size=effective_sample_size(trace) * usable * _independent(states),
        chance=chance,
    )  # fmt: skip


def _independent(states: list[list[Row]]) -> float:
    """Distinct chains as a share of all: chains that never leave one and the same text count once together."""
    chains = [set(rows) for rows in zip(*states, strict=True)]
    still = [frozenset(rows) for rows in chains if len(rows) == 1]
    return (len(chains) - len(still) + len(set(still))) / len(chains)


def _occurring(texts: Encoded, query: Query, start: int) -> list[int]:
    """Every token of the proposals and the query, BOS apart."""
    tokens: Int[Tensor, "token"] = torch.cat([texts.tokens[texts.mask], query.tokens]).unique()
    bos = set(texts.tokens[:, 0].tolist()) if start else set()
    return [token for token in tokens.tolist() if token not in bos]


def effective_sample_size(values: Float[Tensor, "step chain"]) -> float:
    """Of the mean of `values` over chains: steps * chains / (1 + 2 sum_t rho_t) (Gelman et al., BDA3, sec. 11.5).

    rho_t is the autocorrelation at lag t, from the variogram within chains and the variance within and between them, so
    that chains which disagree count for little; the sum ends at the first negative pair (Geyer 1992). At most
    steps * chains; where nothing varies, or over fewer than four steps, one draw a chain.
    """
    n, m = values.shape
    x = values.double()
    if n < 4:
        return float(m)
    within = x.var(0).mean()
    between = x.mean(0).var() if m > 1 else x.new_zeros(())
    total = (n - 1) / n * within + between
    if not total > 0:
        return float(m)
    centred = x - x.mean(0)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = torch.fft.rfft(centred, n=size, dim=0)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), n=size, dim=0)[:n].mean(1) / n
    rho = 1 - (within - covariance * n / (n - 1)) / total
    rho[0] = 1.0
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(1)
    negative = (pairs < 0).nonzero().flatten()
    pairs = pairs[: int(negative[0])] if len(negative) else pairs
    time = -1 + 2 * float(pairs.cummin(0).values.sum())
    return min(float(n * m), n * m / max(time, 1e-12))
