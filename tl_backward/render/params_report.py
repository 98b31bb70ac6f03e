"""One weight in words as a page: its vectors' tokens, how coherent they are, and its heads' strongest pairs."""

from collections.abc import Sequence
from typing import TypedDict

from tl_backward._support.checks import check_head
from tl_backward._support.html import Cell, TableCell, visible_token
from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space import (
    Coherence,
    HeadPairs,
    head_pairs,
    parameter_coherence,
    related_pairs,
)
from tl_backward.embedding_space.filters import Filters
from tl_backward.embedding_space.heads import Circuit
from tl_backward.embedding_space.vectors import query_heads
from tl_backward.render.attention_report import beside
from tl_backward.render.coherence_figure import coherence_figure
from tl_backward.render.export import data_block
from tl_backward.render.figures import figure_fragment
from tl_backward.render.filter_table import filter_table
from tl_backward.render.page import Fragment, Page
from tl_backward.render.tables import table
from tl_backward.render.token_pairs import pair_list, pair_picture
from tl_backward.weights import weight_sites

CIRCUITS: dict[str, Circuit] = {"W_V": "VO", "W_O": "VO", "W_Q": "QK", "W_K": "QK"}
PARTNERS = {"W_in": "KV", "W_out": "KV", "W_gate": "GV", **CIRCUITS}

FOOTER = (
    "Method: Guy Dar, Mor Geva, Ankit Gupta, Jonathan Berant, Analyzing Transformers in Embedding Space, ACL 2023. No "
    "data is needed: every vector that reads the residual stream or writes to it is multiplied with the unembedding "
    "W_U. This page is one file and asks no network for anything."
)
COHERENCE = (
    "Coherence is the mean cosine between the unembedding columns (less their mean) of a vector's top tokens: how much "
    "one thing they are. The tokens at the top of any direction have something in common, so the grey area behind is "
    "the measure: the same for Gaussian vectors through the same W_U. p is the share of Gaussian vectors that are as "
    "coherent; among many vectors, some reach a small p by chance. Tokens that training never saw (unused "
    "bytes, for one) share one embedding, and score 1 together: filter them out where they crowd the top."
)
GROUPS = (
    "A row a vector, most coherent first. Its top tokens are what a neuron's value promotes, or what its key looks "
    "for; the bottom ones, what it demotes. A component of an attention head has no sign of its own, and no basis: "
    "look at the pairs instead."
)
PAIRED = (
    "Do vectors that belong together name the same tokens? The Jaccard index of their top tokens, beside the same for "
    "vectors paired at random and for Gaussian vectors through the same W_U."
)
PAIRS = {
    "VO": "The pairs with the largest scores of e_s W_V W_O E_t: attending to the first token writes the second.",
    "QK": "The pairs with the largest scores of (e_q W_Q) . (e_k W_K): the first looks at the second, positions aside.",
}
_OF_KIND = {"KV": ("W_in", "W_out"), "GV": ("W_gate", "W_out"), "VO": ("W_V", "W_O"), "QK": ("W_Q", "W_K")}
_SHOWN = 1000  # vectors in the table; the data block has all of them


class Reading(TypedDict):
    """How parameters are read: the options that every projection of a page shares."""

    inverse: str
    fold_ln: bool
    filters: Filters


