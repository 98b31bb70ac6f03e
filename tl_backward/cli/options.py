"""What several commands share: their options, where a page goes, and how text is put on a terminal."""

import argparse
import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tl_backward._support.html import visible_text

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands: TypeAlias = object

DEFAULT_OUT = "tl-backward-report.html"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, where and in which precision."""
    from tl_backward import zoo

    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|DIR",
        help=f"a model that ships ({', '.join(zoo.names())}), a local Hugging Face folder (read offline), or "
        "a name that TransformerLens can load",
    )
    parser.add_argument(
        "--kind",
        choices=("hooked", "bridge"),
        help="HookedTransformer (TransformerLens 3 only) or TransformerBridge (default: bridge; for the "
        "models that ship, hooked where there is one)",
    )
    add_precision(parser)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """On which device and in which precision."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="PyTorch device, such as cuda (default: cpu)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float64", "bfloat16", "float16"),
        help="(default: float32)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where the page goes."""
    parser.add_argument("--out", metavar="FILE", help=f"where to write the page (default: {DEFAULT_OUT})")
    parser.add_argument("--no-open", action="store_true", help="do not open the page in the browser")


def layers(text: str) -> list[int]:
    """Layers from text such as "0,3", "4-7" or "-1"."""
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-") if not part.strip().startswith("-") else (part, "", "")
        try:
            layers += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected layers such as 0,3 or 4-7 or -1, got {text!r}") from error
    if not layers:
        raise argparse.ArgumentTypeError(f"expected at least one layer, got {text!r}")
    return layers


def positive(text: str) -> int:
    """A whole number of at least 1, from text."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def check_out(out: str | None) -> Path:
    """Where the page goes; refused before the work, not after it."""
    path = Path(out or DEFAULT_OUT)
    if path.is_dir():
        raise IsADirectoryError(
            f"Expected a file to write the page to, got the folder {str(path)!r}; name a file in it."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Expected --out in a folder that exists, got {str(path)!r}; create {str(path.parent)!r} first."
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"Expected --out in a folder that can be written to, got {str(path)!r}; choose another.")
    return path


def size_of(path: Path) -> str:
    """A file's size in words."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def quoted(text: str) -> str:
    """Text in quotes for a terminal: no control character of a token or prompt reaches it."""
    return f'"{visible_text(text)}"'


def say(*lines: str) -> None:
    """Print lines of text: nothing in a token, a prompt or a file's name can command the terminal."""
    for line in lines:
        print(visible_text(line))


def open_page(path: Path, no_open: bool) -> None:
    """Open the page, unless there is no display, where a text browser would take the terminal over."""
    has_display = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if no_open or not has_display:
        return
    if not webbrowser.open(path.as_uri()):
        print("tl-backward: no browser could be started; open the page yourself.", file=sys.stderr)
