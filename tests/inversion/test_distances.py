"""Distances against plain numpy, their properties, and what has none."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from inversion.oracle import distance
from tl_backward.inversion import distances


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("shape", [(7, 3), (1, 1), (2, 5, 19), (1000, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_against_numpy(metric, shape, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    query = torch.randn(shape[-1], generator=torch.Generator().manual_seed(1)).to(dtype)
    got = distances(values, query, metric)
    z, flat = query.double().numpy(), values.double().reshape(-1, shape[-1]).numpy()
    expected = [distance(z, other, metric) for other in flat]
    assert got.dtype == torch.float64 and got.shape == shape[:-1]
    numpy.testing.assert_allclose(got.reshape(-1).numpy(), expected, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_invariances(d, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    values, query = (torch.randn(*shape, d, generator=generator).double() for shape in ((5,), ()))
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator).double()).Q
    for metric in ("euclidean", "cosine"):
        own = distances(values, query, metric)
        torch.testing.assert_close(distances(values @ rotation * scale, query @ rotation * scale, metric), own)
        assert abs(float(distances(query[None], query, metric))) < 1e-12
    torch.testing.assert_close(distances(values * scale, query, "cosine"), distances(values, query, "cosine"))
    # Relative to the query's norm alone: zeros are at 1, and twice the query is as far.
    zero_and_double = torch.stack([query * 0, query * 2])
    torch.testing.assert_close(distances(zero_and_double, query), torch.ones(2).double())


def test_zero_sample_has_cosine_distance_one():
    assert distances(torch.zeros(1, 3), torch.ones(3), "cosine").tolist() == [1.0]


def test_refused():
    values = torch.ones(2, 3)
    for metric in ("euclidean", "cosine"):
        with pytest.raises(ValueError, match="Expected a query activation of non-zero norm, got zeros"):
            distances(values, torch.zeros(3), metric)
        with pytest.raises(ValueError, match="Expected a finite query activation, got NaN or inf"):
            distances(values, torch.tensor([1.0, torch.nan, 0]), metric)
    with pytest.raises(TypeCheckError):
        distances(values, torch.ones(4))