def params_report(
    model: TransformerLensModel,
    weight: str,
    layer: int | None = None,
    *,
    head: int | None = None,
    k: int = 10,
    n_pairs: int = 40,
    inverse: str = "transpose",
    fold_ln: bool = False,
    filters: Filters = (),
    seed: int = 0,
    name: str = "",
    show_progress: bool = True,
) -> Page:
    """Make one page of a weight in words; `.save(path)` writes one offline file.

    Shown are the distribution of its vectors' coherence before that of Gaussian vectors, a table of every vector's
    tokens that can be filtered, the related pairs of its vectors with their controls, and, for attention weights, each
    head's strongest token pairs as a list and as a picture.

    Args:
        model: a HookedTransformer or TransformerBridge.
        weight: as in `project_parameter`, by name.
        layer: as in `project_parameter`.
        head: one attention head; None for all.
        k: top and bottom tokens of each vector.
        n_pairs: token pairs of each head.
        inverse: as in `project_parameter`.
        fold_ln: as in `project_parameter`.
        filters: as in `project_parameter`.
        seed: of the controls.
        name: the model's, for the title.
        show_progress: draw progress bars.

    Raises:
        ValueError, IndexError: what `parameter_coherence` and `head_pairs` refuse.

    Example:
        >>> page = tlb.render.params_report(model, 'W_out', 2, name='facts', show_progress=False)
        >>> page.save('values.html').name
        'values.html'
    """
    reading = Reading(inverse=inverse, fold_ln=fold_ln, filters=filters)
    found = parameter_coherence(model, weight, layer, head=head, k=k, seed=seed, show_progress=show_progress, **reading)
    short = weight.rpartition(".")[2]
    title = found.projection.weight + (f", head {head}" if head is not None else "")
    page = Page(f"{title} in words" + (f": {name}" if name else ""), intro=_intro(found), footer=FOOTER)
    figure = coherence_figure({title: found.score}, found.gaussian)
    page.section("How coherent the vectors are", COHERENCE, figure_fragment(figure))
    page.section("Every vector in words", GROUPS, group_table([found]), _data(found))
    block = _layer_of(found)
    own = found.projection.weight
    if block is not None and short in PARTNERS and _has_partner(model, own, PARTNERS[short]):
        size = min(100, max(2, found.projection.n_tokens // 4))
        related = related_pairs(
            model, PARTNERS[short], block, head=head, k=size, seed=seed, show_progress=False, **reading
        )
        summary = related.summary()
        rows = [[str(name), *values] for name, values in zip(summary.index, summary.to_numpy().tolist(), strict=True)]
        text = f"{PAIRED} Here the {size} top tokens of {' and '.join(related.weights)}."
        page.section("Vectors that belong together", text, table(["pairing", *map(str, summary.columns)], rows))
    if block is not None and short in CIRCUITS:
        places = heads_of(model, CIRCUITS[short], block)
        heads = [place[2] for place in places]
        if head is not None and heads:
            heads = [check_head(head, len(heads))]
        for each in heads:
            n = min(n_pairs, found.projection.n_tokens**2)
            pairs = head_pairs(model, CIRCUITS[short], block, each, k=n, show_progress=show_progress, **reading)
            page.section(f"{CIRCUITS[short]} pairs of head {each}", _pairs_text(pairs), pair_fragment(pairs))
    return page


def heads_of(model: TransformerLensModel, circuit: Circuit, layer: int) -> list[tuple[Circuit, int, int]]:
    """(circuit, layer, head) of each head of a block that has both matrices of the circuit; layers may differ."""
    sites = weight_sites(model)
    found = [site for site in sites.values() if site.layer == layer and site.short_name in _OF_KIND[circuit]]
    if len(found) < 2:
        return []
    return [(circuit, layer, head) for head in range(query_heads(model, found[0].name))]


def _has_partner(model: TransformerLensModel, of: str, kind: str) -> bool:
    """Whether a weight's own component has both weights of a kind of pair: a router called W_gate has no W_out."""
    component = of.rpartition(".")[0]
    return all(f"{component}.{name}" in weight_sites(model) for name in _OF_KIND[kind])


def group_table(found: Sequence[Coherence], *, n_shown: int = _SHOWN, k: int = 8) -> Fragment:
    """Make a table of token groups that can be filtered: the most coherent vectors of some weights, best first."""
    ranked = sorted(
        ((float(each.score[i]), which, i) for which, each in enumerate(found) for i in each.order[:n_shown].tolist()),
        key=lambda entry: -entry[0] if entry[0] == entry[0] else float("inf"),
    )[:n_shown]
    names = [each.projection.vector_names() for each in found]
    shares = [each.p.tolist() for each in found]
    rows: list[list[TableCell]] = []
    for score, which, i in ranked:
        of = found[which].projection[i]
        top = [_cell(*pair) for pair in zip(of.top_tokens[0][:k], of.top_scores[0].tolist(), strict=False)]
        bottom = [_cell(*pair) for pair in zip(of.bottom_tokens[0][:3], of.bottom_scores[0].tolist(), strict=False)]
        rows.append([of.weight, names[which][i], Cell(f"{score:.3f}", value=score), shares[which][i], *top, *bottom])
    width = max((len(row) for row in rows), default=4)
    n_bottom = min(3, width - 4)
    columns = ["weight", "vector", "coherence", "p"]
    columns += [f"top {i}" for i in range(width - 4 - n_bottom)] + [f"bottom {i}" for i in range(n_bottom)]
    total = sum(len(each.score) for each in found)
    caption = f"{len(rows)} of {total} vectors" if len(rows) < total else f"{total} vectors"
    return filter_table(columns, rows, caption=f"{caption}; scores on hover")


def pair_fragment(pairs: HeadPairs) -> Fragment:
    """The pairs as a list and as a picture, side by side."""
    return beside(pair_list(pairs), pair_picture(pairs))


def _pairs_text(pairs: HeadPairs) -> str:
    left_out = f" Without {', '.join(pairs.left_out)}." if pairs.left_out else ""
    return PAIRS[pairs.circuit] + left_out


def _intro(found: Coherence) -> str:
    above = float((found.score > found.gaussian.quantile(0.95)).float().mean())
    side = {"read": "read", "write": "write to", "scale": "scale"}[found.projection.side]
    return (
        f"{len(found.score)} vectors that {side} the residual stream, each with the tokens that it stands for. "
        f"{above:.0%} of them are more coherent than 95 % of Gaussian vectors are; 5 % would be by chance."
    )


def _data(found: Coherence) -> Fragment:
    frame = found.to_frame()
    for column in ("top_tokens", "bottom_tokens"):
        frame[column] = [" | ".join(map(visible_token, words)) for words in frame[column]]
    for column in ("top_scores", "bottom_scores"):
        frame[column] = [" ".join(f"{score:.6g}" for score in scores) for scores in frame[column]]
    frame = frame.astype(object).where(frame.notna(), None)
    return data_block(list(map(str, frame.columns)), frame.values.tolist(), filename=f"{found.projection.weight}.csv")


def _layer_of(found: Coherence) -> int | None:
    parts = found.projection.weight.split(".")
    return int(parts[1]) if parts[0] == "blocks" else None


def _cell(token: str, score: float) -> Cell:
    return Cell(token or "\u2014", title=(f"{visible_token(token)}: {score:.4g}",))
