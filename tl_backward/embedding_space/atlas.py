"""Reports of parameters in words: of one weight with its coherence and pairs, or of all matrices of a model."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from tl_backward._support.checks import check_head, check_layers
from tl_backward._support.html import table
from tl_backward._support.public import public
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.embedding_space.coherence import Coherence, parameter_coherence
from tl_backward.embedding_space.heads import Circuit, HeadPairs, head_pairs
from tl_backward.embedding_space.options import VectorOptions
from tl_backward.embedding_space.overlap import PairKind, RelatedPairs, related_pairs
from tl_backward.embedding_space.summary import atlas_sentence
from tl_backward.embedding_space.vectors import PAIRED_WEIGHTS, query_heads
from tl_backward.model.checks import model_kind
from tl_backward.weights import WeightSite, WeightSites, weight_sites
from tl_backward.weights.blocks import blocks_of, is_expert

CIRCUITS: dict[str, Circuit] = {"W_V": "VO", "W_O": "VO", "W_Q": "QK", "W_K": "QK"}
"""The circuit that each of a head's weights is half of."""
PARTNERS: dict[str, PairKind] = {"W_in": "KV", "W_out": "KV", "W_gate": "GV", **CIRCUITS}
"""The pairs that each weight's vectors form."""
WEIGHTS = ("W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O")
"""The short names of the matrices that are read in words by themselves."""


@dataclass(frozen=True, eq=False)
class ParameterWords(Shown):
    """The result of `parameter_words`."""

    _report = "words_page"

    coherence: Coherence
    """The vectors in words, and how alike the top tokens of each are."""
    head: int | None
    """The one head that was asked for."""
    related: RelatedPairs | None
    """Whether vectors that belong together name the same tokens; None where the weight's have no partners."""
    pairs: tuple[HeadPairs, ...]
    """The strongest pairs of each head that the weight is part of."""

    def summary(self) -> str:
        """The coherence's sentence."""
        return self.coherence.summary()

    def to_frame(self) -> DataFrame:
        """The coherence's frame: one row a vector, most coherent first; pairs have frames of their own."""
        return self.coherence.to_frame()

    def _repr_html_(self) -> str:
        """The coherence's static table, then each head's pairs."""
        return "".join(part._repr_html_() for part in (self.coherence, *self.pairs))


