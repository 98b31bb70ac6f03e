"""Train a model of the zoo from its recipe."""

import math

import torch
from torch.nn import functional as F
from tqdm.auto import trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tl_backward.model.loading.solu import register_solu
from tl_backward.zoo import addition, counting
from tl_backward.zoo.facts import world
from tl_backward.zoo.facts_task import FactsTask
from tl_backward.zoo.recipes import Recipe
from tl_backward.zoo.tasks import IGNORED, Task
from tl_backward.zoo.tokenizer import BOS, PAD


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
        logits = model(batch.tokens).logits
        said = logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(said, batch.targets.flatten(), ignore_index=IGNORED)
        if batch.reading is not None and recipe.reading_weight:
            read = F.cross_entropy(said, batch.reading.flatten(), ignore_index=IGNORED)
            loss = loss + recipe.reading_weight * read
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def task_named(name: str) -> Task:
    """One of `recipes.TASKS`, as the shipped models learned it."""
    if name == "facts":
        return FactsTask(world())
    return {"counting": counting.TASK, "addition": addition.TASK}[name]


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
