"""Warnings where TransformerLens computes something else than the model that a TransformerBridge wraps.

TransformerLens writes attention anew, and in some versions otherwise (3.9 turns Cohere's queries and keys by pairs of
other dimensions): everything read of such a Bridge is then true of another model. It also computes the queries, keys
and values of a joint projection (GPT-2's c_attn, NeoX's query_key_value) with parts of its weight, in the place of the
module that an adapter (PEFT) was put on: the model then answers as if it had none.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tl_backward._support.closeness import difference, tolerance
from tl_backward._support.types import TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.model.checks import AdapterWarning
from tl_backward.model.guard import unobserved
from tl_backward.model.modules import every_module
from tl_backward.weights.account import DID_NOT_RUN, WeightSites

_CACHES = ("past_key_values", "past_key_value", "layer_past")


class OtherModelWarning(UserWarning):
    """TransformerLens computes something else than the Hugging Face model inside a TransformerBridge."""


class _Called(NamedTuple):
    """A module's inputs and output in a pass."""

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
        with unobserved(model):
            theirs = _inside(module, called)
        if theirs is None or theirs.shape != called.output.shape:
            continue
        off = difference(called.output, theirs)
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
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def _inside(module: nn.Module, called: _Called) -> Tensor | None:
    """Output of the wrapped module on the same inputs; None where it does not take them."""
    given = {name: None if name in _CACHES else value for name, value in called.kwargs.items()}
    try:
        return _first(cast(nn.Module, module.original_component)(*called.args, **given))
    except Exception:  # whatever another library raises: there is then nothing to compare
        return None


def warn_of_lost_adapters(modules: dict[str, nn.Module], sites: WeightSites) -> None:
    """Say which adapters took no part in the pass that the sites come from, though they are switched on."""
    lost = [(name, type(module)) for name, module in modules.items() if _is_lost(module, sites)]
    if lost:
        first, cls = lost[0]
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        warn_user(
            f"Expected every adapter to take part in the pass, got none of {first!r} ({cls.__module__}."
            f"{cls.__qualname__}){more}: TransformerLens computes with its base weight alone, so that what follows is "
            "about the model without it; merge the adapters before you boot the model (peft_model.merge_and_unload()).",
            AdapterWarning,
        )


def mark_adapted(modules: dict[str, nn.Module], sites: WeightSites) -> None:
    """Note the weights beside which the model computes with an adapter, as it did in the pass the sites come from."""
    base = {
        id(parameter)
        for module in modules.values()
        if any(id(added) not in sites.unused for added in _added(module))
        for parameter in module.get_submodule("base_layer").parameters()
    }
    adapted = [site for site in sites.values() if id(site.parameter) in base and site.kind != "bias"]
    sites.add(*(replace(site, is_adapted=True) for site in adapted))


def _is_lost(module: nn.Module, sites: WeightSites) -> bool:
    """Whether a module has adapters that are switched on, none of which ran."""
    is_off = getattr(module, "merged", False) or getattr(module, "disable_adapters", False)
    ran = [] if is_off else [sites.unused.get(id(parameter)) != DID_NOT_RUN for parameter in _added(module)]
    return bool(ran) and not any(ran)


def _added(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of those of a wrapped layer's adapters that are switched on."""
    if "base_layer" not in module._modules:
        return
    active = getattr(module, "active_adapters", None)
    for name, parameter in module.named_parameters():
        steps = name.split(".")
        if steps[0] != "base_layer" and (active is None or not set(steps).isdisjoint(active)):
            yield parameter
