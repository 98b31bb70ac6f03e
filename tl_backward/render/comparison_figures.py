"""Two models compared, as figures: layers by layers with the best partners marked, and curves beside chance."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward.dissimilarity import Comparison, Measure, get_measure
from tl_backward.render.figures import Curve, curves, figure_fragment, heatmap
from tl_backward.render.page import Fragment
from tl_backward.render.static import heat_image

if TYPE_CHECKING:
    import plotly.graph_objects

Z95 = 1.959964  # of a normal distribution, for 95 %
_ROUNDING = 1e-3  # of the scale: a negative value this small does not make it signed


def measure_of(name: str) -> Measure:
    """The registry's entry behind a measure of `compare`, whose "cka" is debiased."""
    return get_measure("cka_debiased" if name == "cka" else name)


def unit_of(name: str) -> str:
    """What a measure's numbers are in, and which way they point."""
    kind = measure_of(name).kind
    high = measure_of(name).range[1]
    unit = "radians, " if high == math.pi / 2 else ""
    return f"{name} ({unit}{'1 = the same' if kind == 'similarity' else '0 = the same'})"


def best_partners(comparison: Comparison, measure: str) -> Int[Tensor, "layer_a"]:
    """For each layer of A, which of B's is the most alike: the largest similarity or the smallest distance."""
    values = comparison[measure]
    unlike = -values if measure_of(measure).kind == "similarity" else values
    return unlike.nan_to_num(math.inf).argmin(1)


def _bound(comparison: Comparison, measure: str) -> float:
    """The end of a measure's range, or the largest value where there is none."""
    high = measure_of(measure).range[1]
    largest = float(comparison[measure].abs().nan_to_num(0.0).max())
    return max(high, largest) if math.isfinite(high) else largest or 1.0


def comparison_heatmap(comparison: Comparison, measure: str) -> "plotly.graph_objects.Figure":
    """Draw layers of A x layers of B, each layer of A's best partner as a circle; error and nulls on hover.

    The scale runs from 0, or symmetrically around it where a value is negative, to the end of the measure's range, so
    that maps of several comparisons can be laid side by side.

    Raises:
        KeyError: a measure that was not computed.

    Example:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> c = tlb.dissimilarity.compare(model, model, texts, measures=["cka"], show_progress=False)
        >>> len(tlb.render.comparison_heatmap(c, 'cka').data) > 0
        True
    """
    values = comparison[measure]
    m, bound = comparison.measures.index(measure), _bound(comparison, measure)
    figure = heatmap(
        values,
        rows=comparison.layers_a,
        columns=comparison.layers_b,
        title=unit_of(measure),
        value_title=measure,
        row_title="layer of A",
        column_title="layer of B",
        signed=bool((values < -_ROUNDING * bound).any()),
        bound=bound,
        details=[[_detail(comparison, m, i, j) for j in range(values.shape[1])] for i in range(values.shape[0])],
    )
    figure.update_traces(colorbar={"title": {"text": ""}})  # the name is longer than a small map is high
    for color, width in (("#ffffff", 4), ("#000000", 2)):  # seen on white and on the darkest squares
        figure.add_scatter(
            x=best_partners(comparison, measure).tolist(),
            y=list(range(values.shape[0])),
            mode="markers",
            marker={"symbol": "circle-open", "size": 13, "color": color, "line": {"width": width}},
            hoverinfo="skip",
            showlegend=False,
        )
    if max(map(len, comparison.layers_b)) <= 5:
        figure.update_xaxes(tickangle=0)
    return figure


def _detail(comparison: Comparison, m: int, i: int, j: int) -> str:
    parts = [
        ("standard error", comparison.standard_errors),
        ("mean over all pairings", comparison.null_means),
        ("mean over random pairings", comparison.permutation_means),
    ]
    said = [f"{what} {float(each[m, i, j]):.3g}" for what, each in parts if each[m, i, j].isfinite()]
    return "; ".join(said) or "no standard error was asked for"


