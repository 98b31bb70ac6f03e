"""The Backward Lens report: one self-contained page about one prompt's gradient."""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.html import token_html, visible_text, visible_token
from tl_backward._support.types import TransformerLensModel, typed
from tl_backward.lens.lens_result import BackwardLens, Quantity
from tl_backward.lens.patterns import attention_patterns
from tl_backward.render import outline, report_texts
from tl_backward.render.attention_report import attention_section, kept_patterns, pattern_gradients
from tl_backward.render.figures import Curve, heatmap_drawing
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.key_figures import PromptView, joined, key_figures
from tl_backward.render.page import Fragment, Page, beside
from tl_backward.render.rank_curves import rank_curves
from tl_backward.render.tables import data_block, frame_block, table

_MANY = 20  # tokens that still fit into a table, and next to each other into two heat maps
_LONGEST = 2000  # characters of the prompt in the question, all of it on hover


@typed
def lens_report(
    lens: BackwardLens, model: TransformerLensModel | None = None, *, example: int = 0, name: str = ""
) -> Page:
    """Make one page of everything a Backward Lens says about a prompt; `.save(path)` writes one offline file.

    It opens with `lens.summary(example)` and the ranks of the target and the old answer by layer. Then come the shift
    and imprint tables (layers x tokens), the VJP norms by layer and token, their means over the parts of the prompt,
    and, folded, attention with its gradient; each with its unit, its sign and its data. A control in `lens` stands
    beside. All gradients are raw, dL/d(.): a descent step subtracts (Katz et al. 2024).

    Args:
        lens: from `backward_lens`, best with ``control="random_init"`` and
            ``names_filter=pattern_names(model)``, which keeps the attention patterns and their gradients.
        model: the model that `lens` is of: its name, and its attention patterns (by one forward pass) where the lens
            kept none.
        example: which prompt of a batch.
        name: the model's name, for the title; by default the model's own.

    Raises:
        IndexError: a batch without that example.

    Examples:
        >>> lens = tlb.backward_lens(model, "Anna Berg lives in the city of", " Oslo")
        >>> tlb.render.lens_report(lens, model, name='facts').save('lens.html').name
        'lens.html'
    """
    view = PromptView(lens, example)
    # A model booted from a folder is called by its whole path.
    own = str(getattr(getattr(model, "cfg", None), "model_name", None) or "").rstrip("/").split("/")[-1]
    name = name or ("" if own == "custom" else own)  # what TransformerLens calls a model without a name
    page = Page(
        f"Backward Lens: {name}" if name else "Backward Lens",
        finding=lens.summary(example),
        footer=" ".join(filter(None, [report_texts.FOOTER, visible_text(lens.cache.left_out())])),
    )
    _ranks(page, view)
    _question(page, view)
    for of in sorted(lens.readouts(), key=lambda of: not of.endswith("shift")):  # what a step writes comes first
        _words(page, view, of)
    for of in sorted(lens.latents, key=lambda of: not of.endswith("shift")):
        _latents(page, view, of)
    for layer in lens.experts:
        _experts(page, view, layer)
    _norms(page, view)
    patterns = kept_patterns(view)
    if not patterns and model is not None:
        ids = lens.token_ids[example] if lens.is_batch else lens.token_ids
        patterns = attention_patterns(model, ids[view.mask], lens.layers)
    if patterns:
        _attention(page, view, patterns)
    page.section(*report_texts.method(view.d_vocab, _advice(view)), folded=True)
    return page


