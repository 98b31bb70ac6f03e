"""The Backward Lens report: one self-contained page about one prompt's gradient."""

import json
import math

from tl_backward._html import Cell, visible_token
from tl_backward._typing import TransformerLensModel
from tl_backward.backward_lens import BackwardLens
from tl_backward.render.attention_report import attention_patterns, attention_section, beside, pattern_gradients
from tl_backward.render.circuits import tokens
from tl_backward.render.export import data_block
from tl_backward.render.figures import Curve, figure_fragment, heatmap
from tl_backward.render.key_figures import PromptView, key_figures
from tl_backward.render.page import Fragment, Page
from tl_backward.render.rank_curves import rank_curves
from tl_backward.render.tables import table

_PAPER = "Katz et al. 2024, Backward Lens: Projecting Language Model Gradients into the Vocabulary Space"
_UNIT = "nats per unit of output"

_LENS_TEXTS = {
    "imprint": (
        "Imprint: what W_in would take in",
        "A gradient step adds to W_in (the paper's FF1) a multiple of each token's own input x_i, so from then on the "
        "neurons answer more (or less) to inputs like it. Each cell reads the input of that layer and token through the "
        "final norm and the unembedding: its top word, with the bottom one below. (Sections 4.2 and 5.)",
    ),
    "shift": (
        "Shift: what W_out would write",
        "A gradient step SUBTRACTS from W_out (FF2) a multiple of each VJP delta_i = dL/dy_i, where y_i is what the layer "
        "writes at that token. The cells read the raw delta_i, so the step moves away from its top words and toward its "
        "bottom ones: a cell shows the BOTTOM word, where the target is to be expected, with the top one, which the step "
        "pushes down, below. (Sections 4.2 and 5.)",
    ),
    "attn_imprint": (
        "Attention's imprint: what W_V would take in",
        "The same for attention: the inputs of W_V, read in words; top word, with the bottom one below.",
    ),
    "attn_shift": (
        "Attention's shift: what W_O would write",
        "The VJPs of W_O, the raw gradient with respect to what attention writes at that token. A step SUBTRACTS it: a cell "
        "shows the BOTTOM word, toward which it moves, with the top one below.",
    ),
}


def lens_report(
    lens: BackwardLens, model: TransformerLensModel | None = None, *, example: int = 0, name: str = ""
) -> Page:
    """Make one page of everything a Backward Lens says about a prompt; `.save(path)` writes it as one offline file.

    Shown are the tokens coloured by VJP norm, the imprint and shift tables (layers x tokens), the ranks of the target
    and the old answer by layer, the VJP norms by layer and token, their means over the parts of the prompt, and
    attention with its gradient; each with its unit, its sign and its data. A control in `lens` stands beside. All
    gradients are raw, dL/d(.): a descent step subtracts.

    Args:
        lens: from `backward_lens`, best with `control="random_init"` and `names_filter=pattern_names(model)`, which
            keeps the attention patterns' gradients.
        model: the model that `lens` is of, for its attention patterns (one forward pass); None leaves them out.
        example: which prompt of a batch.
        name: the model's name, for the title; by default the model's own.

    Raises:
        IndexError: a batch without that example.
    """
    view = PromptView(lens, example)
    name = name or str(getattr(getattr(model, "cfg", None), "model_name", None) or "")
    page = Page(
        "Backward Lens" + (f" of {name}" if name else ""),
        intro="What would one step of training on a new answer write into this model, and where? The gradient of every "
        "weight matrix is a sum of outer products, one per token: the token's input x_i times its VJP delta_i. Both are "
        "vectors that can be read in words.",
        footer=f"Method: {_PAPER}. Hover over any cell or point for exact values; the Data boxes hold them as CSV.",
    )
    _question(page, view)
    _token_norms(page, view)
    for of in lens.readouts():
        heading, text = _LENS_TEXTS[of]
        if of == "imprint" and any(weight.endswith("W_gate") for weight in lens.cache.factors):
            text += " This model's MLPs are gated: W_gate reads the same inputs."
        page.section(heading, text, Fragment(lens.table(of, example=example)), _lens_data(view, of))
    _ranks(page, view)
    _norms(page, view)
    _segments(page, view)
    _attention(page, view, model)
    return page


