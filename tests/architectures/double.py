"""Models in float64 where torch or transformers would not have it: grouped products, and roundings to float32."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GROUPED = ("grouped_mm", "_grouped_mm")


class InDouble(TorchFunctionMode):
    """Computes grouped_mm of float64, for which torch has no kernel, and with `unrounded` casts nothing to float32."""

    def __init__(self, unrounded: bool = False) -> None:
        super().__init__()
        self.unrounded = unrounded
        self.casts = 0
        """How often float32 was asked for."""

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Call an operation, or what stands for it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in GROUPED and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            return grouped(*args, **kwargs)
        if not self.unrounded:
            return func(*args, **kwargs)
        if func is torch.Tensor.float:
            if args[0].dtype != torch.float64:
                return func(*args, **kwargs).double()
            self.casts += 1
            return args[0]
        wide = lambda value: torch.float64 if value is torch.float32 else value  # noqa: E731
        if any(value is torch.float32 for value in (*args, *kwargs.values())):
            self.casts += 1
        return func(*map(wide, args), **{key: wide(value) for key, value in kwargs.items()})


def grouped(a: Tensor, b: Tensor, *, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype=None) -> Tensor:
    """rows of a [n, k], in groups that end at offs [g], by b [g, k, m]; what comes after the last group is zero."""
    assert offs is not None and a.ndim == 2 and b.ndim == 3 and bias is None
    return _Grouped.apply(a, b, offs)


class _Grouped(torch.autograd.Function):
    """One node of the graph, as the operation itself is."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, offs: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, offs)
        out = a.new_zeros(len(a), b.shape[2])
        for group, (start, end) in enumerate(_spans(offs)):
            out[start:end] = a[start:end] @ b[group]
        return out

    @staticmethod
    def backward(ctx, delta: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b, offs = ctx.saved_tensors
        for_a, for_b = torch.zeros_like(a), torch.zeros_like(b)
        for group, (start, end) in enumerate(_spans(offs)):
            for_a[start:end] = delta[start:end] @ b[group].T
            for_b[group] = a[start:end].T @ delta[start:end]
        return for_a, for_b, None


def _spans(offs: Tensor) -> list[tuple[int, int]]:
    ends = offs.tolist()
    return list(zip([0, *ends], ends, strict=False))
