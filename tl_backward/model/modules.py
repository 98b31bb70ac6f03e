"""Fast traversal of a model's modules, which every capture goes through several times, mostly without names."""

from torch import nn

from tl_backward._support.types import TransformerLensModel


def roots(model: nn.Module | TransformerLensModel) -> list[nn.Module]:
    """The model and, of a TransformerBridge, the Hugging Face model that it does not register as a child."""
    return [root for root in (model, getattr(model, "original_model", None)) if isinstance(root, nn.Module)]


def root_of(model: nn.Module | TransformerLensModel) -> nn.Module:
    """The module whose forward a pass calls, and under which all others are named."""
    return roots(model)[-1]


def every_module(model: TransformerLensModel) -> list[nn.Module]:
    """The modules of a model, and of the Hugging Face model inside a Bridge, each once, in `modules()`'s order.

    torch's `modules()` makes each module's name on the way, which for a small model takes as long as a pass.
    """
    modules: dict[nn.Module, None] = {}
    stack: list[nn.Module | None] = [*reversed(roots(model))]
    while stack:
        module = stack.pop()
        if module is None or module in modules:
            continue
        modules[module] = None
        children = module._modules
        if children:
            stack.extend(reversed(children.values()))
    return list(modules)


def name_of(model: TransformerLensModel, module: nn.Module) -> str:
    """The name of a module in a model, or behind "original_model." in the Hugging Face model alone; "" for the root."""
    named = zip(("", "original_model"), roots(model), strict=False)
    names = (name for prefix, root in named for name, each in root.named_modules(prefix=prefix) if each is module)
    return next(names, "")


def is_hook_point(module: nn.Module) -> bool:
    """Whether a module is one of TransformerLens's HookPoints."""
    return type(module).__name__ == "HookPoint"
