"""All of a model's parameters in words: how coherent each weight's vectors are, and each head's strongest pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from tl_backward._support.checks import check_layers
from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space.atlas_places import atlas_places, left_out_of_atlas
from tl_backward.embedding_space.coherence import Coherence, parameter_coherence
from tl_backward.embedding_space.heads import Circuit, HeadPairs, head_pairs
from tl_backward.embedding_space.options import VectorOptions
from tl_backward.embedding_space.words import CIRCUITS, heads_of


@dataclass(frozen=True, eq=False)
class ParameterAtlas:
    """The result of `parameter_atlas`."""

    coherence: dict[tuple[str, int], Coherence]
    """(short name, layer) -> its vectors in words."""
    layers: tuple[int, ...]
    """The blocks that were asked for."""
    pairs: tuple[HeadPairs, ...]
    """The strongest pairs of each head and circuit."""
    left_out: str
    """What of the blocks' matrices is not here, with the reasons; "" where that is nothing."""

    @property
    def weights(self) -> list[str]:
        """Short names of the weights."""
        return list(dict.fromkeys(short for short, _ in self.coherence))


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

    Example:
        >>> found = tlb.embedding_space.parameter_atlas(model, weights=["W_out"], layers=[1, 2], show_progress=False)
        >>> list(found.coherence)
        [('W_out', 1), ('W_out', 2)]
    """
    chosen = check_layers(layers, model.cfg.n_layers)
    places = atlas_places(model, weights, chosen)
    by = vector_options
    coherence = {
        place: parameter_coherence(model, *place, k=k, vector_options=by, seed=seed, show_progress=False)
        for place in tqdm(places, disable=not show_progress, delay=1, leave=False, desc="atlas")
    }
    omitted = left_out_of_atlas(model, places, chosen) if weights is None else ""
    circuits: dict[Circuit, None] = dict.fromkeys(CIRCUITS[short] for short, _ in places if short in CIRCUITS)
    heads = [place for circuit in circuits for layer in chosen for place in heads_of(model, circuit, layer)]
    pairs = [
        head_pairs(model, *place, k=n_pairs, vector_options=by, show_progress=False)
        for place in tqdm(heads if n_pairs else [], disable=not show_progress, delay=1, leave=False, desc="heads")
    ]
    return ParameterAtlas(coherence, tuple(chosen), tuple(pairs), omitted)
