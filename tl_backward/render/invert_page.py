"""A page about an activation's preimage: inputs that give nearly the same activation, and the features they share."""

import math
from collections.abc import Iterable, Sequence

import torch

from tl_backward._support import html
from tl_backward._support.csv import finite
from tl_backward._support.html import Cell, TableCell, escape, visible_text
from tl_backward._support.public import public
from tl_backward._support.sentences import count_text
from tl_backward._support.types import typed
from tl_backward.inversion import FeatureTable, Preimage, SiteComparison
from tl_backward.inversion.features import FeatureConsistency, Rate
from tl_backward.inversion.site_reading import SiteReading
from tl_backward.inversion.summary import kept_features, known_sentence, site_label
from tl_backward.render.figures import Curve, curves_drawing, heatmap
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page, beside
from tl_backward.render.samples import nearest_texts, preimage_samples, query_strip, samples_data
from tl_backward.render.tables import data_block, frame_block, lens_table
from tl_backward.text.token_strings import token_string

INTRO = (
    "What does an activation know of its input? Just what the inputs share that give nearly the same one: its "
    "preimage within \u03b5, all x with D(z, f(x)) \u2264 \u03b5. Whatever varies among them is forgotten."
)
FOOTER = (
    "Method: Xinting Huang, Madhur Panwar, Navin Goyal, Michael Hahn, InversionView, NeurIPS 2024. Every distance was "
    "computed by the probed model. This page is one file and asks no network for anything."
)
HOW = {
    "decoder": "Drawn from a trained decoder p(x | z), whose habits they share: a feature can be kept more often among "
    "a decoder's samples than in the preimage itself. Search and enumeration correct that.",
    "enumeration": "All inputs of the domain were looked through: these shares are exact.",
    "search": "Random walks of token edits, each step scored by the model; weighted texts within epsilon are draws of "
    "the prior restricted to the preimage. Chains start at the query and the nearest of a pool: run other seeds before "
    "trusting a small effective sample size.",
    "pool": "The nearest of a pool of inputs.",
    "given": "Texts that were given.",
}
QUERY = "The token in a frame is the one whose activations are asked about."
SAMPLES = (
    "The nearest texts on either side, each once; the Data box has the others. First the distance D; the token in a "
    "frame is where the text comes nearest. Hover over a token for its own D."
)
FEATURES = (
    "The share of the texts within epsilon that have the query's value (with its 95 % interval over the effective "
    "sample size), beside the share of the task's prior; most telling first, in bits of the first against the second. "
    "A feature kept near 1 is known; one at the prior's share is forgotten."
)
MAP = (
    "For each site and token of the query, the share of a pool's inputs within epsilon that keep the query's value of "
    "a feature. A dash: the pool has no input within epsilon, and nothing is known. Few inputs make wide intervals: "
    "hover."
)


_NEAREST = 30  # texts of a site in the picture of distances
KEEPS = "share of the preimage that keeps it"


@typed
def invert_report(
    readings: SiteReading | Sequence[SiteReading], *, comparison: SiteComparison | None = None, name: str = ""
) -> Page:
    """Make one page of one query at one or several sites and positions; `.save(path)` writes one offline file.

    Args:
        readings: from `read_preimage`, all of the same query.
        comparison: from `compare_sites`, for maps of each feature along the network.
        name: the model's, for the title.

    Raises:
        ValueError: no reading, or readings of several queries.

    Examples:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> p = tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool, show_progress=False)
        >>> reading = tlb.inversion.read_preimage(counting, p)
        >>> isinstance(tlb.render.invert_report(reading), tlb.render.Page)
        True
    """
    given = [readings] if isinstance(readings, SiteReading) else list(readings)
    queries = {tuple(each.preimage.query.tokens.tolist()) for each in given}
    if len(queries) != 1:
        raise ValueError(
            f"Expected readings of one query, got {len(given)} of {len(queries)} queries; make a page of each."
        )
    first = given[0].preimage
    told = known_sentence([each.known() for each in given])
    page = Page("What an activation knows" + (f": {name}" if name else ""), finding=told, footer=FOOTER)
    one_place = len({each.preimage.position for each in given}) == 1
    strip = query_strip(first, marked=first.position if one_place else None)
    page.section("What is kept", "", *_kept_picture(given), _summary(given))
    page.section("The query", QUERY if one_place else "", strip)
    if comparison is not None:
        maps = [
            _folded(name, i == 0, feature_map(comparison, name)) for i, name in enumerate(_ranked(comparison, given))
        ]
        page.section("Where along the network", MAP, *maps, frame_block(comparison.to_frame(), "feature_map.csv"))
    for reading in given if len(given) < 2 else []:
        if reading.features is not None:
            page.section("Hypotheses", "", *_hypotheses(reading))
    telling = max(given, key=lambda reading: reading.known().bits)
    blocks = [_block(reading, is_open=reading is telling, alone=len(given) < 2) for reading in given]
    page.section("Site by site", "", *blocks)
    return page.section("Method", INTRO, folded=True)


