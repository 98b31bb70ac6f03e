"""Who wrote an answer, as a page: scores beside those for random queries, and what each example would write."""

import math
from typing import TYPE_CHECKING

from tl_backward._support import html
from tl_backward._support.csv import finite
from tl_backward._support.html import Cell, TableCell, visible_text, visible_token
from tl_backward._support.public import public
from tl_backward._support.types import typed
from tl_backward.render.figures import Drawing, banded, curves_drawing
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page
from tl_backward.render.shown_figure import shown
from tl_backward.render.tables import data_block
from tl_backward.training import Authors

if TYPE_CHECKING:
    import plotly.graph_objects

_WORDS = 5
_SCORES = (
    "The examples with the largest scores, each by its number and the word that a step on it would write most. {} "
    "Above zero, a descent step on the example makes the answer more likely."
)
_INTERVAL = (
    "Dashed, with its band: the middle and the central 95 % of the same example's scores for {} random queries. An "
    "example above its band says more to this question than to others."
)
_NO_INTERVAL = "There is no interval, as fewer than 20 random queries were asked: a score alone is no evidence."
_QUICK = (
    "This query was quick: {} of {} examples were read whole, those with the largest scores by a quarter of what is "
    "kept; the first of all may be another."
)
_TABLE = (
    "What a step on each example would add to the residual stream where the question is asked, in words, and the rank"
    " of the answer there (0 is the first of all words). The text is the example's own."
)
_METHOD = (
    "The score is <dL_query/dW, dL_example/dW> over the weights below, or its cosine (TracIn, Pruthi, Liu, Kale and "
    "Sundararajan 2020, at one checkpoint), by exact factors. A step on an example adds - sum_j (x_i . y_j) delta_j "
    "to what a weight writes for the question's input x_i, with y_j and delta_j the factors of the example's tokens; "
    "the words are of the sum over the weights that write to the stream. Scores say which examples would write the "
    "answer into this model; that they did, only leaving them out and training anew shows."
)
_FOOTER = "Hover over any cell or point for its exact value. This page is one file and asks no network for anything."


@public
def authors_curves(found: Authors) -> "plotly.graph_objects.Figure":
    """Draw the largest scores as points beside what each of these examples has for random queries.

    Examples:
        >>> facts = [(case.prompt, case.target) for case in tlb.zoo.edit_cases("test")[:30]]
        >>> found = tlb.training.who_wrote(model, *facts[7], facts, n=3, show_progress=False)
        >>> len(tlb.render.authors_curves(found).data)
        3
    """
    return shown(_scores(found))


@typed
def authors_report(found: Authors, *, name: str = "") -> Page:
    """Make a page of who would most write an answer; `.save(path)` writes one offline file.

    Args:
        found: from `who_wrote`.
        name: the model's, for the title.

    Examples:
        >>> facts = [(case.prompt, case.target) for case in tlb.zoo.edit_cases("test")[:30]]
        >>> found = tlb.training.who_wrote(model, *facts[7], facts, show_progress=False)
        >>> tlb.render.authors_report(found, name="facts").title
        'Who wrote it? facts'
    """
    asked = f'Asked: "{visible_text(found.prompt)}", answered with {visible_token(found.target)}.'
    page = Page("Who wrote it?" + (f" {name}" if name else ""), finding=found.summary(), intro=asked, footer=_FOOTER)
    known = not bool(found.high[found.top].isnan().all())
    said = [_SCORES.format(_INTERVAL.format(found.n_random) if known else _NO_INTERVAL)]
    if found.errors is not None:
        said.append(_QUICK.format(int((found.errors == 0).sum()), len(found.errors)))
    words = Fragment(paragraphs("\n\n".join(said)))
    page.section("Scores of the first", "", figure_fragment(_scores(found)), words)
    page.section("What they would write", _TABLE if found.written is not None else "", _table(found))
    columns = ["example", found.metric, "low", "high", "text"]
    numbers = (side.tolist() for side in (found.scores, found.low, found.high))
    rows = [[i, *each] for i, each in enumerate(zip(*numbers, found.names, strict=True))]
    if found.errors is not None:  # a quick query's
        columns.append("off by at most")
        rows = [[*row, error] for row, error in zip(rows, found.errors.tolist(), strict=True)]
    page.section("Every example", "", data_block(columns, finite(rows), filename="scores.csv"))
    weights = data_block(["weight"], [[weight] for weight in found.weights], filename="weights.csv")
    return page.section("How this was made", _METHOD, weights, folded=True)


def _scores(found: Authors) -> Drawing:
    top = found.top.tolist()
    labels = [str(index) for index in top]
    if found.written is not None:
        labels = [f"{label}:{words[0]}" for label, words in zip(labels, found.written.top_tokens, strict=True)]
    own = "score"
    scores, low, high = (side[found.top] for side in (found.scores, found.low, found.high))
    lines = [banded(own, scores, [math.nan], [math.nan])]
    if not bool(low.isnan().any()):
        lines.append(banded(f"for {found.n_random} random queries", (low + high) / 2, low, high, control_of=own))
    drawing = curves_drawing(
        lines, title=f"Who would write {visible_token(found.target, 24)}", x_title="example, and what it would write",
        y_title=found.metric, x_labels=labels,
    )  # fmt: skip
    for trace in drawing["data"]:
        if trace.get("name") == own:
            trace["mode"] = "markers"  # examples are no sequence
    return drawing


def _table(found: Authors) -> Fragment:
    rows: list[list[TableCell]] = []
    frame = found.to_frame()
    for row in frame.to_dict("records"):
        out = {True: "yes", False: "no"}.get(row["stands_out"], "not known")
        interval = "" if math.isnan(row["low"]) else f"{row['low']:.3g} to {row['high']:.3g}"
        words: list[TableCell] = []
        if found.written is not None:
            said = row["writes"]
            detail = (", ".join(map(visible_token, said)),)
            words = [Cell(said[0], title=detail, marked=row["target_rank"] == 0),
                     ", ".join(map(visible_token, said[1:_WORDS])), row["target_rank"]]  # fmt: skip
        rows.append([row[found.metric], interval, out, *words, row["text"]])
    columns = [found.metric, "random queries", "stands out"]
    columns += ["writes", "then", "answer's rank"] if found.written is not None else []
    names = [str(index) for index in found.top.tolist()]
    return Fragment(html.table([*columns, "example's text"], rows, row_names=names, corner="example", limit=30))
