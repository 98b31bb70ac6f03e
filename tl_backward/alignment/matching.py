"""Which parameter vector of one model is which of another, in embedding space (Dar et al. 2022, sec. 5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import check_layers
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import frame_table
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, TransformerLensModel, typed
from tl_backward.alignment.kernels import gram, random_rotation
from tl_backward.alignment.summary import match_sentence
from tl_backward.alignment.vocabularies import TokenMap, shared_tokens
from tl_backward.embedding_space.options import VectorOptions
from tl_backward.embedding_space.vectors import Embedding, parameter_vectors
from tl_backward.text.token_strings import text_frame


@dataclass(frozen=True, repr=False, eq=False)
class SpaceMatch(Saved):
    """Best assignments of A's vectors to B's in one space, layer by layer, beside what chance gives."""

    score: Float[Tensor, "layer_a layer_b"]
    """Mean similarity of a layer's assigned pairs."""
    chance: Float[Tensor, "draw layer_a layer_b"]
    """The same score, assigned anew, with all of B's vectors turned by one random rotation a draw. Two embeddings that
    are alike, as those of one vocabulary are, make any vectors look alike, and an assignment picks the likest: a score
    above zero, or above that of shuffled tokens, is no finding by itself."""
    random_assignment: Float[Tensor, "draw layer_a layer_b"]
    """Mean similarity of the vectors as they are, paired at random."""
    assignment: Int[Tensor, "layer_a layer_b vector_a"]
    """For each of A's vectors the assigned vector of B; -1 for those left over where B has fewer."""
    similarity: Float[Tensor, "layer_a layer_b vector_a"]
    """Similarity of each assigned pair; NaN for those left over."""

    def chance_interval(self, level: float = 0.95) -> Float[Tensor, "2 layer_a layer_b"]:
        """The central share of the draws of chance: lower and upper bounds."""
        tail = (1 - level) / 2
        return self.chance.quantile(torch.tensor([tail, 1 - tail], dtype=self.chance.dtype), dim=0)

    def p_value(self) -> Float[Tensor, "layer_a layer_b"]:
        """Share of the draws of chance, the score itself counted among them, that are at least the score."""
        return (1 + (self.chance >= self.score).sum(0)) / (1 + len(self.chance))

    def layer_assignment(self) -> list[tuple[int, int]]:
        """The best assignment of whole layers by score above mean chance: places in `layers_a` and `layers_b`."""
        return list(zip(*_assign(self.score - self.chance.mean(0)), strict=True))


@dataclass(frozen=True, repr=False, eq=False)
class ParameterMatch(Shown):
    """A weight's vectors in two models, matched in embedding space and, for comparison, in feature space."""

    _report = "match_report"

    weight: str
    """The weight's short name."""
    layers_a: list[int]
    """Layers of A: the rows."""
    layers_b: list[int]
    """Layers of B: the columns."""
    embedding: SpaceMatch
    """Similarity: Pearson correlation of the vectors' scores over the tokens."""
    feature: SpaceMatch | None
    """Similarity: Pearson correlation over the residual stream's coordinates; None where the widths differ."""

    def spaces(self) -> dict[str, SpaceMatch]:
        """The spaces there are, by name."""
        both = {"embedding": self.embedding, "feature": self.feature}
        return {name: space for name, space in both.items() if space is not None}

    def summary(self) -> str:
        """In one sentence: in how many layers the vectors match better than turned ones, in embedding space."""
        of = self.embedding
        layers = list(zip(self.layers_a, self.layers_b, strict=False))
        return match_sentence(self.weight, layers, of.score, of.chance, of.layer_assignment())

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name} {space.score.diagonal().mean():.3f} (chance {space.chance.mean(0).diagonal().mean():.3f})"
            for name, space in self.spaces().items()
        )
        shape = f"{len(self.layers_a)} x {len(self.layers_b)} layers"
        return f"ParameterMatch({self.weight!r}, {shape}; on the diagonal {scores})"

    def to_frame(self) -> DataFrame:
        """One row a space and pair of layers: score, chance with its 95 % interval, p, random assignment."""
        rows = []
        for name, space in self.spaces().items():
            (low, high), p = space.chance_interval(), space.p_value()
            random = space.random_assignment.mean(0)
            rows += [
                {"space": name, "layer_a": layer_a, "layer_b": layer_b, "score": float(space.score[i, j]),
                 "chance": float(space.chance[:, i, j].mean()), "chance_low": float(low[i, j]),
                 "chance_high": float(high[i, j]), "p": float(p[i, j]), "random_assignment": float(random[i, j])}
                for i, layer_a in enumerate(self.layers_a)
                for j, layer_b in enumerate(self.layers_b)
            ]  # fmt: skip
        return text_frame(rows)

    def _repr_html_(self) -> str:
        """A static table of `to_frame`."""
        return frame_table(self.to_frame(), caption=repr(self))


