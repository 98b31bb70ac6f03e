"""The hooks of one capture: every x kept by reference, every y as the edge that its gradient flows through.

Each delta is torch.autograd.grad(loss, edge of y), so the engine runs only the backward steps that lead to some y and
never the matrix product that would form a weight's gradient.

Hooks are bound methods and partials, not closures: a run-time type checker decorates a function each time it is
defined, which costs more than a pass of a small model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from tl_backward._torch_hooks import as_shown, register_last
from tl_backward._typing import TransformerLensModel
from tl_backward._visits import check_visitor
from tl_backward.sites import Read, WeightSite


@dataclass
class _Written:
    """One write of a y: the edge its gradient flows through (None off the tape), and how to tell that it still does."""

    edge: GradientEdge | None
    like: Tensor
    """A detached alias of y, for its shape and version."""
    version: int | None
    """y's version, where an in-place change of it would silently cut the edge off; None where it cannot."""


@dataclass
class Recorder:
    """The hooks of one capture, and what they saw."""

    model: TransformerLensModel
    handles: list[RemovableHandle] = field(default_factory=list)
    sites: list[WeightSite] = field(default_factory=list)
    reads: dict[int, list[tuple[Tensor, int]]] = field(default_factory=dict)
    writes: dict[tuple[int, str], list[_Written]] = field(default_factory=dict)
    points: dict[int, list[_Written]] = field(default_factory=dict)
    converters: dict[int, nn.Module] = field(default_factory=dict)

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self.handles:
            handle.remove()

    def watch(self, site: WeightSite) -> None:
        """Record the site's x and y on every call; a bias shares its matrix's y."""
        self.sites.append(site)
        key = (id(site.write.module), site.write.at)
        if key not in self.writes:
            written = self.writes[key] = []
            if site.write.at == "input":
                self._before(site.write.module, written)
            else:
                self._first(site.write.module, written)
        for read in (site.read, site.otherwise):
            if read is not None and id(read) not in self.reads:  # a gate reads what its W_in does
                self._read(read, self.reads.setdefault(id(read), []))

    def _read(self, read: Read, seen: list[tuple[Tensor, int]]) -> None:
        self._last(read.module, partial(_keep_input, read, seen))

    def _seen(self, site: WeightSite) -> list[tuple[Tensor, int]]:
        """The x of each call of a site, by whichever way the model took."""
        ways = [self.reads[id(read)] for read in (site.read, site.otherwise) if read is not None]
        return next((seen for seen in ways if seen), [])

    def watch_hook_point(self, point: nn.Module) -> None:
        """Record the gradient of the tensor at a HookPoint, all its readers' shares together.

        TransformerLens's own bwd hooks see the same, but for a Bridge's input points (`q.hook_in`, `ln2.hook_in`),
        where they give the one reader's share.
        """
        written = self.points[id(point)] = []
        self.converters[id(point)] = point

        self._last(point, partial(_keep_edge, written))

    def _before(self, module: nn.Module, written: list[_Written]) -> None:
        self.handles.append(module.register_forward_pre_hook(partial(self._enters, written), prepend=True))

    def _enters(self, written: list[_Written], module: nn.Module, args: tuple) -> tuple | None:
        check_visitor(self.model)
        entry, replacement = _trace(args[0], private=True)
        written.append(entry)
        return None if replacement is None else (replacement, *args[1:])

    def _first(self, module: nn.Module, written: list[_Written]) -> None:
        self.handles.append(module.register_forward_hook(partial(self._leaves, written), prepend=True))

    def _leaves(self, written: list[_Written], module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        check_visitor(self.model)
        entry, replacement = _trace(output, private=True)
        written.append(entry)
        return replacement

    def _last(self, module: nn.Module, keep: Callable[[tuple, dict, object], Tensor | None]) -> None:
        """Call `keep` after every other forward hook, also those that are added while we wait."""
        self.handles += register_last(module, partial(self._has_left, keep), with_kwargs=True)

    def _has_left(
        self,
        keep: Callable[[tuple, dict, object], Tensor | None],
        module: nn.Module,
        args: tuple,
        kwargs: dict,
        output: object,
    ) -> Tensor | None:
        check_visitor(self.model)
        return keep(args, kwargs, output)

    def differentiate(self, loss: Tensor) -> tuple[dict[str, list[tuple[Tensor | None, Tensor]]], dict[int, Tensor]]:
        """(x, delta) of every call of every site, and the gradient at every hook point that ran, by its id."""
        entries = [entry for written in [*self.writes.values(), *self.points.values()] for entry in written]
        self._check_complete(entries)
        edges = [entry.edge for entry in entries if entry.edge is not None]
        found = iter(torch.autograd.grad(loss, edges, allow_unused=True) if edges else ())
        deltas = {id(entry): _delta(entry, None if entry.edge is None else next(found)) for entry in entries}
        calls: dict[str, list[tuple[Tensor | None, Tensor]]] = {}
        for site in self.sites:
            wrote = [deltas[id(entry)] for entry in self.writes[id(site.write.module), site.write.at]]
            read = [None] * len(wrote) if site.read is None else [x.detach() for x, _ in self._seen(site)]
            if len(read) == len(wrote):
                # Under autocast the product sees a rounded x.
                read = [
                    x.to(delta.dtype) if x is not None and x.is_floating_point() else x
                    for x, delta in zip(read, wrote, strict=True)
                ]
            else:
                raise RuntimeError(
                    f"Expected {site.name} to write once for each time it reads, got {len(read)} reads and "
                    f"{len(wrote)} writes; the model calls it in a way that is not known here."
                )
            calls[site.name] = list(zip(read, wrote, strict=True))
        gradients = {}
        for key, written in self.points.items():
            parts = [deltas[id(entry)] for entry in written]
            if parts and len({part.shape for part in parts}) == 1:
                total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)  # ln1 runs for q, k and v
                gradients[key] = as_shown(self.converters[key], total)
        return calls, gradients

    def _check_complete(self, entries: list[_Written]) -> None:
        for site in self.sites:
            if not self.writes[id(site.write.module), site.write.at] and not site.may_be_silent:
                raise RuntimeError(
                    f"Expected {site.name} to run in the forward pass, but it never did; a user's hook or the model's "
                    "flags bypass it, or it is called in a way that is not known here. Choose others with weights=..."
                )
            for x, version in self._seen(site):
                if x._version != version:
                    raise RuntimeError(
                        f"Expected the input of {site.name} to stay as it was read, but it was overwritten in place "
                        "later in the forward pass; make the hook that does so return a new tensor."
                    )
        for entry in entries:
            if entry.version is not None and entry.like._version != entry.version:
                raise RuntimeError(
                    f"Expected a tensor of shape {list(entry.like.shape)} to stay as it was written, but it was "
                    "changed in place later in the forward pass; make the hook that does so return a new tensor."
                )