def _kept_picture(given: Sequence[SiteReading]) -> list[Fragment]:
    """Each hypothesis at each site above its share of the prior, as a heat map; without any, how near texts come."""
    known = [(reading.preimage, reading.features) for reading in given if reading.features is not None]
    names = list(dict.fromkeys(row.feature for _, features in known for row in features.rows))
    shares = [[features[name].rate.value for name in names] for _, features in known]
    if all(map(math.isnan, sum(shares, start=[]))):
        return _distances_picture([reading.preimage for reading in given])
    places = _places([p for p, _ in known])
    priors = [known[0][1][name].prior for name in names]
    others = [prior.value for prior in priors if prior is not None]
    if len(others) == len(names):
        shares, places = [*shares, others], [*places, "other texts"]
    return [figure_fragment(heatmap(
        torch.tensor(shares).flip(0), rows=places[::-1], columns=names, value_title="share", row_title="",
        title=f"Texts within {known[0][0].epsilon:g} that have the query's value", column_title="", bound=1.0,
    ))]  # fmt: skip


def _places(preimages: Sequence[Preimage]) -> list[str]:
    """Sites by their short names, with the token where there are several."""
    one_place = len({p.position for p in preimages}) == 1
    return [site_label(p.site) + ("" if one_place else f", token {p.position}") for p in preimages]


def _distances_picture(preimages: Sequence[Preimage]) -> list[Fragment]:
    """The distances of the nearest texts beside epsilon."""
    near = {
        place: p.distances[p.distances.isfinite()].double().sort().values[:_NEAREST]
        for place, p in zip(_places(preimages), preimages, strict=True)
    }
    n = max(map(len, near.values()))
    if not n:
        return []
    lines = [Curve(place, torch.cat([each, each.new_full((n - len(each),), math.nan)])) for place, each in near.items()]
    return [figure_fragment(curves_drawing(
        [*lines, Curve("\u03b5", [preimages[0].epsilon] * n)], title="How near the nearest texts come",
        x_title="text, the nearest first", y_title="distance D", x=list(range(1, n + 1)),
    ))]  # fmt: skip


def _hypotheses(reading: SiteReading) -> list[Fragment]:
    """The table of features with its text and data."""
    if reading.features is None:
        return []
    stem = f"{reading.preimage.site}_{reading.preimage.position}"
    table = hypotheses(reading.features, retrieved=reading.retrieval_features, exact=reading.exact_features)
    data = _features_data(reading.features, f"features_{stem}.csv")
    return [Fragment(paragraphs(FEATURES)), table, data]


def _ranked(comparison: SiteComparison, given: Sequence[SiteReading]) -> list[str]:
    """Features, those first that are kept where the query was asked about, then those kept anywhere.

    A token that is itself a feature's value keeps it trivially: such maps are not the finding.
    """
    asked = {reading.preimage.position for reading in given}
    tables = list(zip(comparison.preimages, comparison.features, strict=True))
    kept_there = [table for p, table in tables if p.position in asked]
    read = [reading.features for reading in given if reading.features is not None]
    ranks = [_best(kept_features(table) for table in of) for of in (kept_there, read)]
    ranks.append(_best(table.rows for table in comparison.features))
    return sorted(ranks[-1], key=lambda name: tuple(-rank.get(name, -math.inf) for rank in ranks))


