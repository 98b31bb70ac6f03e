"""What a gradient similarity found, in one sentence."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from tl_backward._support.html import visible_text
from tl_backward._support.sentences import count_text
from tl_backward.weights.words import weights_text

_LONGEST = 80  # characters of an example
_TIE = 1e-6


def cache_sentence(loss: float, target: str, tokens: str, norms: Mapping[str, float]) -> str:
    """What was captured of which weights, and which of their gradients is largest.

    Args:
        loss: that was differentiated.
        target: of that loss, in words; "" where it has none.
        tokens: how many there are, in words.
        norms: of the gradient of each weight, by full name.
    """
    what = f"The loss{f' of {target}' if target else ''} is {loss:.4g} over {tokens}"
    if not norms:
        return f"{what}; no weight's gradient was captured."
    of = f"{what}; of the gradients of {weights_text(norms)}"
    largest = max(norms, key=lambda name: norms[name])
    if len(norms) == 1:
        return f"{what}; the gradient of {largest} has norm {norms[largest]:.3g}."
    if norms[largest] - min(norms.values()) <= _TIE * norms[largest]:
        return f"{of} all have norm {norms[largest]:.3g}."
    return f"{of} that of {largest} is largest (norm {norms[largest]:.3g})."


def similarity_sentence(
    metric: str, names_a: Sequence[str], names_b: Sequence[str], matrix: Float[Tensor, "a b"], *, within: bool
) -> str:
    """The most alike pair of examples beside the median of all pairs; no control is part of it."""
    pairs = [(i, j) for i in range(len(names_a)) for j in range(i + 1 if within else 0, len(names_b))]
    known = [(float(matrix[pair]), pair) for pair in pairs]
    known = [(value, pair) for value, pair in known if value == value]
    if not known:
        return "There are no two examples whose gradients can be compared."
    values = sorted(value for value, _ in known)
    middle, largest = values[len(values) // 2], values[-1]
    tie = _TIE * (1.0 if metric == "cosine" else abs(largest))  # inner products of small gradients are small
    if len(known) > 1 and largest - values[0] <= tie:
        return f"All {count_text(len(known), 'pair')} of gradients are equally alike ({metric} {largest:.2g})."
    i, j = max(known)[1]
    ties = sum(largest - value <= tie for value in values) - 1
    also = f", as are {count_text(ties, 'other pair')}" if ties else ""
    one, other = (visible_text(name)[:_LONGEST] for name in (names_a[i], names_b[j]))
    return (
        f'Of {count_text(len(known), "pair")} the gradients of "{one}" and "{other}" are most alike ({metric} '
        f"{largest:.2g}{also}), where the median is {middle:.2g}; no untrained network was compared."
    )
