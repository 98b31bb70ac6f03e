"""Token pairs of an attention head: a ranked list, and a picture of who is joined to whom."""

from tl_backward._support.html import POSITIVE, Cell, Number, escape, format_number, visible_token
from tl_backward._support.public import public
from tl_backward.embedding_space import HeadPairs
from tl_backward.render.page import Fragment
from tl_backward.render.tables import filter_table

_ROW = 19  # pixels between tokens
_WIDTH = 560
_LONGEST = 22  # characters of a token in the picture; hovering shows all of it
_LEFT, _RIGHT = 190, 370  # where the lines begin and end


@public
def pair_list(pairs: HeadPairs) -> Fragment:
    """List the pairs, best first, in a table that can be filtered.

    Examples:
        >>> pairs = tlb.head_pairs(model, "VO", 1, 0, k=5, show_progress=False)
        >>> isinstance(tlb.render.pair_list(pairs), tlb.render.Fragment)
        True
    """
    rows = [
        [Cell(a), Cell(b), Cell(f"{score:.4g}", value=score)]
        for a, b, score in zip(pairs.first_tokens, pairs.second_tokens, pairs.pairs.values.tolist(), strict=True)
    ]
    names = [str(i + 1) for i in range(len(rows))]
    return filter_table([*pairs.sides, "score"], rows, row_names=names, corner="rank", height=440)


@public
def pair_picture(pairs: HeadPairs, *, n: int = 30) -> Fragment:
    """Draw the first `n` pairs as lines from one token to another: the thicker, the larger the score.

    On the left, tokens in the order of their best pair; on the right, each beside those that it is joined to.

    Examples:
        >>> pairs = tlb.head_pairs(model, "VO", 1, 0, k=5, show_progress=False)
        >>> '<svg' in tlb.render.pair_picture(pairs, n=5).html
        True
    """
    first, second = pairs.sides
    ids = list(zip(pairs.pairs.rows.tolist(), pairs.pairs.cols.tolist(), strict=True))[:n]
    scores = pairs.pairs.values.tolist()[:n]
    lefts = list(dict.fromkeys(a for a, _ in ids))
    joined = {b: [lefts.index(a) for a, other in ids if other == b] for _, b in ids}
    rights = sorted(joined, key=lambda b: sum(joined[b]) / len(joined[b]))
    texts = dict(zip((a for a, _ in ids), pairs.first_tokens, strict=False))
    others = dict(zip((b for _, b in ids), pairs.second_tokens, strict=False))
    tall = max(len(lefts), len(rights))

    def place(index: int, count: int) -> float:
        return 34 + _ROW * (index + (tall - count) / 2)

    largest = max((abs(score) for score in scores), default=0.0) or 1.0
    parts = [_label(first, _LEFT - 8, 14, "end", bold=True), _label(second, _RIGHT + 8, 14, "start", bold=True)]
    for (a, b), score in sorted(zip(ids, scores, strict=True), key=lambda pair: abs(pair[1])):
        share = abs(score) / largest
        y, z = place(lefts.index(a), len(lefts)), place(rights.index(b), len(rights))
        title = f"{visible_token(texts[a])} \u2192 {visible_token(others[b])}: {format_number(score)}"
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{z:.1f}" stroke="{POSITIVE}" '
            f'stroke-width="{0.6 + 3 * share:.2f}" stroke-opacity="{0.25 + 0.6 * share:.2f}">'
            f"<title>{escape(title)}</title></line>"
        )
    parts += [_label(texts[a], _LEFT - 8, place(i, len(lefts)), "end") for i, a in enumerate(lefts)]
    parts += [_label(others[b], _RIGHT + 8, place(i, len(rights)), "start") for i, b in enumerate(rights)]
    height = 34 + _ROW * tall
    return Fragment(
        f'<div style="overflow-x:auto"><svg role="img" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" style="max-width:100%" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(repr(pairs))}</title>{''.join(parts)}</svg></div>"
    )


def _label(token: str, x: Number, y: Number, anchor: str, *, bold: bool = False) -> str:
    text = token if bold else visible_token(token, _LONGEST)
    title = "" if bold else f"<title>{escape(visible_token(token))}</title>"
    weight = ' font-weight="bold"' if bold else ""
    family = "system-ui,sans-serif" if bold else "ui-monospace,Menlo,Consolas,monospace"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" dy="0.35em" text-anchor="{anchor}" font-size="12"{weight} '
        f'font-family="{family}" fill="currentColor" direction="ltr" unicode-bidi="isolate">'
        f"{title}{escape(text)}</text>"
    )
