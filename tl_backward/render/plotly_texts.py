"""Texts of plotly's figures as plain text: titles, hover templates, numbers on an axis."""

import functools
import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from tl_backward._support.html import Number

_POWERS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


@functools.lru_cache(maxsize=4096)
def plain_lines(text: str) -> list[str]:
    """The lines of a text of plotly's, unescaped, without the tags that others put into theirs."""
    if "<" not in text and "&" not in text:
        return [text]
    return [html.unescape(re.sub("<[^<>]*>", "", line)) for line in re.split(r"<br\s*/?>", text)]


def plain(text: object) -> str:
    """The same on one line."""
    return " ".join(plain_lines(str(text or "")))


def title_of(of: Mapping[str, Any]) -> str:
    """The title of a layout, an axis or a colour bar, as plotly has it."""
    title = of.get("title") or ""
    return title if isinstance(title, str) else str(title.get("text") or "")


def text_width(text: str, size: Number = 11) -> Number:
    """About how many pixels a text takes: a wide character as many as it is high, any other 0.58 of that."""
    return size * sum(1.0 if unicodedata.east_asian_width(char) in "WF" else 0.58 for char in text)


def number(value: Number, digits: int = 4) -> str:
    """A number on an axis; above ten thousand and below a thousandth with a power of ten."""
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e5:
        shown = f"{size:.{digits}g}" if size < 1e4 else f"{size:.0f}"
    else:
        mantissa, _, exponent = f"{size:.{digits - 2}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        power = "10" + str(int(exponent)).translate(_POWERS)
        shown = power if mantissa == "1" else f"{mantissa}\u00d7{power}"
    return ("\u2212" if value < 0 else "") + shown


def filler(template: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that fills a hover template of plotly's with a point's values, as plain text."""
    text = re.sub("<extra>.*?</extra>", "", template, flags=re.DOTALL)
    first, *rest = re.split(r"%\{(\w+)(?:\[(\d+)\])?(?::([^}]+))?\}", text)
    fixed = ["\n".join(plain_lines(part)) for part in (first, *rest[3::4])]
    places = [(rest[i], rest[i + 1], rest[i + 2]) for i in range(0, len(rest), 4)]

    def fill(values: Mapping[str, Any]) -> str:
        parts = [fixed[0]]
        for (name, index, spec), after in zip(places, fixed[1:], strict=True):
            value = values.get(name, "")
            value = value[int(index)] if index else value
            shown = format(float(value), spec) if spec else f"{value:g}" if isinstance(value, Number) else str(value)
            parts += ["\n".join(plain_lines(shown)), after]
        return "".join(parts)

    return fill
