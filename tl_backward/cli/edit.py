"""The commands `tl-backward edit` (make one edit) and `tl-backward edits` (compare ways to edit)."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import tl_backward as tlb
from tl_backward.cli.generated import add_options
from tl_backward.cli.options import (
    Answer,
    Commands,
    add_command,
    add_model,
    aligned,
    check_save,
    load_asked,
    name_of,
    positive,
    quoted,
    size_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tl_backward._support.types import TransformerLensModel
    from tl_backward.editing import Edit, EditEffect, EditScores, LayerGrid
    from tl_backward.render.page import Page
    from tl_backward.text.cases import EditCase

_NEIGHBOURS = 8  # tokens that a subject is replaced by
_HAS_EDITS = "facts"
"""The model that `tl_backward.zoo.edit_cases` are of."""
DEFAULT_SCALE, DEFAULT_LR = 0.75, 0.005
_OF_METHOD = {"shift": ("layer", "scale", "scaling"), "gradient": ("lr", "steps")}
_UNSET = dict.fromkeys([*_OF_METHOD["shift"], *_OF_METHOD["gradient"]])
_WORDS = {
    "layer": "of the shift (default: chosen with the scale, by trying every layer and scale on every validation edit)",
    "scale": f"of the shift (default: {DEFAULT_SCALE}, as chosen on facts, or chosen with the layer)",
    "scaling": "of the shift: unit-normalised factors, or the paper's raw ones (default: unit)",
    "lr": f"of the gradient steps (default: {DEFAULT_LR})",
    "steps": "gradient steps (default: 1)",
}

_EDIT_EXAMPLES = """  the shift of one layer, what it changes, and the whole layer x scale grid, as a page:
    tl-backward edit --model facts --prompt "Anna Berg lives in the city of" --target " Oslo" --layer 2
  the layer and scale chosen on other edits (those of the shipped model, or --cases FILE):
    tl-backward edit --model facts --prompt "Anna Berg lives in the city of" --target " Oslo"
  one gradient step instead, kept as a file for tl_backward.load_edit:
    tl-backward edit --model ./my-llama --prompt "Once upon a time" --target " lived" \\
        --method gradient --lr 0.01 --save lived.safetensors"""

_EDITS_EXAMPLES = """  the table of the README: settings chosen on 40 edits, scores on 100 others:
    tl-backward edits --model facts
  CounterFact, or JSONL or CSV of your own, with your model; the first 20 cases choose:
    tl-backward edits --model gpt2 --cases counterfact.json --n-validation 20 --n-test 50 --scales 5,10,20,40"""


def add_commands(commands: Commands) -> None:
    """Register the commands `edit` and `edits`."""
    add_command(
        commands, "edit", _edit, _add_edit_options,
        description="Edit MODEL so that it says TARGET after PROMPT: the forward-pass shift of one layer's W_out\n"
        "(Katz et al. 2024, sec. 7), or plain gradient steps. Nothing is written to the model's own files.",
        examples=_EDIT_EXAMPLES,
        json="print the results as one JSON object; a page only with --out",
    )  # fmt: skip
    add_command(
        commands, "edits", _edits, _add_edits_options,
        description="Choose each method's settings on some edits and score them on others: one table with 95 %\n"
        "bootstrap intervals.",
        examples=_EDITS_EXAMPLES,
        json="print every score as one JSON object",
        out="write the table as a page too",
        paged=False,
    )  # fmt: skip


def _add_edit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the model reads")
    parser.add_argument(
        "--target", required=True, metavar="TEXT", help="the new answer, usually with its leading space"
    )
    add_model(parser)
    parser.add_argument("--method", choices=list(_OF_METHOD), default="shift", help="(default: shift)")
    for method, names in _OF_METHOD.items():
        add_options(parser, f"tl_backward.editing.methods.{method}_edit", *names, words=_WORDS, **_UNSET)
    parser.add_argument(
        "--cases", metavar="FILE", help="validation edits to choose the layer on (.json CounterFact, .jsonl, .csv)"
    )
    parser.add_argument(
        "--also", action="append", default=[], metavar="TEXT", help="another prompt to try; may be repeated"
    )
    parser.add_argument(
        "--subject",
        metavar="TEXT",
        help=f"part of the prompt: also try the prompt with its {_NEIGHBOURS} nearest tokens instead",
    )
    parser.add_argument("--save", metavar="FILE", help="write the edit's factors here (safetensors)")
    parser.add_argument("--k", type=positive, default=10, metavar="N", help="tokens before and after (default: 10)")


def _add_edits_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--cases", metavar="FILE", help="edits (default: those of the shipped model)")
    parser.add_argument("--n-validation", type=positive, default=40, metavar="N", help="that choose (default: 40)")
    parser.add_argument("--n-test", type=positive, default=100, metavar="N", help="that are scored (default: 100)")
    words = {
        "layers": "of the shift to try (default: all)",
        "scales": "of the shift to try",
        "lrs": "of the gradient steps to try",
        "steps": "of the longer descent",
    }
    add_options(parser, "tl_backward.editing.comparison.tuned_methods", *words, words=words, scales=None, lrs=None)


def _edit(arguments: argparse.Namespace) -> Answer:
    _settle_method(arguments)
    kept = check_save(arguments, "the edit")
    chooses = arguments.method == "shift" and arguments.layer is None
    # Refused before the model is loaded.
    validation, case = _cases(arguments, 40, 0)[0] if chooses else (), _own_case(arguments)
    model = load_asked(arguments)
    grid = _chosen_grid(model, arguments, validation) if chooses else None
    edit, how = _made(model, arguments, grid)
    k = min(arguments.k, model.W_U.shape[1])
    effect = tlb.editing.edit_effect(model, edit, arguments.prompt, k=k)
    asked = (model, arguments.prompt)
    near = tlb.editing.neighbour_prompts(*asked, arguments.subject, k=_NEIGHBOURS) if arguments.subject else []
    others = [tlb.editing.edit_effect(model, edit, prompt, k=k) for prompt in (*arguments.also, *near)]
    scores = None if case is None else (tlb.evaluate_edit(model, None, case), tlb.evaluate_edit(model, edit, case))
    saved = None if kept is None else edit.save(kept)

    def page() -> "Page":
        from tl_backward.render.edit_page import edit_report

        scales = sorted({*tlb.editing.SCALES, _scale(arguments)})
        own = (
            grid is None and arguments.method == "shift" and arguments.scaling == "unit"
        )  # where no grid has the cells already
        cells = tlb.editing.shift_probabilities(*asked, arguments.target, scales=scales) if own else None
        chosen = (arguments.layer % model.cfg.n_layers, _scale(arguments)) if own else None
        return edit_report(
            effect, target=arguments.target, how=how, cells=cells, layers=range(model.cfg.n_layers), scales=scales,
            grid=grid, scores=scores, chosen=chosen, others=others, name=name_of(arguments.model),
        )  # fmt: skip

    return Answer(
        lambda: _edit_lines(model, arguments, how, effect, others, scores, saved),
        lambda: {
            **{name: getattr(arguments, name) for name in ("model", "prompt", "target")},
            "summary": effect.summary(others),
            "edit": edit.how,
            "tokens": effect.to_frame().to_dict("records"),
            "scores": None if scores is None else vars(scores[1]),
            "others": [each.summary() for each in others],
            "saved": saved and str(saved),
        },
        page,
    )


def _edit_lines(
    model: "TransformerLensModel",
    arguments: argparse.Namespace,
    how: str,
    effect: "EditEffect",
    others: "Sequence[EditEffect]",
    scores: "tuple[EditScores, EditScores] | None",
    saved: "Path | None",
) -> Iterator[str]:
    """Lines of text: probabilities before and after the edit, its scores, and notes on how to interpret them."""
    from tl_backward._support.csv import finite
    from tl_backward.text.encoding import encode_continuation
    from tl_backward.text.token_strings import token_string

    yield effect.summary(others)
    yield f"{quoted(arguments.prompt)} -> {quoted(arguments.target)}: {how}"
    first, *rest = encode_continuation(model, arguments.target)
    word = token_string(effect.tokenizer, first)
    rows = effect.to_frame()[["token", "before", "after"]].values.tolist()[:5]
    if word not in [token for token, *_ in rows]:
        rows.append([word, float(effect.before[first]), float(effect.after[first])])
    yield from (f"  {quoted(token):<24}  {before:.3f} -> {after:.3f}" for token, before, after in rows)
    if rest:
        yield f"  note: of the target, {quoted(word)} is the first token: probabilities are its own"
    if int(effect.top_after[0]) != first:
        more = "scale or another layer" if arguments.method == "shift" else "--lr or more --steps"
        yield f"  note: the target is still not the most likely; try a larger {more}"
    if others:
        for each in others:
            old, new = (token_string(each.tokenizer, token) for token in each.answers())
            yield f"  {quoted(each.prompt)}: {quoted(old)}" + ("" if old == new else f" -> {quoted(new)}")
    else:
        yield "  note: --also PROMPT and --subject TEXT show what else it changes"
    if scores is not None:
        known = {name: value for name, value in finite(vars(scores[1])).items() if value is not None}
        yield "  " + ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    if saved is not None:
        yield f"edit: {saved} ({size_of(saved)})"


def _settle_method(arguments: argparse.Namespace) -> None:
    """Refuse options of the method that was not chosen, and set defaults for those of the chosen one."""
    for method, options in _OF_METHOD.items():
        given = [f"--{name}" for name in options if getattr(arguments, name) is not None]
        if given and method != arguments.method:
            raise ValueError(
                f"Expected {', '.join(given)} with --method {method} alone, got --method {arguments.method}; leave out "
                "one or the other."
            )
    arguments.scaling = arguments.scaling or "unit"
    arguments.lr = DEFAULT_LR if arguments.lr is None else arguments.lr
    arguments.steps = 1 if arguments.steps is None else arguments.steps
    if arguments.scaling == "raw" and arguments.layer is not None and arguments.scale is None:
        raise ValueError("Expected --scale with raw factors, whose size every model has its own, got none; name one.")


def _chosen_grid(
    model: "TransformerLensModel", arguments: argparse.Namespace, validation: "Sequence[EditCase]"
) -> "LayerGrid":
    """The layer x scale grid scored on validation edits."""
    scales = tlb.editing.SCALES if arguments.scale is None else (arguments.scale,)
    asked = (arguments.prompt, arguments.target)
    return tlb.find_layer(model, *asked, validation=validation, scales=scales, scaling=arguments.scaling)


def _made(model: "TransformerLensModel", arguments: argparse.Namespace, grid: "LayerGrid | None") -> tuple["Edit", str]:
    """Make the edit; returns it with a description in words."""
    asked = (arguments.prompt, arguments.target)
    if arguments.method == "gradient":
        edit = tlb.gradient_edit(model, *asked, lr=arguments.lr, steps=arguments.steps)
        steps = "one gradient step" if arguments.steps == 1 else f"{arguments.steps} gradient steps"
        return edit, f"{steps} on every {_short_names(edit)}, learning rate {arguments.lr:g}"
    layer, scale = grid.best if grid is not None else (arguments.layer, _scale(arguments))
    edit = tlb.shift_edit(model, *asked, layer, scale, scaling=arguments.scaling)
    chosen = "" if grid is None else f", chosen on {grid.n_validation} other edits"
    what = f"{_short_names(edit)} in layer {layer}"
    return edit, f"the shift of {what}, scale {scale:g} ({arguments.scaling} factors){chosen}"


def _scale(arguments: argparse.Namespace) -> float:
    return DEFAULT_SCALE if arguments.scale is None else arguments.scale


def _short_names(edit: "Edit") -> str:
    """Names of the edited weights without their layers, joined by "and"."""
    return " and ".join(dict.fromkeys(name.rpartition(".")[2] for name in edit.updates))


def _own_case(arguments: argparse.Namespace) -> "EditCase | None":
    """The given case with this prompt and target, whose prompts score the edit; None where there is none."""
    asked = (arguments.prompt, arguments.target)
    cases = () if arguments.cases is None else tlb.load_cases(arguments.cases)
    return next((case for case in cases if (case.prompt, case.target) == asked), None)


def _edits(arguments: argparse.Namespace) -> Answer:
    from tl_backward.render.edit_page import comparison_report

    validation, test = _cases(arguments, arguments.n_validation, arguments.n_test)
    model = load_asked(arguments)
    methods = tlb.editing.tuned_methods(
        model,
        validation,
        layers=arguments.layers,
        scales=arguments.scales or tlb.editing.SCALES,
        lrs=arguments.lrs or tlb.editing.LRS,
        steps=arguments.steps,
    )
    comparison = tlb.compare_edits(model, test, methods)
    columns, rows = comparison.table()
    head = f"{len(test)} edits, settings chosen on {len(validation)} others; means with 95 % bootstrap intervals"
    return Answer(
        lambda: [comparison.summary(), head, *aligned([columns, *rows])],
        lambda: {
            "model": arguments.model,
            "summary": comparison.summary(),
            "scores": comparison.to_frame().to_dict("records"),
        },
        lambda: comparison_report(comparison, name=name_of(arguments.model)),
    )


def _cases(
    arguments: argparse.Namespace, n_validation: int, n_test: int
) -> tuple[Sequence["EditCase"], Sequence["EditCase"]]:
    """(validation, test): cases to choose settings on, and others to score."""
    if arguments.cases is None:
        if arguments.model != _HAS_EDITS:
            whose = "for this model" if arguments.model in tlb.zoo.names() else "for a model of your own"
            raise ValueError(
                f"Expected --cases FILE {whose}, got none for {arguments.model!r}; only {_HAS_EDITS!r} has edits of "
                "its own (with --layer, `edit` needs none)."
            )
        return tlb.zoo.edit_cases("validation")[:n_validation], tlb.zoo.edit_cases("test")[:n_test]
    asked = getattr(arguments, "prompt", None)
    cases = [case for case in tlb.load_cases(arguments.cases) if asked not in (case.prompt, *case.paraphrases)]
    if len(cases) < (2 if n_test else 1):
        wanted = "two or more edits" if n_test else "an edit of another prompt"
        why = "some choose settings, others are scored" if n_test else "it chooses the layer (or give --layer)"
        raise ValueError(f"Expected {wanted} in {arguments.cases!r}, got {len(cases) or 'none'}; {why}.")
    n_validation = min(n_validation, len(cases) - 1) if n_test else n_validation
    return cases[:n_validation], cases[n_validation : n_validation + n_test]
