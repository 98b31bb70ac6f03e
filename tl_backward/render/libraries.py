"""The two JavaScript libraries, read from the installed wheels: never from a network, one copy per page."""

import functools
import importlib.util
import re
from pathlib import Path
from typing import Literal

Library = Literal["circuitsvis", "plotly"]
"""A library that a fragment can need."""

LIBRARIES: tuple[Library, ...] = ("circuitsvis", "plotly")


def inline(source: str) -> str:
    r"""Script source that can stand between ``<script>`` and ``</script>`` and be hashed.

    The HTML parser turns CR LF into LF before the browser hashes, and ends the element at ``</script``;
    after ``<!--`` a later ``<script`` would swallow its end tag. In JavaScript strings the backslash changes
    nothing.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    source = re.sub(r"</(script)", r"<\\/\1", source, flags=re.IGNORECASE)
    return source.replace("<!--", "<\\!--")


@functools.cache
def library_source(name: Library) -> str:
    """Read the library as one inline script that defines ``window.CircuitsVis`` or ``window.Plotly``.

    circuitsvis is run when it is first asked for: a page that folds its charts is there a third of a second earlier.
    """
    path = _package_folder(name) / _FILES[name]
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileNotFoundError(
            f"Expected the {name} bundle in the installed package ({_FILES[name]}), but could not read it: "
            f"{error.strerror}; reinstall {name}."
        ) from error
    # A browser's developer tools would fetch the source map.
    source = re.sub(r"^//# sourceMappingURL=.*$", "", source, flags=re.MULTILINE).strip()
    if name == "circuitsvis":
        return inline(
            f"(function () {{\nvar found;\nfunction run() {{\n{source}\nreturn CircuitsVis;\n}}\n{_WHEN_ASKED}}})();"
        )
    # In a page that has an AMD loader (the classic notebook) plotly would register there and set no global.
    return inline(f"(function (define, module, exports) {{\n{source}\n}}).call(window);")


_WHEN_ASKED = """Object.defineProperty(window, "CircuitsVis", {
  configurable: true, get: function () { return found || (found = run()); }
});
"""

_FILES: dict[Library, str] = {"circuitsvis": "dist/cdn/iife.js", "plotly": "package_data/plotly.min.js"}


def _package_folder(name: Library) -> Path:
    # find_spec does not import: circuitsvis would import torch, and plotly is slow.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"Drawing this needs the package {name!r}; install it with pip.")
    return Path(spec.origin).parent
