"""Two models compared, as a page: every measure layer by layer with the best partners marked, and beside chance."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.absent import Absent
from tl_backward._support.html import TableCell
from tl_backward._support.public import public
from tl_backward._support.types import typed
from tl_backward.dissimilarity import Comparison, StitchingGrid, get_measure
from tl_backward.render.figures import Curve, banded, curves, heatmap
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page, beside
from tl_backward.render.stitching_page import add_stitches
from tl_backward.render.tables import frame_block, table
from tl_backward.render.told_apart import told_apart

if TYPE_CHECKING:
    import plotly.graph_objects

_INTRO = (
    "Both models read the same texts; a sample is one place in them. Each square says how alike two layers are, as "
    "clouds of the same samples: not which words they hold, but which samples lie near which. Above chance means "
    "above what the same two clouds give when their samples are paired at random."
)
_FOOTER = (
    "Kornblith et al. 2019 and Williams et al. 2021 for the measures, Brown et al. 2023 for the comparison of language "
    "models. Hover over any cell or point for its exact value; the Data boxes hold everything as CSV. This page is one "
    "file and asks no network for anything."
)
_WHAT = "What was compared"
_FIRST = (
    "Position 0",
    "How much of each layer's sum |x|^2 the tokens at position 0 make up. It often holds one massive activation a "
    "text: near 1, it decides a measure alone, and the samples without it (exclude_first) are another question.",
)
_READ = (
    "How to read the maps",
    "Circles mark each layer of A's best partner in B. The best of many is above the typical one by chance alone, so "
    "read the whole map: a diagonal band of likeness says that depth corresponds, a block that the layers in it hardly "
    "differ, and one that stands out against all others may be a few massive activations. In the curves, what lies on "
    "its dashed line is what unrelated samples give too.",
)
_UNTRAINED = (
    "Untrained networks: {} pairs of the same configurations, each layer with its own best partner; the line is their "
    "mean, the band runs from the least to the most."
)
_WORDS = {
    "permutation": "permuting the neurons",
    "orthogonal": "rotations and reflections",
    "invertible linear": "any invertible linear map",
    "isotropic scaling": "one scale",
    "translation": "a shift",
}
Z95 = 1.959964  # of a normal distribution, for 95 %
_ROUNDING = 1e-3  # of the scale: a negative value this small does not make it signed


@typed
def compare_report(
    comparison: Comparison,
    *,
    stitches: StitchingGrid | None = None,
    name: str = "",
    names: tuple[str, str] | None = None,
) -> Page:
    """Make a page of a comparison: a heat map and curves with chance for every measure, and what the samples were.

    Args:
        comparison: from `tl_backward.dissimilarity.compare`.
        stitches: of the same two models, from `stitching_grid`, to put below.
        name: of the two models, for the title.
        names: what A and B are called, on the page.

    Examples:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> c = tlb.dissimilarity.compare(model, model, texts, measures=["cka"], show_progress=False)
        >>> isinstance(tlb.render.compare_report(c), tlb.render.Page)
        True
    """
    if names is not None and not name:
        name = f"{names[0]} and {names[1]}"
    page = Page(
        f"Two models compared: {name}" if name else "Two models compared",
        finding=comparison.summary(*([] if names is None else [told_apart(names)])),
        intro=" ".join(caveats(comparison)),
        footer=_FOOTER,
    )
    frame = comparison.to_frame()
    for m, measure in enumerate(comparison.measures):
        figures = [comparison_map(comparison, measure, names=names)]
        if len(comparison.layers_a) > 1:
            figures.append(figure_fragment(comparison_curves(comparison, measure, names=names)))
        data = frame_block(frame[frame["measure"] == measure], f"{measure}.csv")
        words = f"{measure_in_words(measure)} Taken from {comparison.computed_from[m]}."
        chance = chance_of(comparison, measure)
        if chance is not None:
            words += f" Chance (dashed): {chance.words}."
        if not isinstance(comparison.untrained, Absent):
            words += f" {_UNTRAINED.format(len(comparison.untrained))}"
        page.section(measure, "", beside(*figures), Fragment(paragraphs(words)), data)
    shares = [
        [side, label, float(share)]
        for side, labels, each in zip(
            "AB", (comparison.layers_a, comparison.layers_b), comparison.first_share, strict=True
        )
        for label, share in zip(labels, each, strict=True)
    ]
    if not comparison.first_excluded:
        page.section(*_FIRST, table(["model", "layer", "share"], shares))
    if stitches is not None:
        add_stitches(page, stitches, names)
    page.section(_READ[0], f"{_INTRO}\n\n{_READ[1]}", folded=True)
    return page.section(_WHAT, "", table(["what", "value"], facts(comparison)), folded=True)


def _sides(names: tuple[str, str] | None) -> tuple[str, str]:
    """Whose layers an axis shows: "A (run1)"."""
    return ("A", "B") if names is None else (f"A ({names[0]})", f"B ({names[1]})")


def measure_in_words(measure: str) -> str:
    """A measure in words: its definition, range and invariances."""
    entry = get_measure(measure)
    low, high = entry.range
    bounds = f"[{low:.4g}, {high:.4g}]" if high < float("inf") else f"[{low:.4g}, no end)"
    blind = ", ".join(_WORDS[each] for each in entry.invariances)
    way = "the larger, the more alike" if entry.kind == "similarity" else "the larger, the less alike"
    return f"{entry.summary} A {entry.kind} in {bounds}: {way}. Unchanged by {blind} of either side."


def facts(comparison: Comparison) -> list[list[TableCell]]:
    """Table rows (name, value) of the settings that are needed to repeat a comparison."""
    c = comparison
    words = {"token": "every token", "last": "each text's last token", "mean": "each text's mean"}[c.sample]
    return [
        ["samples", str(c.n_samples)],
        ["one sample is", words],
        ["position 0", "left out" if c.first_excluded else "included"],
        ["texts", f"{c.n_texts} in {c.n_batches} batches"],
        ["texts cut; empty", f"{c.n_truncated}; {c.n_empty}"],
        ["aligned by", "tokens" if c.aligned == "tokens" else "characters: places where both models end a token"],
        ["tokens that became samples", f"{c.coverage[0]:.1%} of A's, {c.coverage[1]:.1%} of B's"],
        ["unknown tokens", f"{c.unknown[0]:.1%} of A's, {c.unknown[1]:.1%} of B's"],
        ["estimator of cka", c.estimator],
        ["standard errors", f"{c.n_groups} groups of batches left out in turn" if c.n_groups else "none"],
        ["random pairings", f"{c.n_permutations}, seed {c.seed}" if c.n_permutations else "none"],
        ["pairs of untrained networks", "none" if isinstance(c.untrained, Absent) else str(len(c.untrained))],
        ["memory planned", f"{c.plan.bytes / 1e6:.1f} MB, by the route {c.plan.route!r}"],
    ]


def caveats(comparison: Comparison) -> list[str]:
    """Sentences about limits of the data; an empty list where there are none."""
    found = []
    share = max(float(each.max()) for each in comparison.first_share)
    if share > 0.5 and not comparison.first_excluded:
        found.append(f"Position 0 makes up {share:.0%} of a layer's sum |x|^2: compare without it too.")
    if min(comparison.coverage) < 0.5:
        found.append(
            f"Only {_of_models(comparison.coverage, lambda share: share < 0.5)} became samples, and the result speaks "
            "of those alone: the others were cut or masked, or end inside a token of the other model."
        )
    if max(comparison.unknown) > 0.1:
        found.append(
            f"{_of_models(comparison.unknown, lambda share: share > 0.1)} are unknown tokens: the texts are not in "
            "that vocabulary."
        )
    if comparison.n_truncated:
        texts = "1 text was" if comparison.n_truncated == 1 else f"{comparison.n_truncated} texts were"
        found.append(f"{texts} cut, where the shorter context or max_tokens ends.")
    return found


def _of_models(shares: tuple[float, float], told: Callable[[float], bool]) -> str:
    """Shares of A's and of B's tokens, of which those that are worth it are told."""
    return " and ".join(f"{share:.0%} of {of}'s tokens" for of, share in zip("AB", shares, strict=True) if told(share))


def unit_of(name: str) -> str:
    """A measure's name with its unit and the value that means the same."""
    measure = get_measure(name)
    unit = "radians, " if measure.range[1] == math.pi / 2 else ""
    return f"{name} ({unit}{'1 = the same' if measure.kind == 'similarity' else '0 = the same'})"


