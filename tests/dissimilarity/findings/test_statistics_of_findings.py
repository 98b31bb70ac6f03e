"""Intervals over seeds, gaps between groups, CKA with parts left out: against the same by loops."""

import itertools
import math

import pytest
import torch
from scipy import stats

from tl_backward._support.bootstrap import bootstrap
from tl_backward.studies.dissimilarity import group_gap, over_seeds
from tl_backward.studies.dissimilarity import statistics as groups_module
from tl_backward.studies.dissimilarity.outliers import cka_without_dimension, cka_without_group, nearest_layer

from .family import gram_cka


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_interval_over_seeds_is_students():
    values = normal(4, 2, 3)
    found = over_seeds(values)
    for i, j in itertools.product(range(2), range(3)):
        low, high = stats.ttest_1samp(values[:, i, j].numpy(), 0).confidence_interval(0.95)
        assert math.isclose(found.mean[i, j], values[:, i, j].mean(), rel_tol=1e-12)
        assert math.isclose(found.low[i, j], low, rel_tol=1e-9) and math.isclose(found.high[i, j], high, rel_tol=1e-9)
    assert found.n.eq(4).all()


def test_seeds_without_a_value_are_left_out():
    values = torch.tensor([[1.0, 5.0], [math.nan, 6.0], [3.0, math.nan], [math.nan, math.nan]]).T
    found = over_seeds(values.T)
    low, high = stats.ttest_1samp([1.0, 3.0], 0).confidence_interval(0.95)
    assert found.n.tolist() == [2, 2] and found.mean.tolist() == [2.0, 5.5]
    assert math.isclose(found.low[0], low, rel_tol=1e-9) and math.isclose(found.high[0], high, rel_tol=1e-9)
    alone = over_seeds(torch.tensor([2.0]))
    assert alone.mean == 2 and alone.low.isnan() and alone.high.isnan()


def test_it_covers_the_truth_where_a_bootstrap_of_few_seeds_does_not():
    draws = normal(5, 4000, seed=1)
    mine, resampled = over_seeds(draws), bootstrap(draws)
    covered = [((each.low <= 0) & (each.high >= 0)).double().mean() for each in (mine, resampled)]
    assert 0.935 < covered[0] < 0.965
    assert covered[1] < 0.87


def loop_gap(values, group):
    n = len(group)
    within, between = [], []
    for i, j in itertools.permutations(range(n), 2):
        (within if group[i] == group[j] else between).append(float(values[i, j]))
    return sum(within) / len(within), sum(between) / len(between)


@pytest.mark.parametrize("group", [[0, 0, 1, 1, 1], [1, 0, 1, 0, 0, 1], [0, 1, 1, 0]])
def test_gap_between_groups(group):
    n = len(group)
    values = normal(n, n, 2, 3)
    values[torch.arange(n), torch.arange(n)] = math.nan
    found = group_gap(values, torch.tensor(group).bool())
    assert found.exact and found.permuted.shape == (math.comb(n, sum(group)), 2, 3)
    splits = [[int(i in chosen) for i in range(n)] for chosen in itertools.combinations(range(n), sum(group))]
    for cell in itertools.product(range(2), range(3)):
        of = values[(..., *cell)]
        within, between = loop_gap(of, group)
        assert math.isclose(found.within[cell], within, abs_tol=1e-12)
        assert math.isclose(found.between[cell], between, abs_tol=1e-12)
        gaps = [other - same for same, other in (loop_gap(of, split) for split in splits)]
        torch.testing.assert_close(found.permuted[(slice(None), *cell)], torch.tensor(gaps, dtype=torch.float64))
        assert math.isclose(found.p[cell], sum(gap >= between - within - 1e-9 for gap in gaps) / len(gaps))
        left = []
        for one in range(n):
            kept = [i for i in range(n) if i != one]
            same, other = loop_gap(of[kept][:, kept], [group[i] for i in kept])
            left.append(other - same)
        mean = sum(left) / n
        error = math.sqrt(sum((each - mean) ** 2 for each in left) * (n - 1) / n)
        half = stats.t.ppf(0.975, n - 1) * error
        assert math.isclose(found.high[cell], between - within + half, rel_tol=1e-9)
        assert math.isclose(found.low[cell], between - within - half, rel_tol=1e-9)


def test_groups_that_part_are_told_from_those_that_do_not():
    places = normal(10, 4)
    group = torch.arange(10) % 2 == 1
    apart = places + 3 * group[:, None]
    distances = torch.stack([torch.cdist(apart, apart), torch.cdist(places, places)], -1)
    found = group_gap(distances, group)
    assert found.p[0] == 2 / math.comb(10, 5) and found.low[0] > 0  # the split and its mirror image
    assert found.p[1] > 0.05 and abs(found.permuted[:, 1].mean()) < abs(found.gap[0]) / 20


def test_too_many_splits_are_drawn(monkeypatch):
    monkeypatch.setattr(groups_module, "MOST_EXACT", 10)
    values, group = normal(8, 8), torch.arange(8) < 4
    found, again = group_gap(values, group, seed=3), group_gap(values, group, seed=3)
    exact = groups_module._splits(8, 4, 0)
    assert not found.exact and torch.equal(found.permuted, again.permuted) and not exact[1]
    monkeypatch.undo()
    assert abs(found.p - group_gap(values, group).p) < 0.05


@pytest.mark.parametrize("group", [[0, 0, 0, 1], [1, 1, 1, 1], [0, 1]])
def test_a_group_of_one_has_nothing_within(group):
    n = len(group)
    with pytest.raises(ValueError, match="Expected at least two models in each group, got .* there is nothing within"):
        group_gap(normal(n, n), torch.tensor(group).bool())


@pytest.mark.parametrize("n, d1, d2, scale", [(40, 5, 3, 1.0), (12, 17, 9, 1.0), (50, 6, 8, 1e6)])
def test_cka_without_a_part(n, d1, d2, scale):
    x, y = normal(n, d1) + 3, normal(n, d2, seed=1)
    y[:, :3] += x[:, :3]
    x[::7, 2] += scale
    found = cka_without_dimension(x, y)
    for k in range(d1):
        kept = [i for i in range(d1) if i != k]
        assert math.isclose(found[k], gram_cka(x[:, kept], y), rel_tol=1e-8)
    groups = torch.arange(n) % 7
    found = cka_without_group(x, y, groups, 7)
    for group in range(7):
        kept = groups != group
        assert math.isclose(found[group], gram_cka(x[kept], y[kept]), rel_tol=1e-6)


def test_nothing_left_is_nan():
    x = torch.cat([normal(9, 1), torch.ones(9, 1)], 1)
    found = cka_without_dimension(x, normal(9, 2, seed=1))
    assert found[0].isnan() and not found[1].isnan()


def test_nearest_layer():
    assert [nearest_layer(i, 4, 4) for i in range(4)] == [0, 1, 2, 3]
    assert [nearest_layer(i, 2, 4) for i in range(2)] == [1, 3]
    assert [nearest_layer(i, 6, 2) for i in range(6)] == [0, 0, 0, 0, 1, 1]
