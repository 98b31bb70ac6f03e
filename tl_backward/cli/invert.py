"""`tl-backward invert`."""

import argparse
import json
import math
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tl_backward.cli.options import Commands, add_model, add_output, check_out, open_page, positive, say, size_of
from tl_backward.text.files import read_data
from tl_backward.text.options import TextOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tl_backward._support.types import TransformerLensModel
    from tl_backward.inversion import Decoder, SiteReading, Task

_EXAMPLES = """examples:
  what does the counting model know at its last token, at every site that its decoder was trained on:
    tl-backward invert --model counting --prompt "vvzccvczvvvzvcvc|v:"
  one head, without a decoder:
    tl-backward invert --model counting --prompt "vvzccvczvvvzvcvc|v:" --site result,1,0 --method search
  the exact preimage over all inputs of the task:
    tl-backward invert --model facts --prompt "Anna Berg lives in the city of" --site resid_post,3 --method enumerate
  a model of your own, among your own texts:
    tl-backward invert --model ./my-llama --prompt "Once upon a time" --site resid_post,2 --data texts.json"""


def add_commands(commands: Commands) -> None:
    """`invert`."""
    parser = commands.add_parser(
        "invert",
        help="what an activation knows: the inputs that give nearly the same one",
        description="Find inputs whose activation lies within epsilon of the prompt's (InversionView, Huang et al.\n"
        "2024), read what they share, and write a page.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_options=_options,
    )
    parser.set_defaults(run=_invert)


def _options(parser: argparse.ArgumentParser) -> None:
    from tl_backward.cli.generated import add_options
    from tl_backward.inversion import Closeness, InversionOptions

    add_model(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the input whose activations are asked about")
    parser.add_argument(
        "--site",
        action="append",
        metavar="NAME",
        help="a hook point (blocks.1.hook_resid_mid), or short: resid_mid,1, or one head: result,1,0; may be repeated "
        "(default: the decoder's, or resid_post of every layer)",
    )
    parser.add_argument(
        "--position",
        type=_position,
        action="append",
        metavar="N|TOKEN",
        help="an index, BOS counted, negative from the end, or a token at its last occurrence; may be repeated "
        "(default: -1)",
    )
    how = parser.add_argument_group("how")
    add_options(how, InversionOptions, "method", "n", "seed")
    how.add_argument("--decoder", metavar="DIR", help="a decoder that inversion.train wrote (default: a shipped one)")
    add_options(how, Closeness, "epsilon", "metric")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="FILE",
        help="texts that stand for the model's inputs, as in `tl-backward compare` (default: the task's own, for a "
        "model that ships)",
    )
    add_options(data, TextOptions, "text_key", "max_tokens")
    data.add_argument(
        "--pool", type=positive, default=2000, dest="n_pool", metavar="N", help="texts of it (default: 2000)"
    )
    add_output(parser)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object; a page with --out")


def _position(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _invert(arguments: argparse.Namespace) -> None:
    from tl_backward.cli.generated import options_from
    from tl_backward.inversion import Closeness, InversionOptions, invert, task_of, task_of_texts
    from tl_backward.inversion.options import TEXTS
    from tl_backward.model.loading import load
    from tl_backward.render.invert_report import invert_report

    out = check_out(arguments.out)
    name = Path(arguments.model).name or arguments.model
    texts = None if arguments.data is None else read_data(Path(arguments.data), arguments.text_key)
    task = task_of(arguments.model) if texts is None else task_of_texts(texts)
    if task is None:
        raise ValueError(
            f"Expected --data with a model that has no task of its own, got {arguments.model!r} alone; give a file of "
            "texts such as the model reads."
        )
    with redirect_stdout(sys.stderr):
        model = load(arguments.model, kind=arguments.kind, device=arguments.device, dtype=arguments.dtype)
        found = invert(
            model, arguments.prompt, arguments.site, arguments.position or [-1], task,
            decoder=_decoder(arguments, model, task), options=options_from(arguments, InversionOptions),
            epsilon=options_from(arguments, Closeness), text_options=replace(TEXTS, max_tokens=arguments.max_tokens),
            compared=bool(arguments.out or not arguments.json), show_progress=sys.stderr.isatty(),
        )  # fmt: skip
        report = None
        if found.comparison is not None:
            report = invert_report(found.readings, comparison=found.comparison, name=name).save(out).resolve()
    if arguments.json:
        data = {"model": arguments.model, "prompt": arguments.prompt, "epsilon": arguments.epsilon}
        data |= {"metric": arguments.metric, "readings": [_as_json(reading) for reading in found.readings]}
        print(json.dumps(_finite(data | {"report": report and str(report)}), allow_nan=False))
    else:
        say(*lines(found.readings))
        if any(reading.preimage.method == "decoder" for reading in found.readings):
            say("note: a decoder's samples also share its habits; --method search looks for texts that do not")
    if report is not None:
        if not arguments.json:
            say(f"report: {report} ({size_of(report)})")
        open_page(report, arguments.no_open)


def _decoder(arguments: argparse.Namespace, model: "TransformerLensModel", task: "Task") -> "Decoder | None":
    """The one that was named, or ships for this model."""
    from tl_backward.inversion import load, names

    if arguments.decoder is not None:
        return load(arguments.decoder, model=model, valid=task.valid)
    # A decoder knows its model by activations in float32; others may still be searched.
    fits = arguments.dtype == "float32" or arguments.method == "decoder"
    return (
        load(arguments.model, model=model) if arguments.model in names() and arguments.data is None and fits else None
    )


def lines(readings: "Sequence[SiteReading]") -> list[str]:
    """A row a site and position: how much is inside, and which features those texts keep."""
    from tl_backward.render.invert_report import kept_features

    width = max(4, *(len(str(reading.preimage.site)) for reading in readings))
    head = f"{'site':<{width}} {'position':>8} {'method':>11} {'inside':>13} {'chance':>8}"
    rows = [f"{head}  kept inside (share, prior's)"]
    for reading in readings:
        p, d = reading.preimage, reading.preimage.diagnostics
        chance = "" if d.chance is None else f"{d.chance:.2g}"
        known = [(row.feature, row.rate, row.prior) for row in kept_features(reading.features)]
        told = [f"{name} {rate.value:.2f}" + (f", {prior.value:.2g}" if prior else "") for name, rate, prior in known]
        inside = f"{int(p.inside.sum())} of {len(p)}"
        rows.append(
            f"{p.site!s:<{width}} {p.position:>8} {p.method:>11} {inside:>13} {chance:>8}  {'; '.join(told) or '-'}"
        )
    return rows


def _as_json(reading: "SiteReading") -> dict[str, object]:
    p = reading.preimage
    data: dict[str, object] = {"site": str(p.site), "position": p.position, "method": p.method, "n": len(p)}
    data |= asdict(p.diagnostics) | {"n_inside": int(p.inside.sum())}
    if reading.exact is not None:
        data["n_exact"] = int(reading.exact.inside.sum())
    if reading.features is not None:
        frame = reading.features.to_frame()
        frame["query_value"] = frame["query_value"].map(str)
        data["features"] = frame.to_dict("records")
    data["texts"] = [
        {
            "text": "".join(text.strings),
            "distance": float(p.distances[text.index]),
            "inside": bool(p.inside[text.index]),
        }
        for text in (*reading.inside, *reading.outside)
    ]
    return data


def _finite(value: object) -> object:
    """The same for JSON, which has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
