"""Ties and undefined values: exact integers are the oracle, and what is not defined says so."""

import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from dissimilarity.data import MISSING, random, related, rotation
from dissimilarity.reference import transported
from tl_backward.dissimilarity import get_measure, measures
from tl_backward.dissimilarity.measures._neighbours import nearest_neighbours

DTYPES = [torch.float64, torch.float32]
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)


def whole(n, d, values, seed):
    """Whole numbers below `values`."""
    return torch.randint(0, values, (n, d), generator=torch.Generator().manual_seed(seed))


def one_hot(n, d, seed=0):
    return torch.nn.functional.one_hot(whole(n, 1, d, seed)[:, 0], d).double()


def exact_rsa(x, y):
    """Spearman's correlation of squared distances in whole numbers."""
    pairs = np.triu_indices(len(x), 1)
    ranks = [rankdata(((z[:, None] - z[None]) ** 2).sum(-1).numpy()[pairs]) for z in (x.long(), y.long())]
    return np.corrcoef(*ranks)[0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rsa_of_one_hot_rows(dtype):
    """.683 came out for 1: every distance is 0 or sqrt 2."""
    z = one_hot(60, 10).to(dtype)
    assert abs(float(measures.rsa(z, 3 * z + 1)) - 1) < 1e-6
    assert abs(float(measures.rsa(z, z @ rotation(10).to(dtype))) - 1) < (1e-12 if dtype == torch.float64 else 1)


@EXAMPLES
@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(1, 9), st.integers(2, 6), st.sampled_from(DTYPES),
       st.sampled_from([(1, 0), (3, 1), (0.25, -7), (-2, 1000), (1024, 0)]))  # fmt: skip
def test_rsa_of_whole_numbers_is_exact(seed, n, d, values, dtype, line):
    x, y = whole(n, d, values, seed), whole(n, 5, 3, seed + 1)
    y[:, :1] = x[:, :1]
    if any(len(side.unique(dim=0)) < 3 for side in (x, y)):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = float(measures.rsa((line[0] * x + line[1]).to(dtype), y.to(dtype)))
    expected = exact_rsa(x, y)
    assert abs(found - (0 if np.isnan(expected) else expected)) < (1e-12 if dtype == torch.float64 else 1e-6)