def _best(tables: Iterable[Iterable[FeatureConsistency]]) -> dict[str, float]:
    """The most bits that each feature has in any of the tables."""
    best: dict[str, float] = {}
    for row in (row for rows in tables for row in rows):
        bits = -math.inf if math.isnan(row.bits) else row.bits
        best[row.feature] = max(best.get(row.feature, -math.inf), bits)
    return best


def _summary(readings: Sequence[SiteReading]) -> Fragment:
    """What each site keeps, a row a site; what is the same for all of them is said once, above."""
    rows: list[list[TableCell]] = []
    for reading in readings:
        p, d = reading.preimage, reading.preimage.diagnostics
        told = "; ".join(f"{row.feature} {row.rate.value:.2f}" for row in kept_features(reading.features)) or "\u2013"
        inside = f"{int(p.inside.sum())} of {len(p)}"
        rows.append([told, p.position, p.method, inside, d.distinct, d.chance, d.well_formed])
    columns = ["kept inside", "position", "method", "inside", "distinct", "chance", "well-formed"]
    said_once = {i for i in (1, 2) if len({row[i] for row in rows}) == 1}
    there = [i for i in range(len(columns)) if i not in said_once and any(row[i] is not None for row in rows)]
    names = [site_label(reading.preimage.site) for reading in readings]
    rows, once = [[row[i] for i in there] for row in rows], rows[0]
    caption = "; ".join(f"{columns[i]} {once[i]}" for i in sorted(said_once))
    return Fragment(html.table(
        [columns[i] for i in there], rows, row_names=names, corner="site", limit=80, caption=caption,
    ))  # fmt: skip


def _block(reading: SiteReading, *, is_open: bool, alone: bool) -> Fragment:
    p = reading.preimage
    stem = f"{p.site}_{p.position}"
    parts = [query_strip(p, marked=p.position)]
    if reading.features is not None and not alone:
        parts.append(_part("Hypotheses", "", *_hypotheses(reading)))
    data = samples_data(p, filename=f"texts_{stem}.csv")
    parts += [
        _part("Texts inside and outside", SAMPLES, preimage_samples(reading), data),
        beside(_facts(p), _part("How the texts were found", HOW[p.method])),
    ]
    others = []
    exact, pool = reading.exact, reading.retrieval
    if exact is not None and exact is not p:
        inside, share = int(exact.inside.sum()), exact.diagnostics.share_inside
        said = f"{count_text(inside, 'input')} of the domain, a share of {share:.3g}."
        others.append(_part("The exact preimage", said, nearest_texts(exact)))
    if pool is not None:
        share = pool.diagnostics.share_inside
        said = f"The nearest inputs of a pool, without any search: {share:.3g} of the pool is within epsilon."
        others.append(_part("Retrieval, the baseline", said, nearest_texts(pool)))
    if others:
        parts.append(beside(*others))
    return _folded(f"{p.site}, position {p.position}: {int(p.inside.sum())} of {len(p)} texts inside", is_open, *parts)


@public
def feature_map(comparison: SiteComparison, feature: str) -> Fragment:
    """Make a heat map of the share of each preimage that has the query's value of one feature.

    Sites are rows, in the order they were compared; the query's tokens are columns. On hover, the interval, the prior's
    share and how many inputs the share is of; a cell without any input within epsilon stays white.

    Raises:
        KeyError: a feature that was not compared.

    Examples:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> p = tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool, show_progress=False)
        >>> features = {"letter": lambda text: text[-2], "length": len}
        >>> c = tlb.inversion.compare_sites(counting, pool[0], [("resid_mid", 1)], inputs=pool, features=features)
        >>> 'letter' in tlb.render.feature_map(c, 'letter').html
        True
    """
    found = {
        (p.site, p.position): (p, table[feature])
        for p, table in zip(comparison.preimages, comparison.features, strict=True)
    }
    sites = list(dict.fromkeys(site for site, _ in found))
    positions = sorted({position for _, position in found})
    query = comparison.preimages[0].query
    tokenizer = comparison.preimages[0].inputs.tokenizer
    columns = [token_string(tokenizer, int(query.tokens[position])) for position in positions]
    return lens_table(
        [site_label(site) for site in sites],
        columns,
        [[_kept_cell(*found[site, position]) for position in positions] for site in sites],
        value_label=KEEPS,
        caption=f"{feature} = {comparison.features[0][feature].query_value}",
        corner="site",
        bound=1.0,
    )


