"""Which layer and scale a forward-pass shift should have: chosen on edits apart from those it is scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_layers
from tl_backward._support.types import TransformerLensModel
from tl_backward.editing.comparison import SCALES, compare_edits, shift_method
from tl_backward.editing.methods import Scaling, shift_edit
from tl_backward.editing.scores import encode, probabilities
from tl_backward.model.checks import check_model
from tl_backward.model.inputs import check_reads_text
from tl_backward.text.cases import EditCase

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False, eq=False)
class LayerGrid:
    """The result of `find_layer`: the whole grid, and its best cell."""

    scores: Float[Tensor, "metric layer scale"]
    """Means over the validation edits; metrics in the order of `metrics`."""
    metrics: tuple[str, ...]
    layers: tuple[int, ...]
    scales: tuple[float, ...]
    probability: Float[Tensor, "layer scale"]
    """P(target | prompt) of the edit itself, once it is made there; it had no part in the choice."""
    before: float
    """P(target | prompt) without it."""
    n_validation: int
    objective: Float[Tensor, "layer scale"]
    """What the cell is chosen by: `EditComparison.objective` of the validation edits."""
    best: tuple[int, float]
    """(layer, scale) of the best cell; of equal ones that of the smallest scale, then of the lowest layer."""

    def __repr__(self) -> str:
        layer, scale = self.best
        return (
            f"LayerGrid({len(self.layers)} layers x {len(self.scales)} scales, {self.n_validation} validation edits; "
            f"best: layer {layer}, scale {scale:g})"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row a cell: every metric's validation mean, the objective, and the edit's own probability."""
        import pandas

        rows = []
        for i, layer in enumerate(self.layers):
            for j, scale in enumerate(self.scales):
                row = {"layer": layer, "scale": scale, "objective": float(self.objective[i, j])}
                row |= {name: float(self.scores[m, i, j]) for m, name in enumerate(self.metrics)}
                rows.append(row | {"target_probability": float(self.probability[i, j])})
        return pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        """The objective, layers x scales, as a static table."""
        from tl_backward._support.html import Cell, table

        cells = [[Cell(f"{value:.2f}", value=value) for value in row] for row in self.objective.tolist()]
        rows, columns = [f"layer {layer}" for layer in self.layers], [f"scale {scale:g}" for scale in self.scales]
        return table(columns, cells, row_names=rows, caption=repr(self))


def find_layer(
    model: TransformerLensModel,
    prompt: str,
    target: str,
    *,
    validation: Sequence[EditCase],
    layers: int | Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    scaling: Scaling = "unit",
    show_progress: bool = True,
) -> LayerGrid:
    """Where and how strongly to shift: every layer x scale, scored on `validation` and never on the edit itself.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: of the edit that is to be made.
        target: its new answer.
        validation: other edits, of other prompts.
        layers: which to try; None for all.
        scales: which to try.
        scaling: as in `shift_edit`.
        show_progress: show a bar.

    Returns:
        The whole grid; `grid.best` is the (layer, scale) to use.

    Raises:
        ValueError: no validation edits or scales, or the edit's own prompt among them.

    Example:
        >>> cases = tlb.zoo.edit_cases("validation")[:2]
        >>> prompt, options = "Anna Berg lives in the city of", {"scales": [0.5, 1.0], "show_progress": False}
        >>> grid = tlb.find_layer(model, prompt, " Oslo", validation=cases, **options)
        >>> grid.best[0] in range(4)
        True
    """
    check_model(model)
    check_reads_text(model)
    chosen = check_layers(layers, model.cfg.n_layers)
    if not validation or not scales:
        raise ValueError(
            f"Expected at least one validation edit and one scale, got {len(validation)} and {len(scales)}; give both."
        )
    for index, case in enumerate(validation):
        if prompt in (case.prompt, *case.paraphrases):
            raise ValueError(
                f"Expected validation edits apart from this one, got its prompt in case {index}; leave that out."
            )
    cells = {f"layer {layer}, scale {scale:g}": (layer, scale) for scale in scales for layer in chosen}
    methods = {name: shift_method(*cell, scaling=scaling) for name, cell in cells.items()}
    found = compare_edits(model, validation, methods, n_tokens=0, show_progress=show_progress)
    shape = (len(scales), len(chosen))
    return LayerGrid(
        scores=found.scores.nanmean(1).reshape(*shape, -1).permute(2, 1, 0),
        metrics=found.metrics,
        layers=tuple(chosen),
        scales=tuple(scales),
        probability=shift_probabilities(model, prompt, target, layers=chosen, scales=scales, scaling=scaling),
        before=float(probabilities(model, encode(model, [(prompt, target)]))[0][0]),
        n_validation=len(validation),
        objective=found.objective.reshape(shape).T,
        best=cells[found.best],
    )


def shift_probabilities(
    model: TransformerLensModel,
    prompt: str,
    target: str,
    *,
    layers: int | Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    scaling: Scaling = "unit",
) -> Float[Tensor, "layer scale"]:
    """P(target | prompt) once the prompt is shifted to it, for each layer and scale: the edit's own cells.

    Example:
        >>> prompt = "Anna Berg lives in the city of"
        >>> p = tlb.editing.shift_probabilities(model, prompt, " Oslo", layers=[2], scales=[0.1, 4.0])
        >>> bool(p[0, 1] > p[0, 0])
        True
    """
    found, asked = [], encode(model, [(prompt, target)])
    for layer in check_layers(layers, model.cfg.n_layers):
        for scale in scales:
            with shift_edit(model, prompt, target, layer, scale, scaling=scaling):
                found.append(probabilities(model, asked)[0][0])
    return torch.stack(found).reshape(-1, len(scales)).double().cpu()
