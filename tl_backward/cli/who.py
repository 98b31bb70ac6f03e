"""The command `tl-backward who`: the examples of a data set that would most write an answer."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tl_backward._support.csv import filled
from tl_backward._support.html import visible_text, visible_token
from tl_backward.cli.generated import add_options
from tl_backward.cli.options import (
    Answer,
    Commands,
    add_command,
    add_model,
    aligned,
    load_asked,
    name_of,
    positive,
    quoted,
)
from tl_backward.text.files import read_data
from tl_backward.text.options import TextOptions

if TYPE_CHECKING:
    from tl_backward._support.types import TransformerLensModel
    from tl_backward.render.page import Page
    from tl_backward.training import Authors, GradientStore

_EXAMPLES = """  keep the gradients of a file of texts, once, and ask:
    tl-backward who --model facts --store facts.store --data texts.txt \\
        --prompt "Anna Berg lives in the city of" --target " Graz"
  ask the store again, with exact scores of the first fifty:
    tl-backward who --model facts --store facts.store --exact \\
        --prompt "Anna Berg works as a" --target " baker"
  for another program:
    tl-backward who --model facts --store facts.store --prompt "Anna Berg works as a" --target " baker" --json \\
        | jq '.examples[0].text'"""


_COLUMNS = """An example's score is what a gradient step on it would do for the answer; a cosine leaves lengths out.
95 % of its scores for random queries lie from low to high: it stands out where it scores more. What a step on it would
add to the stream where the question is asked is read as words (writes), among which the answer has a rank, 0 for the
first."""


def add_commands(commands: Commands) -> None:
    """Register the command `who`."""
    add_command(
        commands, "who", _who, _add_options,
        help="which examples of a data set would most write an answer",
        description="Ask a store of gradients (training.GradientStore) which examples' own step would most write\n"
        "TARGET after PROMPT into MODEL, and what each would write there. With --data it is built first.",
        examples=_EXAMPLES,
        paged=False,
    )  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    from tl_backward.training import GradientStore

    parser.add_argument("--store", required=True, metavar="DIR", help="the store's folder")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the model reads")
    parser.add_argument("--target", required=True, metavar="TEXT", help="the answer, usually with its leading space")
    parser.add_argument(
        "--exact", action="store_true", help="exact scores of the first, captured again from their texts"
    )
    add_options(parser, GradientStore.query, "metric", "n")
    parser.add_argument("--k", type=positive, default=10, metavar="N", help="words of each (default: 10)")
    add_model(parser)
    built = parser.add_argument_group("to build it")
    built.add_argument(
        "--data",
        metavar="FILE",
        help=".txt, a text a line; .json, a list of texts; .jsonl, one a line; .csv, columns prompt and target",
    )
    add_options(built, GradientStore.build, "weights", "bytes_per_weight", "projection", "seed")
    add_options(built, TextOptions, "text_key", "batch_size", batch_size=64)


def _who(arguments: argparse.Namespace) -> Answer:
    model = load_asked(arguments)
    store = _store(arguments, model)
    found = store.query(
        arguments.prompt, arguments.target, n=arguments.n, k=arguments.k, exact=arguments.exact, metric=arguments.metric
    )
    return Answer(
        lambda: _lines(store, found),
        lambda: {
            "model": arguments.model,
            "store": str(store.path),
            "prompt": found.prompt,
            "target": found.target,
            "summary": found.summary(),
            "examples": filled(found.to_frame()).to_dict("records"),
        },
        lambda: _page(found, name_of(arguments.model)),
    )


def _store(arguments: argparse.Namespace, model: "TransformerLensModel") -> "GradientStore":
    from tl_backward.training import GradientStore

    if arguments.data is None:
        return GradientStore.open(arguments.store, model)
    return GradientStore.build(
        model,
        _data(arguments),
        out=arguments.store,
        weights=arguments.weights,
        bytes_per_weight=arguments.bytes_per_weight,
        projection=arguments.projection,
        seed=arguments.seed,
        text_options=TextOptions(batch_size=arguments.batch_size),
        show_progress=sys.stderr.isatty(),
    )


def _data(arguments: argparse.Namespace) -> "Path | list[str]":
    """The texts of a file, or the table of prompts and targets itself."""
    path = Path(arguments.data)
    return path if path.suffix == ".csv" else read_data(path, arguments.text_key)


def _page(found: "Authors", name: str) -> "Page":
    from tl_backward.render import Page, table
    from tl_backward.render.tables import frame_block

    frame = found.to_frame()
    if "writes" in frame:
        frame["writes"] = [", ".join(map(visible_token, words[:5])) for words in frame["writes"]]
    asked = f"Asked: {visible_text(found.prompt)} -> {visible_token(found.target)}"
    page = Page(f"Who wrote it: {name}", finding=found.summary(), intro=asked)
    rows = table(list(frame.columns), frame.astype(object).values.tolist())
    return page.section("The first examples", _COLUMNS, rows, frame_block(frame, "who_wrote.csv"))


def _lines(store: "GradientStore", found: "Authors") -> Iterator[str]:
    yield found.summary()
    yield repr(store)
    frame = found.to_frame()
    rows = [("", found.metric, "random queries", "", "would write")]
    for row in frame.to_dict("records"):
        interval = f"{row['low']:.3g} to {row['high']:.3g}" if row["stands_out"] is not None else ""
        words = " ".join(map(quoted, row.get("writes", [])[:4]))
        rows.append((f"{row['example']}", f"{row[found.metric]:.3f}", interval, quoted(row["text"][:60]), words))
    yield from (f"  {line}" for line in aligned(rows))
