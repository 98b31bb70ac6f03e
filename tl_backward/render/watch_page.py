"""What a training wrote, as a page: norms over time, words before and after, contributors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support import html
from tl_backward._support.html import Cell, TableCell
from tl_backward._support.public import public
from tl_backward._support.sentences import count_text, percent
from tl_backward._support.types import typed
from tl_backward.editing import EditEffect
from tl_backward.render.directions import direction_cells, listed_words, words_of
from tl_backward.render.edit_page import others_sentence, others_table, wanted_sentence
from tl_backward.render.figures import Drawing, heatmap_drawing
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page
from tl_backward.render.shown_figure import shown
from tl_backward.render.tables import data_block, frame_block, table
from tl_backward.training import WatchResult
from tl_backward.training.directions import Directions

if TYPE_CHECKING:
    import plotly.graph_objects

_MOST_ROWS = 40  # of single weights in the picture; of more, each layer's together
_MOST_COLUMNS = 40  # stretches of the training
_MOST_WEIGHTS = 16  # that the table of words shows; the data below it have all
_MOST_CONTRIBUTORS = 10
_NORMS = (
    "The norm of each gradient, as it was summed; of longer trainings the root of the mean square of each stretch, "
    "named by its first gradient. Grey: a weight with fewer gradients than others. What was written, of which the "
    "sentence above speaks, is another quantity: an optimizer may write most where gradients are small. Its shares "
    "stand in the table of words."
)
_WRITTEN = (
    "Each weight's first direction, the weights that changed most first. A change is a sum of outer products: an "
    "input along one direction comes to write another. In words are the inputs that it answers to (of a weight that "
    "reads the residual stream) or what it writes (of one that writes there); beside it what the sum of the gradients"
    " asked for by itself. `Before` and `after` are the whole weight at that direction: what such an input came out "
    "as, or what in the stream it answered to most, when the watch began and when it ended."
)
_CONTRIBUTED = (
    "In {}, which changed most. Each token's own term of the gradient has the norm |x_i| |delta_i|; an example's is "
    "the sum of its tokens'. Those of other weights: `result.contributions(weight)`."
)
_ANSWERS = "The most likely next token before the training and after it."
_METHOD = (
    "Gradients are those of the training itself, taken from its own passes; `written` is each weight when the watch "
    "ended minus the same when it began, whatever the optimizer made of the gradients. Both are sums, kept as linear "
    "sketches (Tropp, Yurtsever, Udell and Cevher 2019) from which their leading singular directions come back, and "
    "are read through the final norm and the unembedding of the model as it is now. A share is of a squared Frobenius"
    " norm. Words of one direction alone prove nothing: any training has a first direction, and `difference(..., "
    "control=...)` shows what another one of the same length has there."
)
_FOOTER = "Hover over any cell for its exact value. This page is one file and asks no network for anything."


@public
def watch_heatmap(result: WatchResult) -> "plotly.graph_objects.Figure":
    """Draw the norms of the gradients, weights x stretches of the training; of many weights layers x stretches.

    Examples:
        >>> with tlb.training.watch(model, "W_out") as w:
        ...     model(model.to_tokens("Anna Berg lives in the city of Oslo"), return_type="loss").backward()
        >>> len(tlb.render.watch_heatmap(w.result()).data)
        1
    """
    return shown(_norms_drawing(result))


@typed
def watch_report(
    result: WatchResult, *, answers: Sequence[EditEffect] = (), targets: Sequence[int] = (), name: str = ""
) -> Page:
    """Make a page of what a training wrote; `.save(path)` writes one offline file.

    Args:
        result: from `watch(...)`.result(), a callback's, or `load_watch`.
        answers: of prompts, before the training and after it.
        targets: the token that each should be answered with, where that is known.
        name: the model's, for the title.

    Examples:
        >>> with tlb.training.watch(model, "W_out") as w:
        ...     model(model.to_tokens("Anna Berg lives in the city of Oslo"), return_type="loss").backward()
        >>> tlb.render.watch_report(w.result(), name="facts").title
        'What a training wrote: facts'
    """
    page = Page("What a training wrote" + (f": {name}" if name else ""), finding=result.summary(), footer=_FOOTER)
    names, starts, values = _norms(result)
    data = data_block(["of", *starts], [[row, *each] for row, each in zip(names, values.tolist(), strict=True)],
                      filename="norms.csv")  # fmt: skip
    picture = figure_fragment(_norms_drawing(result))
    page.section("Where and when the gradients were large", "", picture, Fragment(paragraphs(_NORMS)), data)
    if answers:
        right = f" {wanted_sentence(answers, targets)}" if targets else ""
        said = f"{others_sentence(answers, 'prompt')}{right} {_ANSWERS}"
        page.section("Answers before and after", said, others_table(answers, targets))
    by_size = list(result.shares())
    data = frame_block(listed_words(result.to_frame()), "written.csv")
    worded, left_out = worded_weights(result, _MOST_WEIGHTS)
    page.section("What was written, in words", f"{_WRITTEN} {left_out}".strip(), _words(result, worded), data)
    page.section("Who contributed most", _CONTRIBUTED.format(by_size[0]), *_contributions(result, by_size[0]))
    if result.missing:
        rows = [[weight, why] for weight, why in result.missing.items()]
        page.section("Not watched, or not wholly", "", table(["what", "why"], rows))
    about = [[key, str(value)] for key, value in {"backward passes": result.steps, **result.about}.items()]
    return page.section("How this was made", _METHOD, table(["option", "value"], about), folded=True)


def _norms(result: WatchResult) -> tuple[list[str], list[str], Float[Tensor, "row stretch"]]:
    """Rows by name, the first gradient of each stretch, and root mean squares; NaN where a weight has fewer."""
    most = max((len(each) for each in result.norms.values()), default=0)
    size = max(1, -(-most // _MOST_COLUMNS))  # of every stretch but the last
    starts = list(range(0, most, size)) or [0]
    squares = torch.full((len(result.weights), len(starts)), torch.nan, dtype=torch.float64)
    for i, name in enumerate(result.weights):
        if len(result.norms[name]) == most and most:
            squares[i] = torch.stack([each.square().mean() for each in result.norms[name].split(size)])
    short = [name.rpartition(".")[2] if layer is None else f"{layer} {name.rpartition('.')[2]}"
             for name, layer in zip(result.weights, result.layers, strict=True)]  # fmt: skip
    names = short if len(set(short)) == len(short) else list(result.weights)
    if len(names) > _MOST_ROWS:
        layers = list(dict.fromkeys(result.layers))
        rows = [[i for i, layer in enumerate(result.layers) if layer == each] for each in layers]
        squares = torch.stack([squares[row].nansum(0) for row in rows])
        names = ["other weights" if layer is None else f"layer {layer}" for layer in layers]
    return names, [str(start) for start in starts], squares.sqrt()


def _norms_drawing(result: WatchResult) -> Drawing:
    names, starts, values = _norms(result)
    return heatmap_drawing(
        values, rows=names, columns=starts, title="Norms of the gradients", value_title="|gradient|",
        row_title="", column_title="gradient, counted from 0",
    )  # fmt: skip


def worded_weights(result: WatchResult, most: int) -> tuple[list[str], str]:
    """The weights that changed most and have words, or all alike where none has any; and what that leaves out, said.

    Args:
        result: of the watch.
        most: how many to name at most.
    """
    shares = result.shares()
    by_size = list(shares)
    worded = [name for name in by_size if _has_words(result.written[name])][:most]
    if not worded:
        return by_size[:most], ""
    without = [name for name in by_size[: by_size.index(worded[-1])] if name not in worded]
    if not without:
        return worded, ""
    share, what = percent(sum(shares[name] for name in without)), count_text(len(without), "weight")
    return worded, f"Left out: {what} ({share} of all change) between these, with no words: outside the stream."


def _has_words(each: Directions) -> bool:
    return bool(each.norm) and (each.imprint is not None or each.shift is not None)


def _words(result: WatchResult, names: Sequence[str]) -> Fragment:
    """The first direction of some weights, a row each."""
    shares = result.shares()
    rows: list[list[TableCell]] = []
    for name in names:
        each = result.written[name]
        share = percent(shares[name]) if each.norm else "none"
        before, after = (words_of(side.get(name)) for side in (result.before, result.after))
        rows.append([share, *direction_cells(each), before, after, direction_cells(result.gradient[name])[1]])
    columns = ["of all change", "first direction", "in words", "before", "after", "gradients asked for"]
    return Fragment(html.table(columns, rows, row_names=names, corner="weight", limit=26))


def _contributions(result: WatchResult, weight: str) -> list[Fragment]:
    """Tokens and examples of one weight: the first as tables, all that were kept as data."""
    parts = []
    for of in ("tokens", "examples"):
        frame = result.contributions(weight, of)
        if frame.empty:
            parts.append(Fragment(paragraphs(f"No {of}: the rows of this weight are no tokens of a text.")))
            continue
        columns = [name for name in ("token", "norm", "step", "example", "position", "text") if name in frame]
        rows: list[list[TableCell]] = [
            [Cell(value) if name == "token" else value for name, value in zip(columns, row, strict=True)]
            for row in frame[columns].head(_MOST_CONTRIBUTORS).astype(object).values.tolist()
        ]
        parts.append(Fragment(html.table(columns, rows, caption=of.capitalize(), limit=40)))
        parts.append(frame_block(frame[columns], f"{of}.csv"))
    return parts
