"""The layer and scale of a shift, chosen on other edits than the one that is to be made."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_layers, short
from tl_backward._support.html import Cell, table
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.types import DataFrame, Prompt, TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.editing.comparison import SCALES, compare_edits, shift_method
from tl_backward.editing.methods import Scaling, check_scale, shift
from tl_backward.editing.scores import encode, probabilities
from tl_backward.editing.summary import grid_sentence
from tl_backward.model.inputs import check_text_model
from tl_backward.text.cases import EditCase
from tl_backward.text.encoded import prompt_text
from tl_backward.text.prompts import encode_prompt
from tl_backward.text.tables import Cases, cases_of
from tl_backward.text.token_strings import reads_unknown, unknown_words


@dataclass(frozen=True, repr=False, eq=False)
class LayerGrid(Saved):
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

    def summary(self) -> str:
        """In one sentence: the best cell, and how many others come within 0.01 of it."""
        layer, scale = self.best
        value = float(self.objective[self.layers.index(layer), self.scales.index(scale)])
        near = int((self.objective >= value - 0.01).sum()) - 1
        return grid_sentence(self.best, value, near, self.objective.numel(), self.n_validation)

    def to_frame(self) -> DataFrame:
        """One row a cell: every metric's validation mean, the objective, and the edit's own probability."""
        import pandas

        return pandas.DataFrame(
            {"layer": layer, "scale": scale, "objective": float(self.objective[i, j])}
            | dict(zip(self.metrics, self.scores[:, i, j].tolist(), strict=True))
            | {"target_probability": float(self.probability[i, j])}
            for i, layer in enumerate(self.layers)
            for j, scale in enumerate(self.scales)
        )

    def _repr_html_(self) -> str:
        """The objective, layers x scales, as a static table."""
        cells = [[Cell(f"{value:.2f}", value=value) for value in row] for row in self.objective.tolist()]
        rows, columns = [f"layer {layer}" for layer in self.layers], [f"scale {scale:g}" for scale in self.scales]
        return table(columns, cells, row_names=rows, caption=repr(self))


@public
def find_layer(
    model: TransformerLensModel,
    prompt: Prompt,
    target: str,
    *,
    validation: Cases,
    layers: int | Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    scaling: Scaling = "unit",
    show_progress: bool = True,
) -> LayerGrid:
    """Where and how strongly to shift: every layer x scale, scored on `validation` and never on the edit itself.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: of the edit that is to be made, as text or as token ids.
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

    Examples:
        >>> cases = tlb.zoo.edit_cases("validation")[:2]
        >>> prompt, options = "Anna Berg lives in the city of", {"scales": [0.5, 1.0], "show_progress": False}
        >>> grid = tlb.find_layer(model, prompt, " Oslo", validation=cases, **options)
        >>> grid.best[0] in range(4)
        True
    """
    check_text_model(model)
    chosen, validation = check_layers(layers, model.cfg.n_layers), cases_of(validation)
    own, asked = prompt_text(model, prompt), encode(model, [(_key(model, prompt), target)])
    scales = check_scales(scales)
    if not validation:
        raise ValueError("Expected at least one validation edit, got none; give other edits that the model knows.")
    for index, case in enumerate(validation):
        if own in (case.prompt, *case.paraphrases):
            raise ValueError(
                f"Expected validation edits apart from this one, got its prompt in case {index}; leave that out."
            )
    _check_known(model, validation)
    cells = {f"layer {layer}, scale {scale:g}": (layer, scale) for scale in scales for layer in chosen}
    methods = {name: shift_method(*cell, scaling=scaling) for name, cell in cells.items()}
    comparison = compare_edits(model, validation, methods, n_tokens=0, show_progress=show_progress)
    shape = (len(scales), len(chosen))
    return LayerGrid(
        scores=comparison.scores.nanmean(1).reshape(*shape, -1).permute(2, 1, 0),
        metrics=comparison.metrics,
        layers=tuple(chosen),
        scales=tuple(scales),
        probability=shift_probabilities(model, prompt, target, layers=chosen, scales=scales, scaling=scaling),
        before=float(probabilities(model, asked)[0][0]),
        n_validation=len(validation),
        objective=comparison.objective.reshape(shape).T,
        best=cells[comparison.best],
    )


def _check_known(model: TransformerLensModel, cases: Sequence[EditCase]) -> None:
    """Refuse edits of which a model can read none, and warn of those that it knows none of: they teach it nothing.

    Raises:
        ValueError: every prompt has words that the model reads as unknown.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if all(reads_unknown(tokenizer, case.prompt) for case in cases):
        words = ", ".join(map(repr, unknown_words(tokenizer, cases[0].prompt)[:4]))
        raise ValueError(
            f"Expected validation edits of facts that the model knows, got {len(cases)} with words that it reads as "
            f"unknown ({words}); take some of its own, as tlb.zoo.edit_cases('validation') of \"facts\", or choose "
            "layer and scale yourself."
        )
    asked = [(case.prompt, case.answer) for case in cases if case.answer]
    if asked and not probabilities(model, encode(model, asked))[1].any():
        warn_user(
            f"The model gives none of the {len(asked)} validation edits' old answers: what is chosen on facts that it "
            "does not know says little about one that it knows."
        )


@public
def shift_probabilities(
    model: TransformerLensModel,
    prompt: Prompt,
    target: str,
    *,
    layers: int | Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    scaling: Scaling = "unit",
) -> Float[Tensor, "layer scale"]:
    """P(target | prompt) once the prompt is shifted to it, for each layer and scale: the edit's own cells.

    Examples:
        >>> prompt = "Anna Berg lives in the city of"
        >>> p = tlb.editing.shift_probabilities(model, prompt, " Oslo", layers=[2], scales=[0.1, 4.0])
        >>> bool(p[0, 1] > p[0, 0])
        True
    """
    scales = check_scales(scales)
    probability, asked = [], encode(model, [(_key(model, prompt), target)])
    for layer in check_layers(layers, model.cfg.n_layers):
        found = shift(model, prompt, target, layer, scaling=scaling)
        for scale in scales:
            with found.by(scale):
                probability.append(probabilities(model, asked)[0][0])
    return torch.stack(probability).reshape(-1, len(scales)).double().cpu()


def check_scales(scales: Sequence[float]) -> list[float]:
    """Scales to try, at least one, each a finite number.

    Raises:
        TypeError: something else than numbers.
        ValueError: none of them, NaN or inf.
    """
    if isinstance(scales, str) or not isinstance(scales, Iterable):
        raise TypeError(f"Expected scales as a list of numbers, got {short(scales)}; for example [0.5, 1.0].")
    known = [check_scale(scale) for scale in scales]
    if not known:
        raise ValueError("Expected at least one scale, got an empty list; for example [0.5, 1.0].")
    return known


def _key(model: TransformerLensModel, prompt: Prompt) -> str | tuple[int, ...]:
    """One prompt as a dictionary's key: its text, or its ids."""
    return prompt if isinstance(prompt, str) else tuple(encode_prompt(model, prompt).rows()[0])
