"""Many models at once: the distances between all their layers, and a map that keeps them as well as a plane can."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, scale_bound, table
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, TransformerLensModel, typed
from tl_backward.dissimilarity.comparison import compare
from tl_backward.dissimilarity.measures.registry import get_measure, list_measures
from tl_backward.dissimilarity.options import OLD_TEXT, RunOptions
from tl_backward.dissimilarity.summary import distances_sentence
from tl_backward.model.checks import check_model
from tl_backward.model.place import Places
from tl_backward.text.data import TextData
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import text_frame


@dataclass(frozen=True, repr=False, eq=False)
class ModelDistances(Shown):
    """A metric between all layers of several models."""

    _report = "map_report"

    measure: str
    models: tuple[str, ...]
    """[point]: which model each point is a layer of."""
    layers: tuple[str, ...]
    """[point]: which layer it is."""
    values: Float[Tensor, "point point"]
    """Symmetric, 0 on the diagonal."""
    aligned: tuple[str, ...]
    """How samples were paired: "tokens", "characters", or both."""
    n_samples: tuple[int, int]
    """Fewest and most samples of any pair of models. Where they differ, pairs were measured on different samples, and
    the triangle inequality may fail between them."""

    def __repr__(self) -> str:
        n_models = len(dict.fromkeys(self.models))
        return f"ModelDistances({self.measure}; {len(self.layers)} layers of {n_models} models)"

    @property
    def names(self) -> tuple[str, ...]:
        """[point]: model and layer."""
        return tuple(f"{model} {layer}" for model, layer in zip(self.models, self.layers, strict=True))

    def map(self, dimensions: int = 2) -> "LayerMap":
        """Classical multidimensional scaling of the distances."""
        return classical_mds(self.values, dimensions=dimensions)

    def summary(self) -> str:
        """In one sentence: the nearest layers of different models, and how much of the distances a plane holds."""
        shown = float(self.map(min(2, len(self.layers) - 1)).shares.sum()) if len(self.layers) > 1 else 1.0
        return distances_sentence(self.measure, self.models, self.layers, self.values, shown)

    def to_frame(self) -> DataFrame:
        """One row a pair of layers, each pair once."""
        n = len(self.layers)
        return text_frame(
            {
                "model_a": self.models[i],
                "layer_a": self.layers[i],
                "model_b": self.models[j],
                "layer_b": self.layers[j],
                self.measure: float(self.values[i, j]),
            }
            for i in range(n)
            for j in range(i + 1, n)
        )

    def _repr_html_(self) -> str:
        """A static table of all distances."""
        rows = [[Cell(f"{value:.3f}", value=value) for value in row] for row in self.values.tolist()]
        bound = scale_bound(value for row in self.values.tolist() for value in row)
        caption = f"{self.measure}, 0 = the same up to what it is blind to"
        return table(list(self.names), rows, row_names=list(self.names), caption=caption, bound=bound)


@dataclass(frozen=True, repr=False, eq=False)
class LayerMap(Saved):
    """Points whose distances are as near as few dimensions allow to those given."""

    points: Float[Tensor, "point dimension"]
    """Centred; along decreasing variance, each axis's largest coordinate positive."""
    shares: Float[Tensor, "dimension"]
    """Each axis's share of the sum of |eigenvalue| of the centred squared distances: together, how much of the
    distances the map shows."""
    negative: float
    """Share that is negative: how far the distances are from those of any points in a flat space."""
    stress: float
    """Kruskal's stress 1: |distances on the map - distances| / |distances|, over pairs."""

    def __repr__(self) -> str:
        n, d = self.points.shape
        return f"LayerMap({n} points, {d} dimensions with {float(self.shares.sum()):.0%}; stress {self.stress:.3f})"


