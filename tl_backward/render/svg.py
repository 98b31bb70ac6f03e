"""matplotlib's SVG made small and safe: texts put in, values on hover, colours that follow the page."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from tl_backward._support.html import Number, escape
from tl_backward._support.storage import fingerprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, LINES, TICKS = "#1a1a1a", "#dddddd", "#888888"
"""Colours of a drawing's texts, grid and axes: in the SVG they have the colour of the text around it."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, told apart under all common colour blindnesses."""

CLEAR = "transparent"
"""The fill of what only answers to a pointer."""

_OPACITY = {INK: "1", LINES: ".16", TICKS: ".55"}
_DEFAULTS = {"opacity": "1", "text-anchor": "start", "stroke-width": "1", "transform": "", "fill-opacity": "1"}
_KEPT = frozenset("d x y width height transform fill stroke stroke-width stroke-dasharray opacity".split())
_KEPT |= {"fill-opacity", "stroke-opacity", "clip-path", "text-anchor", "font-size", "font-weight"}


@dataclass(frozen=True)
class Hit:
    """A rectangle that says its values to a pointer; pixels from the top left."""

    x: Number
    y: Number
    width: Number
    height: Number
    title: str
    """Plain text."""
    fill: str


def rewritten(figure: "Figure", texts: Sequence[str], hits: Sequence[Hit], *, label: str) -> str:
    """A figure as SVG: `texts` in the places of their stand-ins, filled hits below what is drawn, others above.

    Args:
        figure: drawn with stand-ins ``t0t``, ``t1t``, ... and with its background's gid "cells".
        texts: plain.
        hits: what answers to a pointer.
        label: what the picture is called, plain.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    written = io.StringIO()
    FigureCanvasSVG(figure).print_svg(written, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(written.getvalue())
    body = "".join(_written(child, texts, hits) for child in root) + _group([hit for hit in hits if hit.fill == CLEAR])
    key = fingerprint(body)[:8]  # pictures of one page share its names
    names = {name: f"p{key}-{i}" for i, name in enumerate(dict.fromkeys(re.findall(r'(?<= id=")[^"]+', body)))}
    body = re.sub(r'((?: id="| href="#|url\(#))([^")]+)', lambda found: found[1] + names[found[2]], body)
    width, height = (round(float(root.get(side, "0").removesuffix("pt"))) for side in ("width", "height"))
    kind = " tlb-lines" if all(hit.fill == CLEAR for hit in hits) else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tlb-picture{kind}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="group" aria-label="{escape(_legal(label))}" tabindex="0" '
        f'font-family="system-ui, sans-serif" fill="currentColor">{body}</svg>'
    )


def _written(element: ElementTree.Element, texts: Sequence[str], hits: Sequence[Hit]) -> str:
    """An element and what is in it, without what a browser does not need."""
    tag = element.tag.rpartition("}")[2]
    if tag in ("metadata", "style"):
        return ""
    if element.get("id") == "cells":  # the axes' background
        return _group([hit for hit in hits if hit.fill != CLEAR])
    inside = "".join(_written(child, texts, hits) for child in element)
    if tag == "text":
        inside = escape(_legal(texts[int((element.text or "")[1:-1])]))
    elif tag in ("g", "defs") and not inside:
        return ""
    attributes = "".join(f' {name}="{value}"' for name, value in _attributes(element, tag).items())
    if tag == "g" and not attributes:
        return inside
    return f"<{tag}{attributes}>{inside}</{tag}>" if inside else f"<{tag}{attributes}/>"


def _attributes(element: ElementTree.Element, tag: str) -> dict[str, str]:
    style = dict(part.split(":", 1) for part in element.get("style", "").split(";") if ":" in part)
    given = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    given |= {name.strip(): value.strip() for name, value in style.items()}
    if "font" in given:  # "bold 14px 'DejaVu Sans'"
        given["font-size"] = given["font"].partition("px")[0].rpartition(" ")[2]
        given |= {"font-weight": "bold"} if given["font"].startswith("bold") else {}
    kept = {name: _short_numbers(value) for name, value in given.items() if name in _KEPT}
    if tag == "path" and "id" in given:  # a marker: each use of it has its own colours, which a page can change
        kept = {"d": kept["d"]}
    if tag != "g":
        kept |= {name: given[name] for name in ("id", "href") if name in given and tag in ("path", "use", "clipPath")}
    for name in ("fill", "stroke"):
        if kept.get(name) in _OPACITY:
            kept |= {name: "currentColor", f"{name}-opacity": _OPACITY[kept[name]]}
    return {name: value for name, value in kept.items() if _DEFAULTS.get(name) != value}


def _group(hits: Sequence[Hit]) -> str:
    """Hits in the order in which arrow keys go through them."""
    return f'<g class="tlb-hits">{"".join(map(_rectangle, hits))}</g>' if hits else ""


def _rectangle(hit: Hit) -> str:
    place = f'x="{_short(hit.x)}" y="{_short(hit.y)}" width="{_short(hit.width)}" height="{_short(hit.height)}"'
    return f'<rect {place} fill="{hit.fill}"><title>{escape(_legal(hit.title))}</title></rect>'


def _legal(text: str) -> str:
    """Text that XML can hold: no control characters."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _short_numbers(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda found: _short(float(found[0])), re.sub(r"\s+", " ", text).strip())


def _short(value: Number) -> str:
    return f"{value + 0.0:.2f}".rstrip("0").rstrip(".") if abs(value) >= 0.005 else "0"
