"""Matching against correlations over explicit scores and assignments found by trying all of them."""

from itertools import permutations

import numpy
import pytest
import torch
from embedding_space.oracle import unembedding, vectors
from models import bridge, build, hooked, worlds

from tests.alignment.twins import twins
from tl_backward.alignment import match_parameters, token_map
from tl_backward.alignment.kernels import random_rotation

from .test_kernels import small

every_world = pytest.mark.parametrize("world", worlds())
quiet = {"show_progress": False}


def correlations(one, other):
    """Pearson's correlation of every row of one with every row of the other, row by row."""
    return torch.tensor([[numpy.corrcoef(a, b)[0, 1] for b in other.numpy()] for a in one.numpy()])


def best(similarity):
    """The largest mean over assignments, by trying every one; and that assignment, from the shorter side."""
    n, m = similarity.shape
    if n > m:
        score, chosen = best(similarity.T)
        assignment = [-1] * n
        for column, row in enumerate(chosen):
            assignment[row] = column
        return score, assignment
    scored = ((sum(similarity[i, j] for i, j in enumerate(order)) / n, order) for order in permutations(range(m), n))
    score, order = max(scored, key=lambda pair: float(pair[0]))
    return float(score), list(order)


def few_neurons(world, n, **options):
    if world == "hooked":
        return hooked(d_mlp=n, **options)
    return bridge("gpt2", n_inner=n, **options)


@every_world
@pytest.mark.parametrize("weight", ["W_in", "W_out"])
@pytest.mark.parametrize("sizes", [(6, 6), (5, 7), (7, 4)])
def test_scores_and_assignments_are_those_of_explicit_scores(world, weight, sizes):
    a, b = (few_neurons(world, n) for n in sizes)
    with torch.no_grad():
        for p in b.parameters():
            p.mul_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    found = match_parameters(a, b, weight, layers_a=[1, 0], n_chance=2, seed=3, **quiet)
    assert found.layers_a == [1, 0] and found.layers_b == [0, 1]
    generator = torch.Generator().manual_seed(3)
    turns = [random_rotation(a.cfg.d_model, generator) for _ in range(2)]
    for i, layer_a in enumerate([1, 0]):
        for j, layer_b in enumerate([0, 1]):
            one, other = vectors(a, weight, layer_a), vectors(b, weight, layer_b)
            one, other = (
                side.T if side.shape[0] == a.cfg.d_model and side.shape[1] != a.cfg.d_model else side
                for side in (one, other)
            )
            for space, left, right in (("embedding", one @ unembedding(a), unembedding(b)), ("feature", one, None)):
                scores = [
                    each if right is None else each @ right for each in (other, *(other @ turn for turn in turns))
                ]
                similarity = correlations(left, scores[0])
                score, assignment = best(similarity)
                of = found.spaces()[space]
                assert of.score[i, j].item() == pytest.approx(score, abs=1e-9)
                assert of.assignment[i, j].tolist() == assignment
                matched = [similarity[row, column].item() for row, column in enumerate(assignment) if column >= 0]
                assert of.similarity[i, j][of.assignment[i, j] >= 0].tolist() == pytest.approx(matched, abs=1e-9)
                assert of.similarity[i, j].isnan().tolist() == [column < 0 for column in assignment]
                for draw in range(2):
                    assert of.chance[draw, i, j].item() == pytest.approx(
                        best(correlations(left, scores[1 + draw]))[0], abs=1e-9
                    )


@every_world
@pytest.mark.parametrize("weight", ["W_in", "W_out", "W_gate"])
def test_a_twin_matches_perfectly_in_embedding_space_and_not_in_feature_space(world, weight):
    if world == "hooked" and weight == "W_gate":
        pytest.skip("this twin has no gates")
    model, twin, _, order = twins(world)
    found = match_parameters(model, twin, weight, n_chance=5, **quiet)
    for layer in range(2):
        torch.testing.assert_close(found.embedding.score[layer, layer].item(), 1.0, atol=1e-9, rtol=0)
        assert torch.equal(order[layer][found.embedding.assignment[layer, layer]], torch.arange(len(order[layer])))
        assert found.embedding.chance[:, layer, layer].max() < 0.9
        low, high = found.feature.chance_interval(1.0)[:, layer, layer]
        spread = float(high - low)
        assert low - 3 * spread < found.feature.score[layer, layer] < high + 3 * spread
    assert found.embedding.layer_assignment() == [(0, 0), (1, 1)]
    assert found.embedding.p_value().diagonal().tolist() == pytest.approx([1 / 6] * 2)


