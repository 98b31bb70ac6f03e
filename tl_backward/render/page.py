"""Fragments of HTML, and the one self-contained file that a set of them makes."""

import base64
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from tl_backward._support.checks import as_path
from tl_backward._support.html import escape, visible_text, with_headers
from tl_backward._support.storage import fingerprint, replacing
from tl_backward.render import outline
from tl_backward.render.libraries import LIBRARIES, Library, inline, library_source
from tl_backward.render.shared_styles import shared
from tl_backward.render.still import only_picture, stills
from tl_backward.render.tips import TIPS, TIPS_STYLE


@dataclass(frozen=True)
class Fragment:
    """A piece of a page. `html` and `scripts` are trusted: make them with this package's functions.

    In a notebook it shows itself, its drawings as images, which exporters and previews keep. Where scripts run but the
    library is missing, and in an untrusted notebook, its static part stays. Load a library once per notebook with
    `setup_notebook`.
    """

    html: str
    """Static HTML; what scripts draw later replaces a part of it."""
    scripts: tuple[str, ...] = ()
    """JavaScript to run after `html` is in the document and the libraries are loaded."""
    needs: frozenset[Library] = field(default_factory=frozenset)
    """Libraries that the scripts use."""

    def __add__(self, other: "Fragment") -> "Fragment":
        """Both, one below the other."""
        scripts = tuple(dict.fromkeys(self.scripts + other.scripts))
        return Fragment(self.html + other.html, scripts, self.needs | other.needs)

    def _repr_html_(self) -> str:
        # Colab shows every output in a frame of its own, so there each must bring its libraries.
        libraries = _libraries(self.needs) if "google.colab" in sys.modules else ()
        return stills(self.html) + "".join(f"<script>{inline(s)}</script>" for s in (*libraries, *self.scripts))

    def _ipython_display_(self) -> None:
        from IPython.display import display

        picture = None if self.scripts else only_picture(self.html)
        # A picture alone is an output of its own kind, which exporters keep where they strip HTML of images.
        kind, data = ("text/html", self._repr_html_()) if picture is None else ("image/svg+xml", picture)
        display({kind: data, "text/plain": repr(self)}, raw=True)

    def __repr__(self) -> str:
        """Sizes, not contents."""
        return f"Fragment(html={len(self.html)} chars, scripts={len(self.scripts)}, needs={sorted(self.needs)})"


def beside(*parts: Fragment) -> Fragment:
    """Fragments side by side, one below the other where the page is narrow."""
    columns = "".join(f'<div style="flex:1 1 440px;min-width:0">{part.html}</div>' for part in parts)
    joined = sum(parts, start=Fragment(""))
    html = f'<div style="display:flex;flex-wrap:wrap;gap:4px 20px;align-items:flex-start">{columns}</div>'
    return Fragment(html, joined.scripts, joined.needs)


def setup_notebook(*libraries: Library) -> Fragment:
    """Make an output that loads libraries (default: circuitsvis, 1.3 MB): show it once, early in a notebook.

    Every later `Fragment` in the notebook uses this copy. Only `attention` needs circuitsvis, and ``"plotly"`` (4.8
    MB) only a `figure_fragment` of another kind than heat maps, lines, points and bars.

    Examples:
        >>> tlb.render.setup_notebook('circuitsvis').html.strip()[:1]
        '<'
    """
    chosen = libraries or ("circuitsvis",)
    note = f'<div style="font-size:12px">Loaded for this notebook: {", ".join(chosen)}.</div>'
    return Fragment(note, tuple(library_source(name) for name in chosen))


def _libraries(needs: Collection[Library]) -> tuple[str, ...]:
    return tuple(library_source(name) for name in LIBRARIES if name in needs)


