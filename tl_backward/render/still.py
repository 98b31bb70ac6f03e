"""Inline SVG as images: what is left of it where scripts, styles and inline SVG are not."""

import base64
import re
from collections.abc import Mapping
from typing import Any

from tl_backward.render.picture import picture


def still(svg: str) -> str:
    """An inline SVG as a file of its own: opaque, because the page around it may be dark without telling it."""
    opening = svg[: svg.index(">")]
    bare = re.sub(r' (?:style|class|tabindex)="[^"]*"', "", opening)
    return f'{bare} style="background:#ffffff">{svg[len(opening) + 1 :]}'


def stills(html: str) -> str:
    """`html` with an image in place of every inline SVG."""
    return re.sub(r"<svg\b.*?</svg>", lambda found: _image(found[0]), html, flags=re.DOTALL)


def only_picture(html: str) -> str | None:
    """The SVG file, where `html` shows one and nothing else."""
    found = re.fullmatch(r"<div[^<>]*>(<svg\b(?:(?!</svg>).)*</svg>)</div>", html, flags=re.DOTALL)
    return still(found[1]) if found else None


def picture_output(drawing: Mapping[str, Any]) -> dict[str, str]:
    """A figure's picture as a part of a notebook's output."""
    return {"image/svg+xml": still(picture(drawing))}


def _image(svg: str) -> str:
    opening = svg[: svg.index(">")]
    label = re.search(r'aria-label="([^"]*)"', opening) or re.search(r"<title>([^<]*)</title>", svg)
    width = re.search(r' width="([\d.]+)"', opening)
    data = base64.b64encode(still(svg).encode("utf-8", "backslashreplace")).decode("ascii")
    size = f' width="{width[1]}"' if width else ""
    alt = f' alt="{label[1]}"' if label else ""
    return f'<img{alt}{size} style="max-width:100%;height:auto" src="data:image/svg+xml;base64,{data}">'
