"""Every kind of result and report, of models and texts that are hostile throughout."""

import copy
from dataclasses import replace
from functools import cache

import torch
from hostile import TOKENS, hostile_model

import tl_backward as tlb
from tl_backward import render
from tl_backward.alignment import match_parameters
from tl_backward.dissimilarity import RunOptions, compare, model_distances, stitching_grid
from tl_backward.editing import edit_effect, edit_methods
from tl_backward.embedding_space import head_pairs, parameter_activation_overlap, parameter_coherence, related_pairs
from tl_backward.inversion import common_features, compare_sites, pool_preimage, read_preimage, verify_by_patching
from tl_backward.text.cases import EditCase
from tl_backward.text.options import TextOptions
from tl_backward.training import difference, watch, who_wrote

QUIET = {"show_progress": False}
SITE = ("resid_mid", 1)
LONE = [token for token in TOKENS if any("\ud800" <= char <= "\udfff" for char in token)]
WRITTEN = [token for token in TOKENS if token not in LONE and token.strip() and len(token) < 300]
"""Those that a tokenizer takes as text."""
NAMES = [*LONE, *WRITTEN]


@cache
def model():
    return hostile_model()


def tokens():
    return torch.arange(len(TOKENS))


@cache
def lens():
    """Of every seventh; test_report reads all of them."""
    return tlb.backward_lens(
        model(),
        tokens()[::7],
        3,
        k=5,
        control="random_init",
        attention=True,
        names_filter=render.pattern_names(model()),
    )


def relabelled(comparison, names):
    """A comparison whose hook points are called so."""
    grids = {
        name: getattr(comparison, name)[:1, :1, :1].expand(1, len(names), len(names))
        for name in ("values", "standard_errors", "null_means", "permutation_means", "permutation_deviations")
    }
    names = tuple(names)
    return replace(
        comparison, layers_a=names, layers_b=names[::-1], measures=("cka",), computed_from=names[:1],
        first_share=(torch.zeros(len(names)),) * 2, **grids,
    )  # fmt: skip


@cache
def _case():
    return EditCase(
        WRITTEN[0],
        "w9",
        "w10",
        paraphrases=(WRITTEN[1],),
        neighbours=((WRITTEN[2], "w10"),),
        relations=((WRITTEN[3], "w4"),),
    )


@cache
def _edit():
    return tlb.shift_edit(model(), _case().prompt, _case().target, 1, 3.0)


@cache
def _preimage():
    return pool_preimage(model(), WRITTEN[0], SITE, -1, WRITTEN, n=60, epsilon=0.3, **QUIET)


@cache
def trained():
    """A watch of one step, and what it changed."""
    after = copy.deepcopy(model())
    optimizer = torch.optim.SGD(after.parameters(), lr=0.1)
    with watch(after, optimizer=optimizer, k=5) as w:
        after(torch.arange(60).reshape(6, 10), return_type="loss").backward()
        optimizer.step()
    return w.result(), difference(model(), after, control=after, k=5)


FEATURES = {name: (lambda text, i=i: TOKENS[(len(text) + i) % len(TOKENS)]) for i, name in enumerate(NAMES[:12])}

