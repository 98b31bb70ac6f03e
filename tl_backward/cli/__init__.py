"""The command line: one module a command.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 bad input (one
sentence says what was expected), 2 bad usage, 130 interrupted.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import tl_backward
from tl_backward._support.checks import TrailingSpaceWarning, UnknownWordsWarning
from tl_backward._support.html import visible_text
from tl_backward.cli import compare, edit, invert, lens, params
from tl_backward.model.loading import LoadingWarning

COMMANDS = (lens, edit, params, compare, invert)

_EXAMPLES = """examples:
  tl-backward demo
  tl-backward lens --model facts --prompt "Anna Berg lives in the city of" --target " Oslo"
  tl-backward lens --model ./my-llama --prompt "Once upon a time" --target " there" --out there.html
  tl-backward lens --model gpt2 --prompt "The capital of France is" --target " Rome" --json | jq .loss
  tl-backward edit --model facts --prompt "Anna Berg lives in the city of" --target " Oslo" --layer 2
  tl-backward edits --model facts
  tl-backward params --model facts
  tl-backward compare --model-a ./run1 --model-b ./run2 --data texts.json
  tl-backward invert --model counting --prompt "vvzccvczvvvzvcvc|v:"

Run `tl-backward COMMAND --help` for a command's options."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line with `argv` (default: the process's own) and return its exit code.

    Raises:
        SystemExit: with code 2 on bad usage and 0 after --help and --version, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    try:
        # Other libraries' deprecations say nothing to the person at the terminal; what the model could not read does.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UnknownWordsWarning)
            warnings.simplefilter("always", TrailingSpaceWarning)
            warnings.simplefilter("always", LoadingWarning)
            warnings.showwarning = _noting_once()
            arguments.run(arguments)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; without this, Python complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, IndexError, RuntimeError, ImportError, OSError) as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        print(f"tl-backward: {visible_text(sentence)}", file=sys.stderr)
        return 1
    return 0


def _noting_once() -> Callable[..., None]:
    """A `warnings.showwarning` that prints each message once to standard error."""
    note = cache(lambda said: print(f"note: {visible_text(said)}", file=sys.stderr))
    return lambda message, *about: note(str(message))


class _Parser(argparse.ArgumentParser):
    """Argument parser that prints no control characters and adds a command's options only when that command runs.

    What options are generated from may be slow to import.
    """

    def __init__(self, *, add_options: Callable[[argparse.ArgumentParser], None] | None = None, **how: Any) -> None:
        super().__init__(**how)
        self._add_options = add_options

    def parse_known_args(self, *given: Any, **how: Any) -> Any:  # as argparse calls it, in every version
        if self._add_options is not None:
            self._add_options(self)
            self._add_options = None
        return super().parse_known_args(*given, **how)

    def error(self, message: str) -> NoReturn:
        super().error(visible_text(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tl-backward",
        description="What learning writes into a transformer: gradients read in words.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tl-backward {tl_backward.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_commands(commands)
    return parser
