"""Train models for a finding and print it: ``python -m tl_backward.studies.dissimilarity solu --out DIR``."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from tl_backward._support.csv import save_csv
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.dissimilarity.options import FitOptions
from tl_backward.model.controls import random_init
from tl_backward.studies.dissimilarity.asymmetry import activation_asymmetry
from tl_backward.studies.dissimilarity.heuristics import heuristics
from tl_backward.studies.dissimilarity.outliers import find_outliers, planted, streams
from tl_backward.studies.dissimilarity.widths import widths_and_depths
from tl_backward.text.token_strings import text_frame
from tl_backward.zoo.classification import cue_task
from tl_backward.zoo.families import ACTIVATION_PAIRS, WIDTHS_AND_DEPTHS, seeded, sentence_rows, small_world
from tl_backward.zoo.fine_tuning import BY_SEED, BY_SHARE, fine_tuned
from tl_backward.zoo.recipes import Recipe
from tl_backward.zoo.train import recalled, trained

Save = Callable[[str, DataFrame], None]
FIT_SEED, HELD_OUT_SEED = 1000, 1001
PLANT = {"layer": 1, "position": 7, "dimension": 11}
THRESHOLD = 0.75
"""Of accuracy out of distribution: halfway between a classifier that half follows the rule and one that all does."""
SIZES = (0, 3, 10, 30, 100)
"""Of the planted activation, in root mean squares of the stream's entries; 0 is the control."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what DIR/models lacks, print the finding's tables and save them as DIR/*.csv; returns the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    def save(name: str, frame: DataFrame) -> None:
        save_csv(frame, options.out / f"{name}.csv")
        print(f"\n{name}\n{frame.to_string(index=False, float_format='{:.3f}'.format)}")

    options.run(options, save)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tl_backward.studies.dissimilarity",
        description="The findings of Brown et al. 2023, on small models.",
    )
    findings = parser.add_subparsers(required=True, metavar="finding")
    for name, run, words in (
        ("solu", _solu, "stitching between GeLU and SoLU models"),
        ("heuristics", _heuristics, "fine-tunings that learn a rule or a shortcut"),
        ("widths", _widths, "a family of widths and depths, and a planted outlier"),
    ):
        finding = findings.add_parser(name, help=words, description=words)
        finding.set_defaults(run=run)
        finding.add_argument("--out", type=Path, required=True, help="directory for tables, and models to use again")
        finding.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
        if name != "heuristics":
            finding.add_argument("--seeds", type=int, default=3, help="models of each recipe (default: 3)")
            finding.add_argument("--rows", type=int, default=256, help="rows of text to compare on (default: 256)")
        if name == "solu":
            finding.add_argument("--depths", nargs="+", default=list(ACTIVATION_PAIRS), choices=ACTIVATION_PAIRS)
            finding.add_argument("--sgd-steps", type=int, help="train the maps on the task, as the paper does")
        if name == "heuristics":
            finding.add_argument("--prompts", type=int, default=240, help="test prompts of each kind (default: 240)")
    return parser


def _model(recipe: Recipe, seed: int, directory: Path) -> TransformerLensModel:
    return trained(seeded(recipe, seed), small_world(), directory)


def _recall(recipes: Mapping[str, Recipe], seeds: int, directory: Path) -> DataFrame:
    """Recall of each model on its training prompts, one row a model and seed."""
    return text_frame(
        {"model": name, "seed": seed, "recall": recalled(seeded(recipe, seed), directory)}
        for name, recipe in recipes.items()
        for seed in range(seeds)
    )


def _solu(options: argparse.Namespace, save: Save) -> None:
    """Penalties between GeLU and SoLU models of each depth."""
    directory = options.out / "models"
    steps = options.sgd_steps
    sgd = FitOptions(steps=steps, warmup_steps=steps // 10) if steps else FitOptions()
    for depth in options.depths:
        recipes = ACTIVATION_PAIRS[depth]
        models = {
            name: [_model(recipe, seed, directory) for seed in range(options.seeds)] for name, recipe in recipes.items()
        }
        save(f"solu-{depth}-recall", _recall(recipes, options.seeds, directory))
        found = activation_asymmetry(
            models["solu"], models["gelu"], sentence_rows(options.rows, seed=FIT_SEED),
            sentence_rows(options.rows // 2, seed=HELD_OUT_SEED), fit="sgd" if steps else "least_squares",
            fit_options=sgd,
        )  # fmt: skip
        save(f"solu-{depth}{'-sgd' if steps else ''}", found.to_frame())


def _heuristics(options: argparse.Namespace, save: Save) -> None:
    """Twelve fine-tunings by the share of crossed prompts, and twelve by seed alone, of the shipped model."""
    task = cue_task()
    tests = [
        prompts.select(torch.arange(min(options.prompts, len(prompts))))
        for prompts in (task.in_distribution, task.out_of_distribution)
    ]
    for name, recipes in (("by-share", BY_SHARE), ("by-seed", BY_SEED)):
        models = [fine_tuned("facts", task, recipe, options.out / "models") for recipe in recipes]
        found = heuristics(models, *tests, threshold=THRESHOLD)
        frame = found.models_frame()
        frame.insert(0, "n_crossed", [recipe.n_crossed for recipe in recipes])
        frame.insert(1, "seed", [recipe.seed for recipe in recipes])
        save(f"heuristics-{name}-models", frame)
        save(f"heuristics-{name}", found.to_frame())


def _widths(options: argparse.Namespace, save: Save) -> None:
    """The family layer by layer, beside its untrained self; then the outlier, planted in one member."""
    directory, rows = options.out / "models", sentence_rows(options.rows, seed=FIT_SEED)
    families = [
        {name: _model(recipe, seed, directory) for name, recipe in WIDTHS_AND_DEPTHS.items()}
        for seed in range(options.seeds)
    ]
    save("widths-recall", _recall(WIDTHS_AND_DEPTHS, options.seeds, directory))
    fresh = [  # each of a seed of its own: models of one width and seed would share their first layers
        {name: random_init(model, seed=100 * seed + place) for place, (name, model) in enumerate(family.items())}
        for seed, family in enumerate(families)
    ]
    for what, members in (("trained", families), ("untrained", fresh)):
        found = widths_and_depths(members, rows)
        save(f"widths-{what}", found.to_frame())
        save(f"widths-{what}-blocks", found.blocks_frame())
    save("outliers", _outliers(families, sentence_rows(options.rows // 4, seed=FIT_SEED)))


def _outliers(families: Sequence[dict[str, TransformerLensModel]], rows: torch.Tensor) -> DataFrame:
    """`find_outliers` for each size of an outlier planted in "64d-4l", one row a seed and size."""
    lines = []
    for seed, family in enumerate(families):
        target = family["64d-4l"]
        unit = float(streams(target, rows, exclude_first=True).rows[PLANT["layer"]].square().mean().sqrt())
        for size in SIZES:
            with planted(target, **PLANT, size=size * unit):
                found = find_outliers(family, rows)
            top = max(found.layers, key=lambda each: min(each.dimension_gain, each.position_gain))
            right = {**vars(top), "model": "64d-4l", **PLANT} == vars(top)
            lines.append({"seed": seed, "size": size, **vars(top), "n_found": len(found.found), "right": right})
    return text_frame(lines)


if __name__ == "__main__":
    sys.exit(main())
