"""extend: HookPoints at the input and output of each weight matrix, in the model's own hook_dict.

TransformerLens's hook points lie near the matrices, not at them: a user's hook on `hook_q` stands between W_Q and the
gradient seen there, an unfolded LayerNorm's output has no point at all. After `extend(model)` the points
`blocks.3.mlp.hook_W_out_in` and `blocks.3.mlp.hook_W_out_out` carry x and y of W_out, so TransformerLens's own
`run_with_hooks`, `run_with_cache(incl_bwd=True)` and `add_hook(..., dir="bwd")` observe and replace x and delta.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.checks import check_model, model_kind
from tl_backward.model.guard import check_visitor, visiting
from tl_backward.model.torch_hooks import register_last
from tl_backward.weights import WeightSite, watched, weight_sites
from tl_backward.weights._site import Argument, Read, Write, output
from tl_backward.weights.operations import operands, uses_of
from tl_backward.weights.watch import Known, Seen, Watch, weights_of

METHODS = {"run_with_gradient_cache": "gradients.capture", "backward_lens": "lens.backward_lens"}
"""What becomes a method of an extended model, and where it is; the lens stands above this file."""

_MARK = "_tl_backward_extension"


@dataclass
class _Extension:
    """What `extend` put on a model, so that `unextend` can take it off."""

    points: dict[str, nn.Module] = field(default_factory=dict)
    routes: list["_Route"] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)


# The hooks are objects of these classes and methods are partials, no closures, so that an extended model can be pickled
# and copied.


@dataclass
class _Output:
    """Forward hook: pass a module's output through a point."""

    point: nn.Module

    def __call__(self, module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return self.point(out)


@dataclass
class _Input:
    """Forward pre-hook: pass one argument of a module's call through a point."""

    point: nn.Module
    argument: Argument

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return self.argument.replace(args, kwargs, self.point(self.argument(args, kwargs, None)))


@dataclass
class _Route:
    """The hook points of one weight whose input and output are found by watching torch's operations."""

    site: WeightSite
    entry: nn.Module | None
    exit: nn.Module


@dataclass
class _Forward:
    """The forward of an extended model, with x and y of operations passing through points."""

    model: TransformerLensModel
    routes: list[_Route]

    def __call__(self, *args: object, **kwargs: object) -> object:
        hooked = any(_is_hooked(point) for route in self.routes for point in (route.entry, route.exit))
        with _Routing(self.routes) if hooked else nullcontext():
            return type(cast(nn.Module, self.model)).forward(self.model, *args, **kwargs)


def _is_hooked(point: nn.Module | None) -> bool:
    """Whether a hook is registered on a point, or it has a forward of its own."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return point is not None and ("forward" in vars(point) or any(getattr(point, name) for name in hooks))


class _Routing(Watch):
    """Torch function mode in which x and y of the routes' weights pass through their hook points."""

    def __init__(self, routes: list[_Route]) -> None:
        tensors, self._identities = watched(route.site for route in routes)
        super().__init__(tensors, self._leave, ())
        self._routes = routes
        self._shape: tuple[int, ...] = ()

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Replace x by its hook point's output, then call the operation."""
        if any(id(value) in self._known for value in (*args, *(kwargs or {}).values())):
            args, kwargs = self._enter(func, args, kwargs or {})
        return super().__torch_function__(func, types, args, kwargs)

    def _of(self, known: Known, kind: str) -> list[_Route]:
        """The routes of one use of a weight: one, or several where matrices share a parameter."""
        used = tuple(sorted(self._identities[root] for root in weights_of(known)))
        return [route for route in self._routes if route.site.used == used and route.site.kind == kind]

    def _enter(self, func: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        tensors = operands(args, kwargs)
        others = [value for value in tensors if id(value) not in self._known]
        if not others:
            return args, kwargs
        for use in uses_of(func, args, kwargs, others[0], self._is_weight, tensors):
            if use.kind == "embedding" and use.x is not None and use.x.ndim == 2 and not self._shape:
                self._shape = tuple(use.x.shape)
            if use.kind == "matrix" and use.x is not None:
                x = made = use.x
                for route in self._of(self._known[id(use.weight)], use.kind):
                    made = made if route.entry is None else self._through(route.entry, made)
                args = tuple(made if value is x else value for value in args)
                kwargs = {name: made if value is x else value for name, value in kwargs.items()}
        return args, kwargs

    def _leave(self, seen: list[Seen]) -> Tensor | None:
        for each in seen:
            routes = self._of(each.known, each.use.kind)
            if routes and each.use.y is not None:
                return self._written(routes, each.use.y)
        return None

    def _written(self, routes: list[_Route], y: Tensor) -> Tensor:
        """The output y after its hook points, each applied to its own part."""
        layout = routes[0].site.layout
        if layout.part is None:
            return self._through(routes[0].exit, y)
        _, n = layout.part
        parts = list(y.unflatten(-1, (layout.shape[0], n, layout.shape[2])).unbind(-2))
        for route in routes:
            part = route.site.layout.part
            if part is not None:
                own = parts[part[0]]
                parts[part[0]] = self._through(route.exit, own.flatten(-2)).unflatten(-1, own.shape[-2:])
        return torch.stack(parts, -2).flatten(-3)

    def _through(self, point: nn.Module, value: Tensor) -> Tensor:
        """A tensor after a hook point, which is given [batch, pos, d] where the tensor is flat."""
        if value.ndim == 2 and len(self._shape) == 2 and len(value) == self._shape[0] * self._shape[1]:
            return point(value.unflatten(0, self._shape)).flatten(0, 1)
        return point(value)


@public
def extend(model: TransformerLensModel) -> TransformerLensModel:
    """Add two HookPoints per weight matrix, and our functions as methods, to a model in place; returns it.

    Points are named after the matrix, beside TransformerLens's own: `blocks.3.mlp.hook_W_out_in` (x, after every user
    hook before it) and `blocks.3.mlp.hook_W_out_out` (y, before every user hook after it; its gradient is delta), and
    at the root `hook_W_U_in`, `hook_W_U_out`, `hook_W_E_out`, `hook_W_pos_out`. Forward hooks on them may replace x and
    y, backward hooks may replace delta. Without hooks the output is bit-identical. `model.run_with_gradient_cache` and
    `model.backward_lens` become methods.

    The points follow the model's flags (use_attn_result, split_qkv_input, ...) as they are now: extend again after
    changing them. On a gated HookedTransformer W_in and W_gate read one tensor, so a replacement at either's `_in`
    reaches both. Idempotent; `unextend` takes everything off.

    Examples:
        >>> _ = tlb.extend(model)
        >>> _, cache = model.run_with_cache("Anna Berg", names_filter="blocks.2.mlp.hook_W_out_in")
        >>> cache["blocks.2.mlp.hook_W_out_in"].shape
        torch.Size([1, 3, 512])
        >>> _ = tlb.unextend(model)
    """
    check_model(model)
    with visiting(model):
        unextend(model)
        extension = _Extension()
        object.__setattr__(model, _MARK, extension)
        try:
            for site in weight_sites(model).values():
                if site.kind in ("matrix", "embedding"):
                    _add_points(model, site, extension)
            if extension.routes:
                object.__setattr__(model, "forward", _Forward(model, extension.routes))
            for name, where in METHODS.items():
                function = getattr(import_module(f"tl_backward.{where}"), name)
                object.__setattr__(model, name, partial(function, model))
        except BaseException:
            unextend(model)
            raise
    return model


@public
def unextend(model: TransformerLensModel) -> TransformerLensModel:
    """Take off what `extend` put on, with any hooks on its points; nothing where it was never extended.

    Examples:
        >>> _ = tlb.extend(model)
        >>> _ = tlb.unextend(model)
        >>> "blocks.2.mlp.hook_W_out_in" in model.hook_dict
        False
    """
    check_model(model)
    check_visitor(model)
    extension = vars(model).pop(_MARK, None)
    if extension is None:
        return model
    for handle in extension.handles:
        handle.remove()
    if isinstance(vars(model).get("forward"), _Forward):
        object.__delattr__(model, "forward")
    for name in extension.points:
        owner, _, attribute = name.rpartition(".")
        container = _container(model, owner)
        delattr(container, attribute)
        getattr(container, "_hook_registry", {}).pop(attribute, None)
        for registry in _registries(model):
            registry.pop(name, None)
    for name in METHODS:
        vars(model).pop(name, None)
    return model


def _add_points(model: TransformerLensModel, site: WeightSite, extension: _Extension) -> None:
    owner, _, weight = site.name.rpartition(".")
    owner = owner if any(part.isdigit() for part in owner.split(".")) else ""
    new_point = partial(_new_point, model, extension, owner)
    if site.write is None:
        entry = new_point(f"hook_{weight}_in") if site.kind == "matrix" else None
        extension.routes.append(_Route(site, entry, new_point(f"hook_{weight}_out")))
        return
    take = None if site.read is None or site.kind != "matrix" else site.read.take
    if site.read is not None and (take is output or isinstance(take, Argument)):
        extension.handles += _route_read(site.read, new_point(f"hook_{weight}_in"))
    extension.handles.append(_route_write(site.write, new_point(f"hook_{weight}_out")))


def _route_read(read: Read, point: nn.Module) -> list[RemovableHandle]:
    if isinstance(read.take, Argument):
        return [read.module.register_forward_pre_hook(_Input(point, read.take), with_kwargs=True)]
    return register_last(read.module, _Output(point))


def _route_write(write: Write, point: nn.Module) -> RemovableHandle:
    if write.at == "output":
        return write.module.register_forward_hook(_Output(point), prepend=True)
    return write.module.register_forward_pre_hook(_Input(point, Argument()), prepend=True, with_kwargs=True)


def _new_point(model: TransformerLensModel, extension: _Extension, owner: str, attribute: str) -> nn.Module:
    from transformer_lens.hook_points import HookPoint

    point, name = HookPoint(), f"{owner}.{attribute}" if owner else attribute
    setattr(_container(model, owner), attribute, point)
    point.name = name
    for table in (*_registries(model), extension.points):
        table[name] = point
    return point


def _container(model: TransformerLensModel, owner: str) -> nn.Module:
    """The module with a dotted TransformerLens name; a Bridge's blocks are found by their hook points."""
    module = cast(nn.Module, model)
    for part in owner.split(".") if owner else ():
        module = cast(nn.ModuleList, module)[int(part)] if part.isdigit() else getattr(module, part)
    return module


def _registries(model: TransformerLensModel) -> list[dict[str, nn.Module]]:
    """The tables behind `model.hook_dict` (and HookedTransformer's mod_dict)."""
    names = ("hook_dict", "mod_dict") if model_kind(model) == "HookedTransformer" else ("_hook_registry",)
    return [vars(model)[name] for name in names]
