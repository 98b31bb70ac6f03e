"""What a weight reads in a pass that somebody else makes, without a gradient."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.guard import rng_untouched
from tl_backward.model.torch_hooks import register_last
from tl_backward.weights import Read, WeightSite, watched
from tl_backward.weights.rows import by_token
from tl_backward.weights.watch import Seen, Watch

Result = TypeVar("Result")


def weight_inputs(
    model: TransformerLensModel, site: WeightSite, run: Callable[[], Result], shape: tuple[int, int]
) -> tuple[Tensor, Result]:
    """X of one weight in one pass, after every user hook, and what the pass returned.

    Args:
        model: that is run.
        site: a matrix.
        run: makes the pass; autograd is off within.
        shape: [batch, pos] of its tokens.

    Returns:
        (x, result): x [batch, pos, d_in].

    Raises:
        ValueError: the weight reads nothing, or did not run once for each token.
    """
    if site.kind != "matrix" or (site.write is not None and site.read is None):
        raise ValueError(f"Expected a matrix, got {site.name}, which reads nothing; name a weight matrix.")
    seen: list[Tensor] = []
    with rng_untouched(model), torch.no_grad(), ExitStack() as stack:
        if site.read is not None:
            for handle in register_last(site.read.module, partial(_keep, site.read, seen), with_kwargs=True):
                stack.callback(handle.remove)
        else:
            tensors, _ = watched([site])
            stack.enter_context(Watch(tensors, partial(_note, seen), ()))
        result = run()
    x = by_token(seen[0], shape, site.axes) if len(seen) == 1 else None
    if x is None or tuple(x.shape[:2]) != shape:
        raise ValueError(
            f"Expected {site.name} to read once for each token, got {[list(each.shape) for each in seen]} for tokens "
            f"{list(shape)}; choose a matrix that every token goes through."
        )
    return x.flatten(2), result


def _keep(read: Read, seen: list[Tensor], module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
    seen.append(read.take(args, kwargs, output).detach())


def _note(seen: list[Tensor], uses: list[Seen]) -> None:
    for each in uses:
        if each.use.kind == "matrix" and each.use.x is not None:
            seen.append(each.use.x_rows(each.use.x.detach()))
