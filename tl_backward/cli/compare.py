"""`tl-backward compare`."""

import argparse
import json
import math
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from tl_backward.cli.options import (
    Commands,
    add_output,
    add_precision,
    check_out,
    layers,
    open_page,
    positive,
    say,
    size_of,
)
from tl_backward.text.files import read_data

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
        help="whether two models compute the same thing, layer by layer",
        description="Compare all layers of two models over the texts of a file, and write a page of heat maps and\n"
        "curves beside chance. Models of different tokenizers are aligned where both end a token.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    data.add_argument(
        "--text-key", default="text", metavar="NAME", help="where a text is in objects of .json and .jsonl"
    )
    data.add_argument("--max-texts", type=positive, metavar="N", help="read the first N (default: all)")
    data.add_argument("--max-tokens", type=positive, metavar="N", help="cut texts there (default: at the context)")
    data.add_argument("--batch-size", type=positive, default=8, metavar="N", help="texts a batch (default: 8)")
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--hook", default="resid_post", metavar="NAME", help="hook point of every layer (default: resid_post)"
    )
    what.add_argument("--hook-b", metavar="NAME", help="B's, where it is another")
    for side in "ab":
        what.add_argument(
            f"--layers-{side}", type=layers, metavar="LIST", help="such as 0,3 or 4-7 or -1 (default: all)"
        )
    what.add_argument(
        "--sample", choices=("token", "last", "mean"), default="token", help="what one sample is (default: every token)"
    )
    what.add_argument("--exclude-first", action="store_true", help="leave position 0 out (default: included)")
    how = parser.add_argument_group("how")
    how.add_argument("--measures", type=_names, default=["cka"], metavar="LIST", help="by name (default: cka)")
    how.add_argument(
        "--sample-size",
        type=positive,
        default=2048,
        metavar="N",
        help="samples kept for chance, and for measures that need samples rather than sums (default: 2048)",
    )
    how.add_argument("--permutations", type=int, default=20, metavar="N", help="random pairings for chance (20)")
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample and the pairings (default: 0)")
    how.add_argument(
        "--stitch",
        choices=("identity", "orthogonal", "linear", "affine"),
        metavar="MAP",
        help="also stitch every layer of each to every layer of the other: identity, orthogonal, linear or affine",
    )
    add_output(parser)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object; a page with --out")
    parser.set_defaults(run=_compare)


def _names(text: str) -> list[str]:
    return [name for name in text.replace(",", " ").split() if name]


def _compare(arguments: argparse.Namespace) -> None:
    from tl_backward.dissimilarity import compare, stitching_grid
    from tl_backward.model.loading import load
    from tl_backward.render.compare_report import caveats, compare_report

    out = check_out(arguments.out)
    texts = read_data(Path(arguments.data), arguments.text_key)[: arguments.max_texts]
    with redirect_stdout(sys.stderr):
        how = {"device": arguments.device, "dtype": arguments.dtype}
        a = load(arguments.model_a, kind=arguments.kind_a, **how)
        b = load(arguments.model_b, kind=arguments.kind_b, **how)
        reading = {"batching": arguments.batch_size, "max_tokens": arguments.max_tokens}
        watched = sys.stderr.isatty()
        found = compare(
            a, b, texts, hook=arguments.hook, hook_b=arguments.hook_b, layers_a=arguments.layers_a,
            layers_b=arguments.layers_b, measures=arguments.measures, sample=arguments.sample,
            exclude_first=arguments.exclude_first, permutations=arguments.permutations,
            sample_size=arguments.sample_size, seed=arguments.seed, show_progress=watched, **reading,
        )  # fmt: skip
        stitches = None
        if arguments.stitch is not None:
            stitches = stitching_grid(
                a, b, texts, layers_a=arguments.layers_a, layers_b=arguments.layers_b, map=arguments.stitch,
                exclude_first=arguments.exclude_first, show_progress=watched, **reading,
            )  # fmt: skip
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
