"""Checks of a model before it is used: a TransformerLens model, uncompiled, with its weights in memory."""

from tl_backward._support.checks import no_model
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.modules import every_module, name_of
from tl_backward.model.stamp import once


class AdapterWarning(UserWarning):
    """A model holds an adapter that takes no part in its passes: what follows is about the model without it."""


KNOWN_MODELS = ("HookedTransformer", "TransformerBridge")


def model_kind(model: object) -> str:
    """The model's class, "HookedTransformer" or "TransformerBridge"; a subclass counts as its parent.

    Raises:
        TypeError: `model` is neither a HookedTransformer nor a TransformerBridge.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in KNOWN_MODELS and cls.__module__.startswith("transformer_lens"):
            return cls.__name__
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            "Expected an uncompiled TransformerLens model, got the result of torch.compile, whose hooks cannot "
            "fire; pass the model you compiled (compiled._orig_mod)."
        )
    raise TypeError(no_model(model))


def check_model(model: TransformerLensModel) -> None:
    """Refuse anything that is not an uncompiled TransformerLens model in memory.

    Raises:
        TypeError: see `model_kind`; also when a submodule was compiled, since its hooks cannot fire.
        ValueError: parameters on the meta device, whose numbers are elsewhere or nowhere.
    """
    model_kind(model)
    _check_usable(model)


@once
def _check_usable(model: TransformerLensModel) -> None:
    for module in every_module(model):
        state = vars(module)
        for key, parameter in state["_parameters"].items():
            if parameter is not None and parameter.is_meta:
                raise ValueError(
                    f"Expected a model whose parameters are in memory, got {f'{name_of(model, module)}.{key}'!r} on "
                    "the meta device, offloaded or never loaded; load it without offloading."
                )
        forward = state.get("forward")
        if (
            state.get("_compiled_call_impl") is not None
            or "_orig_mod" in state["_modules"]
            or (forward is not None and hasattr(forward, "_torchdynamo_orig_callable"))
        ):
            raise TypeError(
                f"Expected an uncompiled model, got one whose {name_of(model, module) or 'root'!r} was compiled with "
                "torch.compile, so its hooks cannot fire; capture on the uncompiled model instead."
            )


@once
def check_checkpointing(model: TransformerLensModel) -> None:
    """Refuse reentrant gradient checkpointing, through which `torch.autograd.grad` cannot go.

    Raises:
        RuntimeError: a module in training mode does it, as transformers' `gradient_checkpointing_enable` sets it up.
    """
    for module in every_module(model):
        state = vars(module)
        if state.get("gradient_checkpointing") and module.training:
            if getattr(state.get("_gradient_checkpointing_func"), "keywords", {}).get("use_reentrant", False):
                raise RuntimeError(
                    f"Expected gradients that autograd can be asked for, got reentrant gradient checkpointing of "
                    f"{name_of(model, module)!r}; switch to gradient_checkpointing_enable("
                    "gradient_checkpointing_kwargs={'use_reentrant': False}), gradient_checkpointing_disable() or "
                    "model.eval()."
                )


def check_one_device(model: TransformerLensModel) -> None:
    """Refuse a model whose parameters lie on several devices.

    Raises:
        ValueError: they do.
    """
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"Expected a model on one device, got parameters on {' and '.join(devices)}; move it with "
            "model.to(device) first."
        )
