"""The effect of one edit, as a page of its own or as a section of another."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support import html
from tl_backward._support.html import Cell, TableCell, visible_text, visible_token
from tl_backward._support.public import public
from tl_backward._support.sentences import percent
from tl_backward._support.types import typed
from tl_backward.editing import METRICS, EditComparison, EditEffect, EditScores, LayerGrid
from tl_backward.editing.comparison import SHOWN
from tl_backward.editing.summary import answers_changed, targets_met
from tl_backward.render.figures import Drawing, heatmap_drawing
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page
from tl_backward.render.tables import data_block, frame_block, table
from tl_backward.text.token_strings import token_string

_FOOTER = (
    "Method: the forward-pass shift of Katz et al., Backward Lens, EMNLP 2024, section 7; scores as in Meng et al., "
    "Locating and Editing Factual Associations in GPT, NeurIPS 2022. This page is one file and asks no network for "
    "anything."
)

_EFFECT = (
    "One edit: the prompt before and after",
    "{}{}Below, the most likely next tokens and their probabilities, without and with it. It was made for "
    "this very prompt: that it works here says little; `tl-backward edits` scores what else such edits change.",
)
_SHIFT = (
    "Section 7 of the paper writes the target in with one forward pass: it adds to W_out the scale times the outer "
    "product of its input at the last token and the target's unembedding direction, both of unit norm. "
)
_OTHERS = (
    "What else it changes",
    " Prompts that the edit was not made for: an answer in a frame is another than before.",
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


@public
def edit_report(
    effect: EditEffect,
    *,
    target: str = "",
    how: str = "",
    cells: Float[Tensor, "layer scale"] | None = None,
    layers: Sequence[int] = (),
    scales: Sequence[float] = (),
    grid: LayerGrid | None = None,
    scores: tuple[EditScores, EditScores] | None = None,
    comparison: EditComparison | None = None,
    chosen: tuple[int, float] | None = None,
    others: Sequence[EditEffect] = (),
    name: str = "",
) -> Page:
    """Make a page of one edit: its effect, its cells of the layer x scale grid, its scores; what is None is left out.

    Args:
        effect: from `edit_effect`.
        target: the new answer; "" where the page need not name it.
        how: the edit in words, such as "shift of W_out in layer 2, scale 0.8"; likewise.
        cells: from `shift_probabilities`; with a `grid`, the grid's own.
        layers: of the cells' rows.
        scales: of their columns.
        grid: from `find_layer`.
        scores: of the unedited model and of the edit, from `evaluate_edit`.
        comparison: of the method over many edits, from `compare_edits`.
        chosen: the edit's (layer, scale), marked among the cells; with a `grid`, its best.
        others: the edit's effects on other prompts.
        name: the model's, for the title.

    Examples:
        >>> edit = tlb.shift_edit(model, "Anna Berg lives in the city of", " Oslo", layer=2, scale=0.75)
        >>> effect = tlb.editing.edit_effect(model, edit, "Anna Berg lives in the city of")
        >>> tlb.render.edit_report(effect, target=' Oslo', how='the shift of layer 2', name='facts').title
        'One edit: facts'
    """
    aim = f', to make the model say "{visible_token(target)}"' if target else ""
    asked = f"The edit{aim}{': ' if how else ''}{visible_text(how)}." if target or how else ""
    page = Page(
        f"One edit: {name}" if name else "One edit", finding=effect.summary(others), intro=asked, footer=_FOOTER
    )
    add_edit(page, effect, how=how, cells=cells, layers=layers, scales=scales, grid=grid, chosen=chosen)
    if others:
        page.section(_OTHERS[0], others_sentence(others) + _OTHERS[1], others_table(others))
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
    chosen: tuple[int, float] | None = None,
) -> None:
    """Append the edit's cells, its own marked, and the effect at the prompt to a page."""
    is_shift = cells is not None or grid is not None  # other edits have no cells
    text = _EFFECT[1].format(f"The edit: {how}. " if how else "", _SHIFT if is_shift else "")
    if grid is not None:
        cells, layers, scales, chosen = grid.probability, grid.layers, grid.scales, grid.best
    if cells is None:
        page.section(_EFFECT[0], text, figure_fragment(_before_and_after(effect)), table(*effect.table()))
        return
    rows, columns = [str(layer) for layer in layers], [f"{scale:g}" for scale in scales]
    titles = {"column_title": "scale", "bound": 1.0}
    own = heatmap_drawing(
        cells, rows=rows, columns=columns, title="This edit", value_title="P(target | prompt)", **titles
    )
    marked = ""
    if chosen is not None:
        _mark(own, list(layers).index(chosen[0]), list(scales).index(chosen[1]))
        marked = f" The frame is this edit: layer {chosen[0]}, scale {chosen[1]:g}."
    data = [[layer, scale, float(cells[i, j])] for i, layer in enumerate(layers) for j, scale in enumerate(scales)]
    block = data_block(["layer", "scale", "probability"], data, filename="cells.csv")
    page.section(_CELLS[0], "", figure_fragment(own), Fragment(paragraphs(_CELLS[1] + marked)), block)
    page.section(_EFFECT[0], text, table(*effect.table()))
    if grid is not None:
        other = heatmap_drawing(
            grid.objective, rows=rows, columns=columns, title="Validation edits", value_title="harmonic mean", **titles
        )
        layer, scale = grid.best
        _mark(other, layers.index(layer), scales.index(scale))
        page.section(
            _GRID[0],
            _GRID[1].format(grid.n_validation) + f" The best cell is layer {layer}, scale {scale:g}.",
            figure_fragment(other),
            frame_block(grid.to_frame(), "grid.csv"),
        )


