"""A page of two models compared: what was compared, every measure layer by layer and beside chance, and stitches."""

from tl_backward._support.html import TableCell
from tl_backward.dissimilarity import Comparison, StitchingGrid
from tl_backward.render.attention_report import beside
from tl_backward.render.comparison_figures import (
    chance_of,
    comparison_curves,
    comparison_map,
    measure_of,
)
from tl_backward.render.export import data_block
from tl_backward.render.figures import figure_fragment
from tl_backward.render.page import Page
from tl_backward.render.stitching_report import add_stitches
from tl_backward.render.tables import table

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
_WORDS = {
    "permutation": "permuting the neurons",
    "orthogonal": "rotations and reflections",
    "invertible linear": "any invertible linear map",
    "isotropic scaling": "one scale",
    "translation": "a shift",
}


def compare_report(comparison: Comparison, *, stitches: StitchingGrid | None = None, name: str = "") -> Page:
    """Make a page of a comparison: what the samples were, then a heat map and curves with chance for every measure.

    Args:
        comparison: from `tl_backward.dissimilarity.compare`.
        stitches: of the same two models, from `stitching_grid`, to put below.
        name: of the two models, for the title.

    Example:
        >>> texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:12]]
        >>> c = tlb.dissimilarity.compare(model, model, texts, measures=["cka"], show_progress=False)
        >>> isinstance(tlb.render.compare_report(c), tlb.render.Page)
        True
    """
    page = Page(f"Two models compared: {name}" if name else "Two models compared", intro=_INTRO, footer=_FOOTER)
    page.section(_WHAT, " ".join(caveats(comparison)), table(["what", "value"], facts(comparison)))
    page.section(*_READ)
    frame = comparison.to_frame().astype(object)
    frame = frame.where(frame.notna(), None)
    for m, measure in enumerate(comparison.measures):
        figures = [comparison_map(comparison, measure)]
        if len(comparison.layers_a) > 1:
            figures.append(figure_fragment(comparison_curves(comparison, measure)))
        rows = frame[frame["measure"] == measure]
        data = data_block(list(map(str, rows.columns)), rows.values.tolist(), filename=f"{measure}.csv")
        words = f"{_said(measure)} Taken from {comparison.computed_from[m]}."
        chance = chance_of(comparison, measure)
        if chance is not None:
            words += f" Chance (dashed): {chance.words}."
        page.section(measure, words, beside(*figures), data)
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
        add_stitches(page, stitches)
    return page


def _said(measure: str) -> str:
    """One measure in words: what it is, its range, and what it cannot see."""
    entry = measure_of(measure)
    low, high = entry.range
    bounds = f"[{low:.4g}, {high:.4g}]" if high < float("inf") else f"[{low:.4g}, no end)"
    blind = ", ".join(_WORDS[each] for each in entry.invariances)
    way = "the larger, the more alike" if entry.kind == "similarity" else "the larger, the less alike"
    return f"{entry.summary} A {entry.kind} in {bounds}: {way}. Unchanged by {blind} of either side."


def facts(comparison: Comparison) -> list[list[TableCell]]:
    """What a reader must know to repeat a comparison, name and value."""
    c = comparison
    words = {"token": "every token", "last": "each text's last token", "mean": "each text's mean"}[c.sample]
    rows: list[list[TableCell]] = [
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
        ["memory planned", f"{c.plan.bytes / 1e6:.1f} MB, by the route {c.plan.route!r}"],
    ]
    return rows


def caveats(comparison: Comparison) -> list[str]:
    """What in the data limits what may be concluded; empty if nothing does."""
    found = []
    share = max(float(each.max()) for each in comparison.first_share)
    if share > 0.5 and not comparison.first_excluded:
        found.append(f"Position 0 makes up {share:.0%} of a layer's sum |x|^2: compare without it too.")
    if min(comparison.coverage) < 0.5:
        found.append(
            f"Only {min(comparison.coverage):.0%} of one model's tokens became samples, and the result speaks of those "
            "alone: the others were cut or masked, or end inside a token of the other model."
        )
    if max(comparison.unknown) > 0.1:
        found.append(
            f"{max(comparison.unknown):.0%} of one model's tokens are its unknown token: the texts are not in its "
            "vocabulary."
        )
    if comparison.n_truncated:
        found.append(f"{comparison.n_truncated} texts were cut, where the shorter context or max_tokens ends.")
    return found
