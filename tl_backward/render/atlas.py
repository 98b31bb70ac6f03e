"""The atlas of a model: all its parameters in words, the most coherent vectors first."""

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from tl_backward._checks import check_layers
from tl_backward._html import Cell, TableCell
from tl_backward._typing import TransformerLensModel
from tl_backward.embedding_space import Coherence, head_pairs, parameter_coherence
from tl_backward.embedding_space.filters import Filters
from tl_backward.render.coherence_figure import coherence_figure
from tl_backward.render.export import data_block
from tl_backward.render.figures import figure_fragment, heatmap
from tl_backward.render.filter_table import filter_table
from tl_backward.render.page import Fragment, Page
from tl_backward.render.params_report import CIRCUITS, COHERENCE, FOOTER, GROUPS, PAIRS, Reading, group_table
from tl_backward.sites import weight_sites

WEIGHTS = ("W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O")

_INTRO = (
    "What the weights of this model say in words, without running it on anything. Each vector that reads the residual "
    "stream or writes to it is projected to the vocabulary; the most coherent come first, beside what Gaussian vectors "
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
        ValueError: no such weight in these layers, or what `parameter_coherence` refuses.
        IndexError: a layer out of range.

    Example:
        >>> page = tlb.render.atlas(model, weights=['W_out'], layers=2, name='facts', show_progress=False)
        >>> page.title
        'Atlas of facts'
    """
    chosen = check_layers(layers, model.cfg.n_layers)
    wanted = WEIGHTS if weights is None else tuple(weights)
    sites = weight_sites(model)
    places = [
        (site.short_name, site.layer)
        for site in sites.values()
        if site.short_name in wanted and site.layer is not None and site.layer in chosen
    ]
    missing = [each for each in wanted if each not in {short for short, _ in places}]
    if not places or (weights is not None and missing):
        raise ValueError(
            f"Expected short names of weights in layers {chosen}, got {list(wanted)}; see weight_sites(model)."
        )
    reading = Reading(inverse=inverse, fold_ln=fold_ln, filters=filters)
    found = {
        place: parameter_coherence(model, *place, k=k, seed=seed, show_progress=False, **reading)
        for place in tqdm(places, disable=not show_progress, delay=1, leave=False, desc="atlas")
    }
    page = Page(f"Atlas of {name}" if name else "Atlas of a model", intro=_INTRO, footer=FOOTER)
    shorts = list(dict.fromkeys(short for short, _ in places))
    groups = {short: torch.cat([each.score for place, each in found.items() if place[0] == short]) for short in shorts}
    figure = coherence_figure(groups, next(iter(found.values())).gaussian, title="Coherence by weight, all layers")
    page.section("How coherent the parameters are", COHERENCE, figure_fragment(figure))
    page.section("Where the coherent vectors are", _MAP, *_map(found, shorts, chosen))
    page.section("The most coherent vectors", GROUPS, group_table(list(found.values()), n_shown=n_vectors))
    circuits = list(dict.fromkeys(CIRCUITS[short] for short in shorts if short in CIRCUITS))
    if n_pairs and circuits:
        text = " ".join(f"{circuit}: {PAIRS[circuit]}" for circuit in circuits)
        page.section(
            "The heads' strongest token pairs", text, _heads(model, circuits, chosen, n_pairs, reading, show_progress)
        )
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
    circuits: Sequence[str],
    layers: list[int],
    n_pairs: int,
    reading: Reading,
    show_progress: bool,
) -> Fragment:
    """One row a head and circuit: its strongest pairs."""
    places = [(circuit, layer, head) for circuit in circuits for layer in layers for head in range(model.cfg.n_heads)]
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
