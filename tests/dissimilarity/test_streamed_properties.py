"""Streamed measures as properties: whatever the widths and however the samples are split, those on the whole tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dissimilarity.brute_force import fed
from dissimilarity.data import random, related, rotation
from tl_backward.dissimilarity import ADDITIVE, CovarianceStatistics, get_measure, list_measures

REGISTRY = list_measures().set_index("name")
EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True)
seeds, widths = st.integers(0, 10_000), st.integers(1, 7)


def splits(total):
    """Sizes of at least one sample each that add up to all."""
    return st.sets(st.integers(1, total - 1), max_size=6).map(
        lambda cuts: [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), total], strict=True)]
    )


def test_every_streamed_measure_is_on_tensors_too():
    assert set(ADDITIVE) <= set(REGISTRY.index)
    assert all(REGISTRY.additive[name] for name in ADDITIVE)


@pytest.mark.parametrize("name", ADDITIVE)
def test_streamed_is_whole(name):
    measure = get_measure(name)

    @EXAMPLES
    @given(st.data(), seeds, widths, widths, st.sampled_from([0.0, 3.0, 300.0]), st.floats(0.1, 2))
    def holds(data, seed, d1, d2, mean, noise):
        n = 2 * (d1 + d2) + 6 + seed % 5
        x, y = related(n, d1, d2, seed=seed, noise=noise)
        x = x + mean
        pair = fed([x], [y], data.draw(splits(n))).pair(0, 0)
        found, expected = ADDITIVE[name](pair), float(measure(x, y))
        assert abs(found - expected) <= 1e-6 * max(1, abs(expected))
        low, high = measure.range
        assert low - 1e-9 <= found <= high + 1e-9

    holds()


@pytest.mark.parametrize("name", ADDITIVE)
def test_merged_in_any_order(name):
    @EXAMPLES
    @given(st.data(), seeds, widths, widths, st.permutations(range(4)))
    def holds(data, seed, d1, d2, order):
        n = 2 * (d1 + d2) + 8
        x, y = related(n, d1, d2, seed=seed)
        sizes = data.draw(splits(n).filter(lambda found: len(found) >= 4))
        sizes = [*sizes[:3], sum(sizes[3:])]
        parts = []
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
            parts.append(CovarianceStatistics([d1], [d2]))
            parts[-1].update([a], [b])
        merged = parts[order[0]]
        for k in order[1:]:
            merged = merged + parts[k]
        whole = ADDITIVE[name](fed([x], [y], [n]).pair(0, 0))
        assert abs(ADDITIVE[name](merged.pair(0, 0)) - whole) <= 1e-6 * max(1, abs(whole))

    holds()


@pytest.mark.parametrize("name", [name for name, measure in ADDITIVE.items() if measure.any_basis])
def test_any_basis_is_any_basis(name):
    """What the Gram route rests on: the same in coordinates of any space around a layer's own."""

    @EXAMPLES
    @given(seeds, widths, widths, st.integers(0, 4))
    def holds(seed, d1, d2, more):
        n = 2 * (d1 + d2) + 8
        x, y = related(n, d1, d2, seed=seed)
        wide = torch.cat([x, torch.zeros(n, more, dtype=x.dtype)], dim=1) @ rotation(d1 + more, seed)
        turned = y @ rotation(d2, seed + 1) + random(d2, seed=seed)
        plain = ADDITIVE[name](fed([x], [y], [n]).pair(0, 0))
        other = ADDITIVE[name](fed([wide], [turned], [n]).pair(0, 0))
        assert abs(plain - other) <= 2e-6 * max(1, abs(plain))

    holds()
