"""Torch operations that use a weight: which operand is x, and how the output's gradient relates to the weight's.

Whatever a model calls its layers, a matrix is used where an operation multiplies by it. Each function here knows one
operation, y = f(x, W), and says how to read it as rows: y_i = x_i @ M, with M the weight as [d_in, d_out] or, where
rows belong to experts or heads, one such matrix for each. An operation that is not known here is no fault: the gradient
of its weight is then asked of autograd itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, itemgetter, methodcaller
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional as F

Kind: TypeAlias = Literal["matrix", "embedding", "bias", "norm", "other"]
Orientation: TypeAlias = Literal["in_out", "out_in"]
Rows: TypeAlias = Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


_transposed: Rows = attrgetter("mT")
_as_row: Rows = itemgetter(None)


@dataclass(slots=True)
class Use:
    """One multiplication by a weight (or addition of one, or a look-up in it)."""

    operation: str
    """torch's name of the operation."""
    weight: Tensor
    """The weight as the operation saw it, a parameter, a view of one or a function of some."""
    kind: Kind
    y: Tensor | None = None
    """What the operation returned."""
    x: Tensor | None = None
    """What it multiplied the weight by, or the rows it looked up; None where there is nothing of the kind."""
    orientation: Orientation = "in_out"
    """Whether the weight's last two axes are [d_in, d_out] or [d_out, d_in]."""
    x_rows: Rows = _same
    """x -> [..., d_in]."""
    delta_rows: Rows = _same
    """dL/dy -> delta [..., d_out], over the same leading axes as x's rows."""
    blocks: Literal["", "head", "rows"] = ""
    """Where the weight has a leading axis of its own: "head": the rows' last leading axis is that axis; "rows": each
    row belongs to one entry of it, named in `block`."""
    block: Tensor | None = None
    """[row]: the entry of the weight's leading axis that each row belongs to."""
    rows_in_block: int = 0
    """How many rows each entry has, where all have as many and stand one after another; else 0."""


Arguments: TypeAlias = tuple[object, ...]
Keywords: TypeAlias = dict[str, object]


def uses_of(
    function: Callable,
    args: Arguments,
    kwargs: Keywords,
    out: Tensor,
    is_weight: Callable[[object], bool],
    tensors: Sequence[Tensor],
) -> list[Use]:
    """The uses of the weights among an operation's operands, `tensors`; kind "other" for unknown ones."""
    name = operation_name(function)
    reader = _READERS.get(name)
    uses = [] if reader is None else reader(_Call(name, args, kwargs, out, is_weight))
    known = {id(use.weight) for use in uses}
    return uses + [Use(name, each, "other", out) for each in tensors if id(each) not in known and is_weight(each)]


def operands(args: Arguments, kwargs: Keywords) -> list[Tensor]:
    """The tensors among an operation's arguments, lists of them included."""
    values: list[object] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        values += cast(Sequence[object], value) if type(value) in (list, tuple) else (value,)
    return [each for each in values if isinstance(each, Tensor)]


def operation_name(function: Callable) -> str:
    """Torch's name of an operation, one for a function and the method or operator that does the same."""
    name = getattr(function, "__name__", None) or str(function)
    if name.startswith("grouped_mm_fallback"):  # transformers' own, a packet or an overload of it
        return "_grouped_mm"
    return _SYNONYMS.get(name, name)


@dataclass(slots=True)
class _Call:
    """One call of an operation, its arguments by name or place."""

    name: str
    args: Arguments
    kwargs: Keywords
    out: Tensor
    is_weight: Callable[[object], bool]

    def __getitem__(self, key: tuple[int, str]) -> object:
        place, name = key
        return self.args[place] if len(self.args) > place else self.kwargs.get(name)

    def tensor(self, place: int, name: str) -> Tensor | None:
        value = self[place, name]
        return value if isinstance(value, Tensor) else None

    def weight(self, place: int, name: str) -> Tensor | None:
        value = self.tensor(place, name)
        return value if self.is_weight(value) else None


