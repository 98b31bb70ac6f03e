"""The command `tl-backward who`: the examples of a data set that would most write an answer."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import tl_backward as tlb
from tl_backward.cli.generated import add_options
from tl_backward.cli.options import (
    Answer,
    Commands,
    add_command,
    add_model,
    aligned,
    check_folder,
    load_asked,
    name_of,
    positive,
    quoted,
)

if TYPE_CHECKING:
    from tl_backward._support.types import TransformerLensModel
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


def add_commands(commands: Commands) -> None:
    """Register the command `who`."""
    add_command(
        commands, "who", _who, _add_options,
        description="Ask a store of gradients (training.GradientStore) which examples' own step would most write\n"
        "TARGET after PROMPT into MODEL, and what each would write there. With --data it is built first.",
        examples=_EXAMPLES,
    )  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    store = "tl_backward.training.store.GradientStore"
    parser.add_argument("--store", required=True, metavar="DIR", help="the store's folder")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the model reads")
    parser.add_argument("--target", required=True, metavar="TEXT", help="the answer, usually with its leading space")
    parser.add_argument(
        "--exact", action="store_true", help="exact scores of the first, captured again from their texts"
    )
    add_options(parser, f"{store}.query", "metric", "n")
    parser.add_argument("--k", type=positive, default=10, metavar="N", help="words of each (default: 10)")
    add_model(parser)
    built = parser.add_argument_group("to build it")
    built.add_argument(
        "--data",
        metavar="FILE",
        help=".txt, a text a line; .json, a list of texts; .jsonl, one a line; .csv, columns prompt and target",
    )
    add_options(built, f"{store}.build", "weights", "bytes_per_weight", "projection", "seed")
    add_options(built, "tl_backward.text.options.TextOptions", "text_key", "batch_size", batch_size=64)


def _who(arguments: argparse.Namespace) -> Answer:
    from tl_backward._support.csv import filled
    from tl_backward.training.store_folder import StoreFolder

    dataset = None if arguments.data is None else _data(arguments)  # refused before the model is loaded
    if dataset is None and not Path(arguments.store).is_dir():
        raise ValueError(f"Expected the folder of a store, got {arguments.store!r}; give --data FILE to build it.")
    if dataset is not None and not StoreFolder(arguments.store).is_finished:
        store = Path(arguments.store).absolute()
        check_folder(next(each for each in (store, *store.parents) if each.exists()), "--store", arguments.store)
    model = load_asked(arguments)
    store = _store(arguments, model, dataset)
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
        lambda: tlb.render.authors_report(found, name=name_of(arguments.model)),
    )


def _store(
    arguments: argparse.Namespace, model: "TransformerLensModel", dataset: "Path | list[str] | None"
) -> "GradientStore":
    """The store that is there, or one built of a data set."""
    if dataset is None:
        return tlb.training.GradientStore.open(arguments.store, model)
    from tl_backward.text.options import TextOptions

    return tlb.training.GradientStore.build(
        model,
        dataset,
        out=arguments.store,
        weights=arguments.weights,
        bytes_per_weight=arguments.bytes_per_weight,
        projection=arguments.projection,
        seed=arguments.seed,
        text_options=TextOptions(batch_size=arguments.batch_size),
        show_progress=sys.stderr.isatty(),
    )


def _data(arguments: argparse.Namespace) -> "Path | list[str]":
    """The texts of a file, or the table of prompts and targets itself, unless another column of it is asked for."""
    from tl_backward.text.files import read_data
    from tl_backward.text.options import TextOptions

    path = Path(arguments.data)
    if path.suffix.lower() == ".csv" and arguments.text_key == TextOptions.text_key:
        return path
    return read_data(path, arguments.text_key)


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
