"""WeightSite: a weight, the tensor it reads and the tensor it writes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, cast
from weakref import ref

import torch
from torch import Tensor, nn

from tl_backward._support.lengths import frobenius_norm
from tl_backward.weights.factors import GradientFactors
from tl_backward.weights.layout import Addend, Layout, joined

ModuleArgs: TypeAlias = tuple[object, ...]
ModuleKwargs: TypeAlias = dict[str, object]
Axes: TypeAlias = tuple[int, int, int]
SiteKind: TypeAlias = Literal["matrix", "bias", "norm", "embedding", "parameter"]
Combine: TypeAlias = Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]
Calls: TypeAlias = list[tuple[Tensor | None, Tensor]]


@dataclass(frozen=True)
class _Watched:
    """A module, weakly: its hooks may hold the model, which what is kept of its sites must not keep alive."""

    of: ref[nn.Module]

    @property
    def module(self) -> nn.Module:
        """The module, for as long as the model lives."""
        return cast(nn.Module, self.of())


@dataclass(frozen=True)
class Read(_Watched):
    """Where x is read: a module, and how its input or output gives x once every user hook has run."""

    take: Callable[[ModuleArgs, ModuleKwargs, object], Tensor]
    """(args, kwargs, output) of the module's call -> x."""


def output(args: ModuleArgs, kwargs: ModuleKwargs, out: object) -> Tensor:
    """Take a module's output, after every user hook."""
    return cast(Tensor, out)


@dataclass(frozen=True)
class Argument:
    """Take one argument of a module's call, as its forward received it, or give it another."""

    position: int = 0
    name: str = ""
    """Its keyword, where it may come as one; the first argument's need not be known."""

    def _key(self, kwargs: ModuleKwargs) -> str:
        return self.name or next(iter(kwargs))

    def __call__(self, args: ModuleArgs, kwargs: ModuleKwargs, out: object) -> Tensor:
        return cast(Tensor, args[self.position] if len(args) > self.position else kwargs[self._key(kwargs)])

    def replace(self, args: ModuleArgs, kwargs: ModuleKwargs, x: object) -> tuple[ModuleArgs, ModuleKwargs]:
        """The call's arguments with `x` in this one's place."""
        if len(args) > self.position:
            return (*args[: self.position], x, *args[self.position + 1 :]), kwargs
        return args, kwargs | {self._key(kwargs): x}


first_input = Argument()


@dataclass(frozen=True)
class Write(_Watched):
    """Where y is written: a module's first input or its output, before any user hook."""

    at: Literal["input", "output"]


def layer_of(name: str) -> int | None:
    """The index of the block that a weight is in, by its full name; None outside the blocks."""
    parts = name.split(".")
    return int(parts[1]) if parts[0].endswith("blocks") and parts[1].isdigit() else None


def short_name(name: str) -> str:
    """A weight's full name without block and container, as `WeightSite.short_name` says."""
    first, *parts = name.split(".")
    layer = layer_of(name)
    stack = [] if layer is None or first == "blocks" else [first]
    parts = [first, *parts] if layer is None else parts[1:]
    inside = len(parts) > 1 and parts[0] in ("attn", "mlp", "embed", "pos_embed", "unembed")
    return ".".join([*stack, *(parts[1:] if inside else parts)])


