"""Which weights a model has, what they are called, and where each reads its input x and writes its output y.

A WeightSite is everything the rest of the package knows about a weight's place in a model. A HookedTransformer's are
known by name (`hooked_transformer`); a TransformerBridge's, and whatever else there is, are found by the operations
that use them in one pass (`watch`, `operations`, `learn`).
"""

from copy import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import nearest
from tl_backward._support.public import public
from tl_backward._support.submodules import offer
from tl_backward._support.types import Prompts, TransformerLensModel, Weights
from tl_backward.model.checks import check_checkpointing, model_kind
from tl_backward.model.guard import rng_untouched
from tl_backward.model.stamp import kept
from tl_backward.text.prompts import Batch, encode_prompts, forward, own_pass, probe_batch, with_inputs
from tl_backward.weights import hooked_transformer, transformer_bridge
from tl_backward.weights._site import Calls, Read, WeightSite, Write, layer_of, watched
from tl_backward.weights.account import WeightSites
from tl_backward.weights.other_model import warn_of_another_attention

__all__ = [
    "Calls", "Read", "WeightSite", "WeightSites", "Write", "layer_of", "rotation", "select_sites", "watched",
    "weight_sites",
]  # fmt: skip

offer(__name__, {})


@public
def weight_sites(model: TransformerLensModel, tokens: Prompts | None = None, **inputs: object) -> WeightSites:
    """Every weight of `model` that a gradient can be captured for, by TransformerLens's name for it.

    Names are those of TransformerLens's state dict, in both kinds of model: "embed.W_E", "blocks.3.attn.W_Q",
    "blocks.3.mlp.W_out", "blocks.3.ln1.w", "unembed.W_U"; for what TransformerLens has no name for see
    `tl_backward.weights.names`: "blocks.3.mlp.experts.gate_up_proj", "blocks.3.mixer.W_in_proj". A weight is where an
    operation of a pass uses it; `.account()` has a row for each parameter, `.missing` those without a site and why. Two
    sites may share a parameter (tied embeddings): its gradient is the sum of both sites'.

    Args:
        model: a HookedTransformer or TransformerBridge. Its hooks take no part in the pass; it is left as it was.
        tokens: what to look at one pass over: text, a list of texts or tokens; by default a few tokens (or what else
            the model reads), looked at once and remembered while the model's modules, parameters and flags stay the
            same.
        inputs: the model's own further inputs (`decoder_input_ids`, `pixel_values`, ...).

    Raises:
        TypeError: `model` is no HookedTransformer or TransformerBridge, or does not take such an input.

    Examples:
        >>> sites = tlb.weight_sites(model)
        >>> sites["blocks.2.mlp.W_out"]
        WeightSite('blocks.2.mlp.W_out', matrix, shape=[512, 128])
        >>> dict(sites.missing)
        {}
        >>> int(sites.account()["captured"].sum()) == sum(p.numel() for p in model.parameters())
        True
    """
    model_kind(model)  # refuses what is of none
    if tokens is not None or inputs:
        given = probe_batch(model) if tokens is None else encode_prompts(model, tokens)
        return _collect(model, with_inputs(model, given, inputs))
    return copy(_own_sites(model))


def sites_of_batch(model: TransformerLensModel, batch: Batch) -> WeightSites:
    """The sites of one pass over a batch: looked at anew where it has inputs that the model's own short pass lacks."""
    return _own_sites(model) if _is_own(model, batch) else _collect(model, batch)


def sites_of_longer(model: TransformerLensModel, batch: Batch) -> WeightSites:
    """The model's sites, extended by weights that a pass over this batch uses and the model's probe pass did not.

    Some layers begin to work after so many tokens (compressed attention).
    """
    short, sites = _own_sites(model), _collect(model, batch)
    unclear = [site for name, site in sites.items() if name in short and site.axes is None]
    sites.add(*(replace(site, axes=short[site.name].axes) for site in unclear))
    if _is_own(model, batch):
        kept(model)["sites"] = sites
    return sites


def _own_sites(model: TransformerLensModel) -> WeightSites:
    """What the model's own short pass tells of its weights."""
    known = kept(model)
    if "sites" not in known:
        known["sites"] = _collect(model)
    return known["sites"]


def _is_own(model: TransformerLensModel, batch: Batch) -> bool:
    """Whether a batch has no inputs that the model's own short pass lacks."""
    return not batch.inputs or set(batch.inputs) <= set(probe_batch(model).inputs)


def _collect(model: TransformerLensModel, batch: Batch | None = None) -> WeightSites:
    check_checkpointing(model)
    places = hooked_transformer if model_kind(model) == "HookedTransformer" else transformer_bridge

    def run() -> object:
        with rng_untouched(model):
            return own_pass(model) if batch is None else forward(model, batch)

    sites = places.collect(model, run, (probe_batch(model) if batch is None else batch).shapes)
    if batch is None and places is transformer_bridge:
        warn_of_another_attention(model, run)
    return sites


def rotation(model: TransformerLensModel, layer: int, position: int) -> Float[Tensor, "d_head d_head"] | None:
    """How rotary embeddings turn a query or key at a position, q -> q @ rotation; None where the model has none.

    Raises:
        ValueError: the architecture turns them in a way that is not known.
    """
    places = hooked_transformer if model_kind(model) == "HookedTransformer" else transformer_bridge
    with torch.no_grad():
        return places.rotation(model, layer, position)


def select_sites(sites: WeightSites, weights: Weights = None) -> dict[str, WeightSite]:
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
        named = {full: site for full, site in sites.items() if full == name or site.short_name == name}
        if not named:
            reasons = (why for full, why in sites.missing.items() if full == name or full.endswith("." + name))
            reason = next(reasons, None)
            if reason:
                raise ValueError(f"Expected a weight that can be captured, got {name!r}: {reason}")
            shorts = dict.fromkeys(site.short_name for site in sites.values())
            of_stacks = [short for short in shorts if short.endswith(f".{name}")]  # "decoder_blocks.W_out"
            alike = [short for short in shorts if short.lower() == name.lower()]  # a name in another case
            close = ", ".join(map(repr, of_stacks[:3] or alike)) or nearest(name, [*sites, *shorts])
            verb = "are" if "," in close else "is"
            raise ValueError(f"Expected the name of a weight, got {name!r}; the nearest {verb} {close}.")
        chosen |= named
    if not chosen:
        raise ValueError("Expected at least one weight, got an empty list; pass weights=None for all matrices.")
    return {name: site for name, site in sites.items() if name in chosen}
