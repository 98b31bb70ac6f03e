"""Every measure against its definition and against the reference table of values computed by others."""

import functools
import json
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from shared import SHARED, shared

from dissimilarity.data import INSTALLED, MISSING, as_numpy, invertible, random, related
from dissimilarity.reference import DEFINITIONS, cosine, rankdata, span
from tl_backward.dissimilarity import get_measure, list_measures, measures
from tl_backward.dissimilarity.measures import _matrices, _neighbours, _pairs, _rdms, _spans

NAMES = INSTALLED
PAIRS = [
    "independent", "identical", "rotated", "scaled_shifted", "invertible_linear", "widths_24_32", "n_lt_d",
    "constant_column", "duplicated_rows", "massive_token", "large_mean", "n512_d64_48",
]  # fmt: skip
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
KEYS = list_measures().set_index("name").oracle.dropna().to_dict()


@functools.cache
def table():
    return json.loads(shared("reference", "dissimilarity_reference.json").read_text())


@functools.cache
def pair(name):
    arrays = np.load(shared("reference", "dissimilarity_reference.npz"))
    return tuple(torch.from_numpy(arrays[f"{name}__{side}"]) for side in "XY")


def quietly(function, *args, **options):
    """A value whose warnings are not the matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def close(value, expected, tolerance):
    return abs(float(value) - float(expected)) <= tolerance * max(1.0, abs(float(expected)))


@pytest.mark.parametrize("measure", KEYS)
def test_reference_table(measure):
    """Values computed by others, of their matrices; `test_definition` has its own of both."""
    for name, (dtype, tolerance) in product(PAIRS, TOLERANCE.items()):
        x, y = (side.to(dtype) for side in pair(name))
        value, expected = quietly(get_measure(measure), x, y), table()["oracle"][KEYS[measure]][name]
        assert value.shape == () and value.dtype == dtype
        if (measure, name, dtype) == ("rsa_correlation_spearman", "duplicated_rows", torch.float64):
            # Each sample occurs twice, at correlation distance 0 from itself. In the table 29 of those 160 zeros are
            # rounding noise of 1e-16, which ranks them; with equal zeros tied, the value is another by 1.05e-7.
            ties = [
                rankdata(np.where(d < 1e-14, 0, d)) for d in (pdist(side, "correlation") for side in as_numpy(x, y))
            ]
            exact = cosine(*(rank - rank.mean() for rank in ties))
            assert close(expected, exact, 2e-7)
            expected = exact
        assert close(value, expected, tolerance), (name, dtype, float(value), expected)


def test_the_table_is_covered():
    if not SHARED.exists():
        pytest.skip("NOT TESTED: the shared folder is absent")
    assert set(PAIRS) == set(table()["pairs"])
    uncentred = {"cka_linear_uncentred", "procrustes_uncentred", "aligned_cosine_uncentred"}
    of_statistics = {key for key in table()["oracle"] if "minibatch" in key or "hsic" in key or "null" in key}
    assert set(KEYS.values()) | uncentred | of_statistics == set(table()["oracle"])


@pytest.mark.parametrize(
    ("key", "call", "tolerance"),
    [
        ("netrep:LinearMetric(alpha=0.5,angular)", lambda x, y: measures.shape_partial(x, y, alpha=0.5), 1e-8),
        # theirs is arccos of a rounded cosine: 2e-8 where the truth is 0
        ("netrep:LinearMetric(alpha=0.0,angular)", lambda x, y: measures.shape_partial(x, y, alpha=0.0), 3e-8),
        ("netrep:LinearMetric(alpha=1.0,angular)", lambda x, y: measures.shape_partial(x, y, alpha=1.0), 3e-8),
        ("netrep/PermutationMetric_euclidean", measures.permutation_procrustes, 1e-8),
        # theirs is float32 with 1e-6 added to the denominator, and breaks ties at random
        ("platonic/cknna_topk", lambda x, y: measures.cknna(x, y, metric="inner_product"), 1e-5),
    ],
)
def test_public_implementations(key, call, tolerance):
    for name in PAIRS:
        if "cknna" in key and name == "duplicated_rows":
            continue
        value = quietly(call, *pair(name))
        theirs = table()["public_implementations"][f"similarity-repository@035b3be/{key}"][name]
        assert close(value, theirs, tolerance), name


SHAPES = {
    "tall": lambda: related(25, 6, 4),
    "wide": lambda: related(14, 20, 17, seed=1),
    "unrelated": lambda: (random(40, 6), random(40, 5, seed=1)),
    "scaled, moved": lambda: (related(30, 6, 4)[0], related(30, 6, 4)[0] * 3.7 + random(1, 6, seed=7)),
    "a map of the other": lambda: (related(30, 6, 4)[0], related(30, 6, 4)[0] @ invertible(6)),
    "one neuron": lambda: related(17, 1, 3, seed=2),
    "widths": lambda: related(40, 3, 9, seed=3),
    "few samples": lambda: related(13, 5, 2, seed=4),
    "duplicate rows": lambda: tuple(side[torch.arange(36) % 13] for side in related(13, 5, 4, seed=5)),
    "duplicates of one": lambda: tuple(torch.cat([side[:1].expand(7, -1), side]) for side in related(21, 5, 4, seed=6)),
    "other duplicates on each side": lambda: (related(12, 5, 4)[0][torch.arange(30) // 3], related(30, 5, 4)[1]),
    "low rank": lambda: (random(30, 3) @ random(3, 8, seed=1), random(30, 2, seed=2) @ random(2, 5, seed=3)),
    "constant column": lambda: tuple(torch.cat([side, torch.full((22, 1), 0.1)], 1) for side in related(22, 4, 3)),
    "massive rows": lambda: tuple(
        side * (1 + 300 * (torch.arange(30) % 10 == 3)[:, None]) for side in related(30, 5, 4)
    ),
    "far from 0": lambda: (related(30, 5, 4)[0] + 1e4, related(30, 5, 4)[1] - 300),
    "tiny and huge": lambda: (related(30, 5, 4)[0] * 1e-6, related(30, 5, 4)[1] * 1e6),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_definition(name, shape):
    x, y = SHAPES[shape]()
    if shape == "one neuron" and ("correlation_" in name and "rsa" in name):
        return  # a sample with one neuron has no correlation: see test_measures_edges
    with np.errstate(all="ignore"):
        expected = DEFINITIONS[name](*as_numpy(x, y))
    value = quietly(get_measure(name), x, y)
    assert close(value, expected, 1e-6 if shape == "far from 0" else 1e-8), (float(value), expected)


def test_every_definition_is_tested():
    assert {*NAMES, *MISSING} == set(DEFINITIONS)


LARGE = ["cka_biased", "cka_debiased", "cka_hollow", "cka_angular", "svcca", "procrustes", "shape_angular", "bures_similarity",
         "mutual_knn", "mutual_knn_euclidean", "mutual_knn_inner_product"]  # fmt: skip


@pytest.mark.parametrize("case", ["plain", "far from 0", "massive rows", "nearly equal", "decaying spectrum"])
@pytest.mark.parametrize("name", LARGE)
def test_float32_products(name, case, monkeypatch):
    """Large float32 inputs are multiplied in float32: within 1e-4 of what float64 makes of the same numbers."""
    monkeypatch.setattr(_matrices, "_SMALL", 0)
    monkeypatch.setattr(_matrices, "_ROWS", 300)
    x, y = related(1100, 40, 30)
    if case == "far from 0":
        x, y = x + 1000, y - 3000
    elif case == "massive rows":
        x[::97] *= 500
        y[::97] *= 300
    elif case == "nearly equal":
        y = x @ rotation_of(40) + 1e-5 * random(1100, 40)
    elif case == "decaying spectrum":
        x = x * torch.logspace(0, -6, 40, dtype=torch.float64)
    x, y = x.float(), y.float()
    value, exact = get_measure(name)(x, y), get_measure(name)(x.double(), y.double())
    assert value.dtype == torch.float32
    assert close(value, exact, 1e-4), (float(value), float(exact))
    if case == "nearly equal" and name in ("procrustes", "shape_angular", "cka_angular"):
        assert abs(float(value) / float(exact) - 1) < 1e-3


def rotation_of(d):
    return torch.linalg.qr(random(d, d, seed=9)).Q


def test_svcca_in_float32_keeps_to_what_it_resolves(monkeypatch):
    """The fast route declines where it would not see the last component, and is taken where it does."""
    x, y = (side.float() for side in related(400, 12, 10))
    fast = _spans._svcca_from_products(x, y, 0.99)
    torch.testing.assert_close(float(fast), float(measures.svcca(x.double(), y.double())), rtol=0, atol=1e-5)
    decaying = x * torch.logspace(0, -4, 12)
    assert _spans._svcca_from_products(decaying, y, 1.0) is None


@pytest.mark.parametrize("name", NAMES)
def test_tiles_and_blocks_change_nothing(name, monkeypatch):
    x, y = related(64, 7, 5)
    x[40:50], y[40:50] = x[:10], y[:10]
    whole = get_measure(name)(x, y)
    for module, constant, value in (
        (_matrices, "_ROWS", 9),
        (_matrices, "_PANEL", 3),
        (_pairs, "_TILE", 8 * 64 * 5),
        (_neighbours, "_ROWS", 13),
        (_neighbours, "_COLUMNS", 17),
        (_rdms, "_BUCKET", 100),
    ):
        monkeypatch.setattr(module, constant, value)
    assert close(get_measure(name)(x, y), whole, 1e-12)


def test_ranks_over_many_buckets(monkeypatch):
    monkeypatch.setattr(_rdms, "_BUCKET", 50)
    ties = (random(3000) * 2).round().abs()
    signed_zeros = torch.where(torch.arange(300) % 2 == 0, 0.0, -0.0)
    for values in (random(3000).abs(), random(3000).abs().float(), ties, ties.float(), torch.zeros(300), signed_zeros):
        ranks, seen = torch.zeros_like(values, dtype=torch.float64), 0
        for at, doubled in _rdms._doubled_ranks(values):
            ranks[at] = doubled.double() / 2
            seen += at.numel()
        assert seen == values.numel()
        np.testing.assert_array_equal(ranks.numpy(), rankdata(values.numpy()))


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8, 11])
def test_the_median_counts_the_diagonal(n):
    x = random(n, 3)
    d = pdist(x.numpy(), "sqeuclidean")
    full = np.zeros((n, n))
    full[np.triu_indices(n, 1)] = d
    assert abs(_rdms._median_of_all(torch.from_numpy(d), n) - np.median(full + full.T)) < 1e-14


def test_rank_of_rounded_data():
    """Rank is that of what was rounded, in every dtype, also far from 0 and at a condition number of 1e5."""
    from tl_backward.dissimilarity.measures._matrices import basis

    low = random(200, 5) @ random(5, 30, seed=1)
    assert basis(low).rank == span(low.numpy())[0].shape[1] == 5
    assert basis(low.float()).rank == basis(low.bfloat16()).rank == 5
    assert basis((low + 1000).float()).rank == 5
    spread = rotation_of(30) * torch.logspace(0, -5, 30, dtype=torch.float64)
    assert basis((random(200, 30) @ spread.T).float()).rank == 30
