"""How well two models' parameters match, in one sentence, beside matches of turned vectors."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tl_backward._support.sentences import DRAWS_NEEDED, beyond, count_text, spread


def match_sentence(
    weight: str,
    layers: Sequence[tuple[int, int]],
    score: Float[Tensor, "layer_a layer_b"],
    chance: Float[Tensor, "draw layer_a layer_b"],
    assigned: Sequence[tuple[int, int]],
) -> str:
    """In how many layers the vectors match better than by chance, and whether layers find their own place.

    Args:
        weight: its short name.
        layers: (of A, of B) at the same place.
        score: mean similarity of assigned pairs, in embedding space.
        chance: the same of B's vectors turned at random.
        assigned: the best assignment of whole layers, by place.
    """
    n = min(score.shape)
    own, draws = score.diagonal().tolist(), chance.diagonal(dim1=1, dim2=2).T.tolist()
    if len(chance) < DRAWS_NEEDED:
        drawn = count_text(len(chance), "draw")
        return f"{weight}'s vectors match with {spread(own)}; {drawn} of chance are too few to compare with."
    above = sum(beyond(value, each) == "above" for value, each in zip(own, draws, strict=True))
    at = f"{weight}'s vectors of the same layer match better than turned ones in {above} of {count_text(n, 'layer')}"
    middle = spread([sum(each) / len(each) for each in draws])
    if above == 0:
        return f"{at}: {spread(own)} is no more than the {middle} that chance gives."
    follows = sum(a == b for a, b in assigned)
    order = "" if n < 2 else f"; {follows} of {n} layers are assigned to the layer at their own place"
    return f"{at} ({spread(own)}, chance {middle}){order}."