def _question(page: Page, view: PromptView) -> None:
    end = len(view.tokens) - view.n_forced
    prompt, forced = joined(view.tokens[:end], view.gaps[:end]), joined(view.tokens[end:], view.gaps[end:]).strip(" ")
    first = f", whose first token is {_quoted(view.target)}," if view.whole_target != view.target else ""
    encoder = view.encoder
    where = "after" if view.asks == "last" else f"at {_quoted(view.tokens[view.asked])} in"
    says = f"{where} {_quoted(prompt)} the {'model' if encoder is None else 'decoder'} says"
    says = says[0].upper() + says[1:] if encoder is None else f"The encoder reads {_quoted(joined(*encoder))}; {says}"
    sentence = (
        f"<p>{says} {_quoted(view.answer)}. "
        f"What would one step of training toward {_quoted(view.whole_target)}{first} write?</p>"
    )
    text = "" if encoder is None else report_texts.ENCODER
    if forced:
        reads = "the prompt" if encoder is None else "what the decoder reads"
        text += " " + report_texts.FORCED.format(visible_token(forced, _LONGEST), reads)
    if view.n_prompts > 1:
        text += f" This is prompt {view.example + 1} of {view.n_prompts}; only the means over the parts of the"
        text += " prompt use all of them."
    n_columns = 3 if view.control() else 2
    rows = [[each.name, each.value, each.control][:n_columns] for each in key_figures(view)]
    words = Fragment(sentence + outline.paragraphs(text))
    names = ["", "this model", "untrained control" if len(view.draws) < 2 else f"{len(view.draws)} untrained"]
    page.section("The question", "", words, table(names[:n_columns], rows))


def _advice(view: PromptView) -> str:
    return report_texts.advice(
        has_control=view.control() is not None,
        has_subject="subject" in view.lens.segments.masks(),
        has_answer=view.target != view.answer,
        asks=view.asks,
    )


def _quoted(token: str) -> str:
    return f"<b>{token_html(token, limit=_LONGEST)}</b>"


def _words(page: Page, view: PromptView, of: str) -> None:
    """Append the lens table of one readout, and its full lists as data."""
    heading, text = report_texts.words_texts(view.lens, of, old_answer=view.asks != "mask")
    if len(view.tokens) > _MANY:
        text += " The table scrolls sideways."
    frame = view.lens.token_frame()
    frame = frame[(frame["readout"] == of) & (frame["example"] == view.example)]
    frame = frame.drop(columns=["readout", "example"])
    for column in ("top_tokens", "bottom_tokens"):
        # A list as text that a program can take apart again.
        frame[column] = [
            json.dumps([visible_token(word) for word in words], ensure_ascii=False) for words in frame[column]
        ]
    page.section(heading, text, Fragment(view.lens.table(of, example=view.example)), frame_block(frame, f"{of}.csv"))


def _latents(page: Page, view: PromptView, of: str) -> None:
    """Append the latents of one readout at the token asked at, a row a layer, and all of them as data."""
    layers, at = view.lens.latents[of], view.places[view.asked]
    first, *others = (view.row(read)[at] for read in layers.values())
    read = first.joined(others)
    frame = read.to_frame()
    frame["place"] = [list(layers)[place] for place in frame["place"]]
    frame["words"] = [json.dumps(list(map(visible_token, words)), ensure_ascii=False) for words in frame["words"]]
    heading, text = report_texts.latents(of, read.n_latents, read.n_control, asks=view.asks)
    data = frame_block(frame.rename(columns={"place": "layer"}), f"{of}_latents.csv")
    page.section(heading, text, Fragment(read.table([f"layer {layer}" for layer in layers])), data)


def _experts(page: Page, view: PromptView, layer: int) -> None:
    """Append which experts of a layer would learn."""
    learning = view.lens.experts[layer]
    heading, text = report_texts.EXPERTS
    data = frame_block(learning.to_frame(), f"experts_{layer}.csv")
    page.section(f"{heading} {layer}", text, Fragment(learning._repr_html_()), data)


