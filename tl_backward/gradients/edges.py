"""Where a gradient arrives: the autograd edge of each y that a pass writes, whatever hooks do to y later."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass
class Written:
    """One output y: the autograd edge of its gradient (None where none is recorded) and its version at the time."""

    edge: GradientEdge | None
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    alias: Tensor | None
    """Y, detached, where an in-place change of it would silently cut the edge off; else it is not kept."""
    version: int
    """Its version then."""

    @property
    def is_stale(self) -> bool:
        """Whether y was changed in place after it was recorded, so that its gradient is lost."""
        return self.alias is not None and self.alias._version != self.version


def unwatched(value: object) -> AbstractContextManager[object]:
    """A context for looking at a plain tensor, in which no function mode is asked about every look."""
    return torch._C.DisableTorchFunction() if type(value) is Tensor else nullcontext()


def trace(y: Tensor, *, private: bool, replace: bool = True) -> tuple[Written, Tensor | None]:
    """The edge that dL/dy flows through, and what must replace y where nothing upstream of it is differentiable.

    Without `replace` such a y has no edge, and nothing is replaced.

    In-place changes of a view re-write its history, and an edge of the view itself would silently get no gradient; a
    matrix product's output is often such a view, of a whole buffer that nobody else sees (`private`), whose edge stays.
    """
    if not torch.is_grad_enabled():
        return written_at(None, y), None
    if not y.requires_grad:
        if not replace:
            return written_at(None, y), None
        leaf = y.detach().requires_grad_()
        return written_at(get_gradient_edge(leaf), y), leaf.clone()  # a clone may be changed in place
    base = y._base if y._is_view() else None
    if base is None:
        return written_at(edge_of(y), y), None
    whole = base.numel() == y.numel() and base.is_contiguous() and y.is_contiguous() and base.requires_grad
    if private and whole:
        return written_at(get_gradient_edge(base), y), None
    return written_at(edge_of(y), y, y.detach()), None


def edge_of(y: Tensor) -> GradientEdge:
    """`get_gradient_edge` of an output of torch's own, without what that does for others."""
    node = y.grad_fn
    if node is None or isinstance(node, torch._C._FunctionBase):
        return get_gradient_edge(y)
    return GradientEdge(node, y.output_nr)


def written_at(edge: GradientEdge | None, y: Tensor, alias: Tensor | None = None) -> Written:
    """The record of y, whose gradient arrives at `edge`."""
    return Written(edge, y.shape, y.dtype, y.device, alias, 0 if alias is None else alias._version)


def delta_at(entry: Written, gradient: Tensor | None) -> Tensor:
    """dL/dy in y's shape; zeros, without memory of their own, where the loss does not depend on y."""
    if gradient is None:
        return torch.zeros((), dtype=entry.dtype, device=entry.device).expand(entry.shape)
    return gradient if gradient.shape == entry.shape else gradient.reshape(entry.shape)
