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
from importlib import import_module
from typing import Any, NoReturn

import tl_backward

COMMANDS = {
    "demo": ("lens", "the report of one edit on the model that ships (takes seconds, needs nothing)"),
    "lens": ("lens", "the same for your model, prompt and target"),
    "edit": ("edit", "write one new answer into the weights, and see what else it changes"),
    "edits": ("edit", "compare ways to edit: shift, gradient steps and none, on the same cases"),
    "params": ("params", "the weights themselves in words, without any data"),
    "compare": ("compare", "whether two models compute the same thing, layer by layer"),
    "invert": ("invert", "what an activation knows: the inputs that give nearly the same one"),
    "watch": ("watch", "fine-tune a copy of a model on your cases, and see what that wrote"),
    "who": ("who", "which training examples would most write an answer, by a store of their gradients"),
}
"""Each command's module here, which is imported when the command is given, and its help on a line."""

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
  tl-backward watch --model facts --data cases.csv --steps 50
  tl-backward who --model facts --store who --data cases.csv --prompt "Anna Berg works as a" --target " baker"

Run `tl-backward COMMAND --help` for a command's options."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line with `argv` (default: the process's own) and return its exit code.

    Raises:
        SystemExit: with code 2 on bad usage and 0 after --help and --version, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    from tl_backward._support.checks import TrailingSpaceWarning, UnknownWordsWarning
    from tl_backward._support.html import visible_text
    from tl_backward.model.loading import LoadingWarning

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
    from tl_backward._support.html import visible_text

    note = cache(lambda said: print(f"note: {visible_text(said)}", file=sys.stderr))
    return lambda message, *about: note(str(message))


class _Parser(argparse.ArgumentParser):
    """Argument parser that prints no control characters; a command's imports its module once the command is given.

    Nothing that help says needs PyTorch, which takes seconds to import: modules import what they run in functions.
    """

    def __init__(self, *, command: str | None = None, **how: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **how)
        self._command = command

    def parse_known_args(self, *given: Any, **how: Any) -> Any:  # as argparse calls it, in every version
        if self._command is not None:
            name, self._command = self._command, None
            import_module(f"tl_backward.cli.{COMMANDS[name][0]}").add_commands({name: self})
        return super().parse_known_args(*given, **how)

    def error(self, message: str) -> NoReturn:
        from tl_backward._support.html import visible_text

        super().error(visible_text(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tl-backward",
        description="What learning writes into a transformer: gradients read in words.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"tl-backward {tl_backward.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (_, line) in COMMANDS.items():
        commands.add_parser(name, command=name, help=line)
    return parser