@public
@old_keywords({name: f"vector_options.{name}" for name in ("inverse", "fold_ln")}, vector_options=VectorOptions)
@typed
def match_parameters(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    weight: str,
    *,
    layers_a: int | Sequence[int] | None = None,
    layers_b: int | Sequence[int] | None = None,
    vector_options: VectorOptions = VectorOptions(),
    token_map: TokenMap | None = None,
    n_chance: int = 20,
    seed: int = 0,
    show_progress: bool = True,
) -> ParameterMatch:
    """Match each vector of a weight in A with one in B, by the words they stand for, layer by layer.

    In embedding space two vectors are as similar as their scores over the vocabulary are correlated: Pearson's
    correlation of v_A E_A and v_B E_B over the tokens. The scores are never formed, only the d_model x d_model
    covariance of the two embeddings and, for two layers at a time, the n_A x n_B similarities. In feature space it is
    the correlation of v_A and v_B themselves, whose coordinates two training runs have no reason to share. Each pair of
    layers gets the assignment of largest total similarity (Hungarian), its mean similarity as score, and the scores
    that an assignment reaches by chance: B's vectors turned by a random rotation of its residual stream, which keeps
    all they have among themselves. Shuffled tokens would flatter: the two embeddings alone make vectors correlate.

    A neuron's vectors (W_in, W_gate, W_out) mean something one by one. The d_head components of W_Q, W_K, W_V and W_O
    do not: a head computes the same in any basis of its own, which two training runs need not share.

    Args:
        model_a: a HookedTransformer or TransformerBridge.
        model_b: another, of any width, whose tokens are the same.
        weight: a weight of the blocks by TransformerLens's short name: "W_in", "W_out", ...
        layers_a: blocks of A; None for all.
        layers_b: blocks of B; None for all.
        vector_options: how vectors are read in words, for embedding space; which tokens count says `token_map`.
        token_map: where vocabularies differ, which tokens are the same: see `token_map`.
        n_chance: draws of chance, and of random assignments. Each costs one assignment a pair of layers and space.
        seed: of the draws; the global RNG is left alone.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: vocabularies that differ without a map, a weight that does not fit, weights that are not finite.
        IndexError: a layer out of range.

    Examples:
        >>> options = {"layers_a": 0, "layers_b": 0, "n_chance": 1, "show_progress": False}
        >>> m = tlb.alignment.match_parameters(model, model, "W_O", **options)
        >>> round(float(m.embedding.score), 3)  # a model and itself
        1.0
    """
    if n_chance < 1:
        raise ValueError(f"Expected n_chance of 1 or more, got {n_chance}; a score means nothing without chance.")
    if vector_options.tokens is not None or vector_options.filters:
        raise ValueError("Expected vectors read over all shared tokens, got tokens or filters; pass a token_map.")
    tokens = shared_tokens(model_a, model_b, token_map)
    chosen_a, chosen_b = check_layers(layers_a, model_a.cfg.n_layers), check_layers(layers_b, model_b.cfg.n_layers)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        a = _Side.of(model_a, weight, chosen_a, vector_options)
        b = _Side.of(model_b, weight, chosen_b, vector_options)
        d_model = len(b.embedding.matrix)
        same_width = len(a.embedding.matrix) == d_model
        n_passes = (1 + n_chance) * len(chosen_a) * len(chosen_b) * (1 + same_width)
        with tqdm(total=n_passes, disable=not show_progress, delay=1, leave=False, desc="matching") as progress:
            turns = [random_rotation(d_model, generator) for _ in range(n_chance)]
            embedding = _space(a.prepared, b.prepared, _over_tokens(a, b, tokens), turns, generator, progress)
            feature = (
                _space(a.stored, b.stored, _over_features(d_model), turns, generator, progress) if same_width else None
            )
    return ParameterMatch(weight, chosen_a, chosen_b, embedding, feature)


