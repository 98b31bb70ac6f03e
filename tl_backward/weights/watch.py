"""Torch function modes that record the operations using weights in a pass, and refuse those in a loss.

A weight is followed by identity through everything that is computed from weights alone (a transpose, one expert's
slice, a cast, 1 + w, a quantiser); the first operation that brings it together with anything else is where it is used.
What is computed stays what it was, to the bit: operations are called as they would have been.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import getattr_static
from types import TracebackType
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tl_backward.weights.operations import Use, operands, operation_name, uses_of
from tl_backward.weights.token_rows import BEGINNING, Shapes, TokenRows

Link: TypeAlias = Literal["", "cast", "function"]
_CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as", "clone", "contiguous", "add"}
"""Operations through which a gradient passes as it is: their output has the weight's shape and a slope of one."""
_NO_TENSOR = frozenset({torch.Size, torch.dtype, torch.device, torch.layout, bool, int, float, str})
_DETACHING = (getattr_static(torch.Tensor, "data").__get__, torch.Tensor.detach, torch.Tensor.detach_, torch.detach)


def is_detaching(function: Callable) -> bool:
    """Whether no gradient flows through an operation: `.detach()`, `.data`."""
    return function in _DETACHING


def check_first_derivatives(function: Callable, kwargs: dict | None) -> None:
    """Refuse an operation that differentiates within a pass and keeps the graph of that.

    Raises:
        RuntimeError: it does: a weight's gradient has then parts that are no outer products of x and delta.
    """
    if function is torch.autograd.grad and kwargs is not None and kwargs.get("create_graph"):
        raise RuntimeError(
            "Expected a pass and a loss without derivatives of their own, got torch.autograd.grad(create_graph=True), "
            "whose second derivatives factors do not hold; leave the term out, or differentiate it apart."
        )


