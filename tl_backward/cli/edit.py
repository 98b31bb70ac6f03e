"""`tl-backward edit` and `tl-backward edits`."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from tl_backward.cli.options import (
    Commands,
    add_model,
    add_output,
    check_out,
    layers,
    open_page,
    positive,
    quoted,
    say,
    size_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tl_backward._support.types import TransformerLensModel
    from tl_backward.editing import Edit, EditEffect, LayerGrid
    from tl_backward.text.cases import EditCase

DEFAULT_SCALE, DEFAULT_LR = 0.8, 0.005
_OF_METHOD = {"shift": ("layer", "scale", "scaling"), "gradient": ("lr", "steps")}

_EDIT_EXAMPLES = """examples:
  the shift of one layer, what it changes, and the whole layer x scale grid, as a page:
    tl-backward edit --model facts --prompt "Anna Berg lives in the city of" --target " Oslo" --layer 2
  the layer and scale chosen on other edits (those of the shipped model, or --cases FILE):
    tl-backward edit --model facts --prompt "Anna Berg lives in the city of" --target " Oslo"
  one gradient step instead, kept as a file for tl_backward.load_edit:
    tl-backward edit --model ./my-llama --prompt "Once upon a time" --target " lived" \\
        --method gradient --lr 0.01 --save lived.safetensors"""

_EDITS_EXAMPLES = """examples:
  the table of the README: settings chosen on 40 edits, scores on 100 others:
    tl-backward edits --model facts
  CounterFact, or JSONL or CSV of your own, with your model; the first 20 cases choose:
    tl-backward edits --model gpt2 --cases counterfact.json --n-validation 20 --n-test 50 --scales 5,10,20,40"""


def add_commands(commands: Commands) -> None:
    """`edit` and `edits`."""
    edit = commands.add_parser(
        "edit",
        help="write one new answer into the weights, and see what else it changes",
        description="Edit MODEL so that it says TARGET after PROMPT: the forward-pass shift of one layer's W_out\n"
        "(Katz et al. 2024, sec. 7), or plain gradient steps. Nothing is written to the model's own files.",
        epilog=_EDIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    edit.add_argument("--prompt", required=True, metavar="TEXT", help="what the model reads")
    edit.add_argument("--target", required=True, metavar="TEXT", help="the new answer, usually with its leading space")
    add_model(edit)
    edit.add_argument("--method", choices=("shift", "gradient"), default="shift", help="(default: shift)")
    edit.add_argument(
        "--layer", type=int, metavar="N", help="of the shift (default: chosen on the validation edits, with the scale)"
    )
    edit.add_argument(
        "--scale", type=float, metavar="X", help=f"of the shift (default: {DEFAULT_SCALE}, or chosen with the layer)"
    )
    edit.add_argument(
        "--scaling",
        choices=("unit", "raw"),
        help="of the shift: unit-normalised factors, or the paper's raw ones (default: unit)",
    )
    edit.add_argument("--lr", type=float, metavar="X", help=f"of the gradient steps (default: {DEFAULT_LR})")
    edit.add_argument("--steps", type=positive, metavar="N", help="gradient steps (default: 1)")
    edit.add_argument(
        "--cases", metavar="FILE", help="validation edits to choose the layer on (.json CounterFact, .jsonl, .csv)"
    )
    edit.add_argument("--save", metavar="FILE", help="write the edit's factors here (safetensors)")
    edit.add_argument("--k", type=positive, default=10, metavar="N", help="tokens before and after (default: 10)")
    add_output(edit)
    edit.add_argument(
        "--json", action="store_true", help="print the results as one JSON object; a page only with --out"
    )
    edit.set_defaults(run=_edit)
    edits = commands.add_parser(
        "edits",
        help="compare ways to edit: shift, gradient steps and none, on the same cases",
        description="Choose each method's settings on some edits and score them on others: one table with 95 %\n"
        "bootstrap intervals.",
        epilog=_EDITS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(edits)
    edits.add_argument("--cases", metavar="FILE", help="edits (default: those of the shipped model)")
    edits.add_argument("--n-validation", type=positive, default=40, metavar="N", help="that choose (default: 40)")
    edits.add_argument("--n-test", type=positive, default=100, metavar="N", help="that are scored (default: 100)")
    edits.add_argument("--layers", type=layers, metavar="LIST", help="of the shift to try (default: all)")
    edits.add_argument("--scales", type=_numbers, metavar="LIST", help="of the shift to try")
    edits.add_argument("--lrs", type=_numbers, metavar="LIST", help="of the gradient steps to try")
    edits.add_argument("--steps", type=positive, default=5, metavar="N", help="of the longer descent (default: 5)")
    edits.add_argument("--out", metavar="FILE", help="write the table as a page too")
    edits.add_argument("--no-open", action="store_true", help="do not open the page in the browser")
    edits.add_argument("--json", action="store_true", help="print every score as one JSON object")
    edits.set_defaults(run=_edits)


def _edit(arguments: argparse.Namespace) -> None:
    from tl_backward.editing import edit_effect, evaluate_edit
    from tl_backward.model.loading import load
    from tl_backward.render.edit_report import edit_report

    out = check_out(arguments.out)
    _settle_method(arguments)
    with redirect_stdout(sys.stderr):
        model = load(arguments.model, kind=arguments.kind, device=arguments.device, dtype=arguments.dtype)
        grid = _chosen_grid(model, arguments)
        edit, how = _made(model, arguments, grid)
        effect = edit_effect(model, edit, arguments.prompt, k=min(arguments.k, model.W_U.shape[1]))
        case = _own_case(arguments)
        scores = None if case is None else (evaluate_edit(model, None, case), evaluate_edit(model, edit, case))
        saved = None if arguments.save is None else edit.save(arguments.save)
        report = None
        if arguments.out or not arguments.json:
            cells, rows, scales = _own_cells(model, arguments, grid)
            page = edit_report(
                effect,
                target=arguments.target,
                how=how,
                cells=cells,
                layers=rows,
                scales=scales,
                grid=grid,
                scores=scores,
                name=Path(arguments.model).name or arguments.model,
            )
            report = page.save(out).resolve()
    if arguments.json:
        data = {name: getattr(arguments, name) for name in ("model", "prompt", "target")}
        data |= {"edit": edit.how, "tokens": effect.to_frame().to_dict("records")}
        data |= {"scores": None if scores is None else _finite(vars(scores[1]))}
        data |= {"saved": saved and str(saved), "report": report and str(report)}
        print(json.dumps(data, allow_nan=False))
    else:
        say(f"{quoted(arguments.prompt)} -> {quoted(arguments.target)}: {how}")
        frame = effect.to_frame().head(5)
        for token, before, after in zip(frame["token"], frame["before"], frame["after"], strict=True):
            say(f"  {quoted(token):<24}  {before:.3f} -> {after:.3f}")
        first, word = _first_token(model, arguments.target, effect)
        if word not in frame["token"].tolist():
            say(f"  {quoted(word):<24}  {float(effect.before[first]):.3f} -> {float(effect.after[first]):.3f}")
        for note in _what_it_says(model, arguments, effect):
            say(f"  note: {note}")
        if scores is not None:
            known = {name: value for name, value in _finite(vars(scores[1])).items() if value is not None}
            say("  " + ", ".join(f"{name} {value:.2f}" for name, value in known.items()))
        for what, path in (("edit", saved), ("report", report)):
            if path is not None:
                say(f"{what}: {path} ({size_of(path)})")
    if report is not None:
        open_page(report, arguments.no_open)


def _settle_method(arguments: argparse.Namespace) -> None:
    """Refuse the other method's options, and set what was left open of this one's."""
    for method, options in _OF_METHOD.items():
        given = [f"--{name}" for name in options if getattr(arguments, name) is not None]
        if given and method != arguments.method:
            raise ValueError(
                f"Expected {', '.join(given)} with --method {method} alone, got --method {arguments.method}; leave out "
                "one or the other."
            )
    arguments.scaling = arguments.scaling or "unit"
    arguments.lr = DEFAULT_LR if arguments.lr is None else arguments.lr
    arguments.steps = arguments.steps or 1


def _first_token(model: "TransformerLensModel", target: str, effect: "EditEffect") -> tuple[int, str]:
    """The id and the word of a target's first token."""
    from tl_backward.text.encoding import encode_continuation
    from tl_backward.text.token_strings import token_string

    first = encode_continuation(model, target)[0]
    return first, token_string(effect.tokenizer, first)


