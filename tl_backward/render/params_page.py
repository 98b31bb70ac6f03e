"""Weights in words as pages, the most coherent vectors first: one weight, and the atlas of all of a model's."""

import math
from collections.abc import Sequence

import torch

from tl_backward._support import html
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, TableCell, visible_token
from tl_backward._support.types import TransformerLensModel, typed
from tl_backward.embedding_space import (
    Coherence,
    HeadPairs,
    ParameterAtlas,
    ParameterWords,
    RelatedPairs,
    VectorOptions,
    parameter_atlas,
    parameter_words,
)
from tl_backward.embedding_space.options import OLD_KEYWORDS
from tl_backward.render.coherence import coherence_figure
from tl_backward.render.figures import heatmap
from tl_backward.render.fragments import figure_fragment
from tl_backward.render.outline import paragraphs
from tl_backward.render.page import Fragment, Page, beside
from tl_backward.render.tables import data_block, filter_table, frame_block
from tl_backward.render.token_pairs import pair_list, pair_picture

_FOOTER = (
    "Method: Guy Dar, Mor Geva, Ankit Gupta, Jonathan Berant, Analyzing Transformers in Embedding Space, ACL 2023. No "
    "data is needed: every vector that reads the residual stream or writes to it is multiplied with the unembedding "
    "W_U. This page is one file and asks no network for anything."
)
_COHERENCE = (
    "Coherence is the mean cosine between the unembedding columns (less their mean) of a vector's top tokens: how much "
    "one thing they are. The tokens at the top of any direction have something in common, so the grey area behind is "
    "the measure: the same for Gaussian vectors through the same W_U. p is the share of Gaussian vectors that are as "
    "coherent; among many vectors, some reach a small p by chance. Tokens that training never saw (unused "
    "bytes, for one) share one embedding, and score 1 together: filter them out where they crowd the top."
)
_GROUPS = (
    "A row a vector, most coherent first. Its top tokens are what a neuron's value promotes, or what its key looks "
    "for; the bottom ones, what it demotes. A component of an attention head has no sign of its own, and no basis: "
    "look at the pairs instead."
)
_PAIRED = (
    "Do vectors that belong together name the same tokens? The Jaccard index of their top tokens, beside the same for "
    "vectors paired at random and for Gaussian vectors through the same W_U."
)
_PAIRS = {
    "VO": "The pairs with the largest scores of e_s W_V W_O E_t: attending to the first token writes the second.",
    "QK": "The pairs with the largest scores of (e_q W_Q) . (e_k W_K): the first looks at the second, positions aside.",
}
_ATLAS = (
    "What the weights of this model say in words, without running it on anything. Vectors that read the residual "
    "stream or write to it are projected to the vocabulary; the most coherent come first, beside what Gaussian vectors "
    "give through the same unembedding."
)
_ATLAS_MAP = (
    "The share of each weight's vectors that are more coherent than 95 % of Gaussian vectors. By chance it is 0.05."
)
_SHOWN = 1000  # vectors in the table; the data block has all of them


