"""`tl-backward params`."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from tl_backward.cli.generated import add_options, options_from
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
from tl_backward.embedding_space.options import VectorOptions

_FILTERS = ("ascii", "alphanumeric", "not_special")

_EXAMPLES = """examples:
  the atlas of a model: all its matrices, the most coherent vectors first:
    tl-backward params --model facts
  every neuron's value of one layer in words:
    tl-backward params --model facts --weight W_out --layer 2 --out values.html
  what one head writes for what it attends to, as token pairs:
    tl-backward params --model gpt2 --weight W_O --layer 9 --head 6 --filter ascii
  numbers for another program, no page:
    tl-backward params --model facts --weight W_out --layer 2 --json | jq '.vectors[0].top_tokens'"""


def add_commands(commands: Commands) -> None:
    """`params`."""
    params = commands.add_parser(
        "params",
        help="the weights themselves in words, without any data",
        description="Read MODEL's parameters in embedding space (Dar et al. 2022): the tokens of every vector of\n"
        "WEIGHT, the most coherent first, beside Gaussian vectors; without --weight, an atlas of all matrices.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(params)
    params.add_argument(
        "--weight", metavar="NAME", help="by TransformerLens's name, such as W_out (default: the atlas)"
    )
    params.add_argument(
        "--layer", type=layers, metavar="LIST", help="of the weight, one; of the atlas, any (default: all)"
    )
    params.add_argument("--head", type=int, metavar="N", help="one attention head (default: all)")
    params.add_argument("--k", type=positive, default=10, metavar="N", help="tokens of each vector (default: 10)")
    params.add_argument(
        "--filter", action="append", choices=_FILTERS, default=[], help="tokens to consider; may be repeated"
    )
    add_options(params, VectorOptions, "inverse", "fold_ln")
    add_output(params)
    params.add_argument(
        "--json", action="store_true", help="print a weight's vectors as one JSON object; a page only with --out"
    )
    params.set_defaults(run=_params)


def _params(arguments: argparse.Namespace) -> None:
    from tl_backward.embedding_space import parameter_atlas, parameter_coherence, parameter_words
    from tl_backward.model.loading import load
    from tl_backward.render import atlas_page, words_page

    layer = _one_layer(arguments)
    out = check_out(arguments.out)
    name = Path(arguments.model).name or arguments.model
    with redirect_stdout(sys.stderr):
        model = load(arguments.model, kind=arguments.kind, device=arguments.device, dtype=arguments.dtype)
        how = options_from(arguments, VectorOptions, filters=arguments.filter)
        asked = (model, arguments.weight, layer)
        found = everything = page = None
        if arguments.weight is None:
            everything = parameter_atlas(model, layers=arguments.layer, k=arguments.k, vector_options=how)
            page = atlas_page(everything, name=name)
        elif arguments.out or not arguments.json:
            words = parameter_words(*asked, head=arguments.head, k=arguments.k, vector_options=how)
            found, page = words.coherence, words_page(words, name=name)
        else:
            found = parameter_coherence(*asked, head=arguments.head, k=arguments.k, vector_options=how)
        report = None if page is None else page.save(out).resolve()
    frame = None if found is None else found.to_frame()
    if arguments.json and frame is not None and found is not None:
        vectors = frame.astype(object).where(frame.notna(), None).to_dict("records")
        data = {"model": arguments.model, "weight": found.projection.weight, "side": found.projection.side}
        data |= {"gaussian_95": float(found.gaussian.quantile(0.95)), "vectors": vectors}
        print(json.dumps(data | {"report": report and str(report)}, allow_nan=False))
    elif found is not None:
        say(repr(found))
        best = found.order[:5].tolist()
        names, words = found.projection.vector_names(), found.projection.top_tokens
        for i in best:
            say(f"  {names[i]:>12}  {float(found.score[i]):.3f}  {' '.join(map(quoted, words[i][:6]))}")
    elif everything is not None:
        shown = list(everything.coherence)
        short, of = next((place for place in shown if place[0] == "W_out"), shown[0])
        command = f"--weight {short} --layer {of}"
        say(f"{name}: the atlas of its weights is a page; {command} prints one weight's words")
        if everything.left_out:
            say(everything.left_out)
    if report is not None:
        if not arguments.json:
            say(f"report: {report} ({size_of(report)})")
        open_page(report, arguments.no_open)


def _one_layer(arguments: argparse.Namespace) -> int | None:
    if arguments.weight is None:
        if arguments.head is not None or arguments.json:
            option = "--json" if arguments.json else "--head"
            raise ValueError(
                f"Expected --weight NAME with {option}, got {option} alone; name one, such as an MLP's "
                "W_out, with its --layer."
            )
        return None
    if arguments.layer is not None and len(arguments.layer) != 1:
        raise ValueError(f"Expected one --layer with --weight, got {arguments.layer}; the atlas takes several.")
    return None if arguments.layer is None else arguments.layer[0]
