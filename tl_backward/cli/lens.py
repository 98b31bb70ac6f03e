"""`tl-backward demo` and `tl-backward lens`."""

import argparse
import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from tl_backward.cli.generated import add_options
from tl_backward.cli.options import (
    Commands,
    add_model,
    add_output,
    check_out,
    open_page,
    quoted,
    say,
    size_of,
)
from tl_backward.lens.backward_lens import backward_lens
from tl_backward.lens.control import RandomInit

if TYPE_CHECKING:
    from tl_backward._support.types import TransformerLensModel
    from tl_backward.lens.lens_result import BackwardLens
    from tl_backward.render.page import Page

DEMO_LAYER, DEMO_SCALE = 2, 0.75  # what `tl-backward edits --model facts` chooses

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


def add_commands(commands: Commands) -> None:
    """`demo` and `lens`."""
    demo = commands.add_parser(
        "demo",
        help="the report of one edit on the model that ships (takes seconds, needs nothing)",
        description="Ask the shipped model of known facts where someone lives, and show what one step of\n"
        "training on another city would write into it, beside an untrained control.",
        epilog="examples:\n  tl-backward demo\n  tl-backward demo --out report.html --no-open",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_answer(demo)
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
    add_model(lens)
    _add_answer(lens)
    lens.set_defaults(run=_lens)


def _add_answer(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as one JSON object; a page is then written only with --out",
    )


def _add_question(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the model reads")
    parser.add_argument(
        "--target",
        required=True,
        metavar="TEXT",
        help="the new answer after it, usually with its leading space",
    )
    parser.add_argument("--subject", metavar="TEXT", help="part of the prompt whose tokens are averaged together")
    add_options(parser, backward_lens, "layers", "k", "attention")
    parser.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the same architecture with random weights beside it (default: yes)",
    )
    add_options(parser, RandomInit, "seed")


def _demo(arguments: argparse.Namespace) -> None:
    from tl_backward import zoo

    started = time.monotonic()
    out = check_out(arguments.out)
    with redirect_stdout(sys.stderr):
        model = zoo.load("facts")
        prompt, target = zoo.facts.example_edit()
        lens = _compute(model, prompt, target, subject="Anna Berg")
        path = None
        if arguments.out or not arguments.json:
            page = _page(lens, model, "facts")
            _add_edit(page, model, prompt, target)
            path = page.save(out).resolve()
    if arguments.json:
        _print_json(lens, "facts", prompt, target, path)
    else:
        _describe(lens, "facts", prompt, target)
        _written(path)
        say(f"in {time.monotonic() - started:.0f} s")
    if path is not None:
        open_page(path, arguments.no_open)


def _lens(arguments: argparse.Namespace) -> None:
    from tl_backward._support.checks import check_layers
    from tl_backward.model.loading import load

    out = check_out(arguments.out)
    # Nothing that another library prints may end up among the results.
    with redirect_stdout(sys.stderr):
        model = load(arguments.model, kind=arguments.kind, device=arguments.device, dtype=arguments.dtype)
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
    if not arguments.json:  # before the page, which takes longer
        _describe(lens, name, arguments.prompt, arguments.target)
    path = None
    if arguments.out or not arguments.json:
        with redirect_stdout(sys.stderr):
            path = _page(lens, model, name).save(out).resolve()
    if arguments.json:
        _print_json(lens, arguments.model, arguments.prompt, arguments.target, path)
    else:
        _written(path)
    if path is not None:
        open_page(path, arguments.no_open)


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
    from tl_backward.lens.patterns import pattern_names

    return backward_lens(
        model,
        prompt,
        target,
        layers=layers,
        k=k,
        subject=subject,
        attention=attention,
        control=RandomInit(seed=seed) if control else None,
        names_filter=pattern_names(model),
    )


def _describe(lens: "BackwardLens", name: str, prompt: str, target: str) -> None:
    from tl_backward.render.key_figures import PromptView, key_figures

    view = PromptView(lens)
    first = "" if target == view.target else f", of which the first token is {quoted(view.target)}"
    already = " already" if view.target == view.answer else ""
    say(f"{name}: {quoted(prompt)} -> {quoted(target)}{first}; the model says {quoted(view.answer)}{already}")
    rows = [("", "", "") if lens.control is None else ("", "model", "untrained control")]
    rows += [(each.name, each.value, each.control) for each in key_figures(view)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        say("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _page(lens: "BackwardLens", model: "TransformerLensModel", name: str) -> "Page":
    from tl_backward.render.report import lens_report

    return lens_report(lens, model, name=name)


def _add_edit(page: "Page", model: "TransformerLensModel", prompt: str, target: str) -> None:
    """What comes of it: the target shifted in with one forward pass, at the setting that `edits` chooses."""
    from tl_backward.editing import SCALES, edit_effect, shift_edit, shift_probabilities
    from tl_backward.render.edit_report import add_edit

    effect = edit_effect(model, shift_edit(model, prompt, target, DEMO_LAYER, DEMO_SCALE), prompt, k=5)
    cells = shift_probabilities(model, prompt, target)
    how = f"W_out of layer {DEMO_LAYER} with scale {DEMO_SCALE:g}"
    add_edit(page, effect, how=how, cells=cells, layers=range(model.cfg.n_layers), scales=SCALES)


def _print_json(lens: "BackwardLens", model: str, prompt: str, target: str, report: Path | None) -> None:
    from tl_backward.render.key_figures import PromptView
    from tl_backward.render.lens_data import lens_data

    asked = {"model": model, "prompt": prompt, "target": target}
    print(json.dumps(asked | lens_data(PromptView(lens)) | {"report": report and str(report)}, allow_nan=False))


def _written(path: Path | None) -> None:
    if path is not None:
        say(f"report: {path} ({size_of(path)})")
