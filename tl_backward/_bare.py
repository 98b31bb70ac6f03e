"""A module without anyone's hooks, to compute with a part of the model unseen."""

from collections import OrderedDict

from torch import nn


def without_hooks(module: nn.Module) -> nn.Module:
    """A structural copy that shares parameters, buffers and configuration but carries no hook, TransformerLens's too.

    Calling the model's own final norm would run, and be changed by, whatever the user attached to it.
    """
    clone = object.__new__(type(module))
    state = dict(module.__dict__)
    for name, value in state.items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            state[name] = type(value)() if isinstance(value, OrderedDict | dict | list) else value
    state["_modules"] = {
        name: child if child is None else without_hooks(child) for name, child in module._modules.items()
    }
    clone.__dict__.update(state)
    return clone