def _ranks(page: Page, view: PromptView) -> None:
    lines, columns = [], {}
    for words, quantity in view.followed.items():
        own = _asked([view], quantity)[0]
        name, beside_it = view.named(words), f"{words}, untrained control"
        lines.append(Curve(name, own))
        columns[words] = own
        if view.draws:
            draws = _asked(view.draws, quantity)
            middle, low, high = draws.nanmedian(0).values, draws.amin(0), draws.amax(0)
            word = name.removeprefix(f"{words} ")
            lines.append(Curve(f"{word} in {_untrained(view)}", middle, name, low, high))
            columns |= {beside_it: middle, f"{beside_it}, lowest": low, f"{beside_it}, highest": high}
    figure = rank_curves(
        lines,
        d_vocab=view.d_vocab,
        x=view.lens.layers,
        title=f"Ranks at {visible_token(view.tokens[view.asked], 24)}",
        y_title="rank in the raw VJP",
    )
    shown = ([None if math.isnan(rank) else int(rank) for rank in values] for values in columns.values())
    rows = [[layer, *ranks] for layer, *ranks in zip(view.lens.layers, *shown, strict=True)]
    data = data_block(["layer", *columns], rows, filename="ranks.csv")
    heading, text = report_texts.ranks(n_draws=len(view.draws), asks=view.asks)
    page.section(heading, "", figure_fragment(figure), Fragment(outline.paragraphs(text)), data)


def _asked(views: Sequence[PromptView], quantity: Quantity) -> Float[Tensor, "view layer"]:
    """One quantity of several views, at the token asked at."""
    return torch.stack([view.stacked(quantity)[:, view.asked] for view in views])


def _untrained(view: PromptView) -> str:
    n = len(view.draws)
    return "an untrained network" if n == 1 else f"{n} untrained networks"


def _norms(page: Page, view: PromptView) -> None:
    draws = [draw.stacked("norm") for draw in view.draws]
    norms = {"norm": view.stacked("norm")} | ({"control": torch.stack(draws).mean(0)} if draws else {})
    mean = f", mean of {len(draws)} untrained networks" if len(draws) > 1 else ", untrained control"
    figures = [
        heatmap_drawing(
            values,
            rows=[str(layer) for layer in view.lens.layers],
            columns=view.tokens,
            title="VJP norms" + (mean if which == "control" else ""),
            value_title=report_texts.UNIT,
        )
        for which, values in norms.items()
    ]
    rows = [
        [layer, pos, token, *(float(values[index, pos]) for values in norms.values())]
        for index, layer in enumerate(view.lens.layers)
        for pos, token in enumerate(view.tokens)
    ]
    data = data_block(["layer", "position", "token", *norms], rows, filename="vjp_norms.csv")
    heading, text = report_texts.norms(view.asks)
    if draws:
        text += " Each picture has its own colour scale."
    fragments = [figure_fragment(figure) for figure in figures]
    shown = [beside(*fragments)] if len(view.tokens) <= _MANY else fragments
    page.section(heading, text, *shown, data, *_segments(view))


def _segments(view: PromptView) -> list[Fragment]:
    """The means over the parts of what is read, in words, as a table and as data."""
    by_layer: dict[int, dict[str, Any]] = {}
    for mean in view.lens.segment_means("norm", view.of).to_dict("records"):
        for source, end in {"mean": "", "control": ", control"}.items():
            if source in mean:
                by_layer.setdefault(mean["layer"], {"layer": mean["layer"]})[mean["segment"] + end] = mean[source]
    columns = list(next(iter(by_layer.values())))
    columns.sort(key=lambda name: (name != "layer", not name.startswith("last")))  # in view on a narrow screen too
    rows = [[row[name] for name in columns] for row in by_layer.values()]
    counts = ", ".join(f"{int(mask.sum())} {name}" for name, mask in view.lens.segments.masks().items())
    text = report_texts.segments(view.asks, has_encoder=view.encoder is not None)
    text += f" Tokens: {counts}." + ("" if "subject" in counts else " No subject was given.")
    words = Fragment(outline.paragraphs(text))
    return [words, table(columns, rows), data_block(columns, rows, filename="segment_means.csv")]


def _attention(page: Page, view: PromptView, patterns: dict[int, Tensor]) -> None:
    gradients = pattern_gradients(view)
    note, charts = attention_section(view, patterns, gradients)
    causal = not any(bool(pattern.triu(1).any()) for pattern in patterns.values())
    heading, text = report_texts.attention(has_gradients=bool(gradients), causal=causal)
    page.section(heading, f"{text}\n\n{note}", charts, folded=True)
