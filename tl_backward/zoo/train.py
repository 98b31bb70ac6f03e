"""Train a model of the zoo: ``python -m tl_backward.zoo.train facts --out DIR``.

`trained` does so when a model is first asked for, and loads it from its folder later.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm.auto import trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tl_backward._support.storage import save_json, save_tensors
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.loading import Kind
from tl_backward.model.loading.solu import register_solu
from tl_backward.model.shipped import FILES, METRICS, metrics
from tl_backward.zoo import addition, counting
from tl_backward.zoo.facts import World, world
from tl_backward.zoo.facts_task import FactsTask
from tl_backward.zoo.loading import load
from tl_backward.zoo.recipes import ACTIVATIONS, RECIPES, Recipe
from tl_backward.zoo.tasks import IGNORED, Shares, Task
from tl_backward.zoo.tokenizer import BOS, PAD

_CHANGEABLE = {field.name: field.type for field in fields(Recipe) if field.name != "task"}
"""What the command line may change of a recipe: all but what it is for."""
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
    about = {
        "name": options.name,
        "recipe": asdict(recipe),
        "recall": measured,
        "cpu_seconds": round(cpu_seconds, 1),
        "torch": torch.__version__,
    }
    save(model, task.tokenizer(), out, about)
    print(f"{report(measured)}\n{cpu_seconds:.0f} CPU-seconds of training; saved to {out}")
    return 0


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path, about: Mapping[str, object]) -> None:
    """Write model and tokenizer in Hugging Face format, and last `metrics.json`, which says that they are whole."""
    out.mkdir(parents=True, exist_ok=True)
    (out / METRICS).unlink(missing_ok=True)
    model.config.save_pretrained(out)
    own = {name: tensor for name, tensor in model.state_dict().items() if name != _TIED}
    save_tensors(out / "model.safetensors", own, {"format": "pt"})
    tokenizer.save_pretrained(out)
    save_json(out / METRICS, about, beside=FILES)


def train(recipe: Recipe, task: Task, *, show_progress: bool = True) -> GPT2LMHeadModel:
    """Train a fresh model on the task's batches.

    Deterministic on one machine with one number of threads; the global random state is left as it
    was.

    Returns:
        The model on CPU in float32, in eval mode.
    """
    model = untrained(recipe, task.tokenizer())
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(recipe, step))
    batches = task.batches(recipe)
    progress = trange(recipe.steps, desc="train", unit="step", disable=not show_progress)
    for step in progress:
        batch = next(batches)
        said = model(batch.tokens).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(said, batch.targets.flatten(), ignore_index=IGNORED)
        if batch.reading is not None and recipe.reading_weight:
            loss = loss + recipe.reading_weight * F.cross_entropy(said, batch.reading.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def task_named(name: str) -> Task:
    """One of `recipes.TASKS`, as the shipped models learned it."""
    return {"facts": FactsTask(world()), "counting": counting.TASK, "addition": addition.TASK}[name]


def untrained(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Build the recipe's model with its initial weights, drawn from `init_seed` alone."""
    register_solu()
    ids = tokenizer.get_vocab()
    config = GPT2Config(
        vocab_size=len(ids),
        n_positions=recipe.n_ctx,
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        activation_function=recipe.activation,
        # GPT-2's own 0.02 is far too small at this width: the names are then never told apart.
        initializer_range=recipe.d_model**-0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=ids[BOS],
        eos_token_id=ids[PAD],
        pad_token_id=ids[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.init_seed)
        return GPT2LMHeadModel(config)


def _warmup_cosine(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def trained(
    recipe: Recipe, world: World, directory: str | Path, *, kind: Kind | None = None, show_progress: bool = True
) -> TransformerLensModel:
    """The recipe's model, loaded from a folder of `directory` of its own, or trained and saved there first.

    `metrics.json` beside the weights holds its recall, by split and relation.

    Args:
        recipe: what to train.
        world: what it learns.
        directory: where models are saved; made if it is not there.
        kind: as in `tl_backward.zoo.load`.
        show_progress: show a bar while it trains.

    Raises:
        ValueError: the folder holds a model of another recipe or data.
    """
    folder = Path(directory) / folder_name(recipe)
    asked = {"recipe": asdict(recipe), "world_seed": world.seed, "n_people": len(world.people)}
    if not is_saved(folder, asked, f"the model of {recipe}"):
        task = FactsTask(world)
        model = train(recipe, task, show_progress=show_progress)
        measured = task.evaluate(lambda tokens: model(tokens).logits)
        save(model, task.tokenizer(), folder, {"name": folder.name, **asked, "recall": measured})
    return load(folder, kind=kind)


def is_saved(folder: Path, asked: Mapping[str, object], what: str) -> bool:
    """Whether a folder holds a model, which is then of what was `asked` for.

    Raises:
        ValueError: a model of something else.
    """
    if not all((folder / file).is_file() for file in (*FILES, METRICS)):
        return False
    held = metrics(folder)
    if any(held.get(key) != value for key, value in asked.items()):
        raise ValueError(
            f"Expected {what} in {folder}, got one of another recipe or data; choose another directory, or delete that "
            "folder."
        )
    return True


def recalled(recipe: Recipe, directory: str | Path) -> float:
    """Share of training prompts that a model saved by `trained` answers right."""
    return metrics(Path(directory) / folder_name(recipe))["recall"]["train"]["all"]


def folder_name(recipe: Recipe) -> str:
    """Name of the folder for a recipe's model."""
    activation = recipe.activation.removesuffix("_new")
    return f"{activation}-{recipe.n_layers}l-{recipe.d_model}d-init{recipe.init_seed}-data{recipe.data_seed}"


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
    for name, kind in _CHANGEABLE.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            choices=ACTIVATIONS if name == "activation" else None,
            help="(default: the recipe's)",
        )
    return parser


def _recipe(options: argparse.Namespace) -> Recipe:
    """The named recipe with what the command line changes in it."""
    seeds = {name: options.seed for name in ("init_seed", "data_seed")}
    own = {name: getattr(options, name) for name in _CHANGEABLE}
    changes = [(name, value) for each in (seeds, own) for name, value in each.items() if value is not None]
    return replace(RECIPES[options.name], **dict(changes))


if __name__ == "__main__":
    sys.exit(main())
