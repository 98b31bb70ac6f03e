"""Keywords of before 0.2.0: each says the same as the option object that it became part of, and warns."""

import pytest
import torch
from models import build, worlds

import tl_backward as tlb
from tl_backward import alignment, embedding_space, render
from tl_backward.embedding_space import PairOptions, VectorOptions

QUIET = {"show_progress": False}
PINV, LISTED = {"inverse": "pinv"}, {"filters": "not_special", "tokens": list(range(40))}
FUNCTIONS = {
    "project_parameter": (lambda model, **how: tlb.project_parameter(model, "W_in", 0, **QUIET, **how), PINV),
    "related_pairs": (lambda model, **how: embedding_space.related_pairs(model, "KV", 0, k=9, **QUIET, **how), LISTED),
    "parameter_coherence": (
        lambda model, **how: embedding_space.parameter_coherence(model, "W_in", 0, n_gaussian=5, **QUIET, **how),
        {"fold_ln": True},
    ),
    "parameter_activation_overlap": (
        lambda model, **how: embedding_space.parameter_activation_overlap(
            model, torch.tensor([[3, 7, 9]]), "W_out", 0, k=6, **QUIET, **how
        ),
        LISTED,
    ),
    "head_pairs": (lambda model, **how: tlb.head_pairs(model, "VO", 0, 0, k=5, **QUIET, **how), PINV),
    "match_parameters": (
        lambda model, **how: alignment.match_parameters(model, model, "W_O", n_chance=1, **QUIET, **how),
        PINV,
    ),
    "params_report": (
        lambda model, **how: render.params_report(model, "b_out", 0, k=3, **QUIET, **how),
        {"filters": "not_special"},
    ),
    "atlas": (
        lambda model, **how: render.atlas(model, weights=["W_out"], layers=0, k=3, **QUIET, **how),
        {"fold_ln": True},
    ),
}


def said(result):
    return str(result) if isinstance(result, render.Page) else result.to_frame().to_json()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_how_a_vector_is_read(name):
    function, options = FUNCTIONS[name]
    model = build(worlds()[0])
    with pytest.warns(DeprecationWarning, match=rf"{name}\(vector_options=VectorOptions\("):
        old = function(model, **options)
    assert said(old) == said(function(model, vector_options=VectorOptions(**options)))


@pytest.mark.parametrize("field", [{"largest": False}, {"exclude_same": True}, {"source": "W_E"}, {"offset": None}])
def test_which_pairs(field):
    function, _ = FUNCTIONS["head_pairs"]
    model = build(worlds()[0])
    with pytest.warns(DeprecationWarning, match=rf"head_pairs\(pair_options=PairOptions\({next(iter(field))}="):
        old = function(model, **field)
    assert said(old) == said(function(model, pair_options=PairOptions(**field)))


def test_tokens_of_a_match_are_the_map_s():
    with pytest.raises(ValueError, match="over all shared tokens, got tokens or filters; pass a token_map"):
        FUNCTIONS["match_parameters"][0](build(worlds()[0]), vector_options=VectorOptions(filters="ascii"))