@public
def parameter_words(
    model: TransformerLensModel,
    weight: str,
    layer: int | None = None,
    *,
    head: int | None = None,
    k: int = 10,
    n_pairs: int = 40,
    vector_options: VectorOptions = VectorOptions(),
    seed: int = 0,
    show_progress: bool = True,
) -> ParameterWords:
    """Read one weight in every way there is: what `tl_backward.render.params_page` makes a page of.

    Args:
        model: a HookedTransformer or TransformerBridge.
        weight: as in `project_parameter`, by name.
        layer: as in `project_parameter`.
        head: one attention head; None for all.
        k: top and bottom tokens of each vector.
        n_pairs: token pairs of each head.
        vector_options: how vectors are read in words.
        seed: of the controls.
        show_progress: draw progress bars.

    Raises:
        ValueError, IndexError: what `parameter_coherence` and `head_pairs` refuse.

    Examples:
        >>> words = tlb.embedding_space.parameter_words(model, "W_O", 2, head=1, n_pairs=5, show_progress=False)
        >>> words.pairs
        (HeadPairs(OV, layer 2, head 1, 5 largest pairs),)
    """
    coherence = parameter_coherence(
        model, weight, layer, head=head, k=k, vector_options=vector_options, seed=seed, show_progress=show_progress
    )
    own, n_tokens = coherence.projection.weight, coherence.projection.n_tokens
    component, _, short = own.rpartition(".")
    block = int(own.split(".")[1]) if own.startswith("blocks.") else None
    related, pairs = None, []
    if block is not None and short in PARTNERS and _has_partner(model, component, PARTNERS[short]):
        size = min(100, max(2, n_tokens // 4))
        related = related_pairs(
            model,
            PARTNERS[short],
            block,
            head=head,
            k=size,
            vector_options=vector_options,
            seed=seed,
            show_progress=False,
        )
    if block is not None and short in CIRCUITS:
        heads = heads_of(model, CIRCUITS[short], block)
        if head is not None and heads:
            heads = [heads[check_head(head, len(heads))]]
        pairs = [
            head_pairs(
                model, *place, k=min(n_pairs, n_tokens**2), vector_options=vector_options, show_progress=show_progress
            )
            for place in heads
        ]
    return ParameterWords(coherence, head, related, tuple(pairs))


def heads_of(model: TransformerLensModel, circuit: Circuit, layer: int) -> list[tuple[Circuit, int, int]]:
    """(circuit, layer, head) of each head of a block that has both matrices of the circuit; layers may differ."""
    sites, wanted = weight_sites(model).values(), PAIRED_WEIGHTS[circuit]
    both = [site.name for site in sites if site.layer == layer and site.short_name in wanted]
    n_heads = query_heads(model, both[0]) if len(both) > 1 else 0
    return [(circuit, layer, head) for head in range(n_heads)]


def _has_partner(model: TransformerLensModel, component: str, kind: PairKind) -> bool:
    """Whether a weight's own component has both weights of a kind of pair: a router called W_gate has no W_out."""
    return all(f"{component}.{name}" in weight_sites(model) for name in PAIRED_WEIGHTS[kind])


@dataclass(frozen=True, eq=False)
class ParameterAtlas(Shown):
    """The result of `parameter_atlas`."""

    _report = "atlas_page"

    coherence: dict[tuple[str, int], Coherence]
    """(short name, layer) -> its vectors in words."""
    layers: tuple[int, ...]
    """The blocks that were asked for."""
    pairs: tuple[HeadPairs, ...]
    """The strongest pairs of each head and circuit."""
    left_out: str
    """What of the blocks' matrices is not here, with the reasons; "" where that is nothing."""

    def summary(self) -> str:
        """In one sentence: how many vectors are coherent, beside chance, and in which weight most."""
        return atlas_sentence([each.above for each in self.coherence.values()])

    def to_frame(self) -> DataFrame:
        """One row a vector, matrix by matrix: weight, layer, and the columns of `Coherence.to_frame`."""
        import pandas

        frames = []
        for (short, layer), each in self.coherence.items():
            frame = each.to_frame()
            frame.insert(0, "weight", short)
            frame.insert(1, "layer", layer)
            frames.append(frame)
        return pandas.concat(frames, ignore_index=True)

    def _repr_html_(self) -> str:
        """A static table: how many vectors of each matrix are coherent, beside the 5 % of chance."""
        rows = [[each.above.n, each.above.n_above, each.above.share] for each in self.coherence.values()]
        names = [f"{short}, layer {layer}" for short, layer in self.coherence]
        return table(["vectors", "coherent", "share"], rows, row_names=names, caption=self.summary(), corner="weight")

    @property
    def weights(self) -> list[str]:
        """Short names of the weights."""
        return list(dict.fromkeys(short for short, _ in self.coherence))


@public
def parameter_atlas(
    model: TransformerLensModel,
    *,
    weights: Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    k: int = 10,
    n_pairs: int = 6,
    vector_options: VectorOptions = VectorOptions(),
    seed: int = 0,
    show_progress: bool = True,
) -> ParameterAtlas:
    """Read all of a model's matrices in words: what `tl_backward.render.atlas` makes a page of.

    Of blocks that are no dense MLP, matrices of experts and mixers are left out; the result says which.

    Args:
        model: a HookedTransformer or TransformerBridge.
        weights: short names of weights of the blocks; None for the MLP and attention matrices there are.
        layers: blocks; None for all.
        k: top tokens that make a vector's coherence.
        n_pairs: token pairs of each head; 0 leaves them out (they take a product over all pairs of tokens for each head
            and circuit).
        vector_options: how vectors are read in words.
        seed: of the Gaussian vectors.
        show_progress: draw progress bars.

    Raises:
        ValueError: no such weight in these layers, none that is read in words by itself (a model of mixers alone), or
            what `parameter_coherence` refuses.
        IndexError: a layer out of range.

    Examples:
        >>> found = tlb.embedding_space.parameter_atlas(model, weights=["W_out"], layers=[1, 2], show_progress=False)
        >>> list(found.coherence)
        [('W_out', 1), ('W_out', 2)]
    """
    model_kind(model)  # refuses what is of none
    chosen = check_layers(layers, model.cfg.n_layers)
    places = atlas_places(model, weights, chosen)
    coherence = {
        place: parameter_coherence(model, *place, k=k, vector_options=vector_options, seed=seed, show_progress=False)
        for place in tqdm(places, disable=not show_progress, delay=1, leave=False, desc="atlas")
    }
    omitted = left_out_of_atlas(model, places, chosen) if weights is None else ""
    circuits: dict[Circuit, None] = dict.fromkeys(CIRCUITS[short] for short, _ in places if short in CIRCUITS)
    heads = [place for circuit in circuits for layer in chosen for place in heads_of(model, circuit, layer)]
    pairs = [
        head_pairs(model, *place, k=n_pairs, vector_options=vector_options, show_progress=False)
        for place in tqdm(heads if n_pairs else [], disable=not show_progress, delay=1, leave=False, desc="heads")
    ]
    return ParameterAtlas(coherence, tuple(chosen), tuple(pairs), omitted)


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
    if weights is not None and (not places or set(wanted) != {short for short, _ in places}):
        raise ValueError(
            f"Expected short names of weights in layers {list(layers)}, got {list(wanted)}; see weight_sites(model)."
        )
    if not places:
        raise ValueError(
            f"Expected a model with any of {', '.join(WEIGHTS)} in layers {list(layers)}, got one whose blocks have "
            f"{_listed(_matrices(sites, layers)) or 'no matrices'}; read what they would learn with backward_lens."
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
    experts, rest = (_listed(site for site in others if is_expert(site) == of_experts) for of_experts in (True, False))
    reasons = [f"{experts}, of which each expert has its own: they are not taken apart here"] if experts else []
    reasons += [f"{rest}: this page is of {', '.join(WEIGHTS)} alone"] if rest else []
    reasons += [refused] if (refused := sites.left_out()) else []
    if not reasons:
        return ""
    names = {site.name for site in others}
    account = list(sites.account()[["elements", "sites"]].itertuples(index=False, name=None))
    share = sum(n for n, of in account if names.intersection(of)) / max(1, sum(n for n, _ in account))
    return f"Left out, {share:.0%} of the model's parameters: {'; '.join(reasons)}.{_routers(model, sites, shown)}"


def _routers(model: TransformerLensModel, sites: WeightSites, shown: Sequence[tuple[str, int]]) -> str:
    """A sentence on which of the shown weights are experts' routers, though named as an MLP's; "" where none is."""
    mains = ((layer, block.main) for layer, block in blocks_of(model, sites, model.W_U.shape[0]).items())
    readers = [(sites[part.reader].short_name, layer) for layer, part in mains if part and part.kind == "experts"]
    routers = [f"{short} of layer {layer}" for short, layer in readers if (short, layer) in shown]
    if len(routers) < 2:
        return f" {routers[0]} is the experts' router." if routers else ""
    return f" {', '.join(routers)} are experts' routers."


def _matrices(sites: WeightSites, layers: Sequence[int]) -> list[WeightSite]:
    return [site for site in sites.values() if site.is_default and site.layer in layers]


def _listed(sites: Iterable[WeightSite]) -> str:
    """Short names, each once, with experts' and layers' numbers written as *."""
    return ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", site.short_name) for site in sites))