@old_keywords(OLD_KEYWORDS, vector_options=VectorOptions)
def params_report(
    model: TransformerLensModel,
    weight: str,
    layer: int | None = None,
    *,
    head: int | None = None,
    k: int = 10,
    n_pairs: int = 40,
    vector_options: VectorOptions = VectorOptions(),
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
        vector_options: how vectors are read in words.
        seed: of the controls.
        name: the model's, for the title.
        show_progress: draw progress bars.

    Raises:
        ValueError, IndexError: what `parameter_coherence` and `head_pairs` refuse.

    Examples:
        >>> page = tlb.render.params_report(model, 'W_out', 2, name='facts', show_progress=False)
        >>> page.save('values.html').name
        'values.html'
    """
    return words_page(
        parameter_words(
            model,
            weight,
            layer,
            head=head,
            k=k,
            n_pairs=n_pairs,
            vector_options=vector_options,
            seed=seed,
            show_progress=show_progress,
        ),
        name=name,
    )


@typed
def words_page(words: ParameterWords, *, name: str = "", note: str = "") -> Page:
    """Make the page of a weight in words from what `parameter_words` read.

    Args:
        words: from `parameter_words`.
        name: the model's, for the title.
        note: said below the first picture, such as which tokens were left out.

    Examples:
        >>> words = tlb.embedding_space.parameter_words(model, 'W_out', 2, show_progress=False)
        >>> tlb.render.words_page(words, name='facts').title
        'blocks.2.mlp.W_out in words: facts'
    """
    coherence, related = words.coherence, words.related
    title = coherence.projection.weight + (f", head {words.head}" if words.head is not None else "")
    page = Page(f"{title} in words" + (f": {name}" if name else ""), finding=words.summary(), footer=_FOOTER)
    figure = coherence_figure({title: coherence.score}, coherence.gaussian)
    page.section("How coherent the vectors are", "", figure_fragment(figure), Fragment(paragraphs(note)))
    page.section("Every vector in words", _GROUPS, group_table([coherence], named=False), _data(coherence))
    if related is not None:
        text = f"{_PAIRED} Here the {related.k} top tokens of {' and '.join(related.weights)}."
        page.section("Vectors that belong together", text, _related(related))
    page.section("Method: what coherence is", _COHERENCE, folded=True)
    for pairs in words.pairs:
        text = _PAIRS[pairs.circuit] + (f" Without {', '.join(pairs.left_out)}." if pairs.left_out else "")
        page.section(
            f"{pairs.circuit_name} pairs of head {pairs.head}", text, beside(pair_list(pairs), pair_picture(pairs))
        )
    return page


@old_keywords(OLD_KEYWORDS, vector_options=VectorOptions)
def atlas(
    model: TransformerLensModel,
    *,
    weights: Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    k: int = 10,
    n_vectors: int = 400,
    n_pairs: int = 6,
    vector_options: VectorOptions = VectorOptions(),
    seed: int = 0,
    name: str = "",
    show_progress: bool = True,
) -> Page:
    """Make one page of all of a model's weights in words; `.save(path)` writes one offline file.

    Of blocks that are no dense MLP, matrices of experts and mixers are left out; the page says which.

    Args:
        model: a HookedTransformer or TransformerBridge.
        weights: short names of weights of the blocks; None for the MLP and attention matrices there are.
        layers: blocks; None for all.
        k: top tokens that make a vector's coherence.
        n_vectors: the most coherent vectors to list.
        n_pairs: token pairs of each head to list; 0 leaves them out (they take a product over all pairs of tokens for
            each head and circuit).
        vector_options: how vectors are read in words.
        seed: of the Gaussian vectors.
        name: the model's, for the title.
        show_progress: draw progress bars.

    Raises:
        ValueError: no such weight in these layers, none that is read in words by itself (a model of mixers alone), or
            what `parameter_coherence` refuses.
        IndexError: a layer out of range.

    Examples:
        >>> page = tlb.render.atlas(model, weights=['W_out'], layers=2, name='facts', show_progress=False)
        >>> page.title
        'Atlas of facts'
    """
    return atlas_page(
        parameter_atlas(
            model,
            weights=weights,
            layers=layers,
            k=k,
            n_pairs=n_pairs,
            vector_options=vector_options,
            seed=seed,
            show_progress=show_progress,
        ),
        n_vectors=n_vectors,
        name=name,
    )


@typed
def atlas_page(found: ParameterAtlas, *, n_vectors: int = 400, name: str = "", note: str = "") -> Page:
    """Make the page of all of a model's weights in words from what `parameter_atlas` read.

    Args:
        found: from `parameter_atlas`.
        n_vectors: the most coherent vectors to list.
        name: the model's, for the title.
        note: said below the first picture, such as which tokens were left out.

    Examples:
        >>> found = tlb.embedding_space.parameter_atlas(model, weights=['W_out'], layers=2, show_progress=False)
        >>> tlb.render.atlas_page(found, name='facts').title
        'Atlas of facts'
    """
    page = Page(f"Atlas of {name}" if name else "Atlas of a model", finding=found.summary(), footer=_FOOTER)
    every = found.coherence
    groups = {
        short: torch.cat([each.score for (own, _), each in every.items() if own == short]) for short in found.weights
    }
    figure = coherence_figure(groups, next(iter(every.values())).gaussian, title="Coherence by weight, all layers")
    below = Fragment(paragraphs(f"{_ATLAS_MAP}\n\n{note}"))
    picture, data = _map(found)
    page.section("Where the coherent vectors are", "", picture, below, data)
    page.section("How coherent they are", "", figure_fragment(figure))
    page.section("The most coherent vectors", _GROUPS, group_table(list(every.values()), n_shown=n_vectors))
    if found.pairs:
        circuits = {pairs.circuit_name: _PAIRS[pairs.circuit] for pairs in found.pairs}
        text = " ".join(f"{each}: {said}" for each, said in circuits.items())
        page.section("The heads' strongest token pairs", text, _heads(found.pairs))
    if found.left_out:
        page.section("What is left out", found.left_out)
    page.section("Method: what coherence is", f"{_ATLAS}\n\n{_COHERENCE}", folded=True)
    return page


def _map(found: ParameterAtlas) -> list[Fragment]:
    """Heat map and data of the share of coherent vectors, layers x weights."""
    layers, shorts = found.layers, found.weights
    shares = torch.full((len(layers), len(shorts)), torch.nan)
    rows = []
    for (short, layer), each in found.coherence.items():
        shares[layers.index(layer), shorts.index(short)] = each.share_above
        rows.append([short, layer, len(each.score), float(each.score.nanmedian()), each.share_above])
    figure = heatmap(
        shares,
        rows=[str(layer) for layer in layers],
        columns=shorts,
        title="Coherent vectors",
        value_title="share",
        column_title="weight",
    )
    return [
        figure_fragment(figure),
        data_block(["weight", "layer", "vectors", "median coherence", "share above"], rows, filename="coherence.csv"),
    ]


def _heads(found: Sequence[HeadPairs]) -> Fragment:
    """Table with a row for each head and circuit: its strongest token pairs."""
    rows: list[list[TableCell]] = []
    for pairs in found:
        scores = pairs.pairs.values.tolist()
        cells = [
            Cell(first, sub=second, title=(f"score {score:.4g}",))
            for first, second, score in zip(pairs.first_tokens, pairs.second_tokens, scores, strict=True)
        ]
        rows.append(
            [pairs.circuit_name, f"{pairs.layer}.{pairs.head}", Cell(f"{scores[0]:.4g}", value=scores[0]), *cells]
        )
    columns = ["circuit", "layer.head", "best score", *[f"pair {i + 1}" for i in range(len(found[0].pairs.values))]]
    return filter_table(columns, rows, caption="First token above, second below; scores on hover")


def group_table(found: Sequence[Coherence], *, n_shown: int = _SHOWN, k: int = 8, named: bool = True) -> Fragment:
    """Make a table of token groups that can be filtered: the most coherent vectors of some weights, best first.

    Their weights are `named` unless the page is about one.
    """
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
        p = shares[which][i]
        told = Cell(f"{score:.3f}", value=score), Cell(f"{p:.2g}", title=(repr(p),))
        rows.append([of.weight, names[which][i], *told, *top, *bottom])
    heads = ["weight", "vector", "coherence", "p"]
    if not named:
        heads, rows = heads[1:], [row[1:] for row in rows]
    width = max(map(len, rows), default=len(heads))
    n_bottom = min(3, width - len(heads))
    columns = [*heads, *(f"top {i}" for i in range(width - len(heads) - n_bottom))]
    columns += [f"bottom {i}" for i in range(n_bottom)]
    total = sum(len(each.score) for each in found)
    caption = f"{len(rows)} of {total} vectors" if len(rows) < total else f"{total} vectors"
    return filter_table(columns, rows, caption=f"{caption}; scores on hover")


def _related(found: RelatedPairs) -> Fragment:
    """Means with their standard errors, as many digits as these allow."""
    rows = []
    for pairing, (mean, error, median, largest) in found.means().iterrows():
        digits = 3 if math.isnan(error) or error <= 0 else max(0, 1 - math.floor(math.log10(error)))
        shown = f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" \N{PLUS-MINUS SIGN} {error:.{digits}f}")
        rows.append([str(pairing), shown, f"{median:.3f}", f"{largest:.3f}"])
    return Fragment(html.table(["pairing", "mean and its standard error", "median", "largest"], rows, limit=30))


def _data(found: Coherence) -> Fragment:
    frame = found.to_frame()
    for column in ("top_tokens", "bottom_tokens"):
        frame[column] = [" | ".join(map(visible_token, words)) for words in frame[column]]
    for column in ("top_scores", "bottom_scores"):
        frame[column] = [" ".join(f"{score:.6g}" for score in scores) for scores in frame[column]]
    return frame_block(frame, f"{found.projection.weight}.csv")


def _cell(token: str, score: float) -> Cell:
    return Cell(token or "\u2014", title=(f"{visible_token(token)}: {score:.4g}",))
