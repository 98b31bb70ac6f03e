"""Train a stitch's map on the next-token loss, everything else frozen."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from tqdm.auto import tqdm

from tl_backward._support.storage import check_kind, check_run, joined, load_tensors, part_of, save_tensors
from tl_backward.alignment.stitched import StitchedModel
from tl_backward.dissimilarity.options import FitOptions
from tl_backward.dissimilarity.stitching.maps import StitchMap
from tl_backward.dissimilarity.stitching.penalty import TextBatch
from tl_backward.model.guard import rng_untouched

Descent = FitOptions  # its name in 0.1.0

_SAME = ("steps", "warmup_steps", "learning_rate", "momentum", "clip", "seed", "save_every")
"""Options that must be the same in a run and in the checkpoint that it resumes from."""


def learning_rate(options: FitOptions, step: int) -> float:
    """The learning rate at a step: a linear warm-up, then a cosine to zero."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def batch_of(options: FitOptions, step: int, n_batches: int) -> int:
    """The index of the batch that a step takes: each once per epoch, in an order that (seed, epoch) gives."""
    epoch, place = divmod(step, n_batches)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + epoch)
    return int(torch.randperm(n_batches, generator=generator)[place])


def train_map(
    stitched: StitchedModel, batches: Sequence[TextBatch], options: FitOptions, *, show_progress: bool
) -> tuple[float, ...]:
    """Train the map in place; returns the loss of every step, in nats a token.

    No parameter of A or B gets a gradient. With a checkpoint, the map, the momentum and the losses are saved every
    `save_every` steps, and a run that finds the file goes on from it.

    Raises:
        ValueError: a map without parameters, a loss that is not finite, or the checkpoint of another run.
    """
    map, checkpoint = cast(StitchMap, stitched.map), options.checkpoint
    map.constrain()
    try:
        named = dict(map.named_parameters())
        if not named:
            raise ValueError("Expected a map with parameters for fit='sgd', got the identity; use fit='least_squares'.")
        parameters = list(named.values())
        optimizer = torch.optim.SGD(parameters, lr=options.learning_rate, momentum=options.momentum, nesterov=True)
        losses = [] if checkpoint is None else _resume(checkpoint, map, optimizer, options)
        steps = tqdm(range(len(losses), options.steps), desc="stitch", unit="step", disable=not show_progress)
        for step in steps:
            batch = batches[batch_of(options, step, len(batches))]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(options, step)
            with torch.enable_grad(), rng_untouched(stitched.model_a), rng_untouched(stitched.model_b):
                with torch.no_grad():
                    stream = stitched.head(batch.tokens)
                logits = stitched.tail(batch.tokens, stream.detach())
                loss = batch.losses(logits).sum() / batch.n_predicted.sum()
                if not torch.isfinite(loss):
                    raise ValueError(
                        f"Expected a finite loss, got {loss.item()} at step {step}; lower learning_rate "
                        f"({options.learning_rate})."
                    )
                gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(parameters, options.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if step % 10 == 0:
                steps.set_postfix(loss=f"{losses[-1]:.3f}")
            if checkpoint is not None and (len(losses) % options.save_every == 0 or len(losses) == options.steps):
                _save(checkpoint, map, optimizer, options, losses)
    finally:
        map.release()
    return tuple(losses)


def _identity(options: FitOptions) -> dict[str, int | float]:
    return {name: getattr(options, name) for name in _SAME}


def _save(
    path: str | Path, map: torch.nn.Module, optimizer: torch.optim.SGD, options: FitOptions, losses: list[float]
) -> None:
    momentum = {
        name: tensor
        for name, parameter in map.named_parameters()
        if (tensor := optimizer.state[parameter].get("momentum_buffer")) is not None
    }
    state = {"options": _identity(options), "losses": losses, "map": repr(map)}
    save_tensors(path, joined(map=map.state_dict(), momentum=momentum), {"descent": state})


def _resume(path: str | Path, map: torch.nn.Module, optimizer: torch.optim.SGD, options: FitOptions) -> list[float]:
    """Restore the map and the optimizer's momentum from a checkpoint if there is one; returns the losses so far."""
    if not Path(path).exists():
        return []
    tensors, metadata = load_tensors(path, str(next(map.parameters()).device))
    check_kind(path, "descent" in metadata, "stitch", metadata)
    state = json.loads(metadata["descent"])
    check_run(path, {**state["options"], "map": state["map"]}, {**_identity(options), "map": repr(map)})
    map.load_state_dict(part_of(tensors, "map"))
    parameters = dict(map.named_parameters())
    for name, momentum in part_of(tensors, "momentum").items():
        optimizer.state[parameters[name]]["momentum_buffer"] = momentum
    return list(state["losses"])