def _product(call: _Call) -> list[Use]:
    """Left @ right, one of them a weight, plus a bias where the operation adds one."""
    if call.kwargs.get("out") is not None or any(call.kwargs.get(name, 1) != 1 for name in ("beta", "alpha")):
        return []
    left, right = (call.tensor(*place) for place in _FACTORS[call.name])
    uses: list[Use] = []
    if left is not None and right is not None and call.is_weight(left) != call.is_weight(right):
        factors = (right, left, "in_out", _same) if call.is_weight(right) else (left, right, "out_in", _transposed)
        uses = _matrix(call, *factors)
    bias = call.weight(0, "input") if call.name in ("addmm", "baddbmm") else None
    if bias is not None and bias.ndim == 1:
        uses.append(Use(call.name, bias, "bias", call.out))
    return uses


def _matrix(call: _Call, weight: Tensor, x: Tensor, orientation: Orientation, turn: Rows) -> list[Use]:
    """A weight's product with x, whose rows `turn` gives; of one matrix or, [block, .., ..], of one for each block."""
    if weight.ndim == 2:
        rows = _as_row if x.ndim == 1 else turn
        return [Use(call.name, weight, "matrix", call.out, x, orientation, rows, rows)]
    if weight.ndim != 3 or x.ndim != 3 or len(weight) != len(x):
        return []

    def flat(tensor: Tensor) -> Tensor:
        return turn(tensor).flatten(0, 1)

    n = turn(x).shape[1]
    block = torch.arange(len(weight), device=x.device).repeat_interleave(n)
    return [Use(call.name, weight, "matrix", call.out, x, orientation, flat, flat, "rows", block, n)]


def _linear(call: _Call) -> list[Use]:
    x, weight, bias = call.tensor(0, "input"), call.weight(1, "weight"), call.weight(2, "bias")
    uses = [] if weight is None or x is None or weight.ndim != 2 else _matrix(call, weight, x, "out_in", _same)
    if bias is not None and bias.ndim == 1:
        uses.append(Use(call.name, bias, "bias", call.out, delta_rows=_as_row if call.out.ndim == 1 else _same))
    return uses


def _grouped_mm(call: _Call) -> list[Use]:
    """Rows sorted by block, which ends are in `offs`, each times its block's matrix."""
    x, weight, ends = call.tensor(0, "mat_a"), call.weight(1, "mat_b"), call.tensor(2, "offs")
    if x is None or weight is None or ends is None or x.ndim != 2 or weight.ndim != 3 or call[3, "bias"] is not None:
        return []
    block = torch.searchsorted(ends, torch.arange(len(x), device=x.device, dtype=ends.dtype), right=True)
    return [Use(call.name, weight, "matrix", call.out, x, "in_out", _same, _same, "rows", block)]


def _embedding(call: _Call) -> list[Use]:
    ids, weight, padding = call.tensor(0, "input"), call.weight(1, "weight"), call[2, "padding_idx"]
    plain = call[3, "max_norm"] is None and not call[5, "scale_grad_by_freq"] and not call[6, "sparse"]
    if ids is None or weight is None or not plain:
        return []
    delta_rows = _same
    if isinstance(padding, int):
        untrained = (ids == padding % len(weight))[..., None]  # that row gets no gradient
        delta_rows = methodcaller("masked_fill", untrained, 0)
    return [Use(call.name, weight, "embedding", call.out, ids, delta_rows=delta_rows)]


def _layer_norm(call: _Call) -> list[Use]:
    x, shape, centred = call.tensor(0, "input"), cast(list[int], call[1, "normalized_shape"]), call.name == "layer_norm"
    weight, bias = call.weight(2, "weight"), call.weight(3, "bias") if centred else None
    if x is None or len(shape) != 1:
        return []
    eps = call[4 if centred else 3, "eps"]
    options = {"normalized_shape": tuple(shape), "eps": 1e-5 if centred and eps is None else eps}
    normalized = partial(F.layer_norm if centred else F.rms_norm, **options)
    uses = [] if weight is None else [Use(call.name, weight, "norm", call.out, x, x_rows=normalized)]
    return uses if bias is None else [*uses, Use(call.name, bias, "bias", call.out)]


