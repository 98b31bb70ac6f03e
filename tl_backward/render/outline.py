"""How a page is laid out: the finding on top, a list of its sections, and what is folded away."""

import re
from collections.abc import Sequence

from tl_backward._support.html import escape, unbroken, visible_text

STYLE = """
main { max-width: 1180px; }
p { max-width: 92ch; }
p.finding { font-size: 1.2em; line-height: 1.45; max-width: none; margin: .5em 0 .8em; padding: .1em 0 .1em .8em;
  border-left: 5px solid #1f5fa8; }
nav { font-size: .85em; line-height: 1.7; margin: .6em 0; overflow-x: auto; white-space: nowrap; }
nav a { margin-right: 1.2em; }
/* What scrolls has a shadow on the side where it goes on. */
[style*="overflow-x:auto"], [style*="overflow:auto"], nav { background:
  linear-gradient(to right, var(--page) 40%, transparent) left / 32px 100% no-repeat local,
  linear-gradient(to left, var(--page) 40%, transparent) right / 32px 100% no-repeat local,
  linear-gradient(to right, #80808099, transparent) left / 12px 100% no-repeat scroll,
  linear-gradient(to left, #80808099, transparent) right / 12px 100% no-repeat scroll; }
@media (prefers-color-scheme: dark) { p.finding { border-left-color: #8ab8ec; } }
summary.part { cursor: pointer; margin: 1.4em 0 .3em; }
summary.part h2 { display: inline; }
[style*="overflow-x:auto"]::-webkit-scrollbar, [style*="overflow:auto"]::-webkit-scrollbar {
  height: 10px; width: 10px; }
[style*="overflow-x:auto"]::-webkit-scrollbar-thumb, [style*="overflow:auto"]::-webkit-scrollbar-thumb {
  background: #8a8a8a; border-radius: 5px; }
@media (min-width: 1150px) {
  main:has(> nav) { padding-right: 236px; box-sizing: border-box; }
  nav { background: none; float: right; position: sticky; top: 16px; width: 200px; margin-right: -220px; }
  nav a { display: block; line-height: 1.35; margin: 0 0 .6em; white-space: normal; }
}
@media print {
  nav, input[type=search], input[type=search] + span { display: none; }
  main { max-width: none; padding: 0; }
  [style*="overflow"] { background: none !important; overflow: visible !important; max-height: none !important; }
  th, td { white-space: pre-wrap !important; position: static !important; font-size: 9px !important;
    padding: 1px 3px !important; }
  table:has(tr > :nth-child(12)) :is(th, td) {
    font-size: 7px !important; padding: 1px 2px !important; overflow-wrap: anywhere; }
  details:has(> summary.part)::details-content { content-visibility: visible; height: auto; }
  details:has(> div > a[download]):not([open]) { display: none; }
  tr, svg { break-inside: avoid; }
  svg, th, td { min-width: 0 !important; }
  h2 { break-after: avoid; }
  th, td, rect, div, span { print-color-adjust: exact; }
}
"""
"""Shadows and scrollbars that stay in view say that a table goes on; a wide screen has the contents beside the text.

Paper does not scroll: there all rows are printed, and what is too wide goes on in the next line. Nor does it unfold:
method and caveats are printed, and the boxes of data, which cannot be opened there, are not.
"""

_SYMBOLS = {"delta": "\u03b4"}


def prose(text: str) -> str:
    """Plain text as HTML: `code` between backticks; x_i, delta_i and |x|^2 as they are typeset."""
    shown = re.sub("`([^`]+)`", r"<code>\1</code>", unbroken(escape(visible_text(text))))
    shown = re.sub(r"(?<=[\w|)])\^(\d)\b", r"<sup>\1</sup>", shown)
    return re.sub(r"\b(x|y|delta|e|E)_([ijqkst])\b", lambda found: _indexed(*found.groups()), shown)


def _indexed(name: str, index: str) -> str:
    return f"<i>{_SYMBOLS.get(name, name)}<sub>{index}</sub></i>"


def paragraphs(text: str) -> str:
    """Paragraphs of plain text, a blank line between them."""
    return "".join(
        f"<p>{prose(' '.join(part.strip().split(chr(10))))}</p>" for part in text.split("\n\n") if part.strip()
    )


def opening(place: int, heading: str, text: str, *, folded: bool) -> tuple[str, str]:
    """The start of a section and its end; a folded one shows its heading until it is opened."""
    title = f"<h2>{prose(heading)}</h2>" if heading else ""
    anchor = f'<section id="part-{place}">'
    if not folded:
        return f"{anchor}{title}{paragraphs(text)}", "</section>"
    start = f'{anchor}<details><summary class="part">{title}</summary>{paragraphs(text)}'
    return start, "</details></section>"


def finding(sentence: str) -> str:
    """The sentence that a page opens with; nothing where there is none."""
    return f'<p class="finding">{prose(sentence)}</p>' if sentence else ""


def contents(headings: Sequence[tuple[int, str]]) -> str:
    """Links to the sections (number, heading), where there are several."""
    named = [(place, heading) for place, heading in headings if heading]
    if len(named) < 3:
        return ""
    links = "".join(f'<a href="#part-{place}">{prose(heading)}</a> ' for place, heading in named)
    return f'<nav aria-label="contents">{links}</nav>'
