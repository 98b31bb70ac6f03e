"""What a comparison of two models, or a map of several, found in one sentence each, beside chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.html import visible_text
from tl_backward._support.sentences import DRAWS_NEEDED, beyond, beyond_moments, count_text, no_comparison, spread

_TIE = 1e-9
_HOW = "run_options=RunOptions(control='random_init')"


@dataclass(frozen=True)
class Alike:
    """One measure of all pairs of layers, as likeness: the larger, the more alike."""

    measure: str
    values: Float[Tensor, "layer_a layer_b"]
    """As they were measured."""
    is_similarity: bool
    errors: Float[Tensor, "layer_a layer_b"]
    """Standard errors; NaN where there are none."""
    chance: Float[Tensor, "layer_a layer_b"]
    """Of samples paired at random; NaN where unknown."""
    deviations: Float[Tensor, "layer_a layer_b"]
    """Of chance, from one random pairing to another; NaN where unknown."""
    n_pairings: int
    untrained: Float[Tensor, "draw layer_a layer_b"] | None = None
    """The same of pairs of untrained networks."""

    @property
    def likeness(self) -> Float[Tensor, "layer_a layer_b"]:
        """Values that are larger for more."""
        return self.values if self.is_similarity else -self.values


def comparison_sentence(found: Alike, layers_a: Sequence[str], layers_b: Sequence[str], names: tuple[str, str]) -> str:
    """How well the layers of two models correspond by one measure, and whether more than chance and untrained networks.

    Args:
        found: the measure.
        layers_a: labels of A's layers.
        layers_b: labels of B's.
        names: what A and B are called.
    """
    a, b = map(visible_text, names)
    likeness = found.likeness
    if bool(likeness.isnan().all()):
        return f"By {found.measure} nothing can be said: it has no value for any pair of layers."
    known = likeness.nan_to_num(-math.inf)
    best = known.argmax(1)
    rows = torch.arange(len(known))
    if tuple(layers_a) == tuple(layers_b) and len(rows) > 1:
        same = torch.tensor([int(column) == row and _leads(known[row]) for row, column in enumerate(best.tolist())])
        n = int(same.sum())
        some = f"{n} of {len(rows)} layers" if n else "no layer"
        alike = f"{some} of {a} {'are' if n > 1 else 'is'} most like the same layer of {b}"
        rows, whose = (rows[same], "") if n else (rows, "best partners ")
    elif len(rows) > 1:
        alike, whose = _partners(found, rows, best, a, b, layers_b), "best partners "
    else:
        alike, whose = f"{a}'s {layers_a[0]} is most like {layers_b[int(best[0])]} of {b}", ""
    columns = best[rows]
    shown = spread(found.values[rows, columns].tolist(), lambda value: f"{value:.2f}")
    if tuple(layers_a) != tuple(layers_b) and len(rows) > 1:  # every layer has a best partner, alike or not
        clearly = f"; {'1' if found.is_similarity else '0'} is the same"
    else:
        clearly = _clearly(found, rows, columns) if len(layers_b) > 1 else ""
    beside = _beside_chance(found, rows, columns) + _beside_untrained(found, rows, columns)
    return f"By {found.measure} {alike} ({whose}{shown}{clearly}){beside}."


def _partners(found: Alike, rows: Tensor, columns: Tensor, a: str, b: str, layers_b: Sequence[str]) -> str:
    """How many layers of A have one layer of B that is ahead of its others."""
    layers = count_text(len(rows), "layer")
    if len(layers_b) == 1:
        return f"{layers} of {a} have one layer of {b} to be like"
    if bool(found.errors[rows, columns].isnan().any()):
        return f"it is not known, without standard errors, how many of {layers} of {a} are clearly most like one of {b}"
    clear = sum(_is_clear(found, row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True))
    some = f"{clear} of {layers}" if clear else f"none of {layers}"
    return f"{some} of {a} {'are' if clear > 1 else 'is'} clearly more like one layer of {b} than like any other"


def _clearly(found: Alike, rows: Tensor, columns: Tensor) -> str:
    """How many of the layers are ahead of all others by more than the standard errors allow."""
    if bool(found.errors[rows, columns].isnan().any()):
        return "; without standard errors it is not known how clearly"
    clear = sum(_is_clear(found, row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True))
    if clear == len(rows):
        return ", clearly"
    return ", not clearly" if clear == 0 else f", {clear} of them clearly"


def _leads(row: Tensor) -> bool:
    """Whether the largest value is no other's too."""
    top = row.topk(min(2, len(row))).values
    return len(top) < 2 or float(top[0] - top[1]) > _TIE