def best_partners(comparison: Comparison, measure: str) -> Int[Tensor, "layer_a"]:
    """For each layer of A, the index of the most similar layer of B."""
    values = comparison[measure]
    unlike = -values if get_measure(measure).kind == "similarity" else values
    return unlike.nan_to_num(math.inf).argmin(1)


def _bound(comparison: Comparison, measure: str) -> float:
    """The end of a measure's range, or the largest value where there is none."""
    high = get_measure(measure).range[1]
    largest = float(comparison[measure].abs().nan_to_num(0.0).max())
    return max(high, largest) if math.isfinite(high) else largest or 1.0


@public
def comparison_heatmap(
    comparison: Comparison, measure: str, *, names: tuple[str, str] | None = None
) -> "plotly.graph_objects.Figure":
    """Draw layers of A x layers of B, each layer of A's best partner as a circle; error and nulls on hover.

    The scale runs from 0, or symmetrically around it where a value is negative, to the end of the measure's range, so
    that maps of several comparisons can be laid side by side.

    Raises:
        KeyError: a measure that was not computed.

    Examples:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> c = tlb.dissimilarity.compare(model, model, texts, measures=["cka"], show_progress=False)
        >>> len(tlb.render.comparison_heatmap(c, 'cka').data) > 0
        True
    """
    values = comparison[measure]
    m, bound = comparison.index(measure), _bound(comparison, measure)
    figure = heatmap(
        values,
        rows=comparison.layers_a,
        columns=comparison.layers_b,
        title=unit_of(measure),
        value_title=measure,
        row_title=f"layer of {_sides(names)[0]}",
        column_title=f"layer of {_sides(names)[1]}",
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
        ("mean of untrained networks", comparison.untrained_range()[0]),
    ]
    said = [f"{what} {float(each[m, i, j]):.3g}" for what, each in parts if each[m, i, j].isfinite()]
    return "; ".join(said) or "no standard error was asked for"


