"""A running sum of matrices against the sum itself, in float64."""

import pytest
import torch

from tl_backward.training.sketch import Sketch, is_whole

SHAPE = (700, 300)


def product(seed, rank, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    x, d = (torch.randn(rank, n, generator=generator, dtype=torch.float64) for n in shape)
    return x, d


@pytest.mark.parametrize("shape", [SHAPE, (300, 700), (40, 30), (1, 500), (131_073, 1)])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_sum_of_low_rank_comes_back(shape, rank):
    by_factors, dense, total = Sketch(shape, rank), Sketch(shape, rank), torch.zeros(shape, dtype=torch.float64)
    for seed in range(2 * rank + 1):
        x, d = product(seed, 1, shape)
        by_factors.add_product(x, d, scale=seed - 1.5)
        dense.add(x.T @ d, scale=seed - 1.5)
        total += (seed - 1.5) * (x.T @ d)
    for sketch in (by_factors, dense):
        torch.testing.assert_close(sketch.dense(), total, rtol=0, atol=1e-9 * float(total.abs().max()))
        assert sketch.error() < 1e-8 * float(total.norm())
        found, (u, s, vh) = sketch.approximation(), torch.linalg.svd(total, full_matrices=False)
        k = min(rank, *shape)
        torch.testing.assert_close(found.S, s[:k], rtol=1e-8, atol=0)
        torch.testing.assert_close((found.U * found.S) @ found.V.T, (u[:, :k] * s[:k]) @ vh[:k], rtol=0, atol=1e-7)


def test_how_much_is_missing_is_told():
    """Of a slowly falling spectrum, over draws: on average what it is, and within what is proven."""
    ratios = []
    left, right = (torch.linalg.qr(product(7, 300, (n, n))[0].T).Q for n in SHAPE)
    s = 1.0 / torch.arange(1, 301, dtype=torch.float64)
    a = (left * s) @ right.T
    for seed in range(20):
        sketch = Sketch(SHAPE, 4, seed)
        sketch.add(a)
        missing = float((a - sketch.dense()).norm())
        ratios.append(sketch.error() ** 2 / missing**2)
        assert missing**2 < 4 * (1 + 9 / 9) * (1 + 4 / 4) * float(s[4:].square().sum())
        found = sketch.approximation()
        cut = (found.U * found.S) @ found.V.T
        assert 0.3 < found.error**2 / float((a - cut).norm()) ** 2 < 3
        assert abs(found.norm / float(a.norm()) - 1) < 0.6
    assert 0.7 < sum(ratios) / len(ratios) < 1.4


def test_sums_are_linear_and_reproducible():
    parts = [Sketch(SHAPE, 3) for _ in range(3)]
    for i in range(4):
        x, d = product(i, 5)
        parts[0].add_product(x, d)
        parts[1 + i % 2].add_product(x, d)
    joined = parts[1].plus(parts[2])
    for name, each in parts[0].tensors().items():
        torch.testing.assert_close(joined.tensors()[name], each, rtol=1e-12, atol=1e-9)
    again = Sketch(SHAPE, 3)
    again.load(parts[0].copied().tensors())
    torch.testing.assert_close(again.dense(), parts[0].dense())
    nothing = parts[0].plus(parts[0], -1.0).approximation()
    assert nothing.norm == 0 and not nothing.S.any()


def test_a_copy_stays_what_it_was():
    for shape in (SHAPE, (4, 5)):
        sketch = Sketch(shape, 2)
        sketch.add_product(*product(0, 1, shape))
        before = sketch.copied()
        expected = before.dense()
        sketch.add_product(*product(1, 1, shape))
        torch.testing.assert_close(before.dense(), expected)
        assert float((sketch.dense() - expected).norm()) > 0.1


def test_of_nothing():
    found = Sketch(SHAPE, 2).approximation()
    assert found.norm == found.error == 0 and found.U.shape == (700, 0) and not Sketch(SHAPE, 2).dense().any()


def test_what_is_small_is_whole():
    assert is_whole((512, 128), 1) and is_whole((131_072, 1), 1) and not is_whole(SHAPE, 8)
    assert is_whole((400, 400), 200), "its sketch would be larger"


def test_others_are_refused():
    with pytest.raises(ValueError, match="Expected two sketches of one shape"):
        Sketch(SHAPE, 2).plus(Sketch(SHAPE, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_lose_the_sum(dtype):
    sketch, one = Sketch((8, 8), 2), torch.ones(8, 8, dtype=dtype)
    for _ in range(5000):
        sketch.add(one)
    assert torch.equal(sketch.dense(), torch.full((8, 8), 5000.0, dtype=torch.float64))
