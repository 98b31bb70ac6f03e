"""Control models: the same architecture with fresh weights; and deep copies of models.

Fresh weights are what a model's own class makes from its configuration, before any training.
"""

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.model.guard import check_visitor, unobserved
from tl_backward.model.modules import root_of, roots
from tl_backward.model.rebinding import Rebinding


def copied(model: TransformerLensModel) -> TransformerLensModel:
    """A copy of `model` that shares nothing but the tokenizer with it and has no hooks.

    Raises:
        ValueError: its output would not follow its own weights, since something in it leads to the original.
    """
    check_visitor(model)  # whose hooks would be copied
    # TransformerBridge keeps the last attention pattern, a tensor inside a graph, which cannot be copied.
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, object] = {id(value): value.detach() for value in kept if not value.is_leaf}
    memo[id(model.tokenizer)] = model.tokenizer
    clone = _deepcopied(model, memo)
    # In compatibility mode a gated MLP computes with aliases of its parameters, which a copy tears from them.
    twins = {(p.data_ptr(), p.shape): q for p, q in zip(model.parameters(), clone.parameters(), strict=True)}
    for module, copy in zip(model.modules(), clone.modules(), strict=True):
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and (value.data_ptr(), value.shape) in twins:
                vars(copy)[name] = twins[value.data_ptr(), value.shape].detach()
    Rebinding(cast(nn.Module, model), memo, [model.tokenizer]).apply(cast(nn.Module, clone))
    clone.reset_hooks(including_permanent=True)
    return clone


def _deepcopied(model: TransformerLensModel, memo: dict[int, object]) -> TransformerLensModel:
    """`deepcopy` in which each module copies itself, not the layer that it wraps.

    TransformerBridge's components answer for the layer that they wrap, its `__deepcopy__` too (a parametrized layer has
    one), so that their copy would be a copy of the layer alone.
    """
    modules = {id(module): module for root in roots(cast(nn.Module, model)) for module in root.modules()}
    answering = [m for m in modules.values() if hasattr(m, "__deepcopy__") and not hasattr(type(m), "__deepcopy__")]
    # Modules of the same class, of which nothing is set yet.
    copies = [(vars(module), memo.setdefault(id(module), object.__new__(type(module)))) for module in answering]
    clone = deepcopy(model, memo)
    for state, copy in copies:
        vars(copy).update(deepcopy(state, memo))
    return clone


def random_init(model: TransformerLensModel, *, seed: int = 0) -> TransformerLensModel:
    """A copy of `model` with freshly initialised weights and no hooks, the control for what training explains.

    The weights are those that the model's own class gives to a new model of its configuration: ``type(model)(cfg)`` of
    a HookedTransformer (cfg.init_mode, cfg.initializer_range; a folded model has no norm weights here either), and
    ``type(hf)(config)`` of the Hugging Face model in a TransformerBridge. Weights that TransformerLens processed
    (`enable_compatibility_mode`) are processed with its default options. The copy keeps the flags, dtypes, devices,
    mode and hook points of `model`; tied weights stay tied. Neither `model` nor a global RNG is touched.

    Raises:
        ValueError: the class does not make these parameters from the configuration (adapters, quantised weights), or
            its own initialisation leaves logits that do not vary; see `copied` too.

    Warns:
        SameWeightsWarning: most matrices come out as those of `model`, which was drawn from the same seed.
    """
    return next(random_inits(model, [seed]))


def random_inits(model: TransformerLensModel, seeds: Iterable[int]) -> Iterator[TransformerLensModel]:
    """One copy of `model`, with the fresh weights of each seed in turn: done with one before the next is drawn.

    Raises, Warns: as `random_init`.
    """
    clone = copied(model)
    for seed in seeds:
        load_fresh(cast(nn.Module, clone), fresh_model(model, seed=seed), beside=cast(nn.Module, model))
        check_alive(clone)
        yield clone


class SameWeightsWarning(UserWarning):
    """The fresh weights equal the model's own, so that it is no control."""


class _BridgeConfig(Protocol):
    architecture: str
    model_name: str


def fresh_model(model: TransformerLensModel, *, seed: int) -> nn.Module:
    """A model of the same parameters by name, on the CPU, as the class of `model` initialises it.

    A HookedTransformer is ``type(model)(cfg)``. A TransformerBridge's Hugging Face model is ``type(hf)(config)``, drawn
    in torch's default dtype and put into a Bridge of the same architecture: that splits a joint QKV and, where the
    weights of `model` were processed, processes these with TransformerLens's default options.

    Raises:
        ValueError: the class makes no model from the configuration alone.
    """
    inner = getattr(model, "original_model", None)
    kind = type(inner or model)
    with _seeded(seed), torch.device("cpu"):
        try:
            return _hooked(model) if inner is None else _bridged(model, cast(nn.Module, inner))
        except (TypeError, AttributeError, ImportError, NotImplementedError) as error:
            raise ValueError(
                f"Expected a model that its class makes anew from its configuration, got a {kind.__module__}."
                f"{kind.__name__} for which that raises {type(error).__name__} ({error}); pass the model that it "
                "wraps, or no control."
            ) from error


def _hooked(model: TransformerLensModel) -> nn.Module:
    config = deepcopy(model.cfg)
    vars(config).update(seed=None, init_weights=True, tokenizer_name=None)  # no reseeding, no look-up of a tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the class as a whole: the user has it
        return cast(Callable[..., nn.Module], type(model))(config, move_to_device=False)


