"""A massive activation planted in one layer of one model, and found from the models' similarity alone.

A single dimension that is huge at one position decides linear CKA by itself (Sun et al. 2024, "Massive Activations";
Nguyen et al. 2022 on the dominant data points behind block structure). Leaving it out brings the similarity back, and
leaving anything else out does not: that gain is the statistic here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import frame_table
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity.measures import cka_biased
from tl_backward.text.token_strings import text_frame


@dataclass(frozen=True)
class LayerSearch:
    """One layer of one model: how like its partners it is, and what of it they would be more like without."""

    model: str
    layer: int
    cka: float
    """Biased linear CKA with the layers of the other models at its relative depth: their median."""
    dimension: int
    """Whose absence raises CKA most."""
    dimension_gain: float
    """By how much: the median over partners."""
    position: int
    """Of a token in its text, likewise."""
    position_gain: float


@dataclass(frozen=True, repr=False, eq=False)
class OutlierSearch:
    """Every layer of several models, searched for a dimension and a position that decide its similarity."""

    layers: tuple[LayerSearch, ...]
    least_gain: float
    n_samples: int

    @property
    def found(self) -> tuple[LayerSearch, ...]:
        """Layers where leaving out one dimension, and one position, gains at least `least_gain` each; largest first."""
        by_gain = sorted(self.layers, key=lambda each: -each.dimension_gain)
        return tuple(each for each in by_gain if min(each.dimension_gain, each.position_gain) >= self.least_gain)

    def __repr__(self) -> str:
        return f"OutlierSearch({len(self.layers)} layers on {self.n_samples} samples, {len(self.found)} found)"

    def to_frame(self) -> DataFrame:
        """One row a model and layer."""
        found = set(self.found)
        return text_frame({**vars(each), "found": each in found} for each in self.layers)

    def _repr_html_(self) -> str:
        """The frame, as a static table."""
        return frame_table(self.to_frame(), caption=repr(self), limit=60)


@old_keywords({"batching": "batch_size"})
def find_outliers(
    models: Mapping[str, TransformerLensModel],
    tokens: Int[Tensor, "text pos"],
    *,
    exclude_first: bool = True,
    least_gain: float = 0.1,
    batch_size: int = 32,
) -> OutlierSearch:
    """Search every layer of every model for one dimension and one position that decide its CKA with the others.

    For each layer X and the layer Y of every other model at its relative depth: CKA(X less dimension k, Y) - CKA(X, Y),
    and CKA over the samples outside position p less CKA over all. The median over the other models keeps an outlier
    of one of them from showing in the rest.

    Args:
        models: three or more, by name.
        tokens: rows without padding that all of them read.
        exclude_first: leave position 0 out: many models have an outlier of their own there.
        least_gain: of CKA, from which on something counts as found.
        batch_size: rows a pass.

    Raises:
        ValueError: fewer than three models.
    """
    if len(models) < 3:
        raise ValueError(
            f"Expected three or more models, got {len(models)}; between two, no one can say which is the outlier."
        )
    held = {
        name: streams(model, tokens, exclude_first=exclude_first, batch_size=batch_size)
        for name, model in models.items()
    }
    searched = []
    for name, own in held.items():
        others = [other.rows for key, other in held.items() if key != name]
        start = int(own.positions.min())
        groups, n_groups = own.positions - start, int(own.positions.max()) - start + 1
        for layer, x in enumerate(own.rows):
            partners = [rows[nearest_layer(layer, len(own.rows), len(rows))] for rows in others]
            whole = torch.stack([cka_biased(x, y) for y in partners])
            dimensions = _gains(torch.stack([cka_without_dimension(x, y) for y in partners]), whole)
            positions = _gains(torch.stack([cka_without_group(x, y, groups, n_groups) for y in partners]), whole)
            k, p = int(dimensions.argmax()), int(positions.argmax())
            searched.append(
                LayerSearch(name, layer, float(whole.median()), k, float(dimensions[k]), p + start, float(positions[p]))
            )
    return OutlierSearch(tuple(searched), least_gain, len(next(iter(held.values())).positions))


def _gains(without: Float[Tensor, "partner part"], whole: Float[Tensor, "partner"]) -> Float[Tensor, "part"]:
    return (without - whole[:, None]).median(0).values.nan_to_num(-1.0)


@dataclass(frozen=True, eq=False)
class Streams:
    """One model's streams after each layer."""

    rows: tuple[Float[Tensor, "sample d_model"], ...]
    """Layer by layer, in float64."""
    positions: Int[Tensor, "sample"]
    """Of each sample in its text."""