RESULTS = {
    "lens": lens,
    "cache": lambda: lens().cache,
    "readout": lambda: lens().shift[0],
    "effect": lambda: edit_effect(model(), _edit(), _case().prompt, k=len(TOKENS)),
    "grid": lambda: tlb.find_layer(model(), WRITTEN[4], "w21", validation=[_case()], scales=(1.0, 3.0), **QUIET),
    "scores": lambda: tlb.evaluate_edit(model(), _edit(), _case(), n_tokens=0),
    "methods": lambda: tlb.compare_edits(
        model(),
        [_case()],
        dict(zip(NAMES[:4], edit_methods(1, 3.0, 0.5, steps=2).values(), strict=True)),
        n_tokens=0,
        **QUIET,
    ),
    "sweep": lambda: tlb.sweep(
        model(), WRITTEN[:60], ["w10"] * 60, collect=("norm", "target_rank", "top_tokens"), weights=["W_out"], **QUIET
    ),
    "similarity": lambda: tlb.gradient_similarity(model(), WRITTEN[:40], **QUIET),
    "coherence": lambda: parameter_coherence(model(), "W_out", 1, k=12, n_gaussian=10, **QUIET),
    "projection": lambda: result("coherence").projection,
    "pairs": lambda: head_pairs(model(), "VO", 0, 0, k=400, **QUIET),
    "related": lambda: related_pairs(model(), "KV", 1, k=12, **QUIET),
    "overlap": lambda: parameter_activation_overlap(model(), tokens()[None, ::5], "W_out", 1, k=5, **QUIET),
    "match": lambda: match_parameters(model(), model(), "W_out", n_chance=2, **QUIET),
    "comparison": lambda: relabelled(
        compare(
            model(),
            model(),
            WRITTEN[:20],
            measures="cka",
            text_options=TextOptions(batch_size=4),
            run_options=RunOptions(permutations=2),
            **QUIET,
        ),
        NAMES[:40],
    ),
    "distances": lambda: model_distances({name: model() for name in NAMES[:2]}, WRITTEN[:20], **QUIET),
    "stitches": lambda: stitching_grid(
        model(), model(), WRITTEN[:20], layers_a=[1], layers_b=[1], text_options=TextOptions(batch_size=4), **QUIET
    ),
    "preimage": _preimage,
    "features": lambda: common_features(_preimage(), FEATURES, prior=WRITTEN[:60]),
    "sites": lambda: compare_sites(
        model(), WRITTEN[0], [SITE], inputs=WRITTEN[:60], features=FEATURES, positions=[-1], **QUIET
    ),
    "reading": lambda: read_preimage(model(), _preimage(), features=FEATURES, prior=WRITTEN[:60]),
    "watch": lambda: trained()[0],
    "difference": lambda: trained()[1],
    "authors": lambda: who_wrote(model(), WRITTEN[0], "w10", [(text, "w9") for text in WRITTEN[:30]], n=12, **QUIET),
    "patching": lambda: verify_by_patching(model(), _preimage(), n=20),
}
"""Every kind of result, full of these strings."""


@cache
def result(name: str):
    return RESULTS[name]()


PAGES = {
    "lens": lambda: render.lens_report(lens(), model(), name=NAMES[0]),
    "edit": lambda: render.edit_report(
        result("effect"),
        target=NAMES[1],
        how=NAMES[2],
        grid=result("grid"),
        scores=(result("scores"),) * 2,
        name=NAMES[3],
    ),
    "methods": lambda: render.comparison_report(result("methods"), name=NAMES[4]),
    "sweep": lambda: render.sweep_report(result("sweep"), name=NAMES[5]),
    "similarity": lambda: render.similarity_report(result("similarity"), name=NAMES[6]),
    "atlas": lambda: render.atlas(model(), k=8, n_vectors=30, n_pairs=30, name=NAMES[7], **QUIET),
    "weight": lambda: render.params_report(model(), "W_out", 1, k=12, name=NAMES[8], **QUIET),
    "heads": lambda: render.params_report(model(), "W_O", 0, k=8, n_pairs=60, name=NAMES[9], **QUIET),
    "match": lambda: render.match_report(result("match"), name=NAMES[10]),
    "compare": lambda: render.compare_report(result("comparison"), name=NAMES[11]),
    "stitching": lambda: render.stitching_report(result("stitches"), name=NAMES[12]),
    "map": lambda: render.map_report(result("distances"), name=NAMES[13]),
    "watch": lambda: render.watch_report(result("watch"), answers=[result("effect")], name=NAMES[15]),
    "difference": lambda: render.difference_report(result("difference"), name=NAMES[16]),
    "authors": lambda: render.authors_report(result("authors"), name=NAMES[17]),
    "invert": lambda: render.invert_report(result("reading"), comparison=result("sites"), name=NAMES[14]),
}
"""Every report."""


@cache
def page(name: str) -> render.Page:
    return PAGES[name]()