def _elementwise(call: _Call) -> list[Use]:
    """X * w or x + b, the weight along the last axes."""
    left, right = call.tensor(0, "input"), call.tensor(1, "other")
    if left is None or right is None or call.is_weight(left) == call.is_weight(right):
        return []
    weight, x = (left, right) if call.is_weight(left) else (right, left)
    n, out = weight.ndim, call.out.shape
    spread = n == 0 or len(out) <= n or out[-n:] != weight.shape
    if spread or x.shape != out or call.kwargs.get("alpha", 1) != 1:
        return []
    flat = methodcaller("flatten", -n)
    if call.name == "add":
        return [Use(call.name, weight, "bias", call.out, delta_rows=flat)]
    return [Use(call.name, weight, "norm", call.out, x, x_rows=flat, delta_rows=flat)]


def _einsum(call: _Call) -> list[Use]:
    """Two operands, one of them a weight whose axes are contracted, written, or shared with x and y as a head's is."""
    equation, *tensors = call.args
    tensors = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    if not isinstance(equation, str) or len(tensors) != 2 or "." in equation or "->" not in equation:
        return []
    inputs, written = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    at = [place for place, tensor in enumerate(tensors) if call.is_weight(tensor)]
    if len(at) != 1 or len(terms) != 2:
        return []
    weight, x = cast(Tensor, tensors[at[0]]), cast(Tensor, tensors[1 - at[0]])
    of_weight, of_x = terms[at[0]], terms[1 - at[0]]
    contracted = [c for c in of_weight if c in of_x and c not in written]
    out = [c for c in of_weight if c in written and c not in of_x]
    heads = [c for c in of_weight if c in written and c in of_x]
    tokens = [c for c in of_x if c in written and c not in of_weight]
    lead = [*tokens, *heads]
    product = len(contracted) == 1 and len(out) == 1 and len(heads) <= 1
    accounted = (len(of_weight), len(of_x), len(written)) == (2 + len(heads), len(lead) + 1, len(lead) + 1)
    if not product or not accounted or (heads and of_weight[0] != heads[0]):
        return []
    x_axes, y_axes = [of_x.index(c) for c in [*lead, *contracted]], [written.index(c) for c in [*lead, *out]]
    orientation: Orientation = "in_out" if of_weight.index(contracted[0]) < of_weight.index(out[0]) else "out_in"
    x_rows, y_rows = methodcaller("permute", x_axes), methodcaller("permute", y_axes)
    return [Use(call.name, weight, "matrix", call.out, x, orientation, x_rows, y_rows, "head" if heads else "")]


_SYNONYMS = {
    "__matmul__": "matmul", "__mul__": "mul", "__rmul__": "mul", "multiply": "mul", "__add__": "add", "__radd__": "add",
    "grouped_mm": "_grouped_mm",
}  # fmt: skip
_FACTORS = {
    "matmul": ((0, "input"), (1, "other")),
    "__rmatmul__": ((1, "other"), (0, "input")),
    "mm": ((0, "input"), (1, "mat2")),
    "bmm": ((0, "input"), (1, "mat2")),
    "addmm": ((1, "mat1"), (2, "mat2")),
    "baddbmm": ((1, "batch1"), (2, "batch2")),
}
"""Which arguments a product's left and right factors are."""
_READERS: dict[str, Callable[[_Call], list[Use]]] = {
    "linear": _linear,
    **dict.fromkeys(_FACTORS, _product),
    "_grouped_mm": _grouped_mm,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "mul": _elementwise,
    "add": _elementwise,
    "einsum": _einsum,
}