@every_world
def test_widths_may_differ_and_then_there_is_no_feature_space(world):
    model, twin, _, order = twins(world, wider=8)
    found = match_parameters(model, twin, "W_out", n_chance=2, **quiet)
    assert found.feature is None and list(found.spaces()) == ["embedding"]
    torch.testing.assert_close(found.embedding.score.diagonal(), torch.ones(2, dtype=torch.float64), atol=1e-9, rtol=0)
    assert torch.equal(order[1][found.embedding.assignment[1, 1]], torch.arange(len(order[1])))


@every_world
def test_results_repeat_and_touch_nothing(world):
    a, b = build(world), build(world)
    before = torch.get_rng_state()
    one, same, other = (match_parameters(a, b, "W_out", n_chance=3, seed=seed, **quiet) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.embedding.chance, same.embedding.chance)
    assert torch.equal(one.embedding.random_assignment, same.embedding.random_assignment)
    assert not torch.equal(one.embedding.chance, other.embedding.chance)
    assert torch.equal(one.embedding.score, other.embedding.score)


@every_world
def test_a_vector_without_direction_matches_nothing(world):
    a, b = few_neurons(world, 6), few_neurons(world, 6)
    out = a.blocks[0].mlp.W_out if world == "hooked" else a.original_model.transformer.h[0].mlp.c_proj.weight
    with torch.no_grad():
        out[2] = 0
        out[3] = 1e-9 * out[4]  # short, but it points somewhere
    found = match_parameters(a, b, "W_out", layers_a=0, layers_b=0, n_chance=1, **quiet)
    assert found.embedding.similarity[0, 0, 2] == 0 and found.feature.similarity[0, 0, 2] == 0
    assert found.embedding.similarity[0, 0, 3].abs() > 0.01
    assert found.embedding.similarity.isfinite().all() and found.embedding.chance.isfinite().all()


@every_world
def test_attention_and_token_maps(world):
    a, b = build(world), small(world)
    found = match_parameters(a, b, "W_V", layers_a=-1, layers_b=0, token_map=token_map(a, b), n_chance=1, **quiet)
    pairs = token_map(a, b)
    one, other = (vectors(model, "W_V", layer).flatten(0, 1) for model, layer in ((a, 1), (b, 0)))
    similarity = correlations(one @ unembedding(a)[:, pairs.ids_a], other @ unembedding(b)[:, pairs.ids_b])
    matched = similarity[torch.arange(len(one)), found.embedding.assignment[0, 0]]
    torch.testing.assert_close(found.embedding.similarity[0, 0], matched, atol=1e-9, rtol=0)
    assert found.layers_a == [1] and found.embedding.assignment[0, 0].sort().values.tolist() == list(range(len(one)))


def test_frame_and_html():
    model, twin, _, _ = twins("bridge")
    found = match_parameters(model, twin, "W_out", n_chance=4, **quiet)
    frame = found.to_frame()
    assert len(frame) == 8 and set(frame.space) == {"embedding", "feature"}
    row = frame[(frame.space == "embedding") & (frame.layer_a == 0) & (frame.layer_b == 1)].iloc[0]
    of = found.embedding
    assert row.score == of.score[0, 1] and row.chance == pytest.approx(of.chance[:, 0, 1].mean().item())
    assert row.p == of.p_value()[0, 1].item() and row.chance_low <= row.chance <= row.chance_high
    assert row.random_assignment == pytest.approx(of.random_assignment[:, 0, 1].mean().item())
    assert "embedding 1.000" in repr(found) and "<table" in found._repr_html_()


@every_world
def test_bad_input(world):
    a, b = build(world), build(world)
    with pytest.raises(ValueError, match="n_chance of 1 or more, got 0"):
        match_parameters(a, b, "W_out", n_chance=0)
    with pytest.raises(IndexError, match="layers in"):
        match_parameters(a, b, "W_out", layers_b=2)
    with pytest.raises(ValueError, match="with a d_model side"):
        match_parameters(a, b, "b_in")
    with pytest.raises(ValueError, match="no layer for 'W_pos'"):
        match_parameters(a, b, "W_pos")