_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; background: var(--page); color: #1a1a1a; }
main { max-width: 1240px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.7em; line-height: 1.2; margin: .4em 0; }
h2 { font-size: 1.25em; margin: 1.6em 0 .3em; }
h1, h2, p { overflow-wrap: anywhere; }
p { max-width: 80ch; margin: .4em 0; }
footer { margin-top: 2.5em; font-size: .8em; opacity: .75; }
sub, sup { line-height: 0; }
a { color: #1f5fa8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; }
  body { color: #e4e4e4; }
  a { color: #8ab8ec; }
}
"""
_PICTURES = """
.tlb-hits rect:hover, .tlb-hits .tlb-on { stroke: currentColor; stroke-width: 1.5; }
.tlb-picture:focus-visible { outline: 2px solid #56b4e9; }
@media (prefers-color-scheme: dark) {
  .tlb-lines [stroke="#000000"] { stroke: #e4e4e4; }
  .tlb-lines [fill="#000000"] { fill: #e4e4e4; }
  .tlb-lines [stroke="#0072b2"] { stroke: #4aa3df; }
  .tlb-lines [fill="#0072b2"] { fill: #4aa3df; }
  .tlb-lines [stroke="#787878"] { stroke: #a0a0a0; }
}
"""


class Page:
    """One self-contained HTML file, built section by section.

    It holds one copy of each library that a fragment needs, requests nothing, and carries a
    Content-Security-Policy that lets only its own scripts run (by hash), so that markup which slipped into it
    stays dead. Titles, headings and paragraphs are plain text.

    ::

        page = Page("Backward Lens", finding=lens.summary(), intro="One prompt, read backwards.")
        page.section("Prompt", "Darker tokens got the larger gradient.", tokens(strings, norms, ...))
        page.save("report.html")
    """

    def __init__(self, title: str, *, finding: str = "", intro: str = "", footer: str = "") -> None:
        self.title, self.finding, self.intro, self.footer = title, finding, intro, footer
        self._sections: list[Fragment] = []
        self._headings: list[tuple[int, str]] = []
        self._n_folded = 0

    def section(self, heading: str, explanation: str = "", *fragments: Fragment, folded: bool = False) -> "Page":
        """Append a section; a blank line in `explanation` starts a new paragraph. Returns the page.

        One that is `folded` shows its heading until it is opened, and stays below all that are not.
        """
        above, below = outline.opening(len(self._sections), heading, explanation, folded=folded)
        place = len(self._sections) - (0 if folded else self._n_folded)
        self._sections.insert(place, sum(fragments, start=Fragment(above)) + Fragment(below))
        self._headings.insert(place, (len(self._headings), heading))
        self._n_folded += folded
        return self

    def _scripts(self) -> list[str]:
        joined = sum(self._sections, start=Fragment(""))
        tips = [inline(TIPS)] if ' title="' in joined.html or "<title>" in joined.html else []
        # Last: a library takes a while to be read, and the page is there by then.
        return [*tips, *_libraries(joined.needs), *dict.fromkeys(map(inline, joined.scripts))]

    def to_html(self) -> str:
        """Return the whole file as text."""
        scripts = self._scripts()
        styles, sections = shared(with_headers("\n".join(section.html for section in self._sections)))
        hashes = [base64.b64encode(bytes.fromhex(fingerprint(_encode(s)))).decode("ascii") for s in scripts]
        # style: inline styles, and those that the libraries add; img: plotly saves a figure through a blob.
        policy = "; ".join(
            [
                "default-src 'none'",
                "script-src " + (" ".join(f"'sha256-{h}'" for h in hashes) or "'none'"),
                "style-src 'unsafe-inline'",
                "img-src data: blob:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        )
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><head><meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                '<meta name="referrer" content="no-referrer">',
                '<link rel="icon" href="data:,">',
                _element("title", self.title),
                f"<style>{_STYLE}{_PICTURES}{TIPS_STYLE}{outline.STYLE}{styles}</style></head>",
                f"<body><main>{self._above()}{outline.contents(self._headings)}",
                sections,
                f"{_element('footer', self.footer)}</main>",
                *(f"<script>{script}</script>" for script in scripts),
                "</body></html>\n",
            ]
        )

    def _above(self) -> str:
        return _element("h1", self.title) + outline.finding(self.finding) + outline.paragraphs(self.intro)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file in one step: a reader sees the old file or the new one, never half of one."""
        target = as_path(path)
        data = _encode(self.to_html())
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"Cannot write {str(target)!r}: there is no folder {str(target.parent)!r}; create it first."
            )
        with replacing(target) as partial:
            partial.write_bytes(data)
        return target

    def __str__(self) -> str:
        """Return `to_html()`."""
        return self.to_html()

    def __repr__(self) -> str:
        """Title and number of sections."""
        return f"Page({self.title!r}, sections={len(self._sections)})"

    def _repr_html_(self) -> str:
        above = f"<div>{self._above()}"
        return (sum(self._sections, start=Fragment(above)) + Fragment("</div>"))._repr_html_()


def _element(name: str, text: str) -> str:
    """An element of plain text; nothing where there is none."""
    return f"<{name}>{escape(visible_text(text))}</{name}>" if text else ""


def _encode(text: str) -> bytes:
    # A lone surrogate can only come from outside this package's functions; it must not stop the page.
    return text.encode("utf-8", "backslashreplace")
