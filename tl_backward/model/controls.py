"""The control beside a finding: the same architecture that has learned nothing; and whole copies of models."""

from copy import deepcopy
from typing import cast

from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.fresh import check_alive, fresh_model, load_fresh
from tl_backward.model.guard import check_visitor, rng_untouched
from tl_backward.model.rebinding import Rebinding, roots


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
    """`deepcopy`, but of every module itself.

    TransformerBridge's components answer for the layer that they wrap, its `__deepcopy__` too (a parametrized layer has
    one), so that their copy would be a copy of the layer alone.
    """
    modules = {id(module): module for root in roots(cast(nn.Module, model)) for module in root.modules()}
    answering = [m for m in modules.values() if hasattr(m, "__deepcopy__") and not hasattr(type(m), "__deepcopy__")]
    copies = [(vars(module), memo.setdefault(id(module), _empty(module))) for module in answering]
    clone = deepcopy(model, memo)
    for state, copy in copies:
        vars(copy).update(deepcopy(state, memo))
    return clone


def _empty(module: nn.Module) -> nn.Module:
    """A module of the same class, of which nothing is set yet."""
    return type(module).__new__(type(module))


def random_init(model: TransformerLensModel, *, seed: int = 0) -> TransformerLensModel:
    """A copy of `model` with fresh weights and no hooks: what a finding looks like before any training.

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
    clone = copied(model)
    load_fresh(cast(nn.Module, clone), fresh_model(model, seed=seed))
    with rng_untouched(clone):
        check_alive(clone)
    return clone
