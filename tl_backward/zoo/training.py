"""Train a model of the zoo from its recipe."""

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tl_backward.zoo.activations import register_solu
from tl_backward.zoo.facts import World
from tl_backward.zoo.recipes import Recipe
from tl_backward.zoo.tokenizer import BOS, PAD, facts_tokenizer


def train(recipe: Recipe, world: World, *, show_progress: bool = True) -> GPT2LMHeadModel:
    """Train a fresh model on the world's training sentences.

    Deterministic on one machine with one number of threads; the global random state is left as it
    was.

    Returns:
        The model on CPU in float32, in eval mode.
    """
    tokenizer = facts_tokenizer()
    model = untrained(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(recipe, step))
    batches = training_batches(recipe, world, tokenizer)
    progress = trange(recipe.steps, desc="train", unit="step", disable=not show_progress)
    for step in progress:
        tokens = next(batches)
        logits = model(tokens).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


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


def training_batches(
    recipe: Recipe, world: World, tokenizer: PreTrainedTokenizerFast
) -> Iterator[Int[Tensor, "batch pos"]]:
    """Endless batches of rows: BOS, then sentences about one person until the row is full.

    Every row opens with a whole sentence, because that is how prompts are asked: right after BOS.
    The last sentence is cut where the row ends. The order comes from `data_seed` alone.
    """
    rng = random.Random(recipe.data_seed)
    texts_of = defaultdict(list)
    for example in world.examples(split="train"):
        texts_of[example.subject].append(example.text)
    people = _shuffled_forever(list(texts_of.values()), rng)
    while True:
        rows = [" ".join(rng.sample(texts, len(texts))) for texts in islice(people, recipe.batch_size)]
        yield tokenizer(rows, truncation=True, max_length=recipe.n_ctx, return_tensors="pt")["input_ids"]


def _shuffled_forever(items: list[list[str]], rng: random.Random) -> Iterator[list[str]]:
    while True:
        yield from rng.sample(items, len(items))


def _warmup_cosine(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))
