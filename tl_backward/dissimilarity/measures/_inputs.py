"""Common to all measures: checks of the two sample matrices, optional packages, the result's dtype and device."""

import functools
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from tl_backward._support.arrays import tensor_of

P = ParamSpec("P")
Function = Callable[Concatenate[Tensor, Tensor, P], Tensor]


def measure(minimum: int) -> Callable[[Function[P]], Function[P]]:
    """Make a function of two sample matrices a measure: inputs checked, no autograd, a scalar on the inputs' device.

    The result is float64 where an input is, float32 otherwise (half precision is read as float32).

    Args:
        minimum: the fewest samples for which the measure says anything.
    """

    def decorate(function: Function[P]) -> Function[P]:
        @functools.wraps(function)
        def checked(x: object, y: object, *args: P.args, **options: P.kwargs) -> Tensor:
            x, y = check_pair(x, y, minimum, function.__name__)
            dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
            with torch.no_grad():
                value = function(_readable(x), _readable(y), *args, **options)
            return value.detach().to(device=x.device, dtype=dtype)

        return checked

    return decorate


def required(package: str, title: str, measure: str, extra: str, instead: str = "") -> ModuleType:
    """Import an optional package that a measure needs.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"Expected the package {title} for {measure}, but it is not installed; install tl-backward[{extra}], or "
            f"choose another measure{instead}."
        ) from error


def check_pair(x: object, y: object, minimum: int, name: str) -> tuple[Tensor, Tensor]:
    """Check that x and y are sample matrices [sample, d] that a measure can compare; returns them.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: not two matrices of the same samples, too few samples, values that are not finite, or no variation.
    """
    x, y = _matrix("x", x), _matrix("y", y)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"Expected x and y to describe the same samples, got {x.shape[0]} and {y.shape[0]} rows; row i of both "
            "must come from the same input."
        )
    if x.device != y.device:
        raise ValueError(f"Expected x and y on one device, got {x.device} and {y.device}; move one with .to(...).")
    if x.shape[0] < minimum:
        raise ValueError(
            f"Expected at least {minimum} samples for {name}, got {x.shape[0]}; pass more rows (tokens or sequences)."
        )
    for label, side in (("x", x), ("y", y)):
        _check_values(label, side)
    return x, y


def _matrix(label: str, side: object) -> Tensor:
    side = tensor_of(side)
    if not isinstance(side, Tensor) or not side.is_floating_point():
        kind = str(side.dtype) if isinstance(side, Tensor) else type(side).__name__
        raise TypeError(
            f"Expected {label} as a floating-point tensor [sample, d], got {kind}; convert it with "
            "torch.as_tensor(...).float()."
        )
    if side.ndim != 2 or side.shape[1] == 0:
        raise ValueError(
            f"Expected {label} as a matrix [sample, d], got shape {list(side.shape)}; bring activations "
            "[batch, pos, d] to rows with .flatten(0, 1)."
        )
    return side


def _check_values(label: str, side: Tensor) -> None:
    total = side.sum(dtype=torch.promote_types(side.dtype, torch.float32))
    if not torch.isfinite(total):  # a sum may also overflow; a value that is not finite always shows in it
        bad = ~torch.isfinite(side)
        if bad.any():
            raise ValueError(
                f"Expected finite activations, got {int(bad.sum())} NaN or infinite values in {label} (first in row "
                f"{int(bad.any(1).nonzero()[0, 0])}); leave those samples out or find the overflow behind them."
            )
    if torch.equal(side[0], side[-1]) and bool((side == side[0]).all()):
        raise ValueError(
            f"Expected {label} to vary over samples, got {side.shape[0]} identical rows; compare activations of "
            "different inputs."
        )


def _readable(side: Tensor) -> Tensor:
    side = side.detach()
    if side.device.type == "mps":  # no float64 there
        side = side.cpu()
    return side.float() if side.dtype in (torch.float16, torch.bfloat16) else side
