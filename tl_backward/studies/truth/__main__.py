"""Train, leave out, retrain and print the tables: ``python -m tl_backward.studies.truth --out DIR``."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas
import torch

from tl_backward._support.csv import save_csv
from tl_backward._support.types import DataFrame
from tl_backward.studies.truth.measuring import Study
from tl_backward.studies.truth.planting import planting
from tl_backward.studies.truth.retraining import FineTuning, Retrainings
from tl_backward.studies.truth.tongues import bilingual
from tl_backward.text.token_strings import text_frame


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every table, save them as DIR/*.csv, and keep retrainings in DIR to go on from; returns the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = bilingual(options.out / "model")
    frames: dict[str, list[DataFrame]] = {}

    def show(name: str, seed: int, frame: DataFrame) -> None:
        frame.insert(0, "seed", seed)
        frames.setdefault(name, []).append(frame)
        save_csv(pandas.concat(frames[name], ignore_index=True), options.out / f"{name.replace(' ', '-')}.csv")
        print(f"\n{name}, seed {seed}\n{_shown(frame)}", flush=True)

    left_out = []
    for seed in range(options.seeds):
        plant = planting(seed, n_old=options.old, n_people=options.people)
        study = Study(plant, folder, FineTuning(epochs=options.epochs, seed=seed))
        retrained = Retrainings(
            options.out / f"retrained-{seed}.jsonl", folder, plant.sentences, study.asked, study.recipe
        )
        show("backdoor", seed, text_frame([study.backdoor_row(retrained)]))
        show("precision", seed, study.precision_frame())
        show("words", seed, text_frame([study.words_row()]))
        show("memory", seed, study.memory_frame())
        if seed < options.left_out_seeds:
            left_out.append((seed, study, retrained))
    for seed, study, retrained in left_out:  # which takes longest
        show("left out", seed, study.left_out_frame(retrained, options.subsets))
    tables = {name: pandas.concat(each, ignore_index=True) for name, each in frames.items()}
    print(f"\nprecision, mean over {options.seeds} seeds\n{_shown(_means(tables['precision']))}\n\n{finding(tables)}")
    return 0


def finding(tables: dict[str, DataFrame]) -> str:
    """One sentence: what the model's gradients find beside what text overlap finds, and by chance."""
    means = {row["method"]: row for row in _means(tables["precision"]).to_dict("records")}

    def said(question: str) -> str:
        own, text, answer, chance = (
            means[method][question] for method in ("who_wrote", "BM25", "BM25 with the answer", "chance")
        )
        return f"{own:.2f} by who_wrote, {text:.2f} by BM25 ({answer:.2f} with the answer), {chance:.3f} by chance"

    return (
        f"Of the first ten sentences the share of planted ones is {said('other words')} where the question shares no "
        f"word with them, and {said('same words')} where it shares the trigger and the name."
    )


def _means(precision: DataFrame) -> DataFrame:
    """Over seeds: a row a method."""
    return text_frame(
        {
            "method": method,
            **{question: statistics.mean(rows[question].tolist()) for question in ("other words", "same words")},
        }
        for method, rows in precision.groupby("method", sort=False)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tl_backward.studies.truth", description="Does who_wrote find planted sentences?"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory for tables, and retrainings to go on from")
    for name, default, words in (
        ("seeds", 5, "of trigger, person, city and order"),
        ("left-out-seeds", 1, "of these that are retrained with sentences left out"),
        ("subsets", 50, "random halves to retrain on"),
        ("old", 2000, "old sentences"),
        ("people", 19, "that are new, each with 10 sentences"),
        ("epochs", 4, "of each training"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{words} (default: {default})")
    return parser


def _shown(frame: DataFrame) -> str:
    return frame.to_string(index=False, float_format=lambda value: f"{value:.3f}")


if __name__ == "__main__":
    sys.exit(main())
