"""The effect of one edit, as a page of its own or as a section of another."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tl_backward._support.html import visible_text, visible_token
from tl_backward._support.types import typed
from tl_backward.editing import EditComparison, EditEffect, EditScores, LayerGrid
from tl_backward.render.figure_fragment import figure_fragment
from tl_backward.render.figures import heatmap_drawing
from tl_backward.render.page import Page
from tl_backward.render.tables import data_block, frame_block, table

_FOOTER = (
    "Method: the forward-pass shift of Katz et al., Backward Lens, EMNLP 2024, section 7; scores as in Meng et al., "
    "Locating and Editing Factual Associations in GPT, NeurIPS 2022. This page is one file and asks no network for "
    "anything."
)

_EFFECT = (
    "One edit: the prompt before and after",
    "The edit: {}.{} Below, the most likely next tokens and their probabilities, without and with it. It was made for "
    "this very prompt: that it works here says little; `tl-backward edits` scores what else such edits change.",
)
_SHIFT = (
    " Section 7 of the paper writes the target in with one forward pass: W_out += scale * outer(x, the target's "
    "unembedding direction), x its input at the last token, both of unit norm."
)
_CELLS = (
    "Which layer, how strongly",
    "The target's probability after the prompt, once W_out of that layer is shifted with that scale (unit-normalised "
    "factors).",
)
_GRID = (
    "The same grid on other edits",
    "The harmonic mean of efficacy, paraphrase, neighbourhood and other relations over {} validation edits, which this "
    "one is not among: what the layer and scale are chosen by.",
)
_SCORES = (
    "What the edit changed, and what it left alone",
    "Scores of this one edit, beside those of the unedited model on the same prompts.",
)
_COMPARISON = (
    "The method, over many edits",
    "Means with 95 % bootstrap intervals over {} edits that no setting was chosen on. Efficacy, paraphrase and "
    "neighbourhood compare two probabilities; relations and portability ask for the most likely token.",
)


def edit_report(
    effect: EditEffect,
    *,
    target: str,
    how: str,
    cells: Float[Tensor, "layer scale"] | None = None,
    layers: Sequence[int] = (),
    scales: Sequence[float] = (),
    grid: LayerGrid | None = None,
    scores: tuple[EditScores, EditScores] | None = None,
    comparison: EditComparison | None = None,
    name: str = "",
) -> Page:
    """Make a page of one edit: its effect, its cells of the layer x scale grid, its scores; what is None is left out.

    Args:
        effect: from `edit_effect`.
        target: the new answer.
        how: the edit in words, such as "shift of W_out in layer 2, scale 0.8".
        cells: from `shift_probabilities`; with a `grid`, the grid's own.
        layers: of the cells' rows.
        scales: of their columns.
        grid: from `find_layer`.
        scores: of the unedited model and of the edit, from `evaluate_edit`.
        comparison: of the method over many edits, from `compare_edits`.
        name: the model's, for the title.

    Example:
        >>> edit = tlb.shift_edit(model, "Anna Berg lives in the city of", " Oslo", layer=2, scale=0.75)
        >>> effect = tlb.editing.edit_effect(model, edit, "Anna Berg lives in the city of")
        >>> tlb.render.edit_report(effect, target=' Oslo', how='the shift of layer 2', name='facts').title
        'One edit: facts'
    """
    prompt, said = visible_token(effect.prompt, 400), visible_token(target)
    intro = f'After "{prompt}" the model is to say "{said}": {visible_text(how)}.'
    page = Page(f"One edit: {name}" if name else "One edit", intro=intro, footer=_FOOTER)
    add_edit(page, effect, how=how, cells=cells, layers=layers, scales=scales, grid=grid)
    if scores is not None:
        before, after = (each.to_frame() for each in scores)
        rows = [
            [metric, old, new, meaning]
            for metric, old, new, meaning in zip(
                before["metric"], before["value"], after["value"], before["meaning"], strict=True
            )
            if new == new
        ]
        page.section(*_SCORES, table(["score", "no edit", "edited", "meaning"], rows))
    if comparison is not None:
        add_comparison(page, comparison)
    return page


def add_edit(
    page: Page,
    effect: EditEffect,
    *,
    how: str,
    cells: Float[Tensor, "layer scale"] | None = None,
    layers: Sequence[int] = (),
    scales: Sequence[float] = (),
    grid: LayerGrid | None = None,
) -> None:
    """Append the effect at the prompt and the edit's cells to a page."""
    is_shift = cells is not None or grid is not None  # other edits have no cells
    page.section(_EFFECT[0], _EFFECT[1].format(how, _SHIFT if is_shift else ""), table(*effect.table()))
    if grid is not None:
        cells, layers, scales = grid.probability, grid.layers, grid.scales
    if cells is None:
        return
    rows, columns = [str(layer) for layer in layers], [f"{scale:g}" for scale in scales]
    titles = {"column_title": "scale", "bound": 1.0}
    own = heatmap_drawing(
        cells, rows=rows, columns=columns, title="This edit", value_title="P(target | prompt)", **titles
    )
    data = [[layer, scale, float(cells[i, j])] for i, layer in enumerate(layers) for j, scale in enumerate(scales)]
    block = data_block(["layer", "scale", "probability"], data, filename="cells.csv")
    page.section(*_CELLS, figure_fragment(own), block)
    if grid is not None:
        other = heatmap_drawing(
            grid.objective, rows=rows, columns=columns, title="Validation edits", value_title="harmonic mean", **titles
        )
        layer, scale = grid.best
        page.section(
            _GRID[0],
            _GRID[1].format(grid.n_validation) + f" The best cell is layer {layer}, scale {scale:g}.",
            figure_fragment(other),
            frame_block(grid.to_frame(), "grid.csv"),
        )


def add_comparison(page: Page, comparison: EditComparison) -> None:
    """Append the table of methods to a page."""
    page.section(
        _COMPARISON[0],
        _COMPARISON[1].format(comparison.scores.shape[1]),
        table(*comparison.table()),
        frame_block(comparison.to_frame(), "methods.csv"),
    )


@typed
def comparison_report(comparison: EditComparison, *, name: str = "") -> Page:
    """Make a page of several methods' scores on the same edits.

    Example:
        >>> case = tlb.zoo.edit_cases("test")[0]
        >>> edits = {"shift": lambda model, case: tlb.shift_edit(model, case.prompt, case.target, layer=2, scale=0.75)}
        >>> e = tlb.compare_edits(model, [case], edits, show_progress=False)
        >>> isinstance(tlb.render.comparison_report(e), tlb.render.Page)
        True
    """
    page = Page(f"Ways to edit {name}" if name else "Ways to edit", footer=_FOOTER)
    add_comparison(page, comparison)
    return page
