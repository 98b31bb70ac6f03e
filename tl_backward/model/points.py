"""A model's hook points by name, which a TransformerBridge collects anew each time that it is asked."""

from weakref import ref

from torch import nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.stamp import kept


def hook_points(model: TransformerLensModel) -> dict[str, nn.Module]:
    """`model.hook_dict`, collected once while the model and the names in its registry stay the same."""
    registry = getattr(model, "_hook_registry", None)
    if registry is None:
        return dict(model.hook_dict)
    known, key = kept(model), ("hook points", *registry)
    if key not in known:
        known[key] = {name: ref(point) for name, point in model.hook_dict.items()}
    return {name: point() for name, point in known[key].items()}