def _is_clear(found: Alike, row: int, column: int) -> bool:
    """Whether a layer's best partner is ahead of every other by more than both standard errors allow."""
    gap = found.likeness[row, column] - found.likeness[row]
    reach = 1.96 * (found.errors[row, column].square() + found.errors[row].square()).sqrt()
    others = [j for j in range(len(gap)) if j != column]
    return all(float(gap[j]) > max(float(reach[j]), _TIE) for j in others) and not bool(reach[others].isnan().any())


def _beside_chance(found: Alike, rows: Tensor, columns: Tensor) -> str:
    chance = found.chance[rows, columns]
    if bool(chance.isnan().any()):
        return "; without random pairings nothing tells it from chance"
    paired = f"samples paired at random give {spread(chance.tolist(), lambda value: f'{value:.2f}')}"
    if found.n_pairings < DRAWS_NEEDED or bool(found.deviations[rows, columns].isnan().any()):
        drawn = count_text(found.n_pairings, "random pairing")
        few = f"{drawn} cannot tell" if found.n_pairings else "no random pairing was drawn that would tell"
        return f"; {paired} on average, but {few} the two apart"
    more = "above" if found.is_similarity else "below"
    above = sum(
        beyond_moments(value, mean, deviation, found.n_pairings) == more
        for value, mean, deviation in zip(
            *(each[rows, columns].tolist() for each in (found.values, found.chance, found.deviations)), strict=True
        )
    )
    if above == len(rows):
        return f", where {paired}"
    if above:
        return f"; {paired}, and {above} of {len(rows)} {'is' if above == 1 else 'are'} clearly more alike than that"
    return f"; {paired}, and {'it is not' if len(rows) == 1 else 'none is'} clearly more alike than that"


def _beside_untrained(found: Alike, rows: Tensor, columns: Tensor) -> str:
    """The same layers of untrained networks, each with its own best partner, which was chosen as the model's was."""
    n = 0 if found.untrained is None else len(found.untrained)
    if found.untrained is None or n < DRAWS_NEEDED:
        return no_comparison(n, _HOW, "untrained networks")
    sign = 1 if found.is_similarity else -1
    best = (sign * found.untrained).nan_to_num(-math.inf).amax(-1)[:, rows]
    own = found.likeness[rows, columns].tolist()
    above = sum(beyond(value, draws) == "above" for value, draws in zip(own, best.T.tolist(), strict=True))
    reached = spread((sign * best).flatten().tolist(), lambda value: f"{value:.2f}")
    if len(rows) == 1:
        which = "it is" if above else "it is not"
    elif above == len(rows):
        which = "all are"
    else:
        which = f"{above} of {len(rows)} {'is' if above == 1 else 'are'}" if above else "none is"
    return f"; {n} pairs of untrained networks reach {reached} there, and {which} clearly more alike than that"


def distances_sentence(
    measure: str, models: Sequence[str], layers: Sequence[str], values: Float[Tensor, "point point"], shown: float
) -> str:
    """Which layers of different models lie nearest, and how much of all distances the map holds."""
    names = [f"{visible_text(m)} {visible_text(layer)}" for m, layer in zip(models, layers, strict=True)]
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names)) if models[i] != models[j]]
    pairs = [(i, j) for i, j in pairs if not math.isnan(float(values[i, j]))]
    end = f"; the map holds {shown:.0%} of the distances, and no chance level is known for them."
    if not pairs:
        return f"There are no two models to set apart{end}"
    ordered = sorted(pairs, key=lambda pair: float(values[pair]))
    nearest, farthest = float(values[ordered[0]]), float(values[ordered[-1]])
    ties = sum(float(values[pair]) - nearest <= _TIE for pair in ordered)
    if ties == len(ordered) and len(ordered) > 1:
        return f"By {measure} all layers of different models are equally far apart, {nearest:.2f}{end}"
    i, j = ordered[0]
    also = f" (as near as {count_text(ties - 1, 'other pair')})" if ties > 1 else ""
    return (
        f"By {measure} the nearest layers of different models are {names[i]} and {names[j]}{also}, {nearest:.2f} apart "
        f"where the farthest are {farthest:.2f}{end}"
    )
