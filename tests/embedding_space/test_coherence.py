"""Coherence against cosines of every pair of top tokens, written out."""

import numpy
import pytest
import torch
from models import bridge, build, hooked, worlds
from shared import stories

import tl_backward as tlb
from tl_backward._support.streams import own_stream
from tl_backward.embedding_space import VectorOptions, parameter_coherence
from tl_backward.embedding_space import coherence as module

from .oracle import extremes, unembedding, vectors

every_world = pytest.mark.parametrize("world", worlds())


def mean_cosines(ids, embedding):
    """Mean cosine over pairs i < j of centred columns, pair by pair."""
    centred = (embedding - embedding.mean(1, keepdim=True)).T.numpy()
    found = []
    for row in ids.tolist():
        pairs = [(i, j) for n, i in enumerate(row) for j in row[:n]]
        cosines = [
            centred[i] @ centred[j] / numpy.linalg.norm(centred[i]) / numpy.linalg.norm(centred[j]) for i, j in pairs
        ]
        found.append(float(numpy.mean(cosines)))
    return torch.tensor(found, dtype=torch.float64)


@every_world
@pytest.mark.parametrize("weight", ["W_in", "W_out", "W_V", "W_O"])
def test_scores_are_mean_cosines_of_top_tokens(world, weight, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 5)
    model = build(world)
    found = parameter_coherence(model, weight, 1, k=4, n_gaussian=7, seed=2, show_progress=False)
    stored = vectors(model, weight, 1)
    stored = stored.flatten(0, 1) if stored.ndim == 3 else stored
    stored = stored.T if stored.shape[1] != model.cfg.d_model else stored
    embedding = unembedding(model)
    expected = mean_cosines(extremes(stored @ embedding, 4)[0], embedding)
    torch.testing.assert_close(found.score, expected, atol=1e-10, rtol=0)
    noise = torch.randn(7, model.cfg.d_model, generator=own_stream("Gaussian vectors", 2)).double()
    torch.testing.assert_close(
        found.gaussian, mean_cosines(extremes(noise @ embedding, 4)[0], embedding), atol=1e-10, rtol=0
    )
    p = [(1 + sum(g >= s for g in found.gaussian.tolist())) / 8 for s in found.score.tolist()]
    assert found.p.tolist() == pytest.approx(p)
    assert found.score[found.order].tolist() == sorted(found.score.tolist(), reverse=True)


@every_world
def test_folding_and_filters(world):
    model = build(world)
    found = parameter_coherence(
        model,
        "W_out",
        0,
        k=3,
        n_gaussian=4,
        vector_options=VectorOptions(fold_ln=True, filters="not_special"),
        show_progress=False,
    )
    weight = (model.ln_final.w if world == "hooked" else model.original_model.transformer.ln_f.weight).detach().double()
    embedding = weight[:, None] * unembedding(model)
    embedding = embedding - embedding.mean(0)  # a LayerNorm centres
    allowed = torch.tensor([i for i in range(50) if i not in model.tokenizer.all_special_ids])
    expected = mean_cosines(extremes(vectors(model, "W_out", 0) @ embedding, 3, allowed)[0], embedding)
    torch.testing.assert_close(found.score, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", worlds())
def test_grouped_queries(kind):
    model = stories(kind)
    found = parameter_coherence(model, "W_K", 2, k=5, n_gaussian=20, show_progress=False)
    stored = vectors(model, "W_K", 2).flatten(0, 1)
    ids = found.projection.top_ids
    torch.testing.assert_close(found.score.double(), mean_cosines(ids, unembedding(model)), atol=1e-5, rtol=0)
    assert len(found.score) == len(stored) == 32


def test_what_is_planted_is_found():
    model = bridge("gpt2", dtype=torch.float32)
    with torch.no_grad():  # tokens 10 to 15 become nearly one direction, which neuron 7 writes
        table = model.original_model.transformer.wte.weight
        table[10:16] = 3 * table[10] + 0.05 * table[10:16]
        model.original_model.transformer.h[0].mlp.c_proj.weight[7] = table[10]
        model.original_model.transformer.h[0].mlp.c_proj.weight[3] = 0
    found = parameter_coherence(model, "W_out", 0, k=5, n_gaussian=200, show_progress=False)
    assert (
        set(found.projection.top_ids[7].tolist()) <= set(range(10, 16))
        and found.score[7] > 0.9 > found.gaussian.median()
    )
    assert found.score[3].isnan() and found.p[3] == 1.0 and int(found.order[-1]) == 3
    frame = found.to_frame()
    assert frame["coherence"].iloc[0] == found.score.nan_to_num(-2).max() and len(frame) == len(found.score)
    assert repr(found).startswith("Coherence('blocks.0.mlp.W_out', ") and "<table" in found._repr_html_()


@every_world
def test_bad_input_and_the_global_generator(world):
    model = build(world)
    before = torch.get_rng_state()
    parameter_coherence(model, "W_out", 0, k=2, n_gaussian=1, show_progress=False)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="k of 2 or more and n_gaussian of 1 or more, got 1 and 1000"):
        parameter_coherence(model, "W_out", 0, k=1)
    with pytest.raises(ValueError, match="the vocabulary"):
        parameter_coherence(model, "W_out", 0, k=51)


def test_half_precision():
    model = hooked("ln", dtype=torch.bfloat16) if "hooked" in worlds() else bridge("gpt2", dtype=torch.bfloat16)
    found = parameter_coherence(model, "W_out", 0, k=3, n_gaussian=5, show_progress=False)
    assert found.score.dtype == torch.float32 and found.score.isfinite().all()


def test_gaussian_vectors_are_no_embeddings_that_a_user_drew():
    """After torch.manual_seed(0) an embedding has the numbers of a generator of seed 0, and would be its own chance."""
    model = tlb.zoo.load("facts")
    torch.manual_seed(0)
    with torch.no_grad():
        model.W_E.copy_(0.02 * torch.randn(model.cfg.d_vocab, model.cfg.d_model))
        model.W_U.copy_(model.W_E.T)
    drawn = [
        tlb.embedding_space.parameter_coherence(model, "W_out", 2, seed=seed, n_gaussian=400).gaussian.mean()
        for seed in (0, 1)
    ]
    assert drawn[0] == pytest.approx(float(drawn[1]), rel=0.1)  # of the same numbers 1.8 times as much
