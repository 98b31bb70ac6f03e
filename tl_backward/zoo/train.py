"""Train a model of the zoo: ``python -m tl_backward.zoo.train facts --out DIR``."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import Field, asdict, fields, replace
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from tl_backward._support.storage import save_json, save_tensors
from tl_backward.model.loading.shipped import FILES, METRICS
from tl_backward.zoo.recipes import ACTIVATIONS, RECIPES, Recipe
from tl_backward.zoo.tasks import Shares
from tl_backward.zoo.training import task_named, train

_TIED = "lm_head.weight"  # the embedding again


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, report and save; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    out = options.out or Path(options.name)
    try:
        recipe = _recipe(options)
    except ValueError as error:
        parser.error(str(error))
    if out.is_dir() and any(out.iterdir()) and not options.overwrite:
        parser.error(f"{out} is not empty: choose another --out, or pass --overwrite.")
    if out.is_file():
        parser.error(f"{out} is a file: --out is a directory to write into.")
    if options.threads < 1:
        parser.error(f"--threads is at least 1, got {options.threads}.")

    torch.set_num_threads(options.threads)
    started = time.process_time()
    task = task_named(recipe.task)
    model = train(recipe, task)
    cpu_seconds = time.process_time() - started
    measured = task.evaluate(lambda tokens: model(tokens).logits)
    metrics = {
        "name": options.name,
        "recipe": asdict(recipe),
        "recall": measured,
        "cpu_seconds": round(cpu_seconds, 1),
        "torch": torch.__version__,
    }
    save(model, task.tokenizer(), out, metrics)
    print(f"{report(measured)}\n{cpu_seconds:.0f} CPU-seconds of training; saved to {out}")
    return 0


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path, metrics: dict[str, object]) -> None:
    """Write model and tokenizer in Hugging Face format, and last `metrics.json`, which says that they are whole."""
    out.mkdir(parents=True, exist_ok=True)
    (out / METRICS).unlink(missing_ok=True)
    model.config.save_pretrained(out)
    own = {name: tensor for name, tensor in model.state_dict().items() if name != _TIED}
    save_tensors(out / "model.safetensors", own, {"format": "pt"})
    tokenizer.save_pretrained(out)
    save_json(out / METRICS, metrics, beside=FILES)


def report(measured: Shares) -> str:
    """Shares answered right as a table: a row a relation or other group, a column a split."""
    splits = list(measured)
    groups = dict.fromkeys(group for split in splits for group in measured[split])
    lines = [f"{'recall':<12}" + "".join(f"{split:>10}" for split in splits)]
    for group in groups:
        cells = (measured[split].get(group) for split in splits)
        lines.append(f"{group:<12}" + "".join(f"{'' if c is None else format(c, '.3f'):>10}" for c in cells))
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tl_backward.zoo.train", description="Train a model of the zoo from its seed."
    )
    parser.add_argument("name", choices=RECIPES, help="the recipe to start from")
    parser.add_argument("--out", type=Path, help="directory to write (default: ./NAME)")
    parser.add_argument("--overwrite", action="store_true", help="write into a directory that is not empty")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--seed", type=int, help="both seeds at once")
    for field in _changeable():
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field.type,
            choices=ACTIVATIONS if field.name == "activation" else None,
            help="(default: the recipe's)",
        )
    return parser


def _changeable() -> list[Field]:
    """What the command line may change: all but what the recipe is for."""
    return [field for field in fields(Recipe) if field.name != "task"]


def _recipe(options: argparse.Namespace) -> Recipe:
    """The named recipe with what the command line changes in it."""
    changes = {} if options.seed is None else {"init_seed": options.seed, "data_seed": options.seed}
    for field in _changeable():
        value = getattr(options, field.name)
        if value is not None:
            changes[field.name] = value
    return replace(RECIPES[options.name], **changes)


if __name__ == "__main__":
    sys.exit(main())
