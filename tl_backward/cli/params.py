"""The command `tl-backward params`: weights in words."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tl_backward.cli.generated import add_options, options_from
from tl_backward.cli.options import (
    Answer,
    Commands,
    add_command,
    add_model,
    layers,
    load_asked,
    name_of,
    positive,
    quoted,
)

if TYPE_CHECKING:
    from tl_backward._support.types import TransformerLensModel
    from tl_backward.embedding_space import Coherence, ParameterAtlas

_FILTERS = ("ascii", "alphanumeric", "not_special", "not_byte", "none")

_EXAMPLES = """  the atlas of a model: all its matrices, the most coherent vectors first:
    tl-backward params --model facts
  every neuron's value of one layer in words:
    tl-backward params --model facts --weight W_out --layer 2 --out values.html
  what one head writes for what it attends to, as token pairs:
    tl-backward params --model gpt2 --weight W_O --layer 9 --head 6 --filter ascii
  numbers for another program, no page:
    tl-backward params --model facts --weight W_out --layer 2 --json | jq '.vectors[0].top_tokens'"""


def add_commands(commands: Commands) -> None:
    """Register the command `params`."""
    add_command(
        commands, "params", _params, _add_options,
        description="Read MODEL's parameters in embedding space (Dar et al. 2022): the tokens of every vector of\n"
        "WEIGHT, the most coherent first, beside Gaussian vectors; without --weight, an atlas of all matrices.",
        examples=_EXAMPLES,
        json="print a weight's vectors as one JSON object; a page only with --out",
    )  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--weight", metavar="NAME", help="by TransformerLens's name, such as W_out (default: the atlas)"
    )
    parser.add_argument(
        "--layer", type=layers, metavar="LIST", help="of the weight, one; of the atlas, any (default: all)"
    )
    parser.add_argument("--head", type=int, metavar="N", help="one attention head (default: all)")
    parser.add_argument("--k", type=positive, default=10, metavar="N", help="tokens of each vector (default: 10)")
    parser.add_argument(
        "--filter",
        action="append",
        choices=_FILTERS,
        default=[],
        help="tokens to consider; may be repeated (default: none, but of a vocabulary with single bytes not_byte and "
        "not_special)",
    )
    add_options(parser, "tl_backward.embedding_space.options.VectorOptions", "inverse", "fold_ln")


def _params(arguments: argparse.Namespace) -> Answer:
    from tl_backward._support.csv import filled
    from tl_backward.embedding_space import (
        VectorOptions,
        parameter_atlas,
        parameter_coherence,
        parameter_words,
        without_bytes,
    )
    from tl_backward.render.params_page import atlas_page, words_page

    layer, name = _one_layer(arguments), name_of(arguments.model)
    model = load_asked(arguments)
    _check_layer(model, arguments)
    usual, n_left = without_bytes(model) if not arguments.filter else ((), 0)
    filters = [each for each in arguments.filter if each != "none"] or usual
    vectors = options_from(arguments, VectorOptions, filters=filters)
    note = (
        f"Left out of all words: {n_left:,} single bytes and special tokens (--filter none keeps them)."
        if n_left
        else ""
    )
    if arguments.weight is None:
        every = parameter_atlas(model, layers=arguments.layer, k=arguments.k, vector_options=vectors)
        return Answer(
            lambda: [*_atlas_lines(every, name), *filter(None, [note])], dict,
            lambda: atlas_page(every, name=name, note=note),
        )  # fmt: skip
    asked, how = (model, arguments.weight, layer), {"head": arguments.head, "k": arguments.k}
    words = parameter_words(*asked, **how, vector_options=vectors) if arguments.paged else None
    coherence = parameter_coherence(*asked, **how, vector_options=vectors) if words is None else words.coherence
    return Answer(
        lambda: [*_vector_lines(coherence), *filter(None, [note])],
        lambda: {
            "model": arguments.model,
            "weight": coherence.projection.weight,
            "side": coherence.projection.side,
            "gaussian_95": float(coherence.gaussian.quantile(0.95)),
            "vectors": filled(coherence.to_frame()).to_dict("records"),
        },
        None if words is None else lambda: words_page(words, name=name, note=note),
    )


def _vector_lines(coherence: "Coherence") -> Iterator[str]:
    """Lines of text: the five most coherent vectors of a weight with their top tokens."""
    yield coherence.summary()
    names, words = coherence.projection.vector_names(), coherence.projection.top_tokens
    for i in coherence.order[:5].tolist():
        yield f"  {names[i]:>12}  {float(coherence.score[i]):.3f}  {' '.join(map(quoted, words[i][:6]))}"


def _atlas_lines(every: "ParameterAtlas", name: str) -> Iterator[str]:
    """Lines of text: how to print one weight's words, and which weights the atlas leaves out."""
    shown = list(every.coherence)
    short, of = next((place for place in shown if place[0] == "W_out"), shown[0])
    command = f"--weight {short} --layer {of}"
    yield every.summary()
    yield f"{name}: the atlas of its weights is a page; {command} prints one weight's words"
    if every.left_out:
        yield every.left_out


def _check_layer(model: "TransformerLensModel", arguments: argparse.Namespace) -> None:
    """Say with which option one of several weights of a name is chosen."""
    from tl_backward.weights import select_sites, weight_sites

    if arguments.weight is not None and arguments.layer is None:
        found = select_sites(weight_sites(model), arguments.weight)
        if len(found) > 1:
            layers = [site.layer for site in found.values()]
            raise ValueError(
                f"Expected --layer N with --weight {arguments.weight}, which {len(found)} blocks have, got none; add "
                f"one from --layer {layers[0]} to --layer {layers[-1]}."
            )


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
