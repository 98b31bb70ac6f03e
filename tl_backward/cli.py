"""The command line: `tl-backward demo` and `tl-backward lens`.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 bad input (one
sentence says what was expected), 2 bad usage, 130 interrupted.
"""

import argparse
import json
import os
import sys
import time
import warnings
import webbrowser
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from tl_backward._html import visible_text

if TYPE_CHECKING:
    from tl_backward._typing import TransformerLensModel
    from tl_backward.backward_lens import BackwardLens

DEFAULT_OUT = "tl-backward-report.html"

_EXAMPLES = """examples:
  tl-backward demo
  tl-backward lens --model facts --prompt "Anna Berg lives in the city of" --target " Oslo"
  tl-backward lens --model ./my-llama --prompt "Once upon a time" --target " there" --out there.html
  tl-backward lens --model gpt2 --prompt "The capital of France is" --target " Rome" --json | jq .loss

Run `tl-backward COMMAND --help` for a command's options."""

_LENS_EXAMPLES = """examples:
  a model that ships, with its report opened in the browser:
    tl-backward lens --model facts --subject "Anna Berg" \\
        --prompt "Anna Berg lives in the city of" --target " Oslo"
  your own model's folder (as save_pretrained writes it), offline, two layers, attention's matrices too:
    tl-backward lens --model ./my-llama --prompt "Once upon a time" --target " there" \\
        --layers=0,-1 --attention --out there.html
  numbers for another program, no page:
    tl-backward lens --model gpt2 --prompt "The capital of France is" --target " Rome" --json \\
        | jq '.answer_position as $p | .shift[] | [.layer, .target_rank[$p]]'

With most tokenizers the target's leading space counts: " Oslo" and "Oslo" are different tokens."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line with `argv` (default: the process's own) and return its exit code.

    Raises:
        SystemExit: with code 2 on bad usage and 0 after --help and --version, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    try:
        # Other libraries' deprecations say nothing to the person at the terminal.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments.run(arguments)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; without this, Python complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, IndexError, RuntimeError, ImportError, OSError) as error:
        print(f"tl-backward: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tl-backward",
        description="What learning writes into a transformer: gradients read in words.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tl-backward {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="the report of one edit on the model that ships (takes seconds, needs nothing)",
        description="Ask the shipped model of known facts where someone lives, and show what one step of\n"
        "training on another city would write into it, beside an untrained control.",
        epilog="examples:\n  tl-backward demo\n  tl-backward demo --out report.html --no-open",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_output(demo)
    demo.set_defaults(run=_demo)
    lens = commands.add_parser(
        "lens",
        help="the same for your model, prompt and target",
        description="Backward Lens (Katz et al. 2024): read in words what one gradient step on TARGET after\n"
        "PROMPT would write into each layer of MODEL, as one self-contained HTML page or as JSON.",
        epilog=_LENS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_question(lens)
    _add_model(lens)
    _add_output(lens)
    lens.add_argument(
        "--json",
        action="store_true",
        help="print the results as one JSON object; a page is then written only with --out",
    )
    lens.set_defaults(run=_lens)
    return parser


def _add_question(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the model reads")
    parser.add_argument(
        "--target",
        required=True,
        metavar="TEXT",
        help="the new answer after it, usually with its leading space",
    )
    parser.add_argument("--subject", metavar="TEXT", help="part of the prompt whose tokens are averaged together")
    parser.add_argument(
        "--layers",
        type=_layers,
        metavar="LIST",
        help="layers to read, such as 0,3 or 4-7, or =-1 for the last (default: all)",
    )
    parser.add_argument(
        "--k", type=_positive, default=10, metavar="N", help="top and bottom tokens to keep (default: 10)"
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="read attention's W_V and W_O too (always done for models without MLPs)",
    )
    parser.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the same architecture with random weights beside it (default: yes)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the control's weights (default: 0)")


def _add_model(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--device", default="cpu", metavar="NAME", help="PyTorch device, such as cuda (default: cpu)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float64", "bfloat16", "float16"),
        help="(default: float32)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help=f"where to write the page (default: {DEFAULT_OUT})")
    parser.add_argument("--no-open", action="store_true", help="do not open the page in the browser")


def _layers(text: str) -> list[int]:
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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _demo(arguments: argparse.Namespace) -> None:
    from tl_backward import zoo

    started = time.monotonic()
    out = _check_out(arguments.out)
    with redirect_stdout(sys.stderr):
        model = zoo.load("facts")
        prompt, target = zoo.facts.example_edit()
        lens = _compute(model, prompt, target, subject="Anna Berg")
    _describe(lens, "facts", prompt, target)
    _write(lens, model, "facts", out, open_it=not arguments.no_open)
    print(f"in {time.monotonic() - started:.0f} s")


def _lens(arguments: argparse.Namespace) -> None:
    from tl_backward._checks import check_layers
    from tl_backward.loading import load_model
    from tl_backward.render.key_figures import PromptView
    from tl_backward.render.lens_data import lens_data

    out = _check_out(arguments.out)
    # Nothing that another library prints may end up among the results.
    with redirect_stdout(sys.stderr):
        model = load_model(arguments.model, kind=arguments.kind, device=arguments.device, dtype=arguments.dtype)
        lens = _compute(
            model,
            arguments.prompt,
            arguments.target,
            subject=arguments.subject,
            layers=sorted(check_layers(arguments.layers, model.cfg.n_layers)),
            k=arguments.k,
            attention=arguments.attention or bool(getattr(model.cfg, "attn_only", False)),
            control=arguments.control,
            seed=arguments.seed,
        )
    name = Path(arguments.model).name or arguments.model
    if arguments.json:
        report = None if arguments.out is None else _save(lens, model, name, out)
        asked = {"model": arguments.model, "prompt": arguments.prompt, "target": arguments.target}
        data = asked | lens_data(PromptView(lens)) | {"report": None if report is None else str(report)}
        print(json.dumps(data, allow_nan=False))
        if report is not None:
            _open(report, arguments.no_open)
    else:
        _describe(lens, name, arguments.prompt, arguments.target)
        _write(lens, model, name, out, open_it=not arguments.no_open)


def _compute(
    model: "TransformerLensModel",
    prompt: str,
    target: str,
    *,
    subject: str | None = None,
    layers: list[int] | None = None,
    k: int = 10,
    attention: bool = False,
    control: bool = True,
    seed: int = 0,
) -> "BackwardLens":
    from tl_backward.backward_lens import backward_lens
    from tl_backward.render.attention_report import pattern_names

    return backward_lens(
        model,
        prompt,
        target,
        layers=layers,
        k=k,
        subject=subject,
        attention=attention,
        control="random_init" if control else None,
        seed=seed,
        names_filter=pattern_names(model),
    )


def _check_out(out: str | None) -> Path:
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


def _quoted(text: str) -> str:
    """Text for a terminal: no control character of a token or prompt reaches it."""
    return f'"{visible_text(text)}"'


def _describe(lens: "BackwardLens", name: str, prompt: str, target: str) -> None:
    from tl_backward.render.key_figures import PromptView, key_figures

    view = PromptView(lens)
    first = "" if target == view.target else f", of which the first token is {_quoted(view.target)}"
    print(f"{name}: {_quoted(prompt)} -> {_quoted(target)}{first}; the model says {_quoted(view.answer)}")
    rows = [("", "", "") if lens.control is None else ("", "model", "untrained control")]
    rows += [(each.name, each.value, each.control) for each in key_figures(view)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _write(lens: "BackwardLens", model: "TransformerLensModel", name: str, out: Path, *, open_it: bool) -> None:
    path = _save(lens, model, name, out)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    _open(path, not open_it)


def _save(lens: "BackwardLens", model: "TransformerLensModel", name: str, out: Path) -> Path:
    from tl_backward.render.report import lens_report

    with redirect_stdout(sys.stderr):
        return lens_report(lens, model, name=name).save(out).resolve()


def _open(path: Path, no_open: bool) -> None:
    """Open the page, unless there is no display, where a text browser would take the terminal over."""
    has_display = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if no_open or not has_display:
        return
    if not webbrowser.open(path.as_uri()):
        print("tl-backward: no browser could be started; open the page yourself.", file=sys.stderr)


def _version() -> str:
    try:
        return version("tl-backward")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