@EXAMPLES
@given(st.integers(0, 10_000), st.integers(5, 40), st.floats(-5, 5).filter(lambda a: abs(a) > 0.01), st.floats(-50, 50))
def test_rsa_of_categories_in_any_units(seed, n, scale, shift):
    """Float64 numbers that are no dyadic fractions: what ties but for rounding ties."""
    x, y = one_hot(n, 4, seed), whole(n, 6, 2, seed + 1).double()
    if min(len(side.unique(dim=0)) for side in (x, y)) < 3:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = exact_rsa(x, y), float(measures.rsa(scale * x + shift, y @ rotation(6, seed)))
    assert abs(found - (0 if np.isnan(expected) else expected)) < 1e-12


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("name", ["rsa", "rsa_euclidean_pearson", "distance_correlation", "rsm_difference"])
def test_near_duplicates(name, gap):
    """Distances between nearly equal samples are those of their difference, not of rounding."""
    x, y = related(40, 5, 4)
    x[20:] = x[:20] + gap * random(20, 5, seed=7)
    a, b = (np.linalg.norm(z[:, None].numpy() - z[None].numpy(), axis=-1) for z in (x, y))
    pairs = np.triu_indices(40, 1)
    expected = {
        "rsa": np.corrcoef(rankdata(a[pairs]), rankdata(b[pairs]))[0, 1],
        "rsa_euclidean_pearson": np.corrcoef(a[pairs], b[pairs])[0, 1],
        "rsm_difference": np.linalg.norm(a - b),
    }.get(name)
    found = float(get_measure(name)(x, y))
    if expected is None:
        centred = [m - m.mean(0) - m.mean(1)[:, None] + m.mean() for m in (a, b)]
        expected = np.sqrt((centred[0] * centred[1]).sum() / np.linalg.norm(centred[0]) / np.linalg.norm(centred[1]))
    assert abs(found - expected) < 1e-11 * max(1, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_equal_but_for_rounding_tie(dtype):
    """The same token after the same text, computed in another batch: what rounding leaves between them ranks nothing."""
    x, y = (side[torch.arange(40) % 15].to(dtype) for side in related(15, 24, 20))
    noisy = [side * (1 + torch.finfo(dtype).eps * torch.randint(-1, 2, side.shape, generator=torch.Generator().manual_seed(3)))
             for side in (x, y)]  # fmt: skip
    found, expected = (float(measures.rsa(a, b)) for a, b in ((noisy[0], noisy[1]), (x, y)))
    assert abs(found - expected) < (1e-12 if dtype == torch.float64 else 2e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["euclidean", "inner_product"])
def test_neighbours_of_whole_numbers_go_by_their_place(metric, dtype):
    """95 of 100 draws broke the rule; the oracle is exact."""
    for seed in range(100):
        x = whole(30, 5, 3 + seed % 3, seed) * (1 + 6 * (seed % 2)) - 500 * (seed % 2)
        score = x @ x.T if metric == "inner_product" else -((x[:, None] - x[None]) ** 2).sum(-1)
        expected = [
            sorted((j for j in range(30) if j != i), key=lambda j: (-int(score[i, j]), j))[:10] for i in range(30)
        ]
        assert nearest_neighbours(x.to(dtype), k=10, metric=metric).tolist() == expected, seed


def test_mutual_knn_of_whole_numbers():
    x = whole(60, 6, 3, 0)
    y = x * 2 + 1  # the same Euclidean neighbours, ties and all
    assert float(measures.mutual_knn(x.double(), y.double(), metric="euclidean")) == 1.0


def tied(n, noise):
    """X and Y that share three directions exactly, and more or less of a fourth."""
    q = torch.linalg.qr(random(n, 8) - random(n, 8).mean(0)).Q
    x = q[:, :4] @ random(4, 4, seed=3)
    return x, torch.cat([q[:, :3], noise * q[:, 3:4] + q[:, 4:5]], 1) @ random(4, 4, seed=4)


@pytest.mark.parametrize("weights", ["x", "y"])
def test_pwcca_warns_where_correlations_tie(weights):
    x, y = tied(40, 0.3)
    with pytest.warns(UserWarning, match=r"got 3 of 4 in ties \(such as 1\).*PWCCA differs") as caught:
        measures.pwcca(x, y, weights=weights)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measures.pwcca(*related(40, 4, 4), weights=weights)
        assert (
            abs(float(measures.pwcca(x, x @ rotation(4), weights=weights)) - 1) < 1e-12
        )  # all tie: 1 however they turn


def test_pwcca_is_undefined_there():
    """Turning the tied variates, which changes no correlation, changes the weighted mean."""
    from tl_backward.dissimilarity.measures._spans import projection_weighted

    x, y = tied(40, 0.3)
    q, r = torch.linalg.qr(x - x.mean(0))
    turn, rho, _ = torch.linalg.svd(q.T @ torch.linalg.qr(y - y.mean(0)).Q)
    values = []
    for seed in range(4):
        other = turn.clone()
        other[:, :3] = turn[:, :3] @ rotation(3, seed)
        with pytest.warns(UserWarning, match="in ties"):
            values.append(float(projection_weighted(other, rho, r)))
    assert max(values) - min(values) > 1e-3


def test_soft_match_says_which():
    assert "NOT the soft matching distance of Khosla & Williams" in measures.soft_match.__doc__
    assert "Khosla & Williams" in measures.soft_match_transport.__doc__


def test_transport_asks_for_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError) as error:
        measures.soft_match_transport(*related(20, 3, 4))
    text = str(error.value)
    assert text.startswith("Expected the package ot (POT) for soft_match_transport") and text.endswith(".")
    assert "tl-backward[transport]" in text


@pytest.mark.skipif("soft_match_transport" in MISSING, reason="NOT TESTED: POT is not installed")
@pytest.mark.parametrize("shape", [(30, 4, 6), (12, 7, 3), (9, 1, 5), (20, 5, 5)])
def test_transport_is_the_linear_program(shape):
    x, y = related(*shape)
    found = float(measures.soft_match_transport(x, y))
    assert abs(found - transported(x.numpy(), y.numpy())) < 1e-7 * found
    if shape[1] == shape[2]:
        assert abs(found - float(measures.permutation_procrustes(x, y)) / shape[1] ** 0.5) < 1e-12 * found
    assert float(measures.soft_match_transport(x, torch.cat([x, x], 1))) < 1e-9  # each twice: the same mass