def _kept_cell(preimage: Preimage, kept: FeatureConsistency) -> Cell:
    n = f"{int(preimage.inside.sum())} of {len(preimage)} inputs within {preimage.epsilon:g}"
    where = f"{preimage.site}, position {preimage.position}"
    if math.isnan(kept.rate.value):
        return Cell("\u2013", title=(where, n))
    prior = "" if kept.prior is None else f"prior {kept.prior.value:.4g}"
    return Cell(f"{kept.rate.value:.2f}", title=(where, f"share {kept.rate}", prior, n), value=kept.rate.value)


@public
def hypotheses(
    features: FeatureTable, *, retrieved: FeatureTable | None = None, exact: FeatureTable | None = None
) -> Fragment:
    """Table of features ranked: the query's value, its share in the preimage and in the prior, bits, other estimates.

    Examples:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> p = tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool, show_progress=False)
        >>> features = {"letter": lambda text: text[-2], "length": len}
        >>> found = tlb.inversion.common_features(p, features, prior=pool)
        >>> 'letter' in tlb.render.hypotheses(found).html
        True
    """
    beside_it = {"among retrieved": retrieved, "exact share": exact}
    others = {name: table for name, table in beside_it.items() if table is not None}
    rows: list[list[TableCell]] = [
        [
            Cell(str(row.query_value)),
            _share(row.rate),
            "" if row.prior is None else str(row.prior),
            None if math.isnan(row.bits) else row.bits,
            *(_share(table[row.feature].rate) for table in others.values()),
        ]
        for row in features.rows
    ]
    columns = ["query's value", "share that keeps it", "prior's share", "bits", *others]
    names = [row.feature for row in features.rows]
    return Fragment(html.table(columns, rows, row_names=names, corner="feature", bound=1.0, limit=40))


def _share(rate: Rate) -> Cell:
    if math.isnan(rate.value):
        return Cell("\u2013")
    return Cell(f"{rate.value:.3f}" if math.isinf(rate.n) else str(rate), value=rate.value)


def _facts(p: Preimage) -> Fragment:
    d = p.diagnostics
    rows: list[list[TableCell]] = [
        ["epsilon", p.epsilon],
        ["distance", f"{p.metric}, at {'any position' if p.match == 'any' else 'the same position'}"],
        ["made by", p.method],
        ["texts", len(p)],
        ["share inside", d.share_inside],
        ["distinct inside", d.distinct],
        ["effective sample size", d.effective_sample_size],
    ]
    others = {
        "chance (the prior's share)": d.chance,
        "well-formed": d.well_formed,
        "accepted": d.acceptance,
        "recall": d.recall,
    }
    others |= {f"TV of {name}": round(value, 9) for name, value in d.total_variation.items()}
    rows += [[name, value] for name, value in others.items() if value is not None]
    return Fragment(html.table(["what", "value"], rows, limit=30))


def _features_data(features: FeatureTable, filename: str) -> Fragment:
    priors = [
        (None,) * 3 if row.prior is None else (row.prior.value, row.prior.low, row.prior.high) for row in features.rows
    ]
    rows = [
        [row.feature, str(row.query_value), row.rate.value, row.rate.low, row.rate.high, row.rate.n, *prior, row.bits]
        for row, prior in zip(features.rows, priors, strict=True)
    ]
    columns = ["feature", "query_value", "rate", "low", "high", "n", "prior", "prior_low", "prior_high", "bits"]
    return data_block(columns, finite(rows), filename=filename)


def _part(title: str, words: str, *fragments: Fragment) -> Fragment:
    head = f'<div style="font-weight:bold;margin:12px 0 2px">{_text(title)}</div>'
    return sum(fragments, start=Fragment(head + paragraphs(words)))


def _folded(title: str, is_open: bool, *fragments: Fragment) -> Fragment:
    summary = f'<summary style="cursor:pointer;font-weight:bold;overflow-wrap:anywhere">{_text(title)}</summary>'
    box = (
        f'<details{" open" if is_open else ""} style="margin:8px 0;border:1px solid #9a9a9a;padding:6px 10px">{summary}'
    )
    return sum(fragments, start=Fragment(box)) + Fragment("</details>")


def _text(text: str) -> str:
    return escape(visible_text(text))
