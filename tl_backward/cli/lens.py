"""The commands `tl-backward demo` and `tl-backward lens`: the Backward Lens report of one prompt."""

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tl_backward as tlb
from tl_backward.cli.generated import add_options
from tl_backward.cli.options import Answer, Commands, add_command, add_model, aligned, load_asked, name_of, quoted

if TYPE_CHECKING:
    from tl_backward._support.types import TransformerLensModel
    from tl_backward.lens.lens_result import BackwardLens
    from tl_backward.render.page import Page

DEMO_LAYER, DEMO_SCALE = 2, 0.75  # what `tl-backward edits --model facts` chooses

_LENS_EXAMPLES = """  a model that ships, with its report opened in the browser:
    tl-backward lens --model facts --subject "Anna Berg" \\
        --prompt "Anna Berg lives in the city of" --target " Oslo"
  your own model's folder (as save_pretrained writes it), offline, two layers, attention's matrices too:
    tl-backward lens --model ./my-llama --prompt "Once upon a time" --target " there" \\
        --layers=0,-1 --attention --out there.html
  numbers for another program, no page:
    tl-backward lens --model gpt2 --prompt "The capital of France is" --target " Rome" --json \\
        | jq '.answer_position as $p | .shift[] | [.layer, .target_rank[$p]]'

With most tokenizers the target's leading space counts: " Oslo" and "Oslo" are different tokens."""
_JSON = "print the results as one JSON object; a page is then written only with --out"


def add_commands(commands: Commands) -> None:
    """Register the commands `demo` and `lens`."""
    add_command(
        commands, "demo", _demo, lambda parser: None,
        description="Ask the shipped model of known facts where someone lives, and show what one step of\n"
        "training on another city would write into it, beside an untrained control.",
        examples="  tl-backward demo\n  tl-backward demo --out report.html --no-open",
        json=_JSON,
    )  # fmt: skip
    add_command(
        commands, "lens", _lens, _add_options,
        description="Backward Lens (Katz et al. 2024): read in words what one gradient step on TARGET after\n"
        "PROMPT would write into each layer of MODEL, as one self-contained HTML page or as JSON.",
        examples=_LENS_EXAMPLES,
        json=_JSON,
    )  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the model reads")
    parser.add_argument(
        "--target",
        required=True,
        metavar="TEXT",
        help="the new answer after it, usually with its leading space",
    )
    parser.add_argument("--subject", metavar="TEXT", help="part of the prompt whose tokens are averaged together")
    add_options(parser, "tl_backward.lens.backward_lens.backward_lens", "layers", "k", "attention")
    parser.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the same architecture with random weights beside it (default: yes)",
    )
    add_options(parser, "tl_backward.lens.control.RandomInit", "seed")
    add_model(parser)


def _demo(arguments: argparse.Namespace) -> Answer:
    started = time.monotonic()
    model = tlb.zoo.load("facts")
    prompt, target = tlb.zoo.facts.example_edit()
    lens = _read(model, prompt, target, subject="Anna Berg", control=tlb.lens.RandomInit())
    return Answer(
        lambda: _described(lens, "facts", prompt, target),
        lambda: _data(lens, "facts", prompt, target),
        lambda: _with_edit(_page(lens, model, "facts"), model, prompt, target),
        last=lambda: [f"in {time.monotonic() - started:.0f} s"],
    )


def _lens(arguments: argparse.Namespace) -> Answer:
    from tl_backward._support.checks import check_layers

    model, asked = load_asked(arguments), (arguments.prompt, arguments.target)
    lens = _read(
        model,
        *asked,
        subject=arguments.subject,
        layers=sorted(check_layers(arguments.layers, model.cfg.n_layers)),
        k=arguments.k,
        attention=arguments.attention or bool(getattr(model.cfg, "attn_only", False)),
        control=tlb.lens.RandomInit(seed=arguments.seed) if arguments.control else None,
    )
    name = name_of(arguments.model)
    return Answer(
        lambda: _described(lens, name, *asked),
        lambda: _data(lens, arguments.model, *asked),
        lambda: _page(lens, model, name),
    )


def _read(model: "TransformerLensModel", prompt: str, target: str, **how: Any) -> "BackwardLens":
    from tl_backward.lens.patterns import pattern_names

    return tlb.backward_lens(model, prompt, target, names_filter=pattern_names(model), **how)


def _described(lens: "BackwardLens", name: str, prompt: str, target: str) -> Iterator[str]:
    from tl_backward.render.key_figures import PromptView, key_figures

    view = PromptView(lens)
    yield lens.summary()
    first = "" if target == view.target else f", of which the first token is {quoted(view.target)}"
    already = " already" if view.target == view.answer else ""
    yield f"{name}: {quoted(prompt)} -> {quoted(target)}{first}; the model says {quoted(view.answer)}{already}"
    n = len(view.draws)
    rows = [("", "", "") if not n else ("", "model", "untrained control" if n == 1 else f"{n} untrained networks")]
    rows += [(each.name, each.value, each.control) for each in key_figures(view)]
    yield from (f"  {line}".rstrip() for line in aligned(rows))


def _page(lens: "BackwardLens", model: "TransformerLensModel", name: str) -> "Page":
    from tl_backward.render.lens_page import lens_report

    return lens_report(lens, model, name=name)


def _with_edit(page: "Page", model: "TransformerLensModel", prompt: str, target: str) -> "Page":
    """Append the forward-pass shift of the target to the page, at the layer and scale that `edits` chooses."""
    from tl_backward.render.edit_page import add_edit

    effect = tlb.editing.edit_effect(model, tlb.shift_edit(model, prompt, target, DEMO_LAYER, DEMO_SCALE), prompt, k=5)
    cells = tlb.editing.shift_probabilities(model, prompt, target)
    add_edit(
        page,
        effect,
        how=f"W_out of layer {DEMO_LAYER} with scale {DEMO_SCALE:g}",
        cells=cells,
        layers=range(model.cfg.n_layers),
        scales=tlb.editing.SCALES,
    )
    return page


def _data(lens: "BackwardLens", model: str, prompt: str, target: str) -> Mapping[str, object]:
    from tl_backward.render.key_figures import PromptView, lens_data

    return {"model": model, "prompt": prompt, "target": target, **lens_data(PromptView(lens))}
