"""The command `tl-backward invert`: inputs that give nearly the same activation."""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tl_backward.cli.generated import add_options, options_from
from tl_backward.cli.options import Answer, Commands, add_command, add_model, load_asked, name_of, positive
from tl_backward.text.files import read_data
from tl_backward.text.options import TextOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tl_backward._support.types import TransformerLensModel
    from tl_backward.inversion import Decoder, FeatureTable, SiteReading, Task

_EXAMPLES = """  what does the counting model know at its last token, at every site that its decoder was trained on:
    tl-backward invert --model counting --prompt "vvzccvczvvvzvcvc|v:"
  one head, without a decoder:
    tl-backward invert --model counting --prompt "vvzccvczvvvzvcvc|v:" --site result,1,0 --method search
  the exact preimage over all inputs of the task:
    tl-backward invert --model facts --prompt "Anna Berg lives in the city of" --site resid_post,3 --method enumerate
  a model of your own, among your own texts:
    tl-backward invert --model ./my-llama --prompt "Once upon a time" --site resid_post,2 --data texts.json"""


def add_commands(commands: Commands) -> None:
    """Register the command `invert`."""
    add_command(
        commands, "invert", _invert, _add_options,
        description="Find inputs whose activation lies within epsilon of the prompt's (InversionView, Huang et al.\n"
        "2024), read what they share, and write a page.",
        examples=_EXAMPLES,
    )  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    options = "tl_backward.inversion.options."
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
    add_options(how, f"{options}InversionOptions", "method", "n", "seed")
    how.add_argument("--decoder", metavar="DIR", help="a decoder that inversion.train wrote (default: a shipped one)")
    add_options(how, f"{options}Closeness", "epsilon", "metric")
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


def _position(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _invert(arguments: argparse.Namespace) -> Answer:
    from tl_backward.inversion import Closeness, InversionOptions, invert, task_of, task_of_texts
    from tl_backward.inversion.options import TEXTS
    from tl_backward.render.invert_page import invert_report

    texts = None if arguments.data is None else read_data(Path(arguments.data), arguments.text_key)
    task = task_of(arguments.model) if texts is None else task_of_texts(texts)
    if task is None:
        raise ValueError(
            f"Expected --data with a model that has no task of its own, got {arguments.model!r} alone; give a file of "
            "texts such as the model reads."
        )
    model = load_asked(arguments)
    inversion = invert(
        model, arguments.prompt, arguments.site, arguments.position or [-1], task,
        decoder=_decoder(arguments, model, task), options=options_from(arguments, InversionOptions),
        epsilon=options_from(arguments, Closeness), text_options=replace(TEXTS, max_tokens=arguments.max_tokens),
        compared=arguments.paged, show_progress=sys.stderr.isatty(),
    )  # fmt: skip
    readings = inversion.readings
    return Answer(
        lambda: [inversion.summary(), *_lines(readings)],
        lambda: {
            **{name: getattr(arguments, name) for name in ("model", "prompt", "epsilon", "metric")},
            "summary": inversion.summary(),
            "readings": [_as_json(reading) for reading in readings],
        },
        lambda: invert_report(readings, comparison=inversion.comparison, name=name_of(arguments.model)),
    )


def _decoder(arguments: argparse.Namespace, model: "TransformerLensModel", task: "Task") -> "Decoder | None":
    """The decoder that was named, or that ships for this model; None for neither."""
    from tl_backward.inversion import load, names

    if arguments.decoder is not None:
        return load(arguments.decoder, model=model, valid=task.valid)
    # A decoder knows its model by activations in float32; others may still be searched.
    fits = arguments.dtype == "float32" or arguments.method == "decoder"
    ships = arguments.model in names() and arguments.data is None
    return load(arguments.model, model=model) if ships and fits else None


def _lines(readings: "Sequence[SiteReading]") -> Iterator[str]:
    """Lines of text: one for each site and position, the share of texts within epsilon and the features they share."""
    from tl_backward.inversion.summary import kept_features

    width = max(4, *(len(str(reading.preimage.site)) for reading in readings))
    yield f"{'site':<{width}} {'position':>8} {'method':>11} {'inside':>13} {'chance':>8}  kept inside (share, prior's)"
    for reading in readings:
        p, d = reading.preimage, reading.preimage.diagnostics
        chance = "" if d.chance is None else f"{d.chance:.2g}"
        known = [(row.feature, row.rate, row.prior) for row in kept_features(reading.features)]
        told = [f"{name} {rate.value:.2f}" + (f", {prior.value:.2g}" if prior else "") for name, rate, prior in known]
        inside = f"{int(p.inside.sum())} of {len(p)}"
        yield f"{p.site!s:<{width}} {p.position:>8} {p.method:>11} {inside:>13} {chance:>8}  {'; '.join(told) or '-'}"
    if any(reading.preimage.method == "decoder" for reading in readings):
        yield "note: a decoder's samples also share its habits; --method search looks for texts that do not"


def _as_json(reading: "SiteReading") -> dict[str, object]:
    p, exact, features = reading.preimage, reading.exact, reading.features
    return {
        **{"site": str(p.site), "position": p.position, "method": p.method, "n": len(p)},
        **asdict(p.diagnostics),
        "n_inside": int(p.inside.sum()),
        **({} if exact is None else {"n_exact": int(exact.inside.sum())}),
        **({} if features is None else {"features": _records(features)}),
        "texts": [
            {
                "text": "".join(text.strings),
                "distance": float(p.distances[text.index]),
                "inside": bool(p.inside[text.index]),
            }
            for text in (*reading.inside, *reading.outside)
        ],
    }


def _records(features: "FeatureTable") -> list[dict]:
    return features.to_frame().assign(query_value=[str(row.query_value) for row in features.rows]).to_dict("records")
