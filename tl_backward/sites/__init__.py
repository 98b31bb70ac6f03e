"""Where each weight reads its input x and writes its output y.

A WeightSite is everything the rest of the package knows about a weight's place in a model; only the two modules
beside this one know what a TransformerLens class looks like inside.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._checks import model_kind, nearest
from tl_backward._typing import TransformerLensModel
from tl_backward.sites._site import Calls, Read, WeightSite, WeightSites, Write

__all__ = ["Calls", "Read", "WeightSite", "WeightSites", "Write", "rotation", "select_sites", "weight_sites"]


def weight_sites(model: TransformerLensModel) -> WeightSites:
    """Every weight of `model` that a gradient can be captured for, by TransformerLens's name for it.

    Names are those of TransformerLens's state dict, in both worlds: "embed.W_E", "blocks.3.attn.W_Q",
    "blocks.3.mlp.W_out", "blocks.3.ln1.w", "unembed.W_U"; MoE experts are "blocks.3.mlp.experts.0.W_in".
    Collect them anew after the model was processed (`enable_compatibility_mode` re-creates parameters) or its
    flags were changed. `.missing` names weights that cannot be captured, with the reason. Two sites may share a
    parameter (tied embeddings): its gradient is the sum of both sites'.

    Raises:
        TypeError: `model` is no HookedTransformer or TransformerBridge.

    Example:
        >>> sites = tlb.weight_sites(model)
        >>> sites["blocks.2.mlp.W_out"]
        WeightSite('blocks.2.mlp.W_out', matrix, shape=[512, 128])
        >>> dict(sites.missing)
        {}
    """
    if model_kind(model) == "HookedTransformer":
        from tl_backward.sites import hooked_transformer as world
    else:
        from tl_backward.sites import transformer_bridge as world
    return world.collect(model)


def rotation(model: TransformerLensModel, layer: int, position: int) -> Float[Tensor, "d_head d_head"] | None:
    """How rotary embeddings turn a query or key at a position, q -> q @ rotation; None where the model has none.

    Raises:
        ValueError: the architecture turns them in a way that is not known.
    """
    if model_kind(model) == "HookedTransformer":
        from tl_backward.sites import hooked_transformer as world
    else:
        from tl_backward.sites import transformer_bridge as world
    with torch.no_grad():
        return world.rotation(model, layer, position)


def select_sites(sites: WeightSites, weights: object = None) -> dict[str, WeightSite]:
    """The sites that `weights` names.

    Args:
        sites: from `weight_sites`.
        weights: None for every MLP and attention matrix; a full name, a short one ("W_out": in every layer) or a list
            of them; or a predicate on the full name.

    Raises:
        ValueError: nothing matches, or a name is unknown (the nearest are named) or cannot be captured (the reason is).
        TypeError: anything else.
    """
    if weights is None:
        return {name: site for name, site in sites.items() if site.is_default}
    if callable(weights):
        chosen = {name: site for name, site in sites.items() if weights(name)}
        if not chosen:
            raise ValueError(
                f"Expected a filter that matches at least one of the model's {len(sites)} weights, got one that "
                f"matches none; names look like {next(iter(sites))!r}."
            )
        return chosen
    wanted = [weights] if isinstance(weights, str) else weights
    if not isinstance(wanted, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in wanted):
        raise TypeError(
            f"Expected weights to be None, a name, a list of names or a predicate, got {type(weights).__name__}; "
            "for example weights=['W_in', 'blocks.3.mlp.W_out']."
        )
    chosen = {}
    for name in wanted:
        found = {full: site for full, site in sites.items() if full == name or site.short_name == name}
        if not found:
            reasons = (why for full, why in sites.missing.items() if full == name or full.endswith("." + name))
            reason = next(reasons, None)
            if reason:
                raise ValueError(f"Expected a weight that can be captured, got {name!r}: {reason}")
            shorts = {site.short_name for site in sites.values()}
            raise ValueError(
                f"Expected the name of a weight, got {name!r}; the nearest are {nearest(name, [*sites, *shorts])}."
            )
        chosen |= found
    if not chosen:
        raise ValueError("Expected at least one weight, got an empty list; pass weights=None for all matrices.")
    return {name: site for name, site in sites.items() if name in chosen}
