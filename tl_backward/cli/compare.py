"""The command `tl-backward compare`: two models' layers compared on the same texts."""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tl_backward.cli import written
from tl_backward.cli.generated import add_options, options_from
from tl_backward.cli.options import Answer, Commands, add_command, add_precision, load_asked, name_of, positive
from tl_backward.text.files import read_data
from tl_backward.text.options import TextOptions

if TYPE_CHECKING:
    from tl_backward.dissimilarity import Comparison

_CORNER = "A \\ B"
_EXAMPLES = """  two training runs, all layers against all layers:
    tl-backward compare --model-a ./run1 --model-b ./run2 --data texts.txt
  other measures, at another hook point, without position 0:
    tl-backward compare --model-a ./run1 --model-b gpt2 --data texts.jsonl --hook mlp_out \\
      --measures cka,procrustes_normalised,mutual_knn --exclude-first
  one model in both of TransformerLens's kinds (TransformerLens 3):
    tl-backward compare --model-a ./run1 --model-b ./run1 --kind-b hooked --data texts.json
  stitches too, for models of one tokenizer:
    tl-backward compare --model-a ./run1 --model-b ./run2 --data texts.txt --stitch affine"""


def add_commands(commands: Commands) -> None:
    """Register the command `compare`."""
    add_command(
        commands, "compare", _compare, _add_options,
        description="Compare all layers of two models over the texts of a file, and write a page of heat maps and\n"
        "curves beside chance. Models of different tokenizers are aligned where both end a token.",
        examples=_EXAMPLES,
    )  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    compared, options = "tl_backward.dissimilarity.comparison.compare", "tl_backward.dissimilarity.options."
    kinds = get_args(written.value(f"{options}MapKind"))
    for side in "ab":
        parser.add_argument(
            f"--model-{side}",
            required=True,
            metavar="NAME|DIR",
            help="as in `tl-backward lens`: a model that ships, a local Hugging Face folder, or a name that "
            "TransformerLens can load",
        )
    for side in "ab":
        parser.add_argument(f"--kind-{side}", choices=("hooked", "bridge"), help="as --kind in `tl-backward lens`")
    add_precision(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help=".txt, a text a line; .json, a list of texts; .jsonl, one a line; .csv, its column text or prompt",
    )
    data.add_argument("--max-texts", type=positive, metavar="N", help="read the first N (default: all)")
    add_options(data, TextOptions, "text_key", "max_tokens", "batch_size")
    what = parser.add_argument_group("what is compared")
    add_options(what, compared, "hook", "layers_a", "layers_b")
    add_options(what, f"{options}SampleOptions", "hook_b", "sample")
    add_options(what, TextOptions, "exclude_first")
    how = parser.add_argument_group("how")
    add_options(how, compared, "measures")
    add_options(how, f"{options}RunOptions", "sample_size", "permutations", "seed")
    how.add_argument(
        "--control",
        action="store_true",
        help="also compare five pairs of untrained networks of the same configurations, for five times the passes",
    )
    how.add_argument(
        "--stitch",
        choices=kinds,
        metavar="MAP",
        help=f"also stitch every layer of each to every layer of the other: {', '.join(kinds)}",
    )


def _compare(arguments: argparse.Namespace) -> Answer:
    from tl_backward._support.csv import filled
    from tl_backward.dissimilarity import RunOptions, SampleOptions, compare, stitching_grid
    from tl_backward.dissimilarity.plan import find_measures
    from tl_backward.render.compare_page import compare_report

    texts = read_data(Path(arguments.data), arguments.text_key)[: arguments.max_texts]
    run_options = options_from(arguments, RunOptions, control="random_init" if arguments.control else None)
    find_measures(arguments.measures, run_options)  # refused before the models are loaded
    a, b = (load_asked(arguments, side) for side in ("_a", "_b"))
    both = {
        "layers_a": arguments.layers_a,
        "layers_b": arguments.layers_b,
        "text_options": options_from(arguments, TextOptions),
        "show_progress": sys.stderr.isatty(),
    }
    comparison = compare(
        a, b, texts, hook=arguments.hook, measures=arguments.measures,
        sample_options=options_from(arguments, SampleOptions), run_options=run_options, **both,
    )  # fmt: skip
    stitches = None if arguments.stitch is None else stitching_grid(a, b, texts, map=arguments.stitch, **both)
    results = {"values": comparison} | ({} if stitches is None else {"stitches": stitches})
    names = (name_of(arguments.model_a), name_of(arguments.model_b))
    return Answer(
        lambda: _lines(comparison, names),
        lambda: {
            **{name: getattr(arguments, name) for name in ("model_a", "model_b")},
            "summary": comparison.summary(),
            **{name: getattr(comparison, name) for name in ("n_samples", "aligned", "coverage")},
            **{name: filled(each.to_frame()).to_dict("records") for name, each in results.items()},
        },
        lambda: compare_report(comparison, stitches=stitches, names=names),
    )


def _lines(comparison: "Comparison", names: tuple[str, str]) -> Iterator[str]:
    """Lines of text: a table for each measure, layers of A by layers of B, and the caveats of the data."""
    from tl_backward._support.absent import Absent
    from tl_backward.render.compare_page import caveats
    from tl_backward.render.told_apart import told_apart

    yield comparison.summary(told_apart(names))
    yield repr(comparison)
    width = max(7, *(len(name) + 1 for name in comparison.layers_b))
    side = max(len(name) for name in (*comparison.layers_a, _CORNER))
    frame = comparison.to_frame()
    for measure in comparison.measures:
        yield f"{measure}:"
        yield f"{_CORNER:<{side}}" + "".join(f"{name:>{width}}" for name in comparison.layers_b)
        for name, row in zip(comparison.layers_a, comparison[measure].tolist(), strict=True):
            yield f"{name:<{side}}" + "".join(f"{value:>{width}.3f}" for value in row)
        of = frame[frame["measure"] == measure]
        mean, deviation = of[["permutation_mean", "permutation_deviation"]].mean().tolist()
        if not math.isnan(mean):
            yield f"by chance (samples paired at random): {mean:.3f}, deviation {deviation:.3f}"
        if not isinstance(comparison.untrained, Absent):
            drawn = comparison.untrained[:, comparison.index(measure)]
            middle, low, high = (float(each) for each in (drawn.mean(), drawn.min(), drawn.max()))
            yield f"untrained networks: {middle:.3f}, from {low:.3f} to {high:.3f}"
    yield from (f"note: {caveat}" for caveat in caveats(comparison))
