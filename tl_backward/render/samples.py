"""Texts of a preimage, inside and outside side by side, token by token."""

import math
from collections.abc import Sequence

from tl_backward._support import html
from tl_backward._support.html import PALE, Cell, TableCell, escape, legend, scale_bound, token_strip, visible_text
from tl_backward._support.public import public
from tl_backward.inversion import Preimage
from tl_backward.inversion.site_reading import ShownText, SiteReading
from tl_backward.render.page import Fragment, beside
from tl_backward.render.tables import data_block
from tl_backward.text.token_strings import token_string

SHADING = "p(token | z) minus p(token | no information), by the decoder"
NOTHING = "No text within epsilon was found."
_MOST_ROWS = 5000  # of the data block
_TEXT = 60
_MOST_TOKENS = 60  # of one text


@public
def preimage_samples(reading: SiteReading) -> Fragment:
    """Draw the nearest texts inside and outside epsilon side by side.

    A token's colour is what z adds to its probability, where a decoder says so; on hover, its distance D and both
    probabilities. The token where a text comes nearest to the query has a frame. Texts are shown raw and escaped.

    Examples:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> p = tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool, show_progress=False)
        >>> reading = tlb.inversion.read_preimage(counting, p)
        >>> isinstance(tlb.render.preimage_samples(reading), tlb.render.Fragment)
        True
    """
    shades = [text.shading for text in (*reading.inside, *reading.outside)]
    values = [value for each in shades if each is not None for value in each.tolist()]
    bound = scale_bound(values)
    preimage = reading.preimage
    n_inside, distinct = int(preimage.inside.sum()), preimage.diagnostics.distinct
    sides = (
        (f"inside: {n_inside} of {len(preimage)}, {distinct} different", reading.inside, NOTHING),
        (f"outside: {len(preimage) - n_inside}", reading.outside, "Every text is within epsilon."),
    )
    columns = [
        Fragment(_heading(title) + (_strips(preimage, shown, bound) or _note(none))) for title, shown, none in sides
    ]
    return Fragment(legend(SHADING, bound, signed=True, ends=PALE) if values else "") + beside(*columns)


def query_strip(preimage: Preimage, *, marked: int | None) -> Fragment:
    """The query's tokens, their positions on hover, with a frame around the one at `marked`."""
    every = [token_string(preimage.inputs.tokenizer, token) for token in preimage.query.tokens.tolist()]
    start, end = _window(len(every), len(every) - 1 if marked is None else marked)
    strings, places = every[start:end], range(start, end)
    details = [f"position {i}" for i in places]
    shown = [float(i == marked) for i in places]
    at = None if marked is None else marked - start
    strip = token_strip(strings, shown, value_label="", bound=4.0, with_legend=False, details=details, marked=at)
    return Fragment(strip + _cut_note(start, end, len(every)))


def _window(n: int, at: int) -> tuple[int, int]:
    """Which of n tokens are shown: all of a short text, and of a long one those around a token."""
    if n <= _MOST_TOKENS:
        return 0, n
    start = max(0, min(at - _MOST_TOKENS * 2 // 3, n - _MOST_TOKENS))
    return start, start + _MOST_TOKENS


def _cut_note(start: int, end: int, n: int) -> str:
    """How many tokens before and after the window are not shown; "" where none."""
    sides = ((start, "before"), (n - end, "after"))
    left = ", ".join(f"{count:,} tokens {where}" for count, where in sides if count)
    return f'<div style="font-size:11px;opacity:.75">\u2026 {left} not shown</div>' if left else ""


def nearest_texts(preimage: Preimage, *, n: int = 10, caption: str = "") -> Fragment:
    """A table of the texts nearest to the query: text, D, whether it is inside."""
    order = preimage.distances.argsort(stable=True)[:n].tolist()
    rows: list[list[TableCell]] = [
        [Cell(preimage.inputs.text(i)), float(preimage.distances[i]), "yes" if preimage.inside[i] else "no"]
        for i in order
    ]
    return Fragment(html.table(["text", "D", "inside"], rows, caption=caption, limit=_TEXT))


def samples_data(preimage: Preimage, *, filename: str) -> Fragment:
    """All texts as CSV, nearest first: text, distance, position, inside, weight; 5,000 of them at most."""
    distances, positions, weights = (
        values.tolist() for values in (preimage.distances, preimage.best_positions, preimage.weights)
    )
    rows = [
        [
            preimage.inputs.text(i),
            distances[i] if math.isfinite(distances[i]) else None,
            positions[i],
            bool(preimage.inside[i]),
            weights[i],
        ]
        for i in preimage.distances.argsort(stable=True)[:_MOST_ROWS].tolist()
    ]
    return data_block(["text", "distance", "position", "inside", "weight"], rows, filename=filename)


def _strips(preimage: Preimage, shown: Sequence[ShownText], bound: float) -> str:
    return "".join(
        '<div style="display:flex;gap:8px;align-items:baseline;margin:2px 0">'
        f'<span style="flex:0 0 5em;white-space:nowrap;font-size:12px;text-align:right" '
        f'title="{float(preimage.distances[text.index])!r}">'
        f"{float(preimage.distances[text.index]):.3g}</span>"
        f'<div style="min-width:0">{_strip(text, int(preimage.best_positions[text.index]), bound)}</div></div>'
        for text in shown
    )


def _strip(text: ShownText, nearest: int, bound: float) -> str:
    values = [0.0] * len(text.strings) if text.shading is None else text.shading.tolist()
    details = [f"D {distance:.4g}" for distance in text.distances.tolist()]
    if text.conditional is not None and text.unconditional is not None:
        pairs = zip(text.conditional.tolist(), text.unconditional.tolist(), strict=True)
        said = ["" if math.isnan(a) else f"; p {a:.3g} with z, {b:.3g} without" for a, b in pairs]
        details = [first + second for first, second in zip(details, said, strict=True)]
    start, end = _window(len(values), nearest)
    return token_strip(
        text.strings[start:end],
        values[start:end],
        value_label="",
        signed=True,
        bound=bound,
        with_legend=False,
        details=details[start:end],
        marked=nearest - start,
    ) + _cut_note(start, end, len(values))


def _heading(text: str) -> str:
    return f'<div style="font-weight:bold;font-size:13px;margin:4px 0">{escape(visible_text(text))}</div>'


def _note(text: str) -> str:
    return f'<div style="font-size:13px;margin:4px 0">{escape(text)}</div>'
