"""Models of recipes that do not ship: trained when they are first asked for, then kept in a directory."""

from dataclasses import asdict
from pathlib import Path

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.loading import Kind
from tl_backward.model.loading.shipped import FILES, METRICS, metrics
from tl_backward.zoo.facts import World
from tl_backward.zoo.facts_task import FactsTask
from tl_backward.zoo.loading import load
from tl_backward.zoo.recipes import Recipe
from tl_backward.zoo.train import save
from tl_backward.zoo.training import train


def trained(
    recipe: Recipe, world: World, directory: str | Path, *, kind: Kind | None = None, show_progress: bool = True
) -> TransformerLensModel:
    """The recipe's model, loaded from a folder of `directory` of its own, or trained and saved there first.

    `metrics.json` beside the weights holds its recall, by split and relation.

    Args:
        recipe: what to train.
        world: what it learns.
        directory: where models are kept; made if it is not there.
        kind: as in `tl_backward.zoo.load`.
        show_progress: show a bar while it trains.

    Raises:
        ValueError: the folder holds a model of another recipe or world.
    """
    folder = Path(directory) / folder_name(recipe)
    asked = {"recipe": asdict(recipe), "world_seed": world.seed, "n_people": len(world.people)}
    if all((folder / file).is_file() for file in (*FILES, METRICS)):
        held = metrics(folder)
        if {key: held.get(key) for key in asked} != asked:
            raise ValueError(
                f"Expected the model of {recipe} in {folder}, got one of another recipe or world; choose another "
                "directory, or delete that folder."
            )
    else:
        task = FactsTask(world)
        model = train(recipe, task, show_progress=show_progress)
        measured = task.evaluate(lambda tokens: model(tokens).logits)
        save(model, task.tokenizer(), folder, {"name": folder.name, **asked, "recall": measured})
    return load(folder, kind=kind)


def recalled(recipe: Recipe, directory: str | Path) -> float:
    """Share of training prompts that a model kept by `trained` answers right."""
    return metrics(Path(directory) / folder_name(recipe))["recall"]["train"]["all"]


def folder_name(recipe: Recipe) -> str:
    """What the folder of a recipe's model is called."""
    activation = recipe.activation.removesuffix("_new")
    return f"{activation}-{recipe.n_layers}l-{recipe.d_model}d-init{recipe.init_seed}-data{recipe.data_seed}"