def _keep_input(read: Read, seen: list[tuple[Tensor, int]], args: tuple, kwargs: dict, output: object) -> None:
    x = read.take(args, kwargs, output)
    seen.append((x, x._version))


def _keep_edge(written: list[_Written], args: tuple, kwargs: dict, output: object) -> Tensor | None:
    if not isinstance(output, Tensor) or not output.is_floating_point() or not torch.is_grad_enabled():
        return None
    entry, replacement = _trace(output, private=False)
    written.append(entry)
    return replacement


def _trace(y: Tensor, *, private: bool) -> tuple[_Written, Tensor | None]:
    """The edge that dL/dy flows through, and what must replace y where nothing upstream of it is differentiable.

    In-place changes of a view re-write its history, and an edge of the view itself would silently get no gradient; a
    matrix product's output is often such a view, of a whole buffer that nobody else sees (`private`), whose edge stays.
    """
    if not torch.is_grad_enabled():
        return _Written(None, y.detach(), None), None
    if not y.requires_grad:
        leaf = y.detach().requires_grad_()
        return _Written(get_gradient_edge(leaf), y.detach(), None), leaf.clone()  # a clone may be changed in place
    base = y._base if y._is_view() else None
    if base is None:
        return _Written(get_gradient_edge(y), y.detach(), None), None
    whole = base.numel() == y.numel() and base.is_contiguous() and y.is_contiguous() and base.requires_grad
    if private and whole:
        return _Written(get_gradient_edge(base), y.detach(), None), None
    return _Written(get_gradient_edge(y), y.detach(), y._version), None


def _delta(entry: _Written, gradient: Tensor | None) -> Tensor:
    """dL/dy in y's shape; zeros, without memory of their own, where the loss does not depend on y."""
    if gradient is None:
        return torch.zeros((), dtype=entry.like.dtype, device=entry.like.device).expand(entry.like.shape)
    return gradient.reshape(entry.like.shape)