def _bridged(model: TransformerLensModel, inner: nn.Module) -> nn.Module:
    build = import_module("transformer_lens.model_bridge.sources._bridge_builder").build_bridge_from_module
    config = cast(_BridgeConfig, deepcopy(model.cfg))
    native = config.architecture == "TransformerLensNative"
    if native:
        vars(config).update(seed=None, device="cpu")
    fresh = type(inner)(config if native else deepcopy(inner.config))
    named = {"tl_config": config} if native else {"hf_config": fresh.config}
    bridge = build(fresh, config.architecture, device="cpu", model_name=config.model_name, **named)
    if native:
        bridge.init_weights()
    if getattr(model, "_weights_processed", False):
        bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


def load_fresh(model: nn.Module, fresh: nn.Module, *, beside: nn.Module) -> None:
    """Write the parameters, and the buffers that are saved with them, of `fresh` into `model`, each by its name.

    `beside` is the model that they are to differ from, whose copy `model` is.

    Raises:
        ValueError: a parameter of `model` has none of its name and shape in `fresh`.
    """
    drawn, parameters, kind = _named(fresh, "parameters"), _named(model, "parameters"), type(root_of(model)).__name__
    for name, parameter in parameters.items():
        value = drawn.get(name)
        if value is None or value.shape != parameter.shape or not parameter.is_floating_point():
            got = "none" if value is None else f"{tuple(value.shape)} {value.dtype}"
            raise ValueError(
                f"Expected every parameter to be one that {kind} makes from its configuration, got {name} "
                f"{tuple(parameter.shape)} {parameter.dtype} where it makes {got}; pass the model without what was "
                "added to it (adapters, quantisation, parametrizations, SAEs, pruning), or no control."
            )
    pairs = [(parameters[name], drawn[name]) for name in parameters]
    trained = _named(beside, "parameters")
    _warn_of_same([(trained[name], drawn[name]) for name in parameters], kind)
    buffers, saved = _named(model, "buffers"), _saved(fresh)
    state = {name: value for name, value in _named(fresh, "buffers").items() if name in saved and name in buffers}
    pairs += [(buffers[name], value) for name, value in state.items() if buffers[name].shape == value.shape]
    with torch.no_grad():
        for own, value in pairs:
            own.copy_(value)


def _warn_of_same(pairs: list[tuple[Tensor, Tensor]], kind: str) -> None:
    """Warn when most fresh matrices equal the model's own: it has the same seed and was never trained."""
    matrices = list({id(own): (own, value) for own, value in pairs if own.ndim > 1}.values())
    same = sum(torch.equal(own.cpu(), value.to(own.dtype)) for own, value in matrices)
    if 2 * same > len(matrices):
        warn_user(
            f"Expected fresh weights other than the model's, got {same} of {len(matrices)} matrices of {kind} that are "
            "its own, drawn from the same seed: the control is no control; pass another seed.",
            SameWeightsWarning,
        )


def _named(model: nn.Module, what: str) -> dict[str, Tensor]:
    """Parameters or buffers by each of their names, in the Hugging Face model and in the Bridge."""
    return {
        prefix + name: value
        for prefix, root in _prefixed(model)
        for name, value in getattr(nn.Module, f"named_{what}")(root, remove_duplicate=False)
    }


def _saved(model: nn.Module) -> set[str]:
    """Names, as of `_named`, of the persistent buffers."""
    return {
        prefix + (f"{path}.{name}" if path else name)
        for prefix, root in _prefixed(model)
        for path, module in root.named_modules(remove_duplicate=False)
        for name in module._buffers.keys() - module._non_persistent_buffers_set
    }


def _prefixed(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(zip(("", "bridge:"), reversed(roots(model)), strict=False))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Context in which the global generators (Python, NumPy, torch) are seeded with `seed`, and restored after it."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' too
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def check_alive(model: TransformerLensModel) -> None:
    """Refuse a model whose logits are equal for all tokens, or at all positions.

    A model that does not run on token ids alone (vision, audio) is not asked.

    Raises:
        ValueError: the logits are not finite, or do not vary.
    """
    logits = _probe(model)
    if logits is None:
        return
    least = torch.finfo(logits.dtype).eps * logits.abs().amax()
    if not logits.isfinite().all():
        what = "not finite"
    elif (logits.amax(-1) - logits.amin(-1)).amax() <= least:
        what = "the same for every token"
    elif (logits[:, 1:] - logits[:, :1]).abs().amax() <= least:
        what = "the same at every position"
    else:
        return
    raise ValueError(
        f"Expected {type(root_of(model)).__name__}'s own initialisation to give logits that vary, got logits that are "
        f"{what}; an untrained model of this class is no control: compare with another."
    )


def _probe(model: TransformerLensModel) -> Tensor | None:
    """Logits on a few different tokens, None where the model has none of them."""
    length = min(8, model.cfg.n_ctx, model.cfg.d_vocab)
    tokens = torch.arange(length, device=next(model.parameters()).device)[None] * (model.cfg.d_vocab // length)
    try:
        with unobserved(model):
            logits = model(tokens)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError):
        return None
    return logits if isinstance(logits, Tensor) and logits.ndim == 3 and length > 1 else None
