"""The atlas of a model: all its parameters in words, the most coherent vectors first."""

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from tl_backward._support.checks import check_layers
from tl_backward._support.html import Cell, TableCell
from tl_backward._support.types import TransformerLensModel
from tl_backward.embedding_space import Coherence, head_pairs, parameter_coherence
from tl_backward.embedding_space.filters import Filters
from tl_backward.embedding_space.heads import Circuit
from tl_backward.render.atlas_places import atlas_places, left_out_of_atlas
from tl_backward.render.coherence_figure import coherence_figure
from tl_backward.render.export import data_block
from tl_backward.render.figures import figure_fragment, heatmap
from tl_backward.render.filter_table import filter_table
from tl_backward.render.page import Fragment, Page
from tl_backward.render.params_report import (
    CIRCUITS,
    COHERENCE,
    FOOTER,
    GROUPS,
    PAIRS,
    Reading,
    group_table,
    heads_of,
)

_INTRO = (
    "What the weights of this model say in words, without running it on anything. Vectors that read the residual "
    "stream or write to it are projected to the vocabulary; the most coherent come first, beside what Gaussian vectors "
    "give through the same unembedding."
)
_MAP = "The share of each weight's vectors that are more coherent than 95 % of Gaussian vectors. By chance it is 0.05."


def atlas(
    model: TransformerLensModel,
    *,
    weights: Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    k: int = 10,
    n_vectors: int = 400,
    n_pairs: int = 6,
    inverse: str = "transpose",
    fold_ln: bool = False,
    filters: Filters = (),
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
        inverse: as in `project_parameter`.
        fold_ln: as in `project_parameter`.
        filters: as in `project_parameter`.
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
    chosen = check_layers(layers, model.cfg.n_layers)
    places = atlas_places(model, weights, chosen)
    reading = Reading(inverse=inverse, fold_ln=fold_ln, filters=filters)
    found = {
        place: parameter_coherence(model, *place, k=k, seed=seed, show_progress=False, **reading)
        for place in tqdm(places, disable=not show_progress, delay=1, leave=False, desc="atlas")
    }
    omitted = left_out_of_atlas(model, places, chosen) if weights is None else ""
    page = Page(f"Atlas of {name}" if name else "Atlas of a model", intro=_INTRO, footer=FOOTER)
    if omitted:
        page.section("What is left out", omitted)
    shorts = list(dict.fromkeys(short for short, _ in places))
    groups = {short: torch.cat([each.score for place, each in found.items() if place[0] == short]) for short in shorts}
    figure = coherence_figure(groups, next(iter(found.values())).gaussian, title="Coherence by weight, all layers")
    page.section("How coherent the parameters are", COHERENCE, figure_fragment(figure))
    page.section("Where the coherent vectors are", _MAP, *_map(found, shorts, chosen))
    page.section("The most coherent vectors", GROUPS, group_table(list(found.values()), n_shown=n_vectors))
    circuits: dict[Circuit, None] = dict.fromkeys(CIRCUITS[short] for short in shorts if short in CIRCUITS)
    heads = [place for circuit in circuits for layer in chosen for place in heads_of(model, circuit, layer)]
    if n_pairs and heads:
        text = " ".join(f"{circuit}: {PAIRS[circuit]}" for circuit in dict.fromkeys(place[0] for place in heads))
        page.section("The heads' strongest token pairs", text, _heads(model, heads, n_pairs, reading, show_progress))
    return page


def _map(found: dict[tuple[str, int], Coherence], shorts: list[str], layers: list[int]) -> list[Fragment]:
    """Share of coherent vectors, layers x weights."""
    shares = torch.full((len(layers), len(shorts)), torch.nan)
    rows = []
    for (short, layer), each in found.items():
        share = float((each.score > each.gaussian.quantile(0.95)).float().mean())
        shares[layers.index(layer), shorts.index(short)] = share
        rows.append([short, layer, len(each.score), float(each.score.nanmedian()), share])
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


def _heads(
    model: TransformerLensModel,
    places: Sequence[tuple[str, int, int]],
    n_pairs: int,
    reading: Reading,
    show_progress: bool,
) -> Fragment:
    """One row a head and circuit: its strongest pairs."""
    rows: list[list[TableCell]] = []
    for circuit, layer, head in tqdm(places, disable=not show_progress, delay=1, leave=False, desc="heads"):
        pairs = head_pairs(model, circuit, layer, head, k=n_pairs, show_progress=False, **reading)
        scores = pairs.pairs.values.tolist()
        cells = [
            Cell(first, sub=second, title=(f"score {score:.4g}",))
            for first, second, score in zip(pairs.first_tokens, pairs.second_tokens, scores, strict=True)
        ]
        rows.append([circuit, f"{layer}.{head}", Cell(f"{scores[0]:.4g}", value=scores[0]), *cells])
    columns = ["circuit", "layer.head", "best score", *[f"pair {i + 1}" for i in range(n_pairs)]]
    return filter_table(columns, rows, caption="First token above, second below; scores on hover")
