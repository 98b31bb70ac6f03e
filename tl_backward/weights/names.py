"""Names of a TransformerBridge's weights.

A component of TransformerLens's own has TransformerLens's name: "blocks.3.attn.W_Q", "blocks.3.mlp.W_out",
"blocks.3.ln1.w", "embed.W_E", "unembed.W_U". For everything else one rule holds: TransformerLens's path of the
innermost component around the weight, then the model's own path of the module below it, and for the last step
`W_<module>` and `b_<module>` for what a module calls weight and bias ("blocks.3.mixer.W_in_proj",
"blocks.3.mlp.shared_expert.W_gate_proj"), `w` and `b` in norms ("blocks.3.mixer.norm.w"), and any other parameter by
its own name ("blocks.3.mixer.A_log", "blocks.3.mlp.experts.gate_up_proj"). What is outside every component has the
model's own path ("vision_tower.W_patch_embedding").

An adapter's matrices come below the layer that they are added to ("blocks.3.attn.q.W_lora_A"; those of further adapters
by theirs, "blocks.3.attn.q.lora_A.W_second"); the layer's own weight keeps its name. What the layer multiplies by
altogether, W + s B A, has the gradient of W, and so "W_Q" stands for both.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.modules import every_module, is_hook_point

_LETTERS = {"q": "Q", "k": "K", "v": "V", "o": "O", "dense_in": "in", "dense_gate": "gate", "dense_out": "out"}
_WRAPPERS = ("_original_component", "base_layer", "default", "parametrizations")
"""Steps of a path that say how a layer is wrapped (by TransformerLens, PEFT or torch), not which one it is."""


@dataclass(frozen=True)
class Named:
    """One path to a parameter: the module that holds it, and its name there."""

    name: str
    module: nn.Module
    attribute: str
    parent: nn.Module | None
    """The component whose part the module is: an attention, an MLP."""
    depth: int
    """Steps below TransformerLens's innermost component: the fewer, the more TransformerLens knows of it."""
    computed: str = ""
    """What the weight is called that the module computes from the parameter (weight norm); "" where it has its own."""


def named_weights(model: nn.Module, components: dict[int, str]) -> dict[int, list[Named]]:
    """Every parameter by its identity, with each way to it, the one that TransformerLens knows best first.

    Args:
        model: the Hugging Face model inside a Bridge, with the Bridge's components in their places.
        components: TransformerLens's path of each component, by the identity of its module.
    """
    ways: dict[int, dict[tuple[int, str], Named]] = {}
    for tensor, way in _walk(model, "", (), (), components, set()):
        held = ways.setdefault(id(tensor), {})
        key = (id(way.module), way.attribute)
        if key not in held or way.depth < held[key].depth:
            held[key] = way
    return {key: sorted(held.values(), key=lambda way: way.depth) for key, held in ways.items()}


def components(model: TransformerLensModel) -> dict[int, str]:
    """TransformerLens's path of each component, by the identity of its module: where its hook points say they are."""
    owner = {
        id(point): (id(module), end)
        for module in every_module(model)
        for end, point in module._modules.items()
        if end in ("hook_in", "hook_out")
    }
    components: dict[int, str] = {}
    for name, point in model.hook_dict.items():
        module, end = owner.get(id(point), (0, ""))
        if end and name.endswith(f".{end}"):
            components.setdefault(module, name.removesuffix(f".{end}"))
    return components


def _walk(
    module: nn.Module,
    path: str,
    below: tuple[str, ...],
    chain: tuple[nn.Module, ...],
    known: dict[int, str],
    above: set[int],
) -> Iterator[tuple[Tensor, Named]]:
    if id(module) in above:  # a component may keep what it is part of
        return
    if id(module) in known:
        path, below, chain = known[id(module)], (), (*chain, module)
    # The layer that a component wraps is part of what is around the component.
    parent = next(iter(chain[-1:] if below else chain[-2:-1]), None)
    for attribute, tensor in module._parameters.items():
        if tensor is not None:
            name, computed = _name(path, below, module, attribute), _computed(path, below, module, attribute)
            yield tensor, Named(name, module, attribute, parent, len(below), computed)
    for step, child in module._modules.items():
        if child is not None and not is_hook_point(child):
            yield from _walk(
                child, path, below if step in _WRAPPERS else (*below, step), chain, known, above | {id(module)}
            )


def _name(path: str, below: tuple[str, ...], module: nn.Module, attribute: str) -> str:
    if attribute == "original" and _is_parametrization(module):
        below, attribute = below[:-1], below[-1]
    # Hooks of torch's compute the weight before each call: spectral norm, pruning.
    if attribute.endswith("_orig") and attribute.removesuffix("_orig") in vars(module):
        attribute = attribute.removesuffix("_orig")
    steps = [step for step in path.split(".") if step] + list(below)
    if attribute not in ("weight", "bias") or not steps:
        return ".".join([*steps, attribute])
    if (is_norm(module) or hasattr(module, "normalized_shape")) and not isinstance(module, nn.Embedding):
        return ".".join([*steps, "w" if attribute == "weight" else "b"])
    letter = "W" if attribute == "weight" else "b"
    last = steps[-1]
    if not below:
        if last == "embed":
            return f"embed.{letter}_E"
        if last.endswith("pos_embed"):
            return ".".join([*steps, f"{letter}_pos"])
        if last == "unembed":
            return f"unembed.{letter}_U"
        last = _LETTERS.get(last, last)
    # TransformerLens's own experts are modules that are called as their matrices are.
    return ".".join([*steps[:-1], last if last.startswith("W_") and letter == "W" else f"{letter}_{last}"])


def _is_parametrization(module: nn.Module) -> bool:
    """Whether a module is what torch.nn.utils.parametrize keeps a weight's parameters in."""
    return type(module).__name__ == "ParametrizationList"


def _computed(path: str, below: tuple[str, ...], module: nn.Module, attribute: str) -> str:
    """The name of the weight that a module without one computes from a parameter."""
    if _is_parametrization(module):
        return _name(path, below[:-1], module, below[-1])
    has_own = module._parameters.get("weight") is not None or attribute == "bias"
    return "" if has_own or not (path or below) else _name(path, below, module, "weight")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, as far as its class says."""
    name = type(module).__name__.lower()
    return "norm" in name and "bridge" not in name
