"""A cache key for a model's sites: while it stays the same, so do the sites."""

from typing import TypeAlias

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.modules import every_module, root_of
from tl_backward.weights.names import is_hook_point

Stamp: TypeAlias = tuple[object, ...]


def stamp(model: TransformerLensModel) -> Stamp:
    """What changes when a model has other modules, parameters, data types, modes or flags than before."""
    modules = every_module(model)
    seen: list[object] = []
    for module in modules:
        state = vars(module)
        seen += (id(module), type(module))
        parameters = state["_parameters"]
        if parameters:
            seen.append(state["training"])
            present = [parameter for parameter in parameters.values() if parameter is not None]
            seen += [(id(parameter), parameter.dtype, parameter.shape) for parameter in present]
            seen += map(id, state["_buffers"].values())  # what pruning masks is replaced with each step of it
        if (state["_forward_hooks"] or state["_forward_pre_hooks"]) and not is_hook_point(module):
            hooks = (*state["_forward_hooks"].values(), *state["_forward_pre_hooks"].values())
            seen += [id(hook) for hook in hooks if not getattr(hook, "__module__", "").startswith(_THEIRS)]
        if "base_layer" in state["_modules"]:  # PEFT: which adapters are switched on
            seen.append(repr([getattr(module, name, None) for name in _ADAPTERS]))
        if "forward" in state:  # a method of the module's own
            seen.append(id(state["forward"]))
    flags = [getattr(model.cfg, name, None) for name in _FLAGS]
    chosen = [getattr(getattr(root_of(model), "config", None), name, None) for name in _IMPLEMENTATIONS]
    return (*seen, *flags, *map(repr, chosen), getattr(model, "compatibility_mode", None), modules[0].training)


_FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in", "ungroup_grouped_query_attention")

_THEIRS = ("transformer_lens.", "transformers.")
"""Whose hooks on modules are their own, added in a first pass: to capture attention, outputs, a block's input."""

_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters")

_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")
"""Which of its implementations of attention and of experts transformers computes with."""
