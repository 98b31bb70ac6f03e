"""Results that have a page: shown where one works, saved as a page where the name asks for one.

The pages are made in a room above (`tl_backward.render`), which is named here and loaded when it is used.
"""

import sys
import webbrowser
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

from tl_backward._support.checks import as_path
from tl_backward._support.html import PAGES
from tl_backward._support.saved import Saved


class Paged:
    """What has a page of its own."""

    _report: ClassVar[str]
    """The function of `tl_backward.render` that makes it."""

    def page(self, **options: object) -> Any:  # a `render.Page`
        """The result's page, a `render.Page`; options are those of its report."""
        return getattr(import_module("tl_backward.render"), self._report)(self, **options)

    def show(self, **options: object) -> Path | None:
        """Show the page: below the cell in a notebook, else in the browser, from a temporary file.

        Returns:
            The file; None in a notebook.
        """
        page = self.page(**options)
        if in_notebook():
            import_module("IPython.display").display(page)
            return None
        path = page.save(Path(mkdtemp(prefix="tl-backward-")) / f"{type(self).__name__}.html")
        webbrowser.open(path.as_uri())
        return path


class Shown(Paged, Saved):
    """A result with a page of its own, which is saved as one where the name asks for it."""

    def save(self, path: str | Path) -> Path:
        """Write all numbers and texts as safetensors, atomically; a page for people where `path` ends in .html."""
        return self.page().save(path) if names_page(path) else super().save(path)


def names_page(path: str | Path) -> bool:
    """Whether a file's name promises a page."""
    return as_path(path).suffix.lower() in PAGES


def check_no_page(path: str | Path, what: str, call: str) -> None:
    """Refuse to save as a page what has none by itself.

    Raises:
        ValueError: a name that promises a page; it says which `call` makes one.
    """
    if names_page(path):
        raise ValueError(
            f"Expected a name that ends in .safetensors, got {str(path)!r}; the page of {what} needs its model: {call}."
        )


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
