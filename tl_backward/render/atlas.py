"""The atlas of a model: all its parameters in words, the most coherent vectors first."""

from collections.abc import Sequence

import torch

from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, TableCell
from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space import HeadPairs, ParameterAtlas, VectorOptions, parameter_atlas
from tl_backward.embedding_space.options import OLD_KEYWORDS
from tl_backward.render.coherence_figure import coherence_figure
from tl_backward.render.export import data_block
from tl_backward.render.figures import figure_fragment, heatmap
from tl_backward.render.filter_table import filter_table
from tl_backward.render.page import Fragment, Page
from tl_backward.render.params_report import COHERENCE, FOOTER, GROUPS, PAIRS, group_table

_INTRO = (
    "What the weights of this model say in words, without running it on anything. Vectors that read the residual "
    "stream or write to it are projected to the vocabulary; the most coherent come first, beside what Gaussian vectors "
    "give through the same unembedding."
)
_MAP = "The share of each weight's vectors that are more coherent than 95 % of Gaussian vectors. By chance it is 0.05."


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

    Example:
        >>> page = tlb.render.atlas(model, weights=['W_out'], layers=2, name='facts', show_progress=False)
        >>> page.title
        'Atlas of facts'
    """
    found = parameter_atlas(
        model,
        weights=weights,
        layers=layers,
        k=k,
        n_pairs=n_pairs,
        vector_options=vector_options,
        seed=seed,
        show_progress=show_progress,
    )
    return atlas_page(found, n_vectors=n_vectors, name=name)


def atlas_page(found: ParameterAtlas, *, n_vectors: int = 400, name: str = "") -> Page:
    """Make the page of all of a model's weights in words from what `parameter_atlas` read.

    Args:
        found: from `parameter_atlas`.
        n_vectors: the most coherent vectors to list.
        name: the model's, for the title.

    Example:
        >>> found = tlb.embedding_space.parameter_atlas(model, weights=['W_out'], layers=2, show_progress=False)
        >>> tlb.render.atlas_page(found, name='facts').title
        'Atlas of facts'
    """
    page = Page(f"Atlas of {name}" if name else "Atlas of a model", intro=_INTRO, footer=FOOTER)
    if found.left_out:
        page.section("What is left out", found.left_out)
    every = found.coherence
    groups = {
        short: torch.cat([each.score for (own, _), each in every.items() if own == short]) for short in found.weights
    }
    figure = coherence_figure(groups, next(iter(every.values())).gaussian, title="Coherence by weight, all layers")
    page.section("How coherent the parameters are", COHERENCE, figure_fragment(figure))
    page.section("Where the coherent vectors are", _MAP, *_map(found))
    page.section("The most coherent vectors", GROUPS, group_table(list(every.values()), n_shown=n_vectors))
    if found.pairs:
        text = " ".join(f"{each}: {PAIRS[each]}" for each in dict.fromkeys(pairs.circuit for pairs in found.pairs))
        page.section("The heads' strongest token pairs", text, _heads(found.pairs))
    return page


def _map(found: ParameterAtlas) -> list[Fragment]:
    """Share of coherent vectors, layers x weights."""
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
    columns = ["weight", "layer", "vectors", "median coherence", "share above"]
    return [figure_fragment(figure), data_block(columns, rows, filename="coherence.csv")]


def _heads(found: Sequence[HeadPairs]) -> Fragment:
    """One row a head and circuit: its strongest pairs."""
    rows: list[list[TableCell]] = []
    for pairs in found:
        scores = pairs.pairs.values.tolist()
        cells = [
            Cell(first, sub=second, title=(f"score {score:.4g}",))
            for first, second, score in zip(pairs.first_tokens, pairs.second_tokens, scores, strict=True)
        ]
        where = f"{pairs.layer}.{pairs.head}"
        rows.append([pairs.circuit, where, Cell(f"{scores[0]:.4g}", value=scores[0]), *cells])
    n_pairs = len(found[0].pairs.values)
    columns = ["circuit", "layer.head", "best score", *[f"pair {i + 1}" for i in range(n_pairs)]]
    return filter_table(columns, rows, caption="First token above, second below; scores on hover")