def comparison_map(comparison: Comparison, measure: str) -> Fragment:
    """The heat map as a fragment, with a small picture in its place where scripts do not run."""
    rows = comparison[measure].flip(0).tolist()  # the last layer on top, as in the figure
    label = f"{unit_of(measure)}: layers of A upwards, layers of B to the right"
    picture = heat_image(rows, bound=_bound(comparison, measure), label=label)
    return figure_fragment(comparison_heatmap(comparison, measure), static=f"<div>{picture}</div>")


@dataclass(frozen=True)
class Chance:
    """What a measure gives, pair by pair of layers, where no sample corresponds to its partner."""

    mean: Float[Tensor, "layer_a layer_b"]
    deviation: Float[Tensor, "layer_a layer_b"]
    """NaN where no pairing was drawn."""
    words: str
    """What it was taken from."""


def chance_of(comparison: Comparison, measure: str) -> Chance | None:
    """The null of a measure: its closed form where there is one, else its mean over random pairings; None without.

    The deviation is over random pairings of the samples kept, which may be fewer than the value's own: then it is the
    wider one.
    """
    m = comparison.measures.index(measure)
    closed, drawn = comparison.null_means[m], comparison.permutation_means[m]
    deviation = comparison.permutation_deviations[m]
    pairings = f"{comparison.n_permutations} random pairings of {comparison.n_permuted[m]} samples"
    if closed.isfinite().all():
        spread = f"; band, 1.96 standard deviations of {pairings}" if deviation.isfinite().any() else ""
        return Chance(closed, deviation, f"the mean over all pairings of the samples, in closed form{spread}")
    if drawn.isfinite().any():
        words = f"{pairings}; band, 1.96 of their standard deviations"
        if comparison.n_permuted[m] < comparison.n_samples:
            words += "; over all samples chance would look less alike"
        return Chance(drawn, deviation, words)
    return None


def comparison_curves(comparison: Comparison, measure: str) -> "plotly.graph_objects.Figure":
    """Draw each layer of A with the same place in B, and with its best partner, beside chance.

    Bands are 95 % (1.96 standard errors). The best of many layers is above the typical one by chance alone, and its
    band does not know that it was chosen.

    Raises:
        KeyError: a measure that was not computed.

    Example:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> c = tlb.dissimilarity.compare(model, model, texts, measures=["cka"], show_progress=False)
        >>> len(tlb.render.comparison_curves(c, 'cka').data) > 0
        True
    """
    values = comparison[measure]
    errors = comparison.standard_errors[comparison.measures.index(measure)]
    n_a, n_b = values.shape
    best, chance = best_partners(comparison, measure), chance_of(comparison, measure)
    lines = []
    if n_a == n_b:
        lines += _lines("same place", range(n_a), values, errors, chance)
    lines += _lines("best layer of B", best.tolist(), values, errors, None if n_a == n_b else chance)
    labels = [f"{a} | {comparison.layers_b[int(j)]}" for a, j in zip(comparison.layers_a, best, strict=True)]
    return curves(
        lines,
        title=f"{measure} beside chance",
        x_title="layer of A | its best in B",
        y_title=measure,
        x_labels=labels,
    )


def _lines(
    name: str, partners: "range | list[int]", values: Tensor, errors: Tensor, chance: Chance | None
) -> list[Curve]:
    """One partner a layer of A, with its band, and chance at the same pairs."""
    at = torch.arange(len(values)), torch.tensor(list(partners))
    lines = [_curve(name, values[at], errors[at])]
    if chance is not None:
        lines.append(_curve(f"{name}, chance", chance.mean[at], chance.deviation[at], control_of=name))
    return lines


def _curve(name: str, mean: Tensor, deviation: Tensor, control_of: str | None = None) -> Curve:
    if deviation.isnan().any():
        return Curve(name, mean, control_of=control_of)
    return Curve(name, mean, control_of=control_of, low=mean - Z95 * deviation, high=mean + Z95 * deviation)