@dataclass(frozen=True)
class _Side:
    """One model's vectors, layer by layer, [n, d_model]; copied only where the model is on a GPU or folded."""

    embedding: Embedding
    stored: list[Tensor]
    prepared: list[Tensor]
    """Such that @ W_U gives their scores."""

    @staticmethod
    def of(model: TransformerLensModel, weight: str, layers: list[int], options: VectorOptions) -> "_Side":
        embedding = Embedding.of(model, options.inverse, options.fold_ln)
        vectors = [parameter_vectors(model, weight, layer) for layer in layers]
        prepared = [embedding.prepared(each).cpu() for each in vectors]
        return _Side(embedding, [each.vectors.cpu() for each in vectors], prepared)


_Metric: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Covariances over the coordinates of a space [d_model, d_model]: within A, within B, between the two."""


def _over_tokens(a: _Side, b: _Side, tokens: TokenMap) -> _Metric:
    one, other = (a.embedding.matrix, tokens.ids_a), (b.embedding.matrix, tokens.ids_b)
    within_a, within_b, between = (
        gram(left, right, ids_left, ids_right, center=True).cpu()
        for (left, ids_left), (right, ids_right) in ((one, one), (other, other), (one, other))
    )
    return within_a, within_b, between


def _over_features(d_model: int) -> _Metric:
    centring = torch.eye(d_model, dtype=torch.float64) - 1 / d_model
    return centring, centring, centring


def _space(
    side_a: list[Tensor],
    side_b: list[Tensor],
    metric: _Metric,
    turns: list[Tensor],
    generator: torch.Generator,
    progress: tqdm,
) -> SpaceMatch:
    """Match every layer of A with every layer of B, two layers at a time, in float64.

    Chance is drawn by turning B's residual stream, a rotation a draw, and by pairs that the generator gives.
    """
    within_a, within_b, between = metric
    shape, most = (len(side_a), len(side_b)), max(len(part) for part in side_a)
    score = torch.zeros(shape, dtype=torch.float64)
    chance, random = (torch.zeros(len(turns), *shape, dtype=torch.float64) for _ in range(2))
    assignment = torch.full((*shape, most), -1)
    similarity = torch.full((*shape, most), torch.nan, dtype=torch.float64)
    for i, part_a in enumerate(side_a):
        vectors_a = _standardised(part_a.double(), within_a) @ between
        for j, part_b in enumerate(side_b):
            similarities = vectors_a @ _standardised(part_b.double(), within_b).T
            rows, columns = _assign(similarities)
            assignment[i, j, rows] = torch.tensor(columns)
            similarity[i, j, rows] = similarities[rows, columns]
            score[i, j] = similarities[rows, columns].mean()
            progress.update()
            for draw, turn in enumerate(turns):
                rows, columns = (
                    torch.randperm(n, generator=generator)[: min(similarities.shape)] for n in similarities.shape
                )
                random[draw, i, j] = similarities[rows, columns].mean()
                turned = vectors_a @ _standardised(part_b.double() @ turn, within_b).T
                chance[draw, i, j] = turned[_assign(turned)].mean()
                progress.update()
    return SpaceMatch(score, chance, random, assignment, similarity)


def _standardised(part: Tensor, metric: Tensor) -> Tensor:
    """Vectors whose coordinates have unit variance (times a constant), so that products of centred ones correlate.

    Those without variance, but for rounding, become zero: they correlate with nothing.
    """
    lengths = ((part @ metric) * part).sum(1).clamp(min=0).sqrt()
    noise = 64 * torch.finfo(lengths.dtype).eps ** 0.5 * part.norm(dim=1) * metric.diagonal().max().clamp(min=0).sqrt()
    return part / torch.where(lengths > noise, lengths, torch.inf)[:, None]


def _assign(similarity: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns of the assignment of largest sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return rows.tolist(), columns.tolist()