def _mark(figure: Drawing, row: int, column: int) -> None:
    """Put a frame around one square of a heat map."""
    for color, width in (("#ffffff", 5), ("#c2185b", 3)):  # seen on white and on the darkest squares
        frame = {
            "type": "scatter",
            "x": [column],
            "y": [row],
            "mode": "markers",
            "marker": {"symbol": "square-open", "size": 16, "color": color, "line": {"width": width}},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        figure["data"].append(frame)


def _before_and_after(effect: EditEffect) -> Drawing:
    """The most likely tokens' probabilities without the edit and with it, the likeliest on top."""
    frame = effect.to_frame().iloc[::-1]
    values = torch.tensor(frame[["before", "after"]].values.tolist())
    return heatmap_drawing(
        values, rows=frame["token"].tolist(), columns=["no edit", "edited"], title="The next token",
        value_title="probability", row_title="token", column_title="", bound=1.0,
    )  # fmt: skip


def others_sentence(others: Sequence[EditEffect], what: str = "other prompt") -> str:
    """How many other prompts got another answer."""
    return f"{answers_changed([each.answers() for each in others], what)}."


def wanted_sentence(others: Sequence[EditEffect], targets: Sequence[int]) -> str:
    """How many prompts got the answer that was wanted."""
    return targets_met([each.answers() for each in others], targets) + "."


def others_table(others: Sequence[EditEffect], targets: Sequence[int] = ()) -> Fragment:
    """A row a prompt: the answer before and after, their probabilities, and the token that was wanted, if any was."""
    rows: list[list[TableCell]] = []
    wanted = [[Cell(token_string(each.tokenizer, id_))] for each, id_ in zip(others, targets, strict=False)]
    for each, target in zip(others, wanted or [[]] * len(others), strict=True):
        (old, p_old), (new, p_new) = (
            (token_string(each.tokenizer, int(top)), float(side[top]))
            for top, side in ((each.top_before[0], each.before), (each.top_after[0], each.after))
        )
        after = Cell(new, marked=new != old)
        rows.append([each.prompt, *target, Cell(old), percent(p_old), after, percent(p_new)])
    columns = ["prompt", *(["wanted"] if targets else []), "before", "p before", "after", "p after"]
    return Fragment(html.table(columns, rows, limit=30))


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

    Examples:
        >>> case = tlb.zoo.edit_cases("test")[0]
        >>> edits = {"shift": lambda model, case: tlb.shift_edit(model, case.prompt, case.target, layer=2, scale=0.75)}
        >>> e = tlb.compare_edits(model, [case], edits, show_progress=False)
        >>> isinstance(tlb.render.comparison_report(e), tlb.render.Page)
        True
    """
    title = f"Ways to edit {name}" if name else "Ways to edit"
    page = Page(title, finding=comparison.summary(), footer=_FOOTER)
    meanings = "; ".join(f"{name}: {METRICS[name]}" for name in SHOWN if name != "entropy")
    words = Fragment(paragraphs(f"o* is the new answer, o_c the true one. {meanings}."))
    page.section("All scores at a glance", "", figure_fragment(_methods_map(comparison)), words)
    add_comparison(page, comparison)
    return page


def _methods_map(comparison: EditComparison) -> Drawing:
    """Mean scores as squares, a method a row, the first on top."""
    shown = [name for name in SHOWN if name != "entropy"]
    places = [comparison.metrics.index(name) for name in shown]
    return heatmap_drawing(
        comparison.scores.nanmean(1)[:, places].flip(0), rows=comparison.methods[::-1], columns=shown,
        title="Mean scores (1 is best)", value_title="mean", row_title="method", column_title="score", bound=1.0,
    )  # fmt: skip