def _question(page: Page, view: PromptView) -> None:
    shown, forced = view.tokens[: view.asked + 1], view.tokens[view.asked + 1 :]
    facts: list[list[str | Cell]] = [
        ["prompt, as the model reads it", Cell("".join(shown))],
        ["new answer (target)", Cell(view.target)],
        ["the model's old answer", Cell(view.answer)],
    ]
    text = (
        "The loss is -log p(target | prompt), in nats. Ranks count from 0, the word with the largest logit, to "
        f"{view.d_vocab - 1}, the one with the smallest."
    )
    if forced:
        facts.append(["appended to the prompt", Cell("".join(forced))])
        text += (
            " The target has several tokens: all but its last are appended to the prompt, the loss is their mean, and "
            "ranks are those of the first one, where the prompt ends."
        )
    if view.n_prompts > 1:
        text += f" This is prompt {view.example + 1} of {view.n_prompts}; only the means over segments use all of them."
    control = view.control()
    columns = ["", "this model"] + (["untrained control"] if control else [])
    figures = [[each.name, each.value, *([each.control] if control else [])] for each in key_figures(view)]
    page.section("The question", text, table(["", ""], facts), table(columns, figures))
    page.section("What to look at", _advice(control is not None))


def _advice(has_control: bool) -> str:
    first = (
        "In a trained model the old answer comes to the very top of the shift in the last layers, at the last token: the "
        "step takes away what the model said. The target at the very bottom shows that it writes the new answer. And the "
        "VJPs are large not only at the last token but on the subject, whose early layers the step would change."
    )
    second = (
        "Some of this is no finding. The control is the same architecture with fresh random weights: a cross-entropy loss "
        "pushes the target to the bottom of the last token's shift there too. Trust what differs from the control."
        if has_control
        else "Some of this holds in an untrained model too: make the lens with control=\"random_init\" to see which."
    )
    return f"{first}\n\n{second}"


def _token_norms(page: Page, view: PromptView) -> None:
    norms = view.stacked("norm").sum(0)
    page.section(
        "Where the gradient arrives",
        "The prompt's tokens, coloured by the norm of their VJPs, summed over the layers: how strongly the loss depends, "
        "to first order, on what is written at that token.",
        tokens(view.tokens, norms, value_label=f"sum over layers of |delta_i| ({_UNIT})"),
    )


def _lens_data(view: PromptView, of: str) -> Fragment:
    frame = view.lens.to_frame()
    frame = frame[(frame["readout"] == of) & (frame["example"] == view.example)].drop(columns=["readout", "example"])
    for column in ("top_tokens", "bottom_tokens"):
        # A list as text that programs can take apart again.
        frame[column] = [json.dumps(list(map(visible_token, words)), ensure_ascii=False) for words in frame[column]]
    return data_block(list(frame.columns), frame.values.tolist(), filename=f"{of}.csv")