@public
@typed
def classical_mds(distances: Float[Tensor, "_ _"], *, dimensions: int = 2) -> LayerMap:
    """Classical multidimensional scaling: eigenvectors of -1/2 J D^2 J, J = I - 11'/n, times the roots of eigenvalues.

    Exact for distances between points in that many dimensions (Torgerson 1952). Axes have no meaning, only distances
    do.

    Args:
        distances: symmetric, none negative, 0 on the diagonal.
        dimensions: of the map.

    Raises:
        ValueError: not such a matrix, or no more points than dimensions.

    Examples:
        >>> line = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]], dtype=torch.float64)
        >>> points = tlb.dissimilarity.classical_mds(line, dimensions=1).points
        >>> bool(torch.allclose(torch.cdist(points, points), line))
        True
    """
    values = distances.detach().to("cpu", torch.float64)
    n = len(values)
    if values.shape != (n, n) or not torch.isfinite(values).all() or bool((values < 0).any()):
        raise ValueError(
            f"Expected a square matrix of finite distances, got shape {list(distances.shape)} with "
            f"{int((~torch.isfinite(values)).sum())} not finite and {int((values < 0).sum())} negative; leave those "
            "models out."
        )
    scale = float(values.max()) or 1.0
    if float((values - values.T).abs().max()) > 1e-6 * scale or float(values.diagonal().max()) > 1e-6 * scale:
        raise ValueError(
            "Expected distances that are symmetric and 0 on the diagonal, got others; pass those of a metric."
        )
    if not 1 <= dimensions < n:
        raise ValueError(
            f"Expected fewer dimensions than points, at least 1, got {dimensions} for {n} points; compare more models "
            "or layers."
        )
    values = values / scale  # squares of any unit
    squares = ((values + values.T) / 2).square()
    centred = squares - squares.mean(0) - squares.mean(1, keepdim=True) + squares.mean()
    eigenvalues, vectors = torch.linalg.eigh(-centred / 2)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    total = float(eigenvalues.abs().sum()) or 1.0
    shown = eigenvalues[:dimensions].clamp(min=0)
    points = vectors[:, :dimensions] * shown.sqrt()
    points = points * points.gather(0, points.abs().argmax(0, keepdim=True)).sign()
    mapped = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    stress = float(torch.linalg.matrix_norm(mapped - values)) / (float(torch.linalg.matrix_norm(values)) or 1.0)
    return LayerMap(points * scale, shown / total, float(-eigenvalues.clamp(max=0).sum()) / total, stress)


@public
@old_keywords(OLD_TEXT, text_options=TextOptions)
def model_distances(
    models: Mapping[str, TransformerLensModel] | Sequence[TransformerLensModel],
    data: TextData,
    *,
    hook: Places = "resid_post",
    layers: int | Sequence[int] | None = None,
    measure: str = "shape_angular",
    text_options: TextOptions = TextOptions(),
    max_memory: int = RunOptions.max_memory,
    show_progress: bool = True,
) -> ModelDistances:
    """The distance between every two layers of several models, by `compare` for each pair of models.

    Every pair reads the data anew, n (n + 1) / 2 passes for n models.

    Args:
        models: by name; at least one, of any kind, width and depth. Those of a list are called model 0, model 1, ...
        data: as in `compare`, and readable more than once: a list, not an iterator.
        hook: a hook point in every layer, by TransformerLens's short name.
        layers: which, in every model; None for all, negative from the end.
        measure: a metric of the registry ("shape_angular", "procrustes_normalised", "cka_angular", ...).
        text_options: how the data become batches.
        max_memory: bytes that each comparison may hold beside the models and a batch.
        show_progress: show a progress bar.

    Raises:
        TypeError: data that can be read once only.
        ValueError: no models, a measure that is no metric, or what `compare` refuses.

    Examples:
        >>> texts = [example.text for example in tlb.zoo.facts.world().examples(split="held_out")[:40]]
        >>> d = tlb.dissimilarity.model_distances({"a": model}, texts, layers=[0, 3], show_progress=False)
        >>> d.values.shape
        torch.Size([2, 2])
    """
    if isinstance(models, list | tuple):
        models = {f"model {index}": each for index, each in enumerate(models)}
    models = cast("Mapping[str, TransformerLensModel]", models)
    if not models:
        raise ValueError("Expected at least one model by name, got none; for example {'a': model_a, 'b': model_b}.")
    for each in models.values():
        check_model(each)
    if not get_measure(measure).metric:
        frame = list_measures()
        metrics = ", ".join(frame[frame["metric"]]["name"])
        raise ValueError(f"Expected a metric, got {measure!r}, which is none; choose among {metrics}.")
    if isinstance(data, Iterator):
        raise TypeError("Expected data that can be read for every pair of models, got an iterator; pass a list of it.")
    run_options = RunOptions(jackknife=0, permutations=0, max_memory=max_memory)
    pairs = list(combinations_with_replacement(models, 2))
    comparisons = {
        (a, b): compare(
            models[a], models[b], data, hook=hook, layers_a=layers, layers_b=layers, measures=measure,
            text_options=text_options, run_options=run_options, show_progress=False,
        )
        for a, b in tqdm(pairs, desc="pairs of models", disable=not show_progress)
    }  # fmt: skip
    blocks = {(b, a): each[measure].T for (a, b), each in comparisons.items()}
    blocks |= {pair: each[measure] for pair, each in comparisons.items()}
    values = torch.cat([torch.cat([blocks[a, b] for b in models], dim=1) for a in models])
    values = ((values + values.T) / 2).fill_diagonal_(0)
    points = [(name, label) for name in models for label in comparisons[name, name].layers_a]
    names, labels = zip(*points, strict=True)
    counts = [each.n_samples for each in comparisons.values()]
    aligned = tuple(sorted({each.aligned for each in comparisons.values()}))
    return ModelDistances(get_measure(measure).name, names, labels, values, aligned, (min(counts), max(counts)))