@contextmanager
def asking(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Context in which every floating-point parameter requires a gradient."""
    changed = [p for p in parameters if p.is_floating_point() and not p.requires_grad]
    for p in changed:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(False)


@dataclass(slots=True)
class Known:
    """A tensor that depends on weights alone."""

    tensor: Tensor
    """Kept, so that no other tensor can take its identity."""
    roots: tuple[int, ...]
    """The weights it depends on, by their number; below zero those of constants."""
    base: Tensor
    """The whole of which it is a view: the weight, or the function of it that is used."""
    link: Link = ""
    """How `base` came from the weight: it is it, a cast of it (or it plus a number), or another function."""
    picked: Tensor | None = None
    """[row]: the entries of the weight's first axis that were gathered into it."""
    altered: bool = False
    """Whether what was gathered was changed after that, so that it is no longer rows of the weight."""
    cut: bool = False
    """Whether no gradient reaches the weight from it: detached, or computed under torch.no_grad()."""


@dataclass(slots=True)
class Seen:
    """One use of a weight, with the tracked tensor that was used."""

    use: Use
    known: Known
    token: Tensor | None
    """[row]: the token (counted through the batches of all sequences) of each row of x, where rows were gathered."""


class Watch(TorchFunctionMode):
    """Within the context every use of a weight is reported.

    Args:
        weights: the weights and every other tensor that is one of them (an alias), each with its weight's number; with
            numbers below zero constants (buffers), which are part of the function where they meet weights alone.
        report: called with the uses of one operation; may return what its output is to be replaced with.
        shapes: [batch, pos] of the tokens whose rows are followed where they are gathered, of each sequence that the
            pass reads (an encoder's and a decoder's); () to follow none.
        ours: whether the pass is one of ours, which refuses second derivatives within it; a training's own goes on.
    """

    def __init__(
        self,
        weights: Iterable[tuple[Tensor, int]],
        report: Callable[[list[Seen]], Tensor | None],
        shapes: Shapes,
        *,
        ours: bool = True,
    ) -> None:
        super().__init__()
        self._ours = ours
        self._known = {id(tensor): Known(tensor, (number,), tensor) for tensor, number in weights}
        self._report = report
        self._stance = ExitStack()
        self._grad = True
        """Whether autograd was on when the watch began; where it goes off inside, nothing flows back."""
        self._used_bases: set[int] = set()
        """What was used of weights, by identity: changed in place after that it is no longer what was used."""
        self._rows = TokenRows(shapes) if shapes else None

    def __enter__(self) -> "Watch":
        """Operations are watched; what torch.compile made runs as it was written, for it would be compiled anew."""
        self._grad = torch.is_grad_enabled()
        if "torch._dynamo" in sys.modules:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Operations are no longer watched."""
        super().__exit__(kind, error, traceback)
        self._stance.close()

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Call the operation, and look at what it did."""
        if func is torch.autograd.grad and self._ours:
            check_first_derivatives(func, kwargs)
        out = func(*args, **kwargs) if kwargs else func(*args)
        if type(out) in _NO_TENSOR:  # a shape, a data type: half of all calls
            return out
        known = self._known
        for value in args:
            if id(value) in known:
                return self._used(func, args, kwargs or {}, out)
            if type(value) is list or type(value) is tuple:
                for item in value:
                    if id(item) in known:
                        return self._used(func, args, kwargs or {}, out)
        if kwargs:
            for value in kwargs.values():
                if id(value) in known:
                    return self._used(func, args, kwargs, out)
        if self._rows is not None and (self._rows.some or getattr(func, "__name__", "") in BEGINNING):
            self._rows.follow(operation_name(func), args, out)
        return out

    def _used(self, func: Callable, args: tuple, kwargs: dict, out: object) -> object:
        name = operation_name(func)
        if _in_place(name) and id(args[0]) in self._known:
            return self._changed(name, self._known[id(args[0])], args, kwargs, out)
        made = out if isinstance(out, list | tuple) else (out,)
        outputs = [each for each in made if isinstance(each, Tensor) and id(each) not in self._known]
        if not outputs:
            return out
        tensors = operands(args, kwargs)
        parts = [_joined_again(self._known[id(each)]) for each in tensors if id(each) in self._known]
        weights = [each for each in parts if weights_of(each)]
        others = [each for each in tensors if id(each) not in self._known]
        if not others:
            cut = is_detaching(func) or (self._grad and not torch.is_grad_enabled())
            for each in outputs:
                self._derive(name, parts, each, cut)
        if not others or not weights:
            return out
        if name in ("__getitem__", "index_select") and self._is_weight(args[0]):
            return self._picked(name, args, kwargs, outputs[0], out)
        if not isinstance(out, Tensor):
            return self._tell([_unknown(name, each, outputs[0]) for each in weights], out)
        seen = []
        for use in uses_of(func, args, kwargs, out, self._is_weight, tensors):
            known = self._known[id(use.weight)]
            if known.picked is not None:
                if use.kind == "matrix" and use.block is not None and not known.altered:
                    use.block = known.picked[use.block]
                else:
                    use.kind = "other"
            seen.append(Seen(use, known, self._token(use)))
        out = self._tell(seen, out)
        if self._rows is not None and self._rows.some:
            self._rows.follow(name, args, out)
        return out

    def _is_weight(self, value: object) -> bool:
        known = self._known.get(id(value))
        return known is not None and bool(weights_of(known))

    def _changed(self, name: str, known: Known, args: tuple, kwargs: dict, out: object) -> object:
        """A function of a weight that is changed in place: another function of it, if that is all that changes it."""
        if not weights_of(known):  # no constant after all
            del self._known[id(known.tensor)]
            return out
        if name == "detach_":
            known.cut = True
            return out
        base = self._known.get(id(known.base))
        alone = all(id(each) in self._known for each in operands(args, kwargs))
        if base is None or known.link == "" or not alone or id(base.tensor) in self._used_bases:
            return self._tell([_unknown(name, known, known.tensor)], out)
        for each in self._known.values():
            if each.base is base.tensor:
                each.link = "function"
        return out

    def _tell(self, seen: list[Seen], out: object) -> object:
        self._used_bases.update(id(each.known.base) for each in seen)
        replacement = self._report(seen)
        return out if replacement is None else replacement

    def _derive(self, name: str, weights: list[Known], out: Tensor, cut: bool) -> None:
        """Note a tensor that was computed from weights alone."""
        first = weights[0]
        cut = cut or all(each.cut for each in weights)
        # What is cut off is a constant beside what is not.
        living = [each for each in weights if cut or not each.cut]
        roots = tuple(dict.fromkeys(root for each in living for root in each.roots))
        picked = next((each.picked for each in weights if each.picked is not None), None)
        altered = any(each.altered for each in weights)
        view = all(each.base is first.base for each in weights) and _shares_storage(out, first.base)
        if view or (picked is not None and len(weights) == 1 and _is_same_or_turned(out, first.tensor)):
            self._known[id(out)] = Known(out, roots, first.base, first.link, picked, altered, cut)
            return
        plain = len(weights) == 1 and name in _CASTS and out.shape == first.tensor.shape and first.link != "function"
        base, link = out, cast(Link, "function")
        if plain and same_layout(first.tensor, first.base):
            link = "cast"
        elif plain and first.base.ndim > 1 and same_layout(first.tensor, first.base.mT):
            base, link = out.mT, "cast"  # a copy of the weight turned is the weight, turned
        self._known[id(out)] = Known(out, roots, base, link, picked, picked is not None, cut)

    def _picked(self, name: str, args: tuple, kwargs: dict, chosen: Tensor, out: object) -> object:
        """Rows or slices of a weight that were chosen by data."""
        known = self._known[id(args[0])]
        index = args[1] if name == "__getitem__" else operands(args[1:], kwargs)[-1]
        index = index[0] if type(index) is tuple and len(index) == 1 else index
        whole = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
        whole = whole and known.picked is None and same_layout(known.tensor, known.base)
        whole = whole and (name == "__getitem__" or (args[1] if len(args) > 1 else kwargs.get("dim")) == 0)
        if _shares_storage(chosen, known.base):  # one slice, chosen by a number that is a tensor
            self._known[id(chosen)] = Known(chosen, known.roots, known.base, known.link, cut=known.cut)
            return out
        ids = cast(Tensor, index)
        if whole and known.base.ndim == 2:
            use = Use(name, known.tensor, "embedding", chosen, ids)
            return self._tell([Seen(use, known, self._token(use))], out)
        if whole and ids.ndim == 1:
            self._known[id(chosen)] = Known(chosen, known.roots, known.base, known.link, ids, cut=known.cut)
            return out
        return self._tell([_unknown(name, known, chosen)], out)

    def _token(self, use: Use) -> Tensor | None:
        return None if self._rows is None else self._rows.of(use.x)


class LossWatch(TorchFunctionMode):
    """Within the context a loss that reads a weight itself, or differentiates, is refused.

    Args:
        parameters: the model's, by name.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters}

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Call the operation, unless it uses a weight with a gradient."""
        check_first_derivatives(func, kwargs)
        out = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(out, Tensor) and torch.is_grad_enabled() and not is_detaching(func):
            read = [self._names[id(each)] for each in operands(args, {}) if id(each) in self._names]
            if read:
                raise ValueError(
                    f"Expected a loss of the logits alone, got one that reads {read[0]} itself, whose gradient would "
                    "have a part that no token writes; leave that term out (its gradient is known in closed form), or "
                    "read a constant: .detach()."
                )
        return out


def _unknown(name: str, known: Known, y: Tensor) -> Seen:
    """The record of a use of unknown kind."""
    return Seen(Use(name, known.tensor, "other", y), known, None)


def _joined_again(known: Known) -> Known:
    """A tensor of the model's own autograd function, which has a gradient edge again after autograd was off."""
    if known.cut and known.tensor.grad_fn is not None:
        known.cut, known.base, known.link = False, known.tensor, "function"
    return known


def weights_of(known: Known) -> tuple[int, ...]:
    """The numbers of the weights that a tensor depends on, constants left out."""
    return known.roots if min(known.roots) >= 0 else tuple(root for root in known.roots if root >= 0)


def _in_place(name: str) -> bool:
    """Whether an operation changes its first operand: add_, __iadd__, __setitem__."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")


def storage_of(tensor: Tensor) -> int:
    """Where a tensor's storage begins; its identity for a tensor subclass without storage."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _shares_storage(a: Tensor, b: Tensor) -> bool:
    return a.numel() > 0 and storage_of(a) == storage_of(b)


def _is_same_or_turned(out: Tensor, gathered: Tensor) -> bool:
    """Whether a view is all of some gathered matrices, as they are or transposed."""
    if gathered.ndim < 2 or not _shares_storage(out, gathered):
        return False
    return same_layout(out, gathered) or same_layout(out, gathered.mT)


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one view of the same memory."""
    return a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()
