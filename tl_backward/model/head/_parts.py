"""What a head is made of: modules, a matrix, and what tells that they are still those it was learnt from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.torch_hooks import without_hooks


@dataclass(frozen=True)
class Step:
    """A module of the head, and the factor that its output is multiplied by."""

    path: str
    """Of the module, from the root that the pass runs through."""
    factor: float
    is_norm: bool = False
    """Whether it is a norm, the one that `ln=False` leaves out."""
    within: str = ""
    """Where in it the unembedding is, which is left out of it; "" where it is not in it."""


@dataclass(frozen=True)
class Learnt:
    """What one pass showed. No module is held: a cache by model must not keep the model alive."""

    steps: tuple[Step, ...]
    first: float
    """Factor on the stream itself, before any step."""
    d_model: int
    width: int
    """Of what the unembedding reads; d_model but for a projection."""
    d_vocab: int
    dtype: torch.dtype
    is_plain: bool
    """Whether the unembedding is x @ W + b with W and b as they are stored."""
    scale: float
    cap: float
    offset: Tensor | None
    """[d_vocab], added after the unembedding's own bias; in units of the unembedding's output."""
    signature: tuple = field(repr=False)


def root_of(model: TransformerLensModel) -> nn.Module:
    """The module whose forward a pass runs through, under whose names all others are found."""
    return cast(nn.Module, model.__dict__.get("original_model") or getattr(model, "original_model", model))


def unembed_of(model: TransformerLensModel) -> nn.Module:
    return cast(nn.Module, model).get_submodule("unembed")


def innermost(unembed: nn.Module) -> nn.Module:
    """What a Bridge's component wraps; HookedTransformer's is itself."""
    return getattr(unembed, "original_component", None) or unembed


def alone(module: nn.Module) -> nn.Module:
    """A module without hooks or dropout, sharing its parameters."""
    return without_hooks(module).eval()


def runnable(model: TransformerLensModel, step: Step) -> nn.Module:
    """A step's module alone, ending where the unembedding begins."""
    module = alone(root_of(model).get_submodule(step.path))
    if step.within:
        parent, _, name = step.within.rpartition(".")
        module.get_submodule(parent)._modules[name] = nn.Identity()
    return module


def unembedding(model: TransformerLensModel) -> Callable[[Tensor], Tensor]:
    """The model's unembedding on rows [n, d]."""
    module = alone(unembed_of(model))
    return lambda rows: module(rows[None])[0]


def stored(model: TransformerLensModel) -> tuple[Tensor, Tensor]:
    """W_U [d, d_vocab] and b_U as the unembedding holds them."""
    leaf = innermost(unembed_of(model))
    if type(leaf) is nn.Linear:
        bias = leaf.bias
        none = leaf.weight.new_zeros(leaf.weight.shape[0])
        return leaf.weight.detach().T, none if bias is None else bias.detach()
    try:
        return model.W_U.detach(), model.b_U.detach()
    except (AttributeError, AssertionError) as error:  # TransformerLens's own, of what holds no weight itself
        raise ValueError(
            "Expected an unembedding with a weight of its own, got a module around one, which TransformerLens reads no "
            "W_U from; put the module in its place by itself."
        ) from error


def may_be_plain(model: TransformerLensModel) -> bool:
    """Whether the unembedding is of a class that multiplies by its weight and does nothing else."""
    leaf = innermost(unembed_of(model))
    hooked = type(leaf).__name__ == "Unembed" and type(leaf).__module__.startswith("transformer_lens.")
    if not (hooked or type(leaf) is nn.Linear) or "forward" in leaf.__dict__:
        return False
    return all(
        type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()
        for weight in (*leaf._parameters.values(), *leaf._buffers.values())
        if weight is not None
    )


def name_of(model: TransformerLensModel) -> str:
    return type(root_of(model)).__name__


def signature_of(model: TransformerLensModel, steps: tuple[Step, ...]) -> tuple:
    """What a head was learnt from: its modules, and every number that a configuration or the root module holds."""
    root = root_of(model)
    unembed = getattr(model, "unembed", None)
    modules = [] if unembed is None else list(unembed.modules())
    for step in steps:
        try:
            modules += root.get_submodule(step.path).modules()
        except AttributeError:
            return ()
    weights = [type(weight) for module in modules for weight in module._parameters.values()]
    plain = unembed is not None and may_be_plain(model)
    held = [_settings(part) for part in (model, root, model.cfg, getattr(root, "config", None))]
    return (*map(id, modules), *weights, plain, *held)


def _settings(owner: object) -> tuple:
    kinds = (float, bool, str, type(None))
    values = vars(owner) if hasattr(owner, "__dict__") else {}
    return tuple((name, value) for name, value in values.items() if name != "training" and isinstance(value, kinds))


def close(one: Tensor, other: Tensor, *, like: torch.dtype | None = None, times: float = 1) -> bool:
    """Whether two tensors agree to the rounding of a dtype, by the size of the larger."""
    like = other.dtype if like is None else like
    one, other = one.double(), other.double()
    allowed = times * min(0.05, 256 * torch.finfo(like).eps) * float(other.abs().max())
    return one.shape == other.shape and bool((one - other).abs().max() <= allowed)