def streams(
    model: TransformerLensModel, tokens: Int[Tensor, "text pos"], *, exclude_first: bool = False, batch_size: int = 32
) -> Streams:
    """The residual stream after every layer at every token; rows without padding, as those of the zoo's training."""
    start = int(exclude_first)
    reader = PlaceReader(model, "resid_post")
    read: list[list[Tensor]] = []
    for part in tokens.split(batch_size):
        text, at = torch.ones(len(part), tokens.shape[1] - start).nonzero(as_tuple=True)
        read.append([rows.cpu().double() for rows in reader(part, text, at + start, lengths=None).values()])
    positions = torch.arange(start, tokens.shape[1]).repeat(len(tokens))
    return Streams(tuple(torch.cat(parts) for parts in zip(*read, strict=True)), positions)


def nearest_layer(layer: int, n_layers: int, n_other: int) -> int:
    """The layer of a model of `n_other` layers that lies nearest to the relative depth (layer + 1) / n_layers."""
    depth = (layer + 1) / n_layers
    return min(range(n_other), key=lambda other: abs((other + 1) / n_other - depth))


def cka_without_dimension(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, "d1"]:
    """Biased linear CKA of y and x less each of x's dimensions in turn; NaN where nothing varies in what is left.

    With X'Y and X'X of centred samples, leaving out dimension k leaves row k out of |X'Y|_F^2, and row and column k out
    of |X'X|_F^2.
    """
    x, y = (side.double() - side.double().mean(0) for side in (x, y))
    crossed, own = (x.T @ y).square().sum(1), (x.T @ x).square()
    # Sums anew, not totals less a part: beside a dimension that is nearly all of a total, the rest is rounding.
    kept = ~torch.eye(len(crossed), dtype=torch.bool, device=x.device)
    inner = kept.double() @ crossed
    norm = torch.stack([own[keep][:, keep].sum() for keep in kept]).sqrt()
    return inner / (norm * torch.linalg.matrix_norm(y.T @ y))


def cka_without_group(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], groups: Int[Tensor, "sample"], n_groups: int
) -> Float[Tensor, "group"]:
    """Biased linear CKA over the samples outside each group 0 .. n_groups - 1 in turn, centred anew each time.

    NaN where no sample is left, or nothing varies in those that are.
    """
    x, y = (side.double() - side.double().mean(0) for side in (x, y))
    # As above, the sums of all other groups are added up from both sides rather than taken off a total.
    parts = [_moments(x[groups == group], y[groups == group]) for group in range(n_groups)]
    values = []
    for group in range(n_groups):
        others = zip(*(parts[:group] + parts[group + 1 :]), strict=True)
        n, sx, sy, xy, xx, yy = (torch.stack(each).sum(0) for each in others)
        inner, own_x, own_y = (
            torch.linalg.matrix_norm(second - torch.outer(left, right) / n)
            for second, left, right in ((xy, sx, sy), (xx, sx, sx), (yy, sy, sy))
        )
        values.append(inner.square() / (own_x * own_y))
    return torch.stack(values)


def _moments(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Samples, sums, and sums of products."""
    return torch.tensor(float(len(x))).to(x), x.sum(0), y.sum(0), x.T @ y, x.T @ x, y.T @ y


@contextmanager
def planted(
    model: TransformerLensModel, layer: int, *, position: int, dimension: int, size: float
) -> Iterator[TransformerLensModel]:
    """Within the context, `size` is added to one dimension of the stream after a layer, at one position of every text.

    It is taken off again where the next layer begins, so that the model computes what it did, up to rounding: an
    outlier of the representation that no loss shows.

    Raises:
        ValueError: the last layer, after which none could take it off, or a dimension that the stream lacks.
    """
    if not 0 <= layer < model.cfg.n_layers - 1 or not 0 <= dimension < model.cfg.d_model:
        raise ValueError(
            f"Expected a layer in [0, {model.cfg.n_layers - 1}) and a dimension in [0, {model.cfg.d_model}), got "
            f"{layer} and {dimension}; the next layer takes the outlier off again."
        )

    def add(stream: Float[Tensor, "batch pos d_model"], hook: object, *, amount: float) -> Tensor:
        changed = stream.clone()
        changed[:, position : position + 1, dimension] += amount
        return changed

    with model.hooks(
        fwd_hooks=[
            (f"blocks.{layer}.hook_resid_post", partial(add, amount=size)),
            (f"blocks.{layer + 1}.hook_resid_pre", partial(add, amount=-size)),
        ],
        bwd_hooks=[],
    ):
        yield model
