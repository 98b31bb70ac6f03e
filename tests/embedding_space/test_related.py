"""Related pairs against sets of Python, and the two controls."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import bridge, build, hooked, worlds
from shared import stories

import tl_backward as tlb
from tl_backward.embedding_space import VectorOptions, related_pairs
from tl_backward.embedding_space.overlap import jaccard

from .oracle import extremes, unembedding, vectors

every_world = pytest.mark.parametrize("world", worlds())
WEIGHTS = {"KV": ("W_in", "W_out"), "GV": ("W_gate", "W_out"), "VO": ("W_V", "W_O"), "QK": ("W_Q", "W_K")}


def oracle(one, other, embedding, k):
    """Jaccard indices of sets of the k largest scores, pair by pair."""
    tops = [[set(row) for row in extremes(side @ embedding, k)[0].tolist()] for side in (one, other)]
    return torch.tensor([len(a & b) / len(a | b) for a, b in zip(*tops, strict=True)])


def check(model, kind, layer, k=9):
    found = related_pairs(model, kind, layer, k=k, show_progress=False)
    sides = [vectors(model, weight, layer) for weight in WEIGHTS[kind]]
    if sides[0].ndim == 3:  # key/value heads once for each query head of their group
        n_heads = model.cfg.n_heads
        sides = [side.repeat_interleave(n_heads // len(side), dim=0).flatten(0, 1) for side in sides]
        assert found.heads.tolist() == [h for h in range(n_heads) for _ in range(model.cfg.d_head)]
    embedding = unembedding(model)
    expected = oracle(*sides, embedding, k)
    torch.testing.assert_close(found.aligned, expected)
    order = torch.randperm(len(expected), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.shuffled, oracle(sides[0], sides[1][order], embedding, k))
    return found


@every_world
@pytest.mark.parametrize("kind", ["KV", "VO", "QK"])
def test_plain(world, kind):
    check(build(world), kind, 1)


@every_world
@pytest.mark.parametrize("kind", ["KV", "GV", "VO", "QK"])
def test_grouped_and_gated(world, kind):
    model = bridge("llama") if world == "bridge" else hooked("gqa_grouped" if kind in ("VO", "QK") else "rms_gated")
    every = check(model, kind, 0)
    if kind in ("VO", "QK"):
        one = related_pairs(model, kind, 0, k=9, head=-1)
        torch.testing.assert_close(one.aligned, every.aligned[every.heads == 3])
        assert set(one.heads.tolist()) == {3}


@pytest.mark.parametrize("kind", worlds())
def test_stories(kind):
    model = stories(kind)
    for pair in WEIGHTS:
        found = related_pairs(model, pair, 2, k=20, show_progress=False)
        sides = [vectors(model, weight, 2) for weight in WEIGHTS[pair]]
        if sides[0].ndim == 3:
            sides = [side.repeat_interleave(8 // len(side), dim=0).flatten(0, 1) for side in sides]
        expected = oracle(*sides, unembedding(model), 20)
        assert (found.aligned.double() - expected).abs().mean() < 1e-3  # near-ties of float32


def test_a_trained_model_against_its_controls():
    """In the last layers of the facts model keys and values of a neuron name the same tokens; Gaussian vectors do not."""
    model = tlb.zoo.load("facts")
    found = related_pairs(model, "KV", 3, k=20, show_progress=False)
    summary = found.means()
    assert summary.loc["aligned", "mean"] > 3 * summary.loc["gaussian", "mean"] > 0
    assert summary.loc["aligned", "mean"] > 3 * summary.loc["shuffled", "mean"] > 0
    from tl_backward.model.controls import random_init

    untrained = related_pairs(random_init(model), "KV", 3, k=20, show_progress=False).means()
    gap = abs(untrained.loc["aligned", "mean"] - untrained.loc["gaussian", "mean"])
    assert gap < 4 * (untrained["standard error"] ** 2).sum() ** 0.5


@every_world
def test_gaussian_pairs_are_at_chance_without_structure(world):
    """Through an identity-like embedding the expected overlap of random sets is hypergeometric."""
    model = build(world)
    rows = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        model.W_U.copy_(rows[: model.cfg.d_model])
    found = related_pairs(model, "KV", 0, k=10, show_progress=False)
    chance = 10 / 50
    shared = 2 * 10 * found.gaussian / (1 + found.gaussian) / 10  # back to |A & B| / k
    assert abs(float(shared.mean()) - chance) < 0.1


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6))
def test_jaccard(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.stack([torch.randperm(12, generator=generator)[:k] for _ in range(n)]) for _ in range(2))
    other[0] = one[0].flip(0)
    expected = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    torch.testing.assert_close(jaccard(one, other), torch.tensor(expected))
    assert jaccard(one, other)[0] == 1 and torch.equal(jaccard(one, other), jaccard(other, one))
    one[-1] = -1
    assert jaccard(one, other)[-1] == 0 and jaccard(one, one)[-1] == 0


@every_world
def test_seed_filters_and_rng(world):
    model = build(world)
    state = torch.get_rng_state()
    one, two, three = (
        related_pairs(model, "KV", 0, k=5, seed=seed, vector_options=VectorOptions(filters="not_special"))
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.gaussian, two.gaussian) and torch.equal(one.shuffled, two.shuffled)
    assert not torch.equal(one.gaussian, three.gaussian) and torch.equal(one.aligned, three.aligned)


@every_world
def test_frame_and_html(world):
    found = related_pairs(build(world), "QK", 1, k=5)
    assert list(found.to_frame().columns) == ["head", "index", "aligned", "shuffled", "gaussian"]
    assert list(found.means().index) == ["aligned", "shuffled", "gaussian"] and "gaussian" in repr(found)
    assert found._repr_html_().count("<tr>") == 4


@every_world
def test_bad_input(world):
    model = build(world)
    with pytest.raises(
        ValueError,
        match="Expected kind to be KV or GV .what a neuron of an MLP reads and writes., VO or QK .*, got 'VK'",
    ):
        related_pairs(model, "VK", 0)
    with pytest.raises(
        ValueError, match="Expected no head for 'blocks.0.mlp.W_in' of an MLP, whose pairs are neurons, got head=1"
    ):
        related_pairs(model, "KV", 0, head=1)
    with pytest.raises(IndexError, match="Expected head in"):
        related_pairs(model, "QK", 0, head=7, k=5)
    with pytest.raises(ValueError, match=r"Expected 1 <= k <= 50 \(the vocabulary\), got k=100"):
        related_pairs(model, "KV", 0)
    with pytest.raises(ValueError, match="Expected the name of a weight, got 'W_gate'"):
        related_pairs(model, "GV", 0, k=5)
