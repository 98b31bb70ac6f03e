"""Inline styles that a page repeats, said once as classes: they are most of the bytes of its tables."""

import re
from collections import Counter

_TAG = re.compile(r'<[a-z][^<>]* style="([^"]*)"[^<>]*>')
_STYLE = re.compile(r' style="[^"]*"')
_FEWEST = 3  # uses from which on a class is shorter
# Paper and scrollbars find what scrolls by its style.
_SCROLLS = re.compile(r"overflow(-[xy])?:")
_PLAIN = re.compile(r"[\w\s:;,.()#%+*/!-]+")
"""Says the same in a style sheet as in an attribute: neither an entity nor the end of a rule."""


def shared(html: str) -> tuple[str, str]:
    """CSS of the styles that `html` repeats, and `html` with their classes instead.

    What notebooks show keeps its inline styles, which is all that survives there: this is for a page's file alone.
    """
    uses = Counter(style for tag in _TAG.finditer(html) if (style := _movable(tag)))
    names = {style: f"s{i}" for i, style in enumerate(style for style, n in uses.items() if n >= _FEWEST)}

    def named(tag: re.Match[str]) -> str:
        name = names.get(_movable(tag))
        return tag[0] if name is None else _STYLE.sub(f' class="{name}"', tag[0], count=1)

    css = "".join(f".{name} {{ {style} }}\n" for style, name in names.items())
    return css, _TAG.sub(named, html)


def _movable(tag: re.Match[str]) -> str:
    """A tag's style; "" where it has a class of its own, is looked for by its style, or cannot be moved."""
    stays = ' class="' in tag[0] or _SCROLLS.search(tag[1]) or not _PLAIN.fullmatch(tag[1])
    return "" if stays else tag[1]
