"""`tl-backward compare`."""

import argparse
import json
import math
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tl_backward.cli.generated import add_options, options_from
from tl_backward.cli.options import (
    Commands,
    add_output,
    add_precision,
    check_out,
    open_page,
    positive,
    say,
    size_of,
)
from tl_backward.text.files import read_data
from tl_backward.text.options import TextOptions

if TYPE_CHECKING:
    from tl_backward.dissimilarity import Comparison

_CORNER = "A \\ B"
_EXAMPLES = """examples:
  two training runs, all layers against all layers:
    tl-backward compare --model-a ./run1 --model-b ./run2 --data texts.txt
  other measures, at another hook point, without position 0:
    tl-backward compare --model-a ./run1 --model-b gpt2 --data texts.jsonl --hook mlp_out \\
      --measures cka,procrustes_normalised,mutual_knn --exclude-first
  one model in both of TransformerLens's kinds (TransformerLens 3):
    tl-backward compare --model-a ./run1 --model-b ./run1 --kind-b hooked --data texts.json
  stitches too, for models of one tokenizer:
    tl-backward compare --model-a ./run1 --model-b ./run2 --data texts.txt --stitch affine"""


def add_commands(commands: Commands) -> None:
    """`compare`."""
    parser = commands.add_parser(
        "compare",
        add_options=_add_options,
        help="whether two models compute the same thing, layer by layer",
        description="Compare all layers of two models over the texts of a file, and write a page of heat maps and\n"
        "curves beside chance. Models of different tokenizers are aligned where both end a token.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_compare)


def _add_options(parser: argparse.ArgumentParser) -> None:
    from tl_backward.dissimilarity import compare
    from tl_backward.dissimilarity.options import MapKind, RunOptions, SampleOptions

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
        "--data", required=True, metavar="FILE", help=".txt, a text a line; .json, a list of texts; .jsonl, one a line"
    )
    data.add_argument("--max-texts", type=positive, metavar="N", help="read the first N (default: all)")
    add_options(data, TextOptions, "text_key", "max_tokens", "batch_size")
    what = parser.add_argument_group("what is compared")
    add_options(what, compare, "hook", "layers_a", "layers_b")
    add_options(what, SampleOptions, "hook_b", "sample")
    add_options(what, TextOptions, "exclude_first")
    how = parser.add_argument_group("how")
    add_options(how, compare, "measures")
    add_options(how, RunOptions, "sample_size", "permutations", "seed")
    how.add_argument(
        "--stitch",
        choices=get_args(MapKind),
        metavar="MAP",
        help=f"also stitch every layer of each to every layer of the other: {', '.join(get_args(MapKind))}",
    )
    add_output(parser)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object; a page with --out")


def _compare(arguments: argparse.Namespace) -> None:
    from tl_backward.dissimilarity import RunOptions, SampleOptions, compare, stitching_grid
    from tl_backward.model.loading import load
    from tl_backward.render.compare_report import caveats, compare_report

    out = check_out(arguments.out)
    texts = read_data(Path(arguments.data), arguments.text_key)[: arguments.max_texts]
    with redirect_stdout(sys.stderr):
        how = {"device": arguments.device, "dtype": arguments.dtype}
        a = load(arguments.model_a, kind=arguments.kind_a, **how)
        b = load(arguments.model_b, kind=arguments.kind_b, **how)
        both = {
            "layers_a": arguments.layers_a,
            "layers_b": arguments.layers_b,
            "text_options": options_from(arguments, TextOptions),
            "show_progress": sys.stderr.isatty(),
        }
        found = compare(
            a, b, texts, hook=arguments.hook, measures=arguments.measures,
            sample_options=options_from(arguments, SampleOptions), run_options=options_from(arguments, RunOptions),
            **both,
        )  # fmt: skip
        stitches = None
        if arguments.stitch is not None:
            stitches = stitching_grid(a, b, texts, map=arguments.stitch, **both)
        report = None
        if arguments.out or not arguments.json:
            name = " and ".join(Path(each).name or each for each in (arguments.model_a, arguments.model_b))
            report = compare_report(found, stitches=stitches, name=name).save(out).resolve()
    if arguments.json:
        frame = found.to_frame()
        data: dict[str, object] = {"model_a": arguments.model_a, "model_b": arguments.model_b}
        data |= {"n_samples": found.n_samples, "aligned": found.aligned, "coverage": found.coverage}
        data["values"] = frame.astype(object).where(frame.notna(), None).to_dict("records")
        if stitches is not None:
            frame = stitches.to_frame()
            data["stitches"] = frame.astype(object).where(frame.notna(), None).to_dict("records")
        print(json.dumps(data | {"report": report and str(report)}, allow_nan=False))
    else:
        say(repr(found))
        for measure in found.measures:
            say(*lines(found, measure))
        for caveat in caveats(found):
            say(f"note: {caveat}")
    if report is not None:
        if not arguments.json:
            say(f"report: {report} ({size_of(report)})")
        open_page(report, arguments.no_open)


def lines(found: "Comparison", measure: str) -> list[str]:
    """One measure as text: layers of A down, of B across."""
    width = max(7, *(len(name) + 1 for name in found.layers_b))
    side = max(len(name) for name in (*found.layers_a, _CORNER))
    head = f"{_CORNER:<{side}}" + "".join(f"{name:>{width}}" for name in found.layers_b)
    rows = [
        f"{name:<{side}}" + "".join(f"{value:>{width}.3f}" for value in row)
        for name, row in zip(found.layers_a, found[measure].tolist(), strict=True)
    ]
    frame = found.to_frame().query("measure == @measure")
    mean, deviation = frame[["permutation_mean", "permutation_deviation"]].mean().tolist()
    chance = f"by chance (samples paired at random): {mean:.3f}, deviation {deviation:.3f}"
    return [f"{measure}:", head, *rows, *([] if math.isnan(mean) else [chance])]
