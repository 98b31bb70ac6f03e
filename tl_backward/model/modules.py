"""The modules of a model, quickly: every capture goes through them several times and seldom needs their names."""

from torch import nn

from tl_backward._support.types import TransformerLensModel


def every_module(model: TransformerLensModel) -> list[nn.Module]:
    """The modules of a model, and of the Hugging Face model inside a Bridge, each once, in `modules()`'s order.

    torch's `modules()` makes each module's name on the way, which for a small model takes as long as a pass.
    """
    inner = getattr(model, "original_model", None)
    found: dict[nn.Module, None] = {}
    for root in (model, inner):
        stack: list[nn.Module | None] = [root] if isinstance(root, nn.Module) else []
        while stack:
            module = stack.pop()
            if module is None or module in found:
                continue
            found[module] = None
            children = module._modules
            if children:
                stack.extend(reversed(children.values()))
    return list(found)


def name_of(model: TransformerLensModel, module: nn.Module) -> str:
    """The name of a module in a model, or behind "original_model." in the Hugging Face model alone; "" for the root."""
    inner = getattr(model, "original_model", None)
    for prefix, root in (("", model), ("original_model", inner)):
        for name, each in root.named_modules(prefix=prefix) if isinstance(root, nn.Module) else ():
            if each is module:
                return name
    return ""
