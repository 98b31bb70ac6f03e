"""Distances between many models' layers, and classical scaling against points whose distances are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import bridge, build, worlds

from tl_backward.dissimilarity import ModelDistances, RunOptions, classical_mds, compare, model_distances

QUIET = {"show_progress": False}
TEXTS = [
    "w5 w6 w7 w8 w9", "w3 w3 w41 w10 w12 w13 w20 w22", "w9", "w30 w31 w32", "w11 w8 w7 w5 w5 w5 w40",
    "w21 w22 w23 w24 w25 w26 w27 w28 w29 w30 w31 w32", "w44 w43 w42",
]  # fmt: skip


@pytest.mark.parametrize("world", worlds())
@pytest.mark.parametrize("measure", ["shape_angular", "procrustes"])
def test_every_block_is_a_comparison(world, measure):
    models = {"a": build(world), "b": bridge("llama")}
    found = model_distances(models, TEXTS, measure=measure, **QUIET)
    assert found.values.shape == (4, 4) and found.models == ("a", "a", "b", "b") and found.layers == ("L0", "L1") * 2
    across = compare(
        models["a"], models["b"], TEXTS, measures=measure, run_options=RunOptions(jackknife=0, permutations=0), **QUIET
    )
    within = compare(
        models["b"], models["b"], TEXTS, measures=measure, run_options=RunOptions(jackknife=0, permutations=0), **QUIET
    )
    torch.testing.assert_close(found.values[:2, 2:], across[measure])
    torch.testing.assert_close(found.values[2:, :2], across[measure].T)
    assert float(found.values[2, 3]) == pytest.approx(float(within[measure][0, 1]))
    assert torch.equal(found.values.diagonal(), torch.zeros(4, dtype=torch.float64))
    assert found.n_samples[0] == found.n_samples[1] == across.n_samples and found.aligned == ("tokens",)
    frame = found.to_frame()
    assert len(frame) == 6 and frame.columns[-1] == measure
    row = frame[(frame.model_a == "a") & (frame.model_b == "b") & (frame.layer_a == "L1") & (frame.layer_b == "L0")]
    assert float(row[measure].iloc[0]) == pytest.approx(float(across[measure][1, 0]))
    assert repr(found) == f"ModelDistances({measure}; 4 layers of 2 models)" and found.names[3] == "b L1"


def test_some_layers():
    found = model_distances({"a": bridge("gpt2"), "b": bridge("llama")}, TEXTS, layers=-1, **QUIET)
    assert found.layers == ("L1", "L1")


def test_html_is_escaped():
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    found = ModelDistances("m", ("<script>x</script>", "b"), ("L0", "L0"), values, ("tokens",), (9, 9))
    assert "<script" not in found._repr_html_() and "&lt;scr" in found._repr_html_()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(3, 9), st.integers(1, 3), st.integers(0, 10_000))
def test_points_of_a_plane_are_found_again(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator, dtype=torch.float64)
    distances = torch.linalg.vector_norm(points[:, None] - points[None], dim=-1)
    dimensions = min(d, n - 1)
    found = classical_mds(distances, dimensions=dimensions)
    again = torch.linalg.vector_norm(found.points[:, None] - found.points[None], dim=-1)
    torch.testing.assert_close(again, distances, rtol=1e-7, atol=1e-7)
    assert found.stress < 1e-7 and found.negative < 1e-9 and float(found.shares.sum()) == pytest.approx(1)
    assert found.points.sum(0).abs().max() < 1e-9
    assert (found.points.square().sum(0).diff() <= 1e-9).all()
    assert "stress 0.000" in repr(found)


def test_what_fits_no_flat_space_is_said():
    star = torch.full((5, 5), 2.0, dtype=torch.float64) - 2 * torch.eye(5, dtype=torch.float64)
    star[0] = star[:, 0] = 1.0
    star[0, 0] = 0
    found = classical_mds(star)  # four leaves at distance 2 through one centre at distance 1
    assert found.negative > 0.01 and 0 < found.stress < 0.5
    flat = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.equal(classical_mds(flat).points, torch.zeros(3, 2, dtype=torch.float64))


BAD = {
    "no square": (torch.zeros(2, 3), 2, "Expected a square matrix of finite distances"),
    "nan": (torch.full((3, 3), float("nan")), 2, "9 not finite"),
    "negative": (-torch.ones(3, 3), 2, "9 negative"),
    "asymmetric": (torch.triu(torch.ones(3, 3), 1), 2, "symmetric and 0 on the diagonal"),
    "a similarity": (torch.ones(3, 3), 2, "symmetric and 0 on the diagonal"),
    "few points": (torch.ones(2, 2) - torch.eye(2), 2, "fewer dimensions than points, at least 1, got 2 for 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_distances(case):
    matrix, dimensions, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        classical_mds(matrix, dimensions=dimensions)


@pytest.mark.parametrize("measure", ["cka", "cka_biased", "procrustes_squared"])
def test_only_a_metric_makes_a_map(measure):
    with pytest.raises(
        ValueError, match=f"Expected a metric, got '{measure}', which is none; choose among .*shape_angular"
    ):
        model_distances({"a": bridge("gpt2")}, TEXTS, measure=measure)


def test_other_bad_input():
    with pytest.raises(ValueError, match="Expected at least one model by name"):
        model_distances({}, TEXTS)
    with pytest.raises(TypeError, match="Expected data that can be read for every pair of models, got an iterator"):
        model_distances({"a": bridge("gpt2")}, iter(TEXTS))
    with pytest.raises(ValueError, match="nearest"):
        model_distances({"a": bridge("gpt2")}, TEXTS, measure="shape_angle")
