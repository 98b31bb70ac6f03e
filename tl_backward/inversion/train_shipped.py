"""Train a decoder that ships: ``python -m tl_backward.inversion.train_shipped counting --out DIR``."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import torch

from tl_backward.activations import PlaceReader
from tl_backward.inversion.decoder import Decoder
from tl_backward.inversion.evaluation import DecoderRates, decoder_rates, read_queries
from tl_backward.inversion.network import Conditioning, DecoderConfig
from tl_backward.inversion.shipped import RECIPES, Recipe
from tl_backward.inversion.storage import DESCRIPTION
from tl_backward.inversion.training import TrainingOptions, train
from tl_backward.text.encoded import encode
from tl_backward.zoo import load as load_model
from tl_backward.zoo.loading import load_hugging_face

N_QUERIES, N_SAMPLES = 50, 20
_OPTIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("--out", {"type": Path}, "directory to write (default: ./NAME-decoder)"),
    ("--budget", {"type": int}, "activations to train on (default: the recipe's)"),
    ("--conditioning", {"choices": get_args(Conditioning)}, "(default: the recipe's)"),
    ("--vectors", {"type": int}, "vectors an activation becomes (default: the recipe's)"),
    ("--learning-rate", {"type": float}, "(default: the recipe's)"),
    ("--threads", {"type": int, "default": 2}, "CPU threads (default: 2)"),
    ("--model", {"type": Path}, "a directory with the model (default: the one that ships)"),
)

T = TypeVar("T", Recipe, DecoderConfig, TrainingOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, report and save; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tl_backward.inversion.train_shipped", description="Train a decoder that ships."
    )
    parser.add_argument("name", choices=RECIPES, help="the zoo's model to train a decoder for")
    for name, kind, what in _OPTIONS:
        parser.add_argument(name, **kind, help=what)
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.name]
    recipe = _with(
        recipe,
        budget=options.budget,
        config=_with(recipe.config, conditioning=options.conditioning, n_vectors=options.vectors),
        options=_with(recipe.options, learning_rate=options.learning_rate),
    )
    torch.set_num_threads(options.threads)
    out = options.out or Path(f"{options.name}-decoder")
    started = time.process_time()
    try:
        decoder = made(recipe, out, options.model)
    except ValueError as error:
        parser.error(str(error))
    cpu_seconds = time.process_time() - started
    rates = measured(decoder, recipe, n_queries=N_QUERIES, n=N_SAMPLES)
    measures = {"cpu_seconds": round(cpu_seconds, 1), "rates": rates.to_frame().to_dict("list")}
    replace(decoder, description={**decoder.description, **measures}).save(out, half=True)
    print(f"{report(rates)}\n{cpu_seconds:.0f} CPU-seconds of training; saved to {out}")
    return 0


def _with(value: T, **changes: object) -> T:
    """A copy of an option object with those changes that are not None."""
    return replace(value, **{name: change for name, change in changes.items() if change is not None})


def made(recipe: Recipe, out: Path, model: Path | None = None) -> Decoder:
    """Train by the recipe; an interrupted run that left its checkpoint in `out` goes on."""
    if (out / DESCRIPTION).exists():
        raise ValueError(f"Expected a directory without a decoder, got {str(out)!r}, which holds one; choose another.")
    return train(
        load_model(model or recipe.model), list(recipe.sites), recipe.data(), budget=recipe.budget,
        positions=list(recipe.positions), out=out, config=recipe.config,
        options=replace(recipe.options, name=recipe.model),
        start=load_hugging_face(model or recipe.model)[0] if recipe.warm else None,
    )  # fmt: skip


def measured(decoder: Decoder, recipe: Recipe, *, n_queries: int, n: int) -> DecoderRates:
    """Rates on held-out queries at T = 1, which training never saw."""
    texts = encode(decoder.model, list(islice(recipe.others(), 10 * n_queries)))
    reader = PlaceReader(decoder.model, list(decoder.sites))
    spread = torch.linspace(0, len(texts) - 1, n_queries).long()
    queries = read_queries(reader, texts.select(spread), list(recipe.positions), decoder.network.mean.shape[1])
    return decoder_rates(
        decoder.network, queries, cast(list[int], decoder.description["start"]), n=n, epsilon=recipe.options.epsilon,
        valid=recipe.valid, others=texts, seed=1,
    )  # fmt: skip


def report(rates: DecoderRates) -> str:
    """The rates as a table."""
    head = f"{'site':<32}{'position':>9}{'inside':>9}{'chance':>9}{'well-formed':>13}"
    lines = [
        f"{row['site']:<32}{row['position']:>9}{row['inside']:>9.3f}{row['chance']:>9.4f}{row['well_formed']:>13.3f}"
        for row in rates.to_frame().to_dict("records")
    ]
    well_formed = float("nan") if rates.well_formed is None else float(rates.well_formed.nanmean())
    return "\n".join([head, *lines, f"{'mean':<41}{rates.mean:>9.3f}{'':>9}{well_formed:>13.3f}"])


if __name__ == "__main__":
    sys.exit(main())
