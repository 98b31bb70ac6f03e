"""Shared by all commands: common options, how results are printed, and where the page is written."""

import argparse
import json
import os
import re
import sys
import webbrowser
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeAlias

from tl_backward.model.shipped import check_not_misspelt, names

if TYPE_CHECKING:
    from tl_backward._support.types import TransformerLensModel
    from tl_backward.render.page import Page

Commands: TypeAlias = Mapping[str, argparse.ArgumentParser]
"""The parsers of the commands that were given, by name; those of others are left as they are."""

DEFAULT_OUT = "tl-backward-COMMAND-MODEL.html"
_WEIGHTS = "Weights as they were trained, not processed as TransformerLens's from_pretrained does."
_INPUTS = ("data", "cases", "model", "model_a", "model_b", "store", "decoder")
"""Options, of any command, that name a file or folder which is read."""


@dataclass(frozen=True)
class Answer:
    """A command's result as text, JSON and page; each form is computed only when it is needed."""

    lines: Callable[[], Iterable[str]]
    """As text."""
    data: Callable[[], Mapping[str, object]]
    """As JSON."""
    page: Callable[[], "Page"] | None
    """None where none is wanted."""
    last: Callable[[], Iterable[str]] = tuple
    """What is said below all, once the page is written."""


def add_command(
    commands: Commands,
    name: str,
    answer: Callable[[argparse.Namespace], Answer],
    add_options: Callable[[argparse.ArgumentParser], None],
    *,
    description: str,
    examples: str,
    json: str = "print the numbers as one JSON object; a page with --out",
    out: str = f"where to write the page (default: {DEFAULT_OUT})",
    paged: bool = True,
) -> None:
    """Give a command its own options and those for its output, where it is the one that was given.

    Args:
        commands: whose parsers are wanted.
        name: what it is called by.
        answer: what it does.
        add_options: add its own options.
        description: what it does; on a line, `COMMANDS` says it.
        examples: below its options.
        json: what --json does.
        out: what --out does.
        paged: whether a page is written without --out too.
    """
    if name not in commands:
        return
    parser = commands[name]
    parser.description, parser.epilog = description, f"examples:\n{examples}"
    add_options(parser)
    parser.add_argument("--out", metavar="FILE", help=out)
    parser.add_argument("--no-open", action="store_true", help="do not open the page in the browser")
    parser.add_argument("--json", action="store_true", help=json)
    parser.set_defaults(run=partial(_run, answer), paged=paged, command=name)


def _run(answer: Callable[[argparse.Namespace], Answer], arguments: argparse.Namespace) -> None:
    """Run a command, print its result as text or JSON, and write and open the page where one is wanted."""
    from tl_backward._support.csv import finite

    arguments.paged = bool(arguments.out or (arguments.paged and not arguments.json))
    out = check_page(arguments.out or default_out(arguments), arguments) if arguments.paged else None
    # Nothing that another library prints may end up among the results.
    with redirect_stdout(sys.stderr):
        result = answer(arguments)
        lines = () if arguments.json else list(result.lines())
    say(*lines)  # before the page, which takes longer
    path = None
    if out is not None and result.page is not None:
        with redirect_stdout(sys.stderr):
            page = result.page()
            page.footer = f"{page.footer} {_WEIGHTS}".strip()
            path = page.save(out).resolve()
    if arguments.json:
        print(json.dumps(finite({**result.data(), "report": path and str(path)}), allow_nan=False))
    else:
        say(*([] if path is None else [f"report: {path} ({size_of(path)})"]), *result.last())
    if path is not None:
        _open_page(path, arguments.no_open)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options for the model, its device and its precision."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|DIR",
        help=f"a model that ships ({', '.join(names())}), a local Hugging Face folder (read offline), or "
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
    """Add the options for device and precision."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="PyTorch device, such as cuda (default: cpu)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float64", "bfloat16", "float16"),
        help="(default: float32)",
    )


def load_asked(arguments: argparse.Namespace, side: str = "") -> "TransformerLensModel":
    """Load the model named by the options of `add_model`; `side` is the suffix of those options ("_a", "_b")."""
    model, kind = (getattr(arguments, name + side) for name in ("model", "kind"))
    check_not_misspelt(model)  # which needs no PyTorch
    from tl_backward.model.loading import load

    return load(model, kind=kind, device=arguments.device, dtype=arguments.dtype)


def name_of(model: str) -> str:
    """A model's name for titles: the last part of a folder's path."""
    return Path(model).name or model


def layers(text: str) -> list[int]:
    """Parse layers such as "0,3", "4-7" or "-1"."""
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


def numbers(text: str) -> list[float]:
    """Parse numbers separated by commas, such as "0.5,1,2"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.5,1,2, got {text!r}") from error


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def default_out(arguments: argparse.Namespace) -> str:
    """The page's file where none is named: after the command and its models, so that one job leaves another's page."""
    models = (getattr(arguments, name, None) for name in ("model", "model_a", "model_b"))
    words = ["tl-backward", arguments.command, *(name_of(model) for model in models if model)]
    return "-".join(re.sub(r"[^\w.-]+", "_", word) for word in words) + ".html"


