"""Adapters (PEFT) that a model holds and does not compute with.

TransformerLens computes the queries, keys and values of a joint projection (GPT-2's c_attn, NeoX's query_key_value)
with parts of its weight, in the place of the module that an adapter was put on: the model then answers as if it had
none.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from tl_backward.model.checks import AdapterWarning
from tl_backward.weights._site import WeightSites
from tl_backward.weights.account import DID_NOT_RUN


def warn_of_lost_adapters(modules: dict[str, nn.Module], sites: WeightSites) -> None:
    """Say which adapters took no part in the pass that the sites come from, though they are switched on."""
    lost = {name: module for name, module in modules.items() if _is_lost(module, sites)}
    if not lost:
        return
    (first, module), more = next(iter(lost.items())), len(lost) - 1
    cls = type(module)
    warnings.warn(
        f"Expected every adapter to take part in the pass, got none of {first!r} ({cls.__module__}.{cls.__qualname__})"
        + (f" and {more} more" if more else "")
        + ": TransformerLens computes with its base weight alone, so that what follows is about the model without it; "
        "merge the adapters before you boot the model (peft_model.merge_and_unload()).",
        AdapterWarning,
        stacklevel=2,
    )


def mark_adapted(modules: dict[str, nn.Module], sites: WeightSites) -> None:
    """Note the weights beside which the model computes with an adapter, as it did in the pass the sites come from."""
    base = {
        id(parameter)
        for module in modules.values()
        if any(id(added) not in sites.unused for added in _added(module))
        for parameter in module.get_submodule("base_layer").parameters()
    }
    for name, site in sites.items():
        if id(site.parameter) in base and site.kind != "bias":
            sites[name] = replace(site, is_adapted=True)


def _is_lost(module: nn.Module, sites: WeightSites) -> bool:
    if getattr(module, "merged", False) or getattr(module, "disable_adapters", False):
        return False
    added = list(_added(module))
    return bool(added) and all(sites.unused.get(id(parameter)) == DID_NOT_RUN for parameter in added)


def _added(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of those of a wrapped layer's adapters that are switched on."""
    if "base_layer" not in module._modules:
        return
    active = getattr(module, "active_adapters", None)
    for name, parameter in module.named_parameters():
        steps = name.split(".")
        if steps[0] != "base_layer" and (active is None or not set(steps).isdisjoint(active)):
            yield parameter
