"""One weight in words, whole: its vectors' tokens, those of the vectors that belong to them, its heads' pairs."""

from dataclasses import dataclass

from tl_backward._support.checks import check_head
from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space.coherence import Coherence, parameter_coherence
from tl_backward.embedding_space.heads import Circuit, HeadPairs, head_pairs
from tl_backward.embedding_space.options import VectorOptions
from tl_backward.embedding_space.related import PairKind, RelatedPairs, related_pairs
from tl_backward.embedding_space.vectors import PAIRED_WEIGHTS, query_heads
from tl_backward.weights import weight_sites

CIRCUITS: dict[str, Circuit] = {"W_V": "VO", "W_O": "VO", "W_Q": "QK", "W_K": "QK"}
"""The circuit that each of a head's weights is half of."""
PARTNERS: dict[str, PairKind] = {"W_in": "KV", "W_out": "KV", "W_gate": "GV", **CIRCUITS}
"""The pairs that each weight's vectors form."""


@dataclass(frozen=True, eq=False)
class ParameterWords:
    """The result of `parameter_words`."""

    coherence: Coherence
    """The vectors in words, and how much one thing each one's tokens are."""
    head: int | None
    """The one head that was asked for."""
    related: RelatedPairs | None
    """Whether vectors that belong together name the same tokens; None where the weight's have no partners."""
    pairs: tuple[HeadPairs, ...]
    """The strongest pairs of each head that the weight is part of."""


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
    """Read one weight in every way there is: what `tl_backward.render.params_report` makes a page of.

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

    Example:
        >>> words = tlb.embedding_space.parameter_words(model, "W_O", 2, head=1, n_pairs=5, show_progress=False)
        >>> words.pairs
        (HeadPairs(VO, layer 2, head 1, 5 largest pairs),)
    """
    by, bars = vector_options, show_progress
    coherence = parameter_coherence(
        model, weight, layer, head=head, k=k, vector_options=by, seed=seed, show_progress=bars
    )
    own, n_tokens = coherence.projection.weight, coherence.projection.n_tokens
    component, _, short = own.rpartition(".")
    block = int(own.split(".")[1]) if own.startswith("blocks.") else None
    related, pairs = None, []
    if block is not None and short in PARTNERS and _has_partner(model, component, PARTNERS[short]):
        size = min(100, max(2, n_tokens // 4))
        related = related_pairs(
            model, PARTNERS[short], block, head=head, k=size, vector_options=by, seed=seed, show_progress=False
        )
    if block is not None and short in CIRCUITS:
        heads = heads_of(model, CIRCUITS[short], block)
        if head is not None and heads:
            heads = [heads[check_head(head, len(heads))]]
        pairs = [
            head_pairs(model, *place, k=min(n_pairs, n_tokens**2), vector_options=by, show_progress=bars)
            for place in heads
        ]
    return ParameterWords(coherence, head, related, tuple(pairs))


def heads_of(model: TransformerLensModel, circuit: Circuit, layer: int) -> list[tuple[Circuit, int, int]]:
    """(circuit, layer, head) of each head of a block that has both matrices of the circuit; layers may differ."""
    sites = weight_sites(model)
    found = [site for site in sites.values() if site.layer == layer and site.short_name in PAIRED_WEIGHTS[circuit]]
    if len(found) < 2:
        return []
    return [(circuit, layer, head) for head in range(query_heads(model, found[0].name))]


def _has_partner(model: TransformerLensModel, component: str, kind: PairKind) -> bool:
    """Whether a weight's own component has both weights of a kind of pair: a router called W_gate has no W_out."""
    return all(f"{component}.{name}" in weight_sites(model) for name in PAIRED_WEIGHTS[kind])
