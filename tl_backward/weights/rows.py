"""From the uses of a weight in one pass to gradient factors: rows of x and delta by example and token."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.guard import rng_untouched
from tl_backward.model.torch_hooks import register_last
from tl_backward.weights._site import Axes, Read, WeightSite, watched
from tl_backward.weights.factors import GradientFactors
from tl_backward.weights.layout import Addend, Origin, joined
from tl_backward.weights.token_rows import Shapes
from tl_backward.weights.watch import Seen, Watch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Recorded:
    """One use of a weight, and dL/dy at what it wrote."""

    seen: Seen
    gradient: Tensor


def factors_of(
    site: WeightSite, recorded: list[Recorded], shapes: Shapes, edge: GradientEdge | None = None
) -> GradientFactors:
    """The factors of a site from each of its uses in a pass over sequences of [batch, pos] tokens.

    `edge` is where the gradient of its parameter arrives, where it is used as a function of it.
    """
    pull_back = _pull_back(site, recorded, edge) if recorded else None
    layout = site.layout if pull_back is None else replace(site.layout, pull_back=pull_back)
    parts = [_part(site, each, _shape_of(each, shapes), shapes) for each in recorded] or [_nothing(site, shapes[0])]
    if not site.placed and shapes[0][0] > 1:
        parts = [_unplaced(part, shapes[0]) for part in parts]
    inputs, deltas, origin = joined(parts, site.kind in ("bias", "norm"))
    if layout.part is not None:  # a head's query and the gate that follows it
        which, n = layout.part
        deltas = deltas.unflatten(-1, (-1, n, layout.shape[2]))[..., which, :].flatten(-2)
    return GradientFactors(inputs=inputs, deltas=deltas, layout=layout, origin=origin)


def _shape_of(recorded: Recorded, shapes: Shapes) -> tuple[int, int]:
    """[batch, pos] of the sequence of tokens that a use was at; the first where none fits (patches of an image)."""
    if len(shapes) == 1:
        return shapes[0]
    lead = tuple(recorded.gradient.shape[:-1])
    fits = (shape for shape in shapes if lead[:2] == shape or lead == (shape[0] * shape[1],))
    behind_heads = (shape for shape in shapes if len(lead) == 3 and (lead[0], lead[2]) == shape)
    return next(fits, None) or next(behind_heads, None) or shapes[0]


def _part(site: WeightSite, recorded: Recorded, shape: tuple[int, int], shapes: Shapes) -> Addend:
    use, x = recorded.seen.use, None if recorded.seen.use.x is None else recorded.seen.use.x.detach()
    delta = use.delta_rows(recorded.gradient.detach())
    if site.kind == "embedding":
        assert x is not None
        width, ids = delta.shape[-1], x.expand(delta.shape[:-1])
        ids, delta = (by_token(side, shape, site.axes) for side in (ids[..., None], delta))
        return Addend(ids.flatten(1).long(), delta.reshape(len(delta), -1, width))
    if x is not None and site.kind != "bias":
        with torch.no_grad():
            x = use.x_rows(x)
        # Under autocast the product sees a rounded x.
        x = x if x.dtype == delta.dtype else x.to(delta.dtype)
    if site.kind in ("bias", "norm"):
        both = by_token(delta if x is None or site.kind == "bias" else x * delta, shape, site.axes)
        both = both if both.ndim == 3 else both.flatten(2, -2).sum(2)
        return Addend(both.new_ones(*both.shape[:2], 1), both)
    assert x is not None
    if use.blocks == "head":
        x, delta = (by_token(side, shape, site.axes, trailing=2) for side in (x, delta))
        return Addend(x, delta)
    block = use.block
    if site.layout.experts and block is None:  # one expert's slice
        base = recorded.seen.known.base
        number = (use.weight.storage_offset() - base.storage_offset()) // base.stride(0)
        x, delta = x.flatten(0, -2), delta.flatten(0, -2)
        block = torch.full((len(x),), number, device=x.device)
    if block is not None or (x.ndim == 2 and recorded.seen.token is not None):
        return _rows(x, delta, block, recorded.seen, shapes)
    x, delta = (by_token(side, shape, site.axes) for side in (x, delta))
    return Addend(x if x.ndim == 3 else x.flatten(1, -2), delta if delta.ndim == 3 else delta.flatten(1, -2))


def _rows(x: Tensor, delta: Tensor, block: Tensor | None, seen: Seen, shapes: Shapes) -> Addend:
    """Rows that are not [batch, pos], with where each comes from; -1 where that is not known."""
    sizes, token = [batch * pos for batch, pos in shapes], seen.token
    if token is None or len(token) != len(x):  # never gathered: all tokens in their order, once or for each block
        counted = torch.arange(len(x), device=x.device)
        n = seen.use.rows_in_block or len(x)
        which = sizes.index(n) if n in sizes else 0
        token = counted % n if n in sizes and n else torch.full_like(counted, -1)
    else:  # counted through all sequences; a weight's rows are of one
        which = 0
        while which + 1 < len(sizes) and len(token) and int(token.max()) >= sizes[which]:
            token, which = token - sizes[which], which + 1
    pos, known = max(1, shapes[which][1]), token >= 0
    example, place = torch.where(known, token // pos, -1), torch.where(known, token % pos, -1)
    origin = Origin(example[None], place[None], None if block is None else block[None].long(), shapes[which])
    return Addend(x[None], delta[None], origin)


def _unplaced(part: Addend, shape: tuple[int, int]) -> Addend:
    """Rows whose examples are not told apart: a table that all examples read together, an order of its own."""
    inputs, deltas = part.inputs.flatten(0, 1)[None], part.deltas.flatten(0, 1)[None]
    unknown = torch.full(deltas.shape[:2], -1, device=deltas.device)
    return Addend(inputs, deltas, Origin(unknown, unknown, None if part.origin is None else part.origin.expert, shape))


def _nothing(site: WeightSite, shape: tuple[int, int]) -> Addend:
    """Empty factors of an expert that no token reached."""
    none = torch.zeros(1, 0, dtype=torch.long, device=site.parameter.device)
    return Addend(*site.no_tokens(), Origin(none, none, none if site.layout.experts else None, shape))


def axes_of(lead: tuple[int, ...], shapes: Shapes) -> Axes | None:
    """Which axes are the batch and the positions, where their sizes tell; -1 for no positions of tokens."""
    batch = shapes[0][0]
    if lead.count(batch) != 1:
        return None
    axes = {lead.index(pos) for _, pos in shapes if lead.count(pos) == 1} - {lead.index(batch)}
    return (len(lead), lead.index(batch), axes.pop() if len(axes) == 1 else -1) if len(axes) < 2 else None


def examples_of(site: WeightSite, seen: Seen, gradient: Tensor, shapes: Shapes) -> Tensor | None:
    """The examples whose rows hold something of dL/dy at one use; None where rows are not placed by example."""
    part = _part(site, Recorded(seen, gradient), _shape_of(Recorded(seen, gradient), shapes), shapes)
    some = part.deltas.flatten(2).any(-1)
    if part.origin is not None:
        return part.origin.example[some].unique()
    return some.any(-1).nonzero().flatten() if len(some) == shapes[0][0] else None


def by_token(tensor: Tensor, shape: tuple[int, int], axes: Axes | None = None, trailing: int = 1) -> Tensor:
    """[.., d] as [batch, pos, .., d]: layers see tokens as [batch, pos], as [batch * pos], or behind a head axis.

    `axes` tells where sizes do not: as many heads as positions, as many examples as positions.
    """
    batch, pos = shape
    lead = tensor.shape[:-trailing]
    if lead == shape and axes in (None, (2, 0, 1)):
        return tensor
    if axes is not None and len(lead) == axes[0] and lead[axes[1]] == batch:
        if axes[2] == -1:
            tensor = tensor.movedim(axes[1], 0)
            return tensor if len(lead) > 1 else tensor[:, None]
        if lead[axes[2]] == pos:
            return tensor.movedim((axes[1], axes[2]), (0, 1))
    if len(lead) < 2:
        known = len(lead) == 1 and lead[0] == batch * pos
        return tensor.reshape(*shape, *tensor.shape[1:]) if known else tensor[(None,) * (2 - len(lead))]
    if tuple(lead[:2]) == shape:
        return tensor
    if len(lead) >= 3 and lead[0] == batch and lead[2] == pos:
        return tensor.transpose(1, 2)
    # Also where the model adds tokens of its own (LED's windows).
    return tensor.transpose(0, 1) if len(lead) == 2 and lead[1] == batch != lead[0] else tensor


def _pull_back(
    site: WeightSite, recorded: list[Recorded], edge: GradientEdge | None
) -> Callable[[Tensor], Tensor] | None:
    """Function from the gradient of the used tensor to that of its parameter; None where they are the same."""
    if site.computed_from:
        return partial(_refuse, site.name, site.computed_from)
    links = {each.seen.known.link for each in recorded}
    if "function" not in links:
        return None if links == {""} else partial(Tensor.to, dtype=site.parameter.dtype)
    base = recorded[0].seen.known.base
    if any(each.seen.known.base is not base for each in recorded):
        raise RuntimeError(
            f"Expected {site.name} to be used as one function of its parameter, as in a pass of the model's own, got "
            "several; a user's hook may have changed how the model computes: choose others with weights=..."
        )
    if edge is None:
        raise RuntimeError(
            f"Expected {site.name} to be used as it is stored, as in a pass of the model's own, got a function of it; "
            "a user's hook may have changed how the model computes: choose others with weights=..."
        )
    return partial(_through, base, edge)


def _refuse(name: str, parameters: tuple[str, ...], gradient: Tensor) -> Tensor:
    """Raise the error for a gradient that belongs to several parameters."""
    raise ValueError(
        f"Expected a weight with a parameter of its own, got {name}, which is computed from "
        f"{' and '.join(parameters)}; take gradient('tl'), or theirs from cache.parameter_gradients."
    )


def _through(base: Tensor, edge: GradientEdge, gradient: Tensor) -> Tensor:
    """A gradient pulled back through the graph between what was used of a parameter and its edge.

    The parameter may be frozen again by now.
    """
    gradient = gradient.to(base.dtype).reshape(base.shape)
    return torch.autograd.grad(base, edge, gradient, retain_graph=True)[0]


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

    def keep(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        seen.append(cast(Read, site.read).take(args, kwargs, output).detach())

    def note(uses: list[Seen]) -> None:
        used = [each.use for each in uses]
        seen.extend(use.x_rows(use.x.detach()) for use in used if use.kind == "matrix" and use.x is not None)

    with rng_untouched(model), torch.no_grad(), ExitStack() as stack:
        if site.read is not None:
            for handle in register_last(site.read.module, keep, with_kwargs=True):
                stack.callback(handle.remove)
        else:
            stack.enter_context(Watch(watched([site])[0], note, ()))
        result = run()
    x = by_token(seen[0], shape, site.axes) if len(seen) == 1 else None
    if x is None or tuple(x.shape[:2]) != shape:
        raise ValueError(
            f"Expected {site.name} to read once for each token, got {[list(each.shape) for each in seen]} for tokens "
            f"{list(shape)}; choose a matrix that every token goes through."
        )
    return x.flatten(2), result