def comparison_map(comparison: Comparison, measure: str, *, names: tuple[str, str] | None = None) -> Fragment:
    """The heat map as a fragment."""
    return figure_fragment(comparison_heatmap(comparison, measure, names=names))


@dataclass(frozen=True)
class Chance:
    """A measure's null distribution for each pair of layers: its mean and deviation where samples do not correspond."""

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
    m = comparison.index(measure)
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


@public
def comparison_curves(
    comparison: Comparison, measure: str, *, names: tuple[str, str] | None = None
) -> "plotly.graph_objects.Figure":
    """Draw each layer of A with the same place in B, and with its best partner, beside chance.

    Bands are 95 % (1.96 standard errors). The best of many layers is above the typical one by chance alone, and its
    band does not know that it was chosen.

    Raises:
        KeyError: a measure that was not computed.

    Examples:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> c = tlb.dissimilarity.compare(model, model, texts, measures=["cka"], show_progress=False)
        >>> len(tlb.render.comparison_curves(c, 'cka').data) > 0
        True
    """
    values = comparison[measure]
    errors = comparison.standard_errors[comparison.index(measure)]
    n_a, n_b = values.shape
    best, chance = best_partners(comparison, measure), chance_of(comparison, measure)
    if n_a == n_b and best.tolist() == list(range(n_a)):  # one curve, which two would hide
        lines = _lines("same place, the best in B too", range(n_a), values, errors, chance)
    else:
        lines = _lines("same place", range(n_a), values, errors, chance) if n_a == n_b else []
        lines += _lines("best layer of B", best.tolist(), values, errors, None if n_a == n_b else chance)
    if not isinstance(comparison.untrained, Absent):
        each = comparison.untrained[:, comparison.index(measure)]
        best_of = each.amax(-1) if get_measure(measure).kind == "similarity" else each.amin(-1)
        lines.append(banded("untrained networks", best_of.mean(0), best_of.amin(0), best_of.amax(0)))
    labels = [f"{a} | {comparison.layers_b[int(j)]}" for a, j in zip(comparison.layers_a, best, strict=True)]
    return curves(
        lines,
        title=f"{measure} beside chance",
        x_title="layer of {} | its best in {}".format(*_sides(names)),
        y_title=measure,
        x_labels=labels,
    )


def _lines(
    name: str, partners: "range | list[int]", values: Tensor, errors: Tensor, chance: Chance | None
) -> list[Curve]:
    """Curves of one partner for each layer of A, with a 95 % band, and chance at the same pairs."""
    at = torch.arange(len(values)), torch.tensor(list(partners))
    drawn = {name: (values[at], errors[at])}
    if chance is not None:
        drawn[f"{name}, chance"] = (chance.mean[at], chance.deviation[at])
    return [
        banded(each, mean, mean - Z95 * deviation, mean + Z95 * deviation, control_of=None if each == name else name)
        for each, (mean, deviation) in drawn.items()
    ]