def check_page(out: str, arguments: argparse.Namespace) -> Path:
    """Path of the page, refused before the computation as by `check_out`.

    Raises:
        OSError: as there.
        ValueError: as there, or a name that promises no page.
    """
    from tl_backward._support.html import PAGES

    path = check_out(out, arguments, "--out", "the page")
    if path.suffix.lower() not in PAGES and not _is_special(path):
        raise ValueError(f"Expected --out to end in {' or '.join(PAGES)}, got {out!r}; name a new file for the page.")
    return path


def check_save(arguments: argparse.Namespace, what: str) -> Path | None:
    """Path of what --save keeps as safetensors, refused before the computation as by `check_out`; None without it.

    Raises:
        OSError: as there.
        ValueError: as there, or a name that promises another kind of file.
    """
    if arguments.save is None:
        return None
    from tl_backward._support.storage import OTHER_KINDS

    path = check_out(arguments.save, arguments, "--save", what)
    if path.suffix.lower() in OTHER_KINDS:
        raise ValueError(
            f"Expected --save to end in .safetensors, got {arguments.save!r}; the page is what --out names."
        )
    return path


def check_out(out: str, arguments: argparse.Namespace, option: str, what: str) -> Path:
    """Path of what is written; one that cannot be, or must not, is refused before the computation.

    Args:
        out: the path.
        arguments: whose input files stay as they are.
        option: that it was given with.
        what: is written there.

    Raises:
        OSError: a folder, one in no folder that exists, or where nothing may be written.
        ValueError: a file that the command reads.
    """
    path = Path(out)
    if path.is_dir():
        raise IsADirectoryError(
            f"Expected {option} to be a file to write {what} to, got the folder {str(path)!r}; name a file in it."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Expected {option} in a folder that exists, got {str(path)!r}; create {str(path.parent)!r} first."
        )
    for name in _INPUTS:
        if path.is_file() and _is_read(path, getattr(arguments, name, None)):
            raise ValueError(
                f"Expected {option} to be another file than those of --{name.replace('_', '-')}, got {out!r}, which "
                "would be lost; name a new one."
            )
    if not _is_special(path):
        check_folder(path.parent, option, out)
    return path


def _is_read(path: Path, given: str | None) -> bool:
    """Whether a file is the input that was given, or one of its folder, where no page is ever read."""
    from tl_backward._support.html import PAGES

    if given is None or not os.path.exists(given):
        return False
    inside = Path(given).resolve() in path.resolve().parents
    return os.path.samefile(given, path) or (inside and path.suffix.lower() not in PAGES)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe."""
    return path.exists() and not path.is_file()


def check_folder(folder: Path, option: str, given: str) -> None:
    """Refuse a folder in which no file can be made: permissions alone do not tell, of /proc for one.

    Raises:
        PermissionError: so it is.
    """
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PermissionError(
            f"Expected {option} in a folder that can be written to, got {given!r} ({error.strerror}); choose another."
        ) from error


def size_of(path: Path) -> str:
    """A file's size with its unit, kB or MB."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def quoted(text: str) -> str:
    """Text in quotes for a terminal: no control character of a token or prompt reaches it."""
    from tl_backward._support.html import visible_text

    return f'"{visible_text(text)}"'


def say(*lines: str) -> None:
    """Print lines of text with control characters escaped, so that no token or file name controls the terminal."""
    from tl_backward._support.html import visible_text

    for line in lines:
        print(visible_text(line))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _open_page(path: Path, no_open: bool) -> None:
    """Open the page in a browser, unless there is no display: a text browser would take over the terminal."""
    has_display = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if no_open or not has_display:
        return
    if not webbrowser.open(path.as_uri()):
        print("tl-backward: no browser could be started; open the page yourself.", file=sys.stderr)