@dataclass(frozen=True, repr=False, eq=False)
class WeightSite:
    """One weight of a model: its live parameter, where it reads x and where it writes y."""

    name: str
    """TransformerLens's name: "blocks.3.mlp.W_out"."""
    kind: SiteKind
    """"parameter": one whose gradient is captured whole, as autograd gives it: vectors, scalars, kernels."""
    parameter: nn.Parameter
    """The live parameter behind the weight; its own layout may differ from TransformerLens's shape."""
    layout: Layout
    read: Read | None = None
    """Where x is read; None for a bias, which reads nothing, and where the operations that use the weight tell."""
    write: Write | None = None
    """Where y is written; None where the operations that use the weight tell."""
    combine: Combine | None = None
    """(x, delta) of one call -> (inputs, deltas) of the factors, where the default does not fit."""
    otherwise: Read | None = None
    """Where x is read in passes in which `read` never fires: a layer that the model may compute in two ways."""
    may_be_silent: bool = False
    """Whether a forward pass may leave the weight unused (an expert no token was routed to)."""
    aliases: tuple[Tensor, ...] = ()
    """Tensors of the model that are the parameter without being it, which some modes compute with."""
    is_function: bool = False
    """Whether what is used is a function of the parameter, through which its gradient is pulled back."""
    is_adapted: bool = False
    """Whether an adapter is used beside it, whose product is added to its own: their sum has the same gradient."""
    roots: tuple[nn.Parameter, ...] = ()
    """The parameters that what is used is a function of, where they are several; () where it is `parameter` alone."""
    computed_from: tuple[str, ...] = ()
    """Their names, where `parameter` is none that the weight is named after, so that it has no gradient from here."""
    constants: tuple[Tensor, ...] = ()
    """Buffers that what is used is a function of too."""
    scale: float = 1.0
    """What the module multiplies the rows by that it looks up."""
    axes: Axes | None = None
    """(how many, which is the batch, which are the positions or -1) of the axes before the last of what it writes, as
    the model's own short pass showed them; None where their sizes did not tell."""
    placed: bool = True
    """Whether a gradient of one example alone was seen to arrive at that example's rows alone."""
    gathered: bool = False
    """Whether its rows are tokens that were chosen, so that each must be followed."""
    order: int = 0
    """When a pass first used the weight, counted over its operations; 0 where modules' hooks tell."""

    def __repr__(self) -> str:
        return f"WeightSite({self.name!r}, {self.kind}, shape={list(self.layout.shape)})"

    @cached_property
    def layer(self) -> int | None:
        """The block's index; None outside the blocks. Encoders and decoders count theirs apart."""
        return layer_of(self.name)

    @cached_property
    def short_name(self) -> str:
        """The name without block and container, as TransformerLens's shorthand has it: "W_out", "ln1.w", "W_E".

        Where a model has several stacks of blocks theirs comes first: "encoder_blocks.W_out".
        """
        return short_name(self.name)

    @cached_property
    def key(self) -> str | tuple[str, int]:
        """The shorthand that addresses the weight in a cache: ("W_out", 3), or "W_U" outside the blocks."""
        return self.short_name if self.layer is None else (self.short_name, self.layer)

    @cached_property
    def is_default(self) -> bool:
        """Whether a capture takes it unasked: the matrices of blocks (attention, MLPs, experts, routers, mixers)."""
        return self.kind == "matrix" and any(part.isdigit() for part in self.name.split("."))

    @cached_property
    def used(self) -> tuple[int, ...]:
        """The ids of the parameters that the used tensor depends on."""
        return tuple(sorted(id(root) for root in self.roots or (self.parameter,)))

    def norm_of(self, stored: Tensor) -> float:
        """Frobenius norm of a tensor in the parameter's layout; of the weight's own part where others share it."""
        return frobenius_norm(stored if self.layout.part is None else self.layout.from_stored(stored))

    @property
    def by_operation(self) -> bool:
        """Whether the operations that use the weight tell what it reads and writes, not the hooks of modules."""
        return self.write is None and self.kind != "parameter"

    def factors(self, calls: Calls) -> GradientFactors:
        """The factors from the (x, delta) of every call of the weight in one forward pass.

        A weight used several times in a pass is summed over its calls: an elementwise one call by call, a matrix by
        more tokens.
        """
        parts = [Addend(*self._factor(x, delta)) for x, delta in calls or [self.no_tokens()]]
        inputs, deltas, _ = joined(parts, self.kind in ("bias", "norm"))
        return GradientFactors(inputs=inputs, deltas=deltas, layout=self.layout)

    def no_tokens(self) -> tuple[Tensor, Tensor]:
        """(x, delta) of no token at all: of an expert that saw none."""
        d_in, d_out = self.layout.shape[-2:]
        return self.parameter.new_zeros(1, 0, d_in), self.parameter.new_zeros(1, 0, d_out)

    def _factor(self, x: Tensor | None, delta: Tensor) -> tuple[Tensor, Tensor]:
        if self.combine is not None:
            return self.combine(x, delta)
        if self.kind in ("bias", "norm"):
            delta = delta if x is None else x * delta
            if self.layout.heads == "out":  # b_K and b_V of ungrouped grouped-query attention
                heads, d_head = self.layout.shape
                delta = delta.reshape(*delta.shape[:2], heads, -1, d_head).sum(3)
            delta = delta.reshape(*_batch_pos(delta, self.layout.shape), -1)
            return delta.new_ones(*delta.shape[:2], 1), delta
        assert x is not None, f"the matrix {self.name} has no input"
        if self.kind == "embedding":
            return x.expand(delta.shape[:2]), delta
        if self.layout.heads == "in":
            x = x.reshape(*delta.shape[:-1], -1)
        elif self.layout.heads == "out":
            x, delta = _shared_kv_heads(x, delta, self.layout.shape)
        return _with_batch(x), _with_batch(delta)


