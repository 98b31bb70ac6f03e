"""What the registry says of each measure, as properties: invariances (and their absence), range, axioms of a metric."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dissimilarity.data import INSTALLED, TABLE, invertible, random, related, rotation
from tl_backward.dissimilarity import get_measure

NAMES = INSTALLED
METRICS = [name for name in NAMES if TABLE.metric[name]]
NEAR = [name for name in NAMES if "knn" in name or "jaccard" in name or name in ("cknna", "second_order_cosine")]
EXAMPLES = settings(max_examples=8, deadline=None, derandomize=True)
seeds, widths = st.integers(0, 10_000), st.integers(2, 6)


def permuted(x, seed):
    return x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed)).roll(1)]


CHANGES = {
    "permutation": permuted,
    "orthogonal": lambda x, seed: x @ rotation(x.shape[1], seed),
    "invertible linear": lambda x, seed: x @ invertible(x.shape[1], seed),
    "isotropic scaling": lambda x, seed: x * (0.01 + 5.3 * (seed % 7)),
    "translation": lambda x, seed: x + 4 * random(x.shape[1], seed=seed) + 2,
}


def value(name, x, y):
    return float(get_measure(name)(x, y))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_invariances(name, change):
    if change not in TABLE.invariances[name]:
        x, y = related(40, 6, 5)
        plain = value(name, x, y)
        moved = max(abs(value(name, CHANGES[change](x, seed), y) - plain) for seed in (2, 3))
        moved = max(moved, abs(value(name, x, CHANGES[change](y, 3)) - plain))
        assert moved > 1e-4, f"{name} is unchanged by {change}, which the registry does not say"
        return

    @EXAMPLES
    @given(seeds, widths, widths)
    def holds(seed, d1, d2):
        x, y = related(30, d1, d2, seed=seed)
        plain = value(name, x, y)
        for a, b in ((CHANGES[change](x, seed), y), (x, CHANGES[change](y, seed))):
            assert abs(value(name, a, b) - plain) <= 1e-7 * max(1, abs(plain))

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_range_and_symmetry(name):
    low, high = TABLE.range[name]

    @EXAMPLES
    @given(seeds, widths, widths, st.sampled_from([0.0, 0.3, 30.0]))
    def holds(seed, d1, d2, noise):
        x, y = related(30, d1, d2, seed=seed, noise=noise)
        there, back = value(name, x, y), value(name, y, x)
        assert low <= there <= high
        if TABLE.symmetric[name]:
            assert abs(there - back) <= 1e-9 * max(1, abs(there))

    holds()
    if not TABLE.symmetric[name]:
        x, y = related(30, 6, 3)
        assert abs(value(name, x, y) - value(name, y, x)) > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(30, 5), (14, 30), (200, 2)])
def test_identical(name, shape, recwarn):
    x = random(*shape)
    if name.startswith("rsa_correlation") and shape[1] == 2:
        x = random(200, 3)
    expected = 0.0 if TABLE.kind[name] == "distance" else 1.0
    if name == "eigenspace_overlap":
        expected = min(shape) / shape[1]  # at most n of d dimensions
    assert abs(value(name, x, x.clone()) - expected) < 1e-9
    assert abs(value(name, x.float(), x.float()) - expected) < 1e-6


@pytest.mark.parametrize("name", METRICS)
def test_metric_axioms(name):
    assert TABLE.kind[name] == "distance"

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(seeds, st.integers(4, 20), widths, widths, widths, st.floats(0, 3))
    def holds(seed, n, d1, d2, d3, noise):
        x, y = related(n, d1, d2, seed=seed, noise=noise + 0.01)
        z = x @ random(d1, d3, seed=seed) + noise * random(n, d3, seed=seed + 1)  # near to x, so that bounds are tight
        xy, yz, xz = value(name, x, y), value(name, y, z), value(name, x, z)
        assert xz <= xy + yz + 1e-9 * max(1, xz)
        assert xy <= xz + yz + 1e-9 * max(1, xy)
        assert yz <= xy + xz + 1e-9 * max(1, yz)
        assert min(xy, yz, xz) >= 0

    holds()
    x, y = related(30, 4, 4)
    assert value(name, x, y) > 1e-3


@pytest.mark.parametrize("name", ["procrustes", "shape_angular", "cka_angular", "gulp", "procrustes_normalised"])
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_small_distances_keep_their_digits(name, size):
    """Linear in a small displacement: no floor at the root of the rounding error."""
    x, direction = related(40, 6, 6)
    one, two = value(name, x, x + size * direction), value(name, x, x + 2 * size * direction)
    assert abs(two / one - 2) < 10 * size + 1e-5


@pytest.mark.parametrize("name", ["cka_debiased", "cka_rbf_debiased", "distance_correlation_debiased"])
def test_debiased_is_0_on_average(name):
    """Over row permutations of unrelated samples the mean is 0 within its standard error, the biased one far above."""
    x, y = random(24, 5), random(24, 4, seed=1)
    shuffles = [torch.randperm(24, generator=torch.Generator().manual_seed(seed)) for seed in range(300)]
    debiased = torch.tensor([value(name, x, y[order]) for order in shuffles])
    other = {"cka_debiased": "cka_biased"}.get(name, name.replace("_debiased", ""))
    biased = torch.tensor([value(other, x, y[order]) for order in shuffles[:50]])
    assert abs(debiased.mean()) < 3.5 * debiased.std() / 300**0.5
    assert biased.mean() > 0.1


@pytest.mark.parametrize("name", NEAR)
def test_neighbours_of_unrelated_samples(name):
    """About k / (n - 1) of the neighbours are shared by chance."""
    x, y = random(300, 8), random(300, 8, seed=1)
    if "knn" in name:
        assert abs(value(name, x, y) - 10 / 299) < 0.015
    else:
        assert value(name, x, y) < 0.75
