"""Fine-tune a model of the zoo to classify prompts, its label a word after the prompt."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm.auto import trange
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.loading import Kind
from tl_backward.zoo.classification import LABELS, CuedPrompts, CueTask
from tl_backward.zoo.loading import load, load_hugging_face
from tl_backward.zoo.tokenizer import PAD
from tl_backward.zoo.train import is_saved, save


@dataclass(frozen=True)
class FineTuning:
    """How a classifier is made of a pretrained model: the same recipe gives the same weights."""

    n_crossed: int = 0
    """Training prompts in which cue and rule disagree."""
    n_train: int = 240
    """Training prompts in all."""
    steps: int = 60
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0
    """Of which prompts are drawn, and of their order."""


BY_SHARE = tuple(FineTuning(n_crossed=n, seed=seed) for n in (0, 24) for seed in range(6))
"""Twelve that differ in the share of prompts that tell the rule from the shortcut: none, or a tenth."""

BY_SEED = tuple(FineTuning(n_crossed=4, seed=seed) for seed in range(12))
"""Twelve that differ in nothing but the seed: which prompts are drawn, four of them crossed, and their order."""


def fine_tune(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: CuedPrompts,
    recipe: FineTuning,
    *,
    show_progress: bool = True,
) -> GPT2LMHeadModel:
    """Train every weight of `model`, in place, on the cross-entropy between the two labels' logits after each prompt.

    The order of the prompts comes from the recipe's seed alone; the global random state is left as it was.
    """
    labels = torch.tensor(tokenizer.convert_tokens_to_ids(list(LABELS)))
    rows = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in examples.prompts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.get_vocab()[PAD])
    last = torch.tensor([len(row) - 1 for row in rows])
    real = (torch.arange(tokens.shape[1]) <= last[:, None]).long()
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, recipe.steps)
    order = torch.empty(0, dtype=torch.long)
    for _ in trange(recipe.steps, desc="fine-tune", unit="step", disable=not show_progress):
        while len(order) < recipe.batch_size:
            order = torch.cat([order, torch.randperm(len(examples), generator=generator)])
        batch, order = order[: recipe.batch_size], order[recipe.batch_size :]
        logits = model(tokens[batch], attention_mask=real[batch]).logits[torch.arange(len(batch)), last[batch]]
        loss = F.cross_entropy(logits[:, labels], examples.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def fine_tuned(
    pretrained: str | Path,
    task: CueTask,
    recipe: FineTuning,
    directory: str | Path,
    *,
    kind: Kind | None = None,
    show_progress: bool = True,
) -> TransformerLensModel:
    """The classifier that the recipe makes of a model, loaded from a folder of `directory`, or made and saved first.

    Args:
        pretrained: a name or directory that `tl_backward.zoo.load` takes.
        task: what it learns.
        recipe: how.
        directory: where classifiers are saved; made if it is not there.
        kind: as in `tl_backward.zoo.load`.
        show_progress: show a bar while it trains.

    Raises:
        ValueError: the folder holds a classifier of another recipe.
    """
    asked = {"pretrained": Path(pretrained).name, "recipe": asdict(recipe)}
    folder = Path(directory) / f"{asked['pretrained']}-crossed{recipe.n_crossed}-seed{recipe.seed}"
    if not is_saved(folder, asked, f"the classifier of {recipe}"):
        model, tokenizer = load_hugging_face(pretrained)
        examples = task.training(recipe.n_train, recipe.n_crossed, seed=recipe.seed)
        save(fine_tune(model, tokenizer, examples, recipe, show_progress=show_progress), tokenizer, folder, asked)
    return load(folder, kind=kind)
