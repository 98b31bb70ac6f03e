"""Whether a TransformerBridge's attention computes what the module of transformers inside it does.

TransformerLens writes attention anew, and in some versions otherwise (3.9 turns Cohere's queries and keys by pairs of
other dimensions): everything read of such a Bridge is then true of another model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from tl_backward._support.closeness import difference, tolerance
from tl_backward._support.types import TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.model.modules import every_module
from tl_backward.model.probe import unobserved

_CACHES = ("past_key_values", "past_key_value", "layer_past")


class OtherModelWarning(UserWarning):
    """TransformerLens computes something else than the Hugging Face model inside a TransformerBridge."""


@dataclass(frozen=True)
class _Called:
    """What a module was given in a pass, and gave."""

    args: tuple
    kwargs: dict
    output: Tensor


def warn_of_another_attention(model: TransformerLensModel, run: Callable[[], object]) -> None:
    """Compare the first attention of each of TransformerLens's classes with the module inside it, on what it was given.

    Not under compatibility mode, which moves biases and scales from one module to another, nor in half precision; and
    not where the module inside cannot be called with what TransformerLens's was.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if getattr(model, "compatibility_mode", False) or dtype not in (torch.float32, torch.float64):
        return
    firsts = {type(module): module for module in reversed(every_module(model)) if _is_attention(module)}
    seen: dict[nn.Module, _Called] = {}
    with unobserved(model):
        for module in firsts.values():
            module.register_forward_hook(partial(_keep, seen), with_kwargs=True)
        run()
    for module, called in seen.items():
        ours = called.output
        with unobserved(model):
            theirs = _inside(module, called)
        if theirs is None or theirs.shape != ours.shape:
            continue
        off = difference(ours, theirs)
        if off > tolerance(theirs.dtype):
            name = type(getattr(model, "original_model", model)).__name__
            warn_user(
                f"TransformerLens's attention ({type(module).__name__}) of this {name} gives other numbers than the "
                f"module of transformers inside it ({off:.2g} of the largest): what is read here is true of "
                "TransformerLens's model, not of the released one. Another version of TransformerLens may be right.",
                OtherModelWarning,
            )


def _is_attention(module: nn.Module) -> bool:
    named = type(module).__module__.startswith("transformer_lens") and "Attention" in type(module).__name__
    return named and isinstance(getattr(module, "original_component", None), nn.Module)


def _keep(seen: dict[nn.Module, _Called], module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
    first = _first(output)
    if first is not None and module not in seen:
        seen[module] = _Called(args, kwargs, first.detach().clone())


def _first(output: object) -> Tensor | None:
    found = output[0] if isinstance(output, tuple | list) and output else output
    return found if isinstance(found, Tensor) else None


def _inside(module: nn.Module, called: _Called) -> Tensor | None:
    """What the module inside gives; None where it does not take what TransformerLens's was given."""
    given = {name: None if name in _CACHES else value for name, value in called.kwargs.items()}
    inside = cast(nn.Module, module.original_component)
    try:
        return _first(inside(*called.args, **given))
    except Exception:  # whatever another library raises: there is then nothing to compare
        return None