def _what_it_says(model: "TransformerLensModel", arguments: argparse.Namespace, effect: "EditEffect") -> Iterator[str]:
    """What else a reader of the probabilities has to know."""
    from tl_backward.text.encoding import encode_continuation

    first, word = _first_token(model, arguments.target, effect)
    if len(encode_continuation(model, arguments.target)) > 1:
        yield f"of the target, {quoted(word)} is the first token: probabilities are its own"
    if int(effect.top_after[0]) != first:
        more = "scale or another layer" if arguments.method == "shift" else "--lr or more --steps"
        yield f"the target is still not the most likely; try a larger {more}"


def _chosen_grid(model: "TransformerLensModel", arguments: argparse.Namespace) -> "LayerGrid | None":
    """The layer x scale grid on validation edits, where the layer is left to be chosen."""
    from tl_backward.editing import SCALES, find_layer

    if arguments.method != "shift" or arguments.layer is not None:
        return None
    scales = SCALES if arguments.scale is None else (arguments.scale,)
    asked = (arguments.prompt, arguments.target)
    return find_layer(model, *asked, validation=_cases(arguments, 40, 0)[0], scales=scales, scaling=arguments.scaling)


def _made(model: "TransformerLensModel", arguments: argparse.Namespace, grid: "LayerGrid | None") -> tuple["Edit", str]:
    """The edit that was asked for, and how it was made in words."""
    from tl_backward.editing import gradient_edit, shift_edit

    asked = (arguments.prompt, arguments.target)
    if arguments.method == "gradient":
        edit = gradient_edit(model, *asked, lr=arguments.lr, steps=arguments.steps)
        steps = "one gradient step" if arguments.steps == 1 else f"{arguments.steps} gradient steps"
        return edit, f"{steps} on every {_short_names(edit)}, learning rate {arguments.lr:g}"
    layer, scale = grid.best if grid is not None else (arguments.layer, arguments.scale or DEFAULT_SCALE)
    edit = shift_edit(model, *asked, layer, scale, scaling=arguments.scaling)
    chosen = "" if grid is None else f", chosen on {grid.n_validation} other edits"
    what = f"{_short_names(edit)} in layer {layer}"
    return edit, f"the shift of {what}, scale {scale:g} ({arguments.scaling} factors){chosen}"


