"""Which weights an atlas has, and what it leaves out of a model's blocks."""

import re
from collections.abc import Iterable, Sequence

from tl_backward._support.types import TransformerLensModel
from tl_backward.weights import WeightSite, WeightSites, weight_sites
from tl_backward.weights.blocks import blocks_of, is_expert

WEIGHTS = ("W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O")
"""The short names of the matrices that are read in words by themselves."""


def atlas_places(
    model: TransformerLensModel, weights: Sequence[str] | None, layers: Sequence[int]
) -> list[tuple[str, int]]:
    """The (short name, layer) of each weight.

    Args:
        model: whose.
        weights: short names; None for those of WEIGHTS that there are.
        layers: blocks.

    Raises:
        ValueError: no such weight in these layers; without names, none of WEIGHTS.
    """
    wanted = WEIGHTS if weights is None else tuple(weights)
    sites = weight_sites(model)
    places = [
        (site.short_name, site.layer)
        for site in sites.values()
        if site.short_name in wanted and site.layer is not None and site.layer in layers
    ]
    missing = [each for each in wanted if each not in {short for short, _ in places}]
    if weights is not None and (missing or not places):
        raise ValueError(
            f"Expected short names of weights in layers {list(layers)}, got {list(wanted)}; see weight_sites(model)."
        )
    if not places:
        there = _listed(_matrices(sites, layers)) or "no matrices"
        raise ValueError(
            f"Expected a model with any of {', '.join(WEIGHTS)} in layers {list(layers)}, got one whose blocks have "
            f"{there}; read what they would learn with backward_lens."
        )
    return places


def left_out_of_atlas(model: TransformerLensModel, shown: Sequence[tuple[str, int]], layers: Sequence[int]) -> str:
    """What of the blocks' matrices is not on a page, with the reasons; "" where that is nothing.

    Args:
        model: whose.
        shown: (short name, layer) of those that are.
        layers: the blocks that were asked for.
    """
    sites = weight_sites(model)
    others = [site for site in _matrices(sites, layers) if (site.short_name, site.layer) not in set(shown)]
    experts, rest = [s for s in others if is_expert(s)], [s for s in others if not is_expert(s)]
    reasons = []
    if experts:
        reasons.append(f"{_listed(experts)}, of which each expert has its own: they are not taken apart here")
    if rest:
        reasons.append(f"{_listed(rest)}: this page is of {', '.join(WEIGHTS)} alone")
    if refused := sites.left_out():
        reasons.append(refused)
    if not reasons:
        return ""
    routers = _routers(model, sites, shown)
    names = {site.name for site in others}
    account = list(sites.account()[["elements", "sites"]].itertuples(index=False, name=None))
    share = sum(n for n, of in account if names.intersection(of)) / max(1, sum(n for n, _ in account))
    return f"Left out, {share:.0%} of the model's parameters: {'; '.join(reasons)}.{routers}"


def _routers(model: TransformerLensModel, sites: WeightSites, shown: Sequence[tuple[str, int]]) -> str:
    """Which of the weights that are shown are experts' routers, whose names may be an MLP's elsewhere."""
    blocks = blocks_of(model, sites, model.W_U.shape[0])
    mains = ((layer, block.main) for layer, block in blocks.items())
    readers = [(sites[part.reader].short_name, layer) for layer, part in mains if part and part.kind == "experts"]
    found = [f"{short} of layer {layer}" for short, layer in readers if (short, layer) in shown]
    if not found:
        return ""
    return f" {found[0]} is the experts' router." if len(found) == 1 else f" {', '.join(found)} are experts' routers."


def _matrices(sites: WeightSites, layers: Sequence[int]) -> list[WeightSite]:
    return [site for site in sites.values() if site.is_default and site.layer in layers]


def _listed(sites: Iterable[WeightSite]) -> str:
    """Short names, experts' and layers' numbers aside."""
    return ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", site.short_name) for site in sites))
