"""What really changed between two models, as a page: the spectrum and the words of each change beside its controls."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tl_backward._support import html
from tl_backward._support.html import TableCell
from tl_backward._support.public import public
from tl_backward._support.sentences import percent
from tl_backward._support.types import typed
from tl_backward.render.directions import direction_cells, listed_words
from tl_backward.render.figures import Curve, Drawing, curves_drawing, heatmap_drawing
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page, beside
from tl_backward.render.shown_figure import shown
from tl_backward.render.tables import data_block, frame_block
from tl_backward.training import Difference
from tl_backward.training.directions import Directions
from tl_backward.weights import layer_of

if TYPE_CHECKING:
    import plotly.graph_objects

_MOST_VALUES = 24  # singular values in the picture
_MOST_WEIGHTS = 24  # that the table of words shows; the data below it have all
_BESIDE = {"control": "the control model", "noise": "noise of the same norm"}
_SPECTRUM = (
    "The curve: how {} spreads over its singular directions, each with its share of the squared change: a training "
    "that writes few things puts much into few directions.{} The squares: |after - before| / |before| of every weight; "
    "grey: none."
)
_WORDS = (
    "The first direction of each change, the largest change first: the inputs that it comes to answer to (of a weight"
    " that reads the residual stream) or what it comes to write (of one that writes there), and its share of the "
    "squared change{}. Words that the control has too are what any such training writes."
)
_NOTHING = "No picture is drawn, as nothing differs: after - before is zero in each of the weights compared, {}."
_METHOD = (
    "after - before, weight by weight, decomposed as a sum of outer products: an input along U_j comes to write S_j "
    "V_j more. Changes of up to 262,144 entries are decomposed exactly, others by randomized SVD (Halko, Martinsson "
    "and Tropp 2011), whose singular values of a flat spectrum are some percent too small. Directions have no sign of"
    " their own: here the larger entries of U are positive. Words are read through the final norm and the unembedding"
    " of the model after. Noise is Gaussian, of each change's norm; a control model is one trained for as long on "
    "something that says nothing, such as shuffled targets."
)
_FOOTER = "Hover over any cell or point for its exact value. This page is one file and asks no network for anything."


@public
def difference_curves(change: Difference) -> "plotly.graph_objects.Figure":
    """Draw the share of each singular direction in the largest change, beside its controls.

    Examples:
        >>> import copy
        >>> after = copy.deepcopy(model)
        >>> with torch.no_grad():
        ...     _ = after.blocks[2].mlp.W_out.mul_(1.01)
        >>> len(tlb.render.difference_curves(tlb.training.difference(model, after, "W_out")).data)
        2
    """
    return shown(_spectrum(change, _largest(change)))


@typed
def difference_report(change: Difference, *, name: str = "") -> Page:
    """Make a page of what changed between two models; `.save(path)` writes one offline file.

    Args:
        change: from `difference`.
        name: the models', for the title.

    Examples:
        >>> import copy
        >>> after = copy.deepcopy(model)
        >>> with torch.no_grad():
        ...     _ = after.blocks[2].mlp.W_out.mul_(1.01)
        >>> tlb.render.difference_report(tlb.training.difference(model, after, "W_out"), name="facts").title
        'What changed: facts'
    """
    page = Page("What changed" + (f": {name}" if name else ""), finding=change.summary(), footer=_FOOTER)
    largest = _largest(change)
    if not change.changes[largest].norm:
        page.section("How much, and in how few directions", _NOTHING.format(len(change.weights)))
        return page.section("How this was made", _METHOD, folded=True)
    sides = _sides(change)
    dashed = f" Beside it: {' and '.join(_BESIDE[of] for of in sides if of)}." if len(sides) > 1 else ""
    figures = beside(figure_fragment(_spectrum(change, largest)), figure_fragment(_sizes(change)))
    shares = {of or "change": _shares(side.changes[largest]).tolist() for of, side in sides.items()}
    rows = [[j + 1, *(each[j] if j < len(each) else None for each in shares.values())]
            for j in range(max(map(len, shares.values())))]  # fmt: skip
    data = data_block(["direction", *shares], rows, filename="spectrum.csv")
    words = Fragment(paragraphs(_SPECTRUM.format(largest, dashed)))
    page.section("How much, and in how few directions", "", figures, words, data)
    among = f", with that of {' and of '.join(_BESIDE[of] for of in sides if of)} beside it" if len(sides) > 1 else ""
    every = frame_block(listed_words(change.to_frame()), "directions.csv")
    page.section("What changed, in words", _WORDS.format(among), _words(change), every)
    return page.section("How this was made", _METHOD, folded=True)


def _largest(change: Difference) -> str:
    return max(change.weights, key=lambda name: change.changes[name].norm)


def _sides(change: Difference) -> dict[str, Difference]:
    beside = {of: getattr(change, of) for of in _BESIDE}
    return {"": change} | {of: side for of, side in beside.items() if side}


def _shares(each: Directions) -> Tensor:
    """Each known direction's share of the squared change."""
    values = each.spectrum[:_MOST_VALUES].double()
    return values.square() / each.norm**2 if each.norm else values


def _spectrum(change: Difference, weight: str) -> Drawing:
    found = {of: _shares(side.changes[weight]) for of, side in _sides(change).items()}
    n = max(1, *map(len, found.values()))
    own = "this change"
    lines = []
    for of, shares in found.items():
        values = torch.cat([shares, shares.new_full((n - len(shares),), torch.nan)])
        lines.append(Curve(_BESIDE.get(of, own), values, control_of=own if of else None))
    if len(lines) > 2:  # two dashed curves of one colour would not be told apart
        lines[-1] = Curve(lines[-1].name, lines[-1].values)
    return curves_drawing(
        lines, title=f"Spectrum of {weight}", x_title="direction", y_title="share of the squared change",
        x=list(range(1, n + 1)),
    )  # fmt: skip


def _sizes(change: Difference) -> Drawing:
    """|after - before| / |before|, layers x kinds of weights; what lies in no layer has a row of its own."""
    layers = list(dict.fromkeys(layer_of(name) for name in change.weights))
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in change.weights))
    values = torch.full((len(layers), len(kinds)), torch.nan, dtype=torch.float64)
    for name in change.weights:
        at = layers.index(layer_of(name)), kinds.index(name.rpartition(".")[2])
        values[at] = max(change.size[name], float(values[at].nan_to_num(0.0)))
    rows = ["no layer" if layer is None else str(layer) for layer in layers]
    return heatmap_drawing(
        values, rows=rows, columns=kinds, title="Relative size of each change", value_title="|change| / |before|",
        column_title="weight",
    )  # fmt: skip


def _words(change: Difference) -> Fragment:
    """The first direction of each weight that changed, a row each, with its controls' shares and words."""
    sides = _sides(change)
    names = sorted((name for name in change.weights if change.changes[name].norm > 0),
                   key=lambda name: change.changes[name].norm, reverse=True)[:_MOST_WEIGHTS]  # fmt: skip
    total = sum(each.norm**2 for each in change.changes.values())
    rows: list[list[TableCell]] = []
    for name in names:
        others = [direction_cells(side.changes[name]) for of, side in sides.items() if of]
        own = change.changes[name]
        rows.append([percent(own.norm**2 / total), change.size[name], *direction_cells(own), *sum(others, [])])
    columns = ["of all change", "relative", "first direction", "in words"]
    columns += [words for of in sides if of for words in (f"{of}: first", f"{of}: in words")]
    return Fragment(html.table(columns, rows, row_names=names, corner="weight", limit=26))