def _short_names(edit: "Edit") -> str:
    """What an edit writes to, without layers."""
    return " and ".join(dict.fromkeys(name.rpartition(".")[2] for name in edit.updates))


def _own_cells(
    model: "TransformerLensModel", arguments: argparse.Namespace, grid: "LayerGrid | None"
) -> tuple["Tensor | None", range, list[float]]:
    """The edit's own probability in each layer and scale, where no grid has it already."""
    from tl_backward.editing import SCALES, shift_probabilities

    rows = range(model.cfg.n_layers)
    scales = sorted({*SCALES, arguments.scale or DEFAULT_SCALE})
    if grid is not None or arguments.method != "shift" or arguments.scaling != "unit":
        return None, rows, scales
    return shift_probabilities(model, arguments.prompt, arguments.target, scales=scales), rows, scales


def _own_case(arguments: argparse.Namespace) -> "EditCase | None":
    """What scores the edit, where it is one of the given cases'."""
    if arguments.cases is None:
        return None
    from tl_backward.text.cases import load_cases

    asked = (arguments.prompt, arguments.target)
    return next((case for case in load_cases(arguments.cases) if (case.prompt, case.target) == asked), None)


def _edits(arguments: argparse.Namespace) -> None:
    from tl_backward.editing import LRS, SCALES, compare_edits, tuned_methods
    from tl_backward.model.loading import load
    from tl_backward.render.edit_report import comparison_report

    out = None if arguments.out is None else check_out(arguments.out)
    with redirect_stdout(sys.stderr):
        validation, test = _cases(arguments, arguments.n_validation, arguments.n_test)
        model = load(arguments.model, kind=arguments.kind, device=arguments.device, dtype=arguments.dtype)
        methods = tuned_methods(
            model,
            validation,
            layers=arguments.layers,
            scales=arguments.scales or SCALES,
            lrs=arguments.lrs or LRS,
            steps=arguments.steps,
        )
        found = compare_edits(model, test, methods)
        name = Path(arguments.model).name or arguments.model
        report = None if out is None else comparison_report(found, name=name).save(out).resolve()
    if arguments.json:
        rows = [_finite(row) for row in found.to_frame().to_dict("records")]
        print(json.dumps({"model": arguments.model, "scores": rows, "report": report and str(report)}, allow_nan=False))
        return
    columns, rows = found.table()
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    say(f"{len(test)} edits, settings chosen on {len(validation)} others; means with 95 % bootstrap intervals")
    for row in (columns, *rows):
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if report is not None:
        say(f"report: {report} ({size_of(report)})")
        open_page(report, arguments.no_open)


def _cases(
    arguments: argparse.Namespace, n_validation: int, n_test: int
) -> tuple[Sequence["EditCase"], Sequence["EditCase"]]:
    """Edits to choose settings on, and others to score."""
    from tl_backward import zoo
    from tl_backward.text.cases import load_cases

    if arguments.cases is None:
        if arguments.model not in zoo.names():
            raise ValueError(
                f"Expected --cases FILE for a model of your own, got none for {arguments.model!r}; only the shipped "
                "models have edits of their own (with --layer, `edit` needs none)."
            )
        return zoo.edit_cases("validation")[:n_validation], zoo.edit_cases("test")[:n_test]
    asked = getattr(arguments, "prompt", None)
    cases = [case for case in load_cases(arguments.cases) if asked not in (case.prompt, *case.paraphrases)]
    if len(cases) < (2 if n_test else 1):
        wanted = "two or more edits" if n_test else "an edit of another prompt"
        why = "some choose settings, others are scored" if n_test else "it chooses the layer (or give --layer)"
        raise ValueError(f"Expected {wanted} in {arguments.cases!r}, got {len(cases) or 'none'}; {why}.")
    n_validation = min(n_validation, len(cases) - 1) if n_test else n_validation
    return cases[:n_validation], cases[n_validation : n_validation + n_test]


def _finite(values: Mapping[str, object]) -> dict[str, object]:
    """NaN, which JSON lacks, as None."""
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.5,1,2, got {text!r}") from error
