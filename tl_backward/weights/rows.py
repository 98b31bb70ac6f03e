"""From the uses of a weight in one pass to the factors of its gradient: rows of x and delta, by example and token."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from tl_backward.weights._site import Axes, WeightSite
from tl_backward.weights.factors import GradientFactors
from tl_backward.weights.layout import Origin
from tl_backward.weights.token_rows import Shapes
from tl_backward.weights.watch import Seen


@dataclass(frozen=True)
class Recorded:
    """One use of a weight, and dL/dy at what it wrote."""

    seen: Seen
    gradient: Tensor


@dataclass(frozen=True)
class _Part:
    """The factors that one use contributes."""

    inputs: Tensor
    deltas: Tensor
    origin: Origin | None


def factors_of(
    site: WeightSite, recorded: list[Recorded], shapes: Shapes, edge: GradientEdge | None = None
) -> GradientFactors:
    """The factors of a site from each of its uses in a pass over sequences of [batch, pos] tokens.

    `edge` is where the gradient of its parameter arrives, where it is used as a function of it.
    """
    layout = site.layout
    if recorded:
        pull_back = _pull_back(site, recorded, edge)
        layout = layout if pull_back is None else replace(layout, pull_back=pull_back)
    parts = [_part(site, each, _shape_of(each, shapes), shapes) for each in recorded] or [_nothing(site, shapes[0])]
    if not site.placed and shapes[0][0] > 1:
        parts = [_unplaced(part, shapes[0]) for part in parts]
    inputs, deltas, origin = _joined(site, parts)
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


def _part(site: WeightSite, recorded: Recorded, shape: tuple[int, int], shapes: Shapes) -> _Part:
    use = recorded.seen.use
    delta = use.delta_rows(recorded.gradient.detach())
    x = None if use.x is None else use.x.detach()
    if site.kind == "bias":
        delta = by_token(delta, shape, site.axes)
        delta = delta if delta.ndim == 3 else delta.flatten(2, -2).sum(2)
        return _Part(delta.new_ones(*delta.shape[:2], 1), delta, None)
    assert x is not None
    if site.kind == "embedding":
        width = delta.shape[-1]
        ids = x.expand(delta.shape[:-1])
        ids, delta = (by_token(side, shape, site.axes) for side in (ids[..., None], delta))
        return _Part(ids.flatten(1).long(), delta.reshape(len(delta), -1, width), None)
    with torch.no_grad():
        x = use.x_rows(x)
    # Under autocast the product sees a rounded x.
    x = x.to(delta.dtype)
    if site.kind == "norm":
        both = by_token(x * delta, shape, site.axes)
        both = both if both.ndim == 3 else both.flatten(2, -2).sum(2)
        return _Part(both.new_ones(*both.shape[:2], 1), both, None)
    if use.blocks == "head":
        x, delta = (by_token(side, shape, site.axes, trailing=2) for side in (x, delta))
        return _Part(x, delta, None)
    block = use.block
    if site.layout.experts and block is None:  # one expert's slice
        known = recorded.seen.known
        step = known.base.stride(0)
        number = (use.weight.storage_offset() - known.base.storage_offset()) // step
        x, delta = x.flatten(0, -2), delta.flatten(0, -2)
        block = torch.full((len(x),), number, device=x.device)
    if block is not None or (x.ndim == 2 and recorded.seen.token is not None):
        return _rows(x, delta, block, recorded.seen, shapes)
    x, delta = (by_token(side, shape, site.axes) for side in (x, delta))
    return _Part(x.flatten(1, -2), delta.flatten(1, -2), None)


def _rows(x: Tensor, delta: Tensor, block: Tensor | None, seen: Seen, shapes: Shapes) -> _Part:
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
    shape = shapes[which]
    pos, known = shape[1], token >= 0
    example = torch.where(known, token // max(1, pos), -1)
    place = torch.where(known, token % max(1, pos), -1)
    origin = Origin(example[None], place[None], None if block is None else block[None].long(), shape)
    return _Part(x[None], delta[None], origin)


def _unplaced(part: _Part, shape: tuple[int, int]) -> _Part:
    """Rows whose examples are not told apart: a table that all examples read together, an order of its own."""
    inputs, deltas = part.inputs.flatten(0, 1)[None], part.deltas.flatten(0, 1)[None]
    unknown = torch.full(deltas.shape[:2], -1, device=deltas.device)
    return _Part(inputs, deltas, Origin(unknown, unknown, None if part.origin is None else part.origin.expert, shape))


def _nothing(site: WeightSite, shape: tuple[int, int]) -> _Part:
    """An expert that no token reached."""
    d_in, d_out = site.layout.shape[-2:]
    none = torch.zeros(1, 0, dtype=torch.long, device=site.parameter.device)
    return _Part(
        site.parameter.new_zeros(1, 0, d_in),
        site.parameter.new_zeros(1, 0, d_out),
        Origin(none, none, none if site.layout.experts else None, shape),
    )


def _joined(site: WeightSite, parts: list[_Part]) -> tuple[Tensor, Tensor, Origin | None]:
    if len(parts) == 1:
        return parts[0].inputs, parts[0].deltas, parts[0].origin
    if site.kind in ("bias", "norm") and len({part.deltas.shape for part in parts}) == 1:
        return parts[0].inputs, torch.stack([part.deltas for part in parts]).sum(0), None
    origins = [part.origin for part in parts]
    known = [origin for origin in origins if origin is not None]
    batches = {part.deltas.shape[0] for part in parts}
    if len(batches) > 1 and not known:  # as rows of one batch, whose examples are not told apart
        parts = [_Part(part.inputs.flatten(0, 1)[None], part.deltas.flatten(0, 1)[None], None) for part in parts]
    inputs, deltas = (torch.cat([getattr(part, side) for part in parts], dim=1) for side in ("inputs", "deltas"))
    if len(known) < len(parts):
        return inputs, deltas, None
    experts = [origin.expert for origin in known if origin.expert is not None]
    expert = torch.cat(experts, 1) if len(experts) == len(known) else None
    example, token = torch.cat([each.example for each in known], 1), torch.cat([each.token for each in known], 1)
    origin = Origin(example, token, expert, known[0].shape)
    return inputs, deltas, origin


def axes_of(lead: tuple[int, ...], shapes: Shapes) -> Axes | None:
    """Which axes are the batch and the positions, where their sizes tell; -1 for no positions of tokens."""
    batch = shapes[0][0]
    if lead.count(batch) != 1:
        return None
    found = {lead.index(pos) for _, pos in shapes if lead.count(pos) == 1} - {lead.index(batch)}
    return (len(lead), lead.index(batch), found.pop() if len(found) == 1 else -1) if len(found) < 2 else None


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
    if axes is not None and len(lead) == axes[0] and lead[axes[1]] == batch:
        if axes[2] == -1:
            tensor = tensor.movedim(axes[1], 0)
            return tensor if len(lead) > 1 else tensor[:, None]
        if lead[axes[2]] == pos:
            return tensor.movedim((axes[1], axes[2]), (0, 1))
    if len(lead) >= 2 and tuple(lead[:2]) == shape:
        return tensor
    if len(lead) == 1 and lead[0] == batch * pos:
        return tensor.unflatten(0, shape)
    if len(lead) >= 3 and lead[0] == batch and lead[2] == pos:
        return tensor.transpose(1, 2)
    if len(lead) == 2 and lead[1] == batch != lead[0]:  # also where the model adds tokens of its own (LED's windows)
        return tensor.transpose(0, 1)
    if len(lead) < 2:
        return tensor[None] if len(lead) else tensor[None, None]
    return tensor


def _pull_back(
    site: WeightSite, recorded: list[Recorded], edge: GradientEdge | None
) -> Callable[[Tensor], Tensor] | None:
    """What maps a gradient of what was used to that of the parameter behind it; None where it is the parameter."""
    if site.computed_from:
        return _Refused(site.name, site.computed_from)
    links = {each.seen.known.link for each in recorded}
    if "function" not in links:
        return None if links == {""} else _Cast(site.parameter.dtype)
    base = recorded[0].seen.known.base
    if any(each.seen.known.base is not base for each in recorded):
        raise RuntimeError(
            f"Expected {site.name} to be used as one function of its parameter, as in a pass of the model's own, got "
            "several; a user's hook may have changed how the model computes: choose others with weights=..."
        )
    assert edge is not None
    return _Through(base, edge)


@dataclass(frozen=True)
class _Refused:
    """In the place of a gradient that belongs to several parameters."""

    name: str
    parameters: tuple[str, ...]

    def __call__(self, gradient: Tensor) -> Tensor:
        raise ValueError(
            f"Expected a weight with a parameter of its own, got {self.name}, which is computed from "
            f"{' and '.join(self.parameters)}; take gradient('tl'), or theirs from cache.parameter_gradients."
        )


@dataclass(frozen=True)
class _Cast:
    dtype: torch.dtype

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient.to(self.dtype)


@dataclass(frozen=True)
class _Through:
    """Pulls a gradient back through the graph between a parameter and what was used of it."""

    base: Tensor
    edge: GradientEdge
    """The parameter's, which may be frozen again by now."""

    def __call__(self, gradient: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            self.base, self.edge, gradient.to(self.base.dtype).reshape(self.base.shape), retain_graph=True
        )
        return found