def _ranks(page: Page, view: PromptView) -> None:
    control, lines = view.control(), []
    for words, quantity in (("target", "target_rank"), ("old answer", "answer_rank")):
        for source, end in ((view, ""), (control, ", untrained control")):
            if source is not None:
                ranks = source.stacked(quantity)[:, view.asked]
                lines.append(Curve(words + end, ranks, control_of=words if end else None))
    token = visible_token(view.tokens[view.asked], 24)
    figure = rank_curves(
        lines,
        d_vocab=view.d_vocab,
        x=view.lens.layers,
        title=f"Ranks in the shift at {token}, the last token of the prompt",
        y_title="rank in the raw VJP",
    )
    columns = [[None if math.isnan(rank) else int(rank) for rank in line.values] for line in lines]
    rows = [[layer, *ranks] for layer, *ranks in zip(view.lens.layers, *columns, strict=True)]
    page.section(
        "The target and the old answer, layer by layer",
        "Ranks of both words in the raw VJP of the last token. On top is the largest logit: what a step pushes down. At "
        "the bottom is the smallest: what a step, which subtracts the VJP, writes. The axis spreads out both ends; dashed "
        "is the untrained control.",
        figure_fragment(figure),
        data_block(["layer", *(line.name for line in lines)], rows, filename="ranks.csv"),
    )


def _norms(page: Page, view: PromptView) -> None:
    control = view.control()
    figures, columns, values = [], ["layer", "position", "token", "norm"], [view.stacked("norm")]
    if control is not None:
        values.append(control.stacked("norm"))
        columns.append("control")
    for norms, title in zip(values, ("This model", "Untrained control"), strict=False):
        figure = heatmap(
            norms,
            rows=[str(layer) for layer in view.lens.layers],
            columns=view.tokens,
            title=f"{title}: |delta_i|",
            value_title=_UNIT,
        )
        figures.append(figure_fragment(figure))
    rows = [
        [layer, pos, token, *(float(norms[i, pos]) for norms in values)]
        for i, layer in enumerate(view.lens.layers)
        for pos, token in enumerate(view.tokens)
    ]
    page.section(
        "VJP norms by layer and token",
        "How much the loss would change, to first order, per unit of change in what that layer writes at that token. In "
        "the last layer only tokens where an answer is expected can matter; all others are exactly zero."
        + (" Each picture has its own colour scale." if control else ""),
        beside(*figures),
        data_block(columns, rows, filename="vjp_norms.csv"),
    )


def _segments(page: Page, view: PromptView) -> None:
    frame = view.lens.segment_means("norm", view.of)
    segments = list(dict.fromkeys(frame["segment"]))
    has_control = "control" in frame.columns
    columns = ["layer"]
    for segment in segments:
        columns += [segment, f"{segment}, control"] if has_control else [segment]
    rows = []
    for layer, part in frame.groupby("layer"):
        by_segment = part.set_index("segment")
        row: list[float | int] = [int(str(layer))]
        for segment in segments:
            row.append(float(by_segment["mean"][segment]))
            if has_control:
                row.append(float(by_segment["control"][segment]))
        rows.append(row)
    counts = ", ".join(f"{name}: {int(mask.sum())}" for name, mask in view.lens.segments.masks().items())
    page.section(
        "Parts of the prompt",
        f"Mean VJP norm ({_UNIT}) of the tokens in each part. Number of tokens: {counts}."
        + ("" if "subject" in segments else " No subject was given."),
        table(columns, rows),
        data_block(columns, rows, filename="segment_means.csv"),
    )


def _attention(page: Page, view: PromptView, model: TransformerLensModel | None) -> None:
    if model is None:
        return
    ids = view.lens.token_ids[view.example] if view.lens.is_batch else view.lens.token_ids
    patterns, gradients = attention_patterns(model, ids[view.mask], view.lens.layers), pattern_gradients(view)
    if not patterns:
        return
    note, charts = attention_section(view, patterns, gradients)
    text = (
        "Left, how much each token (row) attends to each earlier one (column). Right, the raw gradient of the loss with "
        "respect to that attention: where it is positive (blue), attending more would raise the loss; where it is negative "
        "(orange), it would make the target more likely. Hover over a head to see it in full, click to keep it."
    )
    if not gradients:
        text = (
            "How much each token (row) attends to each earlier one (column). For the gradients beside them, make the lens "
            "with names_filter=tl_backward.render.pattern_names(model)."
        )
    page.section("Attention and its gradient", f"{text}\n\n{note}", charts)