def watched(sites: Iterable[WeightSite]) -> tuple[list[tuple[Tensor, int]], list[int]]:
    """The tensors to watch for uses of some weights, and the parameter that each number stands for.

    Returns:
        (tensors, identities): each tensor with its number (see `watch.Watch`); the parameter's identity by its number.
    """
    sites = list(sites)
    roots = {id(root): root for site in sites for root in site.roots or (site.parameter,)}
    numbers = {key: number for number, key in enumerate(roots)}
    tensors: list[tuple[Tensor, int]] = [(root, numbers[key]) for key, root in roots.items()]
    tensors += [(alias, numbers[id(site.parameter)]) for site in sites for alias in site.aliases]
    constants = {id(buffer): buffer for site in sites for buffer in site.constants}
    return tensors + [(buffer, -1 - i) for i, buffer in enumerate(constants.values())], list(roots)


def _batch_pos(delta: Tensor, shape: tuple[int, ...]) -> tuple[int, int]:
    """[batch, pos] of a delta whose trailing axes are the weight's; a missing batch axis counts as 1."""
    n = delta.numel() // max(1, torch.Size(shape).numel())
    return (delta.shape[0], n // delta.shape[0]) if delta.ndim > 2 and n % delta.shape[0] == 0 else (1, n)


def _with_batch(tensor: Tensor) -> Tensor:
    """Give a [tokens, d] tensor a batch axis of 1: experts and flattened norms see tokens without their batch."""
    return tensor[None] if tensor.ndim == 2 else tensor


def _shared_kv_heads(x: Tensor, delta: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Factors of W_Q, W_K or W_V of `shape` [head, d_model, d_head] from x [b p (h) d] and delta [b p h d_head].

    With ungrouped grouped-query attention a stored key/value head serves several: their deltas add up where they share
    x, and count as further tokens where each has its own.
    """
    heads, _, d_head = shape
    batch, pos = delta.shape[:2]
    delta = delta.reshape(batch, pos, -1, d_head)
    group = delta.shape[2] // heads
    if x.ndim == 3:
        if group > 1:
            delta = delta.reshape(batch, pos, heads, group, d_head).sum(3)
        return x, delta.reshape(batch, pos, heads * d_head)
    if group > 1:
        x = x.reshape(batch, pos, heads, group, -1).transpose(2, 3).reshape(batch, pos * group, heads, -1)
        delta = delta.reshape(batch, pos, heads, group, d_head).transpose(2, 3).reshape(batch, pos * group, heads, -1)
    return x, delta
