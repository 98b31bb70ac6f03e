"""Data for scripts: JSON that cannot end its script element, and the call that draws it into its place."""

import json
from collections.abc import Mapping

from tl_backward._support.csv import finite
from tl_backward._support.storage import fingerprint

_UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def escape_json(text: str) -> str:
    r"""JSON text with ``< > &`` and U+2028, U+2029 as ``\uXXXX``: same value, no way out of a script."""
    return text.translate(_UNSAFE)


def to_json(value: Mapping[str, object]) -> str:
    """`value` as escaped JSON in pure ASCII (so lone surrogates survive); NaN and infinities become null."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:  # a number that JSON does not have
        text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"))
    return escape_json(text)


# Draws into every place of this key that is still empty of it, so that the same fragment may be shown twice; what is
# folded is drawn when it is opened, and nothing before the page has been painted once. In a notebook the output with
# the library can come later than this one: wait for it, then give up and leave the static picture.
_DRAW = """(function (key, library, data, draw) {
  var tries = 0;
  function folded(place) { return place.closest("details:not([open])"); }
  function attempt() {
    var places = Array.from(document.querySelectorAll('[data-tlb="' + key + '"]')).filter(function (place) {
      return !place.id;
    });
    places.filter(folded).forEach(function (place) {
      if (place.dataset.tlbWaits) { return; }
      place.dataset.tlbWaits = "1";
      place.closest("details:not([open])").addEventListener("toggle", function () {
        delete place.dataset.tlbWaits;
        attempt();
      }, {once: true});
    });
    places = places.filter(function (place) { return !folded(place); });
    if (!places.length) { return; }
    if (!window[library]) { if (++tries < 150) { setTimeout(attempt, 200); } return; }
    places.forEach(function (place) {
      window.tlbCount = (window.tlbCount || 0) + 1;
      place.id = "tlb-" + window.tlbCount;
      draw(place, data);
    });
  }
  requestAnimationFrame(function () { setTimeout(attempt, 0); });
})"""


def place_key(*parts: str) -> str:
    """Name the place where a fragment draws, by its content: the same input gives the same page."""
    return fingerprint("\0".join(parts))[:16]


def place(key: str, static: str, style: str = "") -> str:
    """Make the closed element that the script draws into; `static` is trusted HTML to show until then."""
    return f'<div data-tlb="{key}" style="{style}">{static}</div>'


def draw_script(key: str, library: str, data: str, body: str) -> str:
    """Make a script that runs trusted JavaScript `body` with ``place`` (the element) and ``data`` (JSON)."""
    return f'{_DRAW}("{key}", "{library}", {data}, function (place, data) {{ {body} }});'
