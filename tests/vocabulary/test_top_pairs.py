"""Top pairs against all entries computed in float64, sorted by value, row and column."""

from fractions import Fraction
from importlib import import_module

import pytest
import torch
from benchmarks.measure import in_fresh_process
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_backward as tlb

module = import_module("tl_backward.vocabulary.top_pairs")


def brute_force(left, right, k, largest=True, exclude_same=False, mask=None):
    """Every entry as an exact rational number, so that ties are ties; the k best by (value, row, col)."""
    rows, cols = (None, None) if mask is None else mask
    exact_left, exact_right = ([[Fraction(x) for x in row] for row in side.double().tolist()] for side in (left, right))
    entries = []
    for i, one in enumerate(exact_left):
        for j, other in enumerate(exact_right):
            if (exclude_same and i == j) or (rows is not None and not rows[i]) or (cols is not None and not cols[j]):
                continue
            value = sum(a * b for a, b in zip(one, other, strict=True))
            entries.append((-value if largest else value, i, j))
    best = sorted(entries)[:k]
    return [float(-v if largest else v) for v, _, _ in best], [i for _, i, _ in best], [j for _, _, j in best]


def check(left, right, k, **options):
    values, rows, cols = brute_force(left, right, k, **options)
    found = tlb.top_pairs(left, right, k, show_progress=False, **options)
    expected = torch.tensor(values, dtype=torch.float64).to(found.values.dtype)
    assert found.rows.tolist() == rows and found.cols.tolist() == cols
    torch.testing.assert_close(found.values, expected, rtol=2e-7, atol=0)
    assert 0 <= found.n_skipped <= found.n_tiles
    return found


def factors(n_rows, n_cols, d, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for n in (n_rows, n_cols))


@pytest.fixture(params=[(3, 4), (7, 5), (1, 1), (64, 64)], ids=str)
def small_tiles(request, monkeypatch):
    monkeypatch.setattr(module, "TILE", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(23, 17, 5), (1, 30, 3), (30, 1, 3), (1, 1, 1), (12, 12, 1), (10, 11, 40)], ids=str)
@pytest.mark.parametrize("largest", [True, False])
def test_every_entry(small_tiles, shape, dtype, largest):
    left, right = factors(*shape, dtype=dtype)
    for k in {1, min(5, shape[0] * shape[1]), shape[0] * shape[1]}:  # k beyond a tile, and all of them
        check(left, right, k, largest=largest)


@pytest.mark.parametrize("largest", [True, False])
def test_negative_only(small_tiles, largest):
    left, right = factors(14, 19, 6)
    found = check(left.abs(), -right.abs(), 25, largest=largest)
    assert (found.values < 0).all()


def test_ties_come_by_row_and_column(small_tiles):
    row = torch.tensor([[0.1, -0.7, 0.3]])
    found = check(row.expand(15, 3), row.expand(11, 3), 30)  # all rows equal
    assert found.rows.tolist() == [0] * 11 + [1] * 11 + [2] * 8 and found.cols.tolist() == [
        *range(11),
        *range(11),
        *range(8),
    ]
    few = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for k in (3, 50, 150):
        check(few.repeat_interleave(7, dim=0)[:20], few.repeat_interleave(6, dim=0)[2:], k)
        check(few.repeat(6, 1), few.flip(0).repeat(5, 1), k, exclude_same=True)
        check(row.expand(15, 3), row.expand(11, 3), k, exclude_same=True, largest=False)
    check(torch.zeros(9, 2), torch.ones(9, 2), 20)
    check(torch.zeros(9, 2), torch.ones(9, 2), 20, largest=False)
    coarse = torch.randint(-2, 3, (20, 4), generator=torch.Generator().manual_seed(0)).float()
    check(coarse, coarse.flip(0), 60)
    check(coarse, coarse, 60, exclude_same=True, largest=False)


@pytest.mark.parametrize("largest", [True, False])
def test_masks_and_same(small_tiles, largest):
    left, right = factors(20, 16, 4)
    generator = torch.Generator().manual_seed(1)
    rows, cols = (torch.rand(n, generator=generator) < 0.6 for n in (20, 16))
    check(left, right, 12, largest=largest, exclude_same=True)
    check(right, left, 12, largest=largest, exclude_same=True)
    check(left, right, 12, largest=largest, mask=(rows, None))
    check(left, right, 12, largest=largest, mask=(None, cols), exclude_same=True)
    found = check(left, right, 12, largest=largest, mask=(rows, cols), exclude_same=True)
    assert rows[found.rows].all() and cols[found.cols].all() and (found.rows != found.cols).all()
    left, _ = factors(20, 1, 4)
    check(left, left, 380, exclude_same=True)  # the diagonal holds the largest entries, and all others are asked for


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 15), st.integers(1, 15), st.integers(1, 6), st.integers(0, 10**6), st.integers(0, 10**6),
    st.floats(0, 8), st.booleans(), st.tuples(st.integers(1, 6), st.integers(1, 6)),
)  # fmt: skip
def test_any_scale(n_rows, n_cols, d, seed, k, spread, coarse, tile):
    """Heavy tails over many orders of magnitude, duplicates, any tile: what is skipped never mattered."""
    left, right = factors(n_rows, n_cols, d, seed)
    generator = torch.Generator().manual_seed(seed)
    left *= (spread * torch.randn(n_rows, 1, generator=generator)).exp()
    if coarse:
        left, right = left.sign(), right.round()
    before, module.TILE = module.TILE, tile
    try:
        check(left, right, 1 + k % (n_rows * n_cols), largest=bool(seed % 2))
    finally:
        module.TILE = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_magnitudes(dtype, small_tiles):
    left, right = factors(13, 9, 3, dtype=dtype)
    left *= torch.logspace(-12, 12, 13, dtype=dtype)[:, None]
    right *= torch.logspace(-20, 20, 9, dtype=dtype)[:, None]
    check(left, right, 40)
    tiny = {torch.float32: 1e-24, torch.float64: 1e-180}[dtype]  # products below the smallest normal number
    found = tlb.top_pairs(left * 0 + tiny, right * 0 + tiny, 5, show_progress=False)
    assert found.rows.tolist() == [0] * 5 and found.cols.tolist() == [0, 1, 2, 3, 4]


def test_the_result_does_not_depend_on_the_tiles(monkeypatch):
    left, right = factors(701, 611, 16)
    left[100:300] = left[:200].clone()  # duplicates: the tiles' own rounding would break ties at random
    found = []
    for tile in ((512, 1024), (64, 64), (701, 611), (13, 200)):
        monkeypatch.setattr(module, "TILE", tile)
        found.append(tlb.top_pairs(left, right, 2000, show_progress=False))
    entries = left.double() @ right.double().T
    torch.testing.assert_close(found[0].values.double(), entries.flatten().topk(2000).values, rtol=1e-6, atol=0)
    for other in found[1:]:
        for name in ("values", "rows", "cols"):
            assert torch.equal(getattr(found[0], name), getattr(other, name)), name


def test_the_bound_skips_tiles_of_heavy_tails(monkeypatch):
    monkeypatch.setattr(module, "TILE", (64, 64))
    left, right = factors(1500, 1300, 16)
    generator = torch.Generator().manual_seed(3)
    left *= torch.randn(1500, 1, generator=generator).exp()
    right *= torch.randn(1300, 1, generator=generator).exp()
    found = tlb.top_pairs(left, right, 40, show_progress=False)
    entries = left.double() @ right.double().T
    best = entries.flatten().topk(40)
    assert torch.equal(found.rows * 1300 + found.cols, best.indices)
    assert found.n_skipped > 0.9 * found.n_tiles


def test_reduced_matmul_precision_changes_nothing(monkeypatch):
    """TF32 or bfloat16 products, simulated: the margin still lets every winner through."""
    left, right = factors(300, 200, 8)
    expected = tlb.top_pairs(left, right, 50, show_progress=False)
    real = torch.mm
    monkeypatch.setattr(module, "_reduced_precision", lambda dtype: 4 * torch.finfo(torch.bfloat16).eps)
    monkeypatch.setattr(
        module.torch, "mm", lambda a, b, out: out.copy_(real(a.bfloat16().float(), b.bfloat16().float()))
    )
    found = tlb.top_pairs(left, right, 50, show_progress=False)
    assert torch.equal(found.rows, expected.rows) and torch.equal(found.values, expected.values)


def test_precision_switch_is_read():
    before = torch.get_float32_matmul_precision()
    try:
        assert module._reduced_precision(torch.float32) == 0
        torch.set_float32_matmul_precision("high")
        assert module._reduced_precision(torch.float32) > 2**-7 and module._reduced_precision(torch.float64) == 0
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_inputs_are_left_alone(dtype):
    left, right = factors(20, 20, 4, dtype=dtype)
    copies, left = (left.clone(), right.clone()), left.requires_grad_()
    state = torch.get_rng_state()
    found = tlb.top_pairs(left, right, 5, largest=False, exclude_same=True)
    assert torch.equal(left, copies[0]) and torch.equal(right, copies[1]) and left.grad is None
    assert not found.values.requires_grad and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", ["random", "ties", "bfloat16"])
def test_memory(case):
    """At 20,000 x 20,000 the product alone would take 1.6 GB."""
    assert int(in_fresh_process("tests.benchmarks.top_pairs", case)) < 256 * 2**20


def test_frame_and_html():
    left, right = factors(30, 20, 4)
    found = tlb.top_pairs(left, right, 25, show_progress=False)
    frame = found.to_frame()
    assert (
        list(frame.columns) == ["value", "row", "col"]
        and len(frame) == 25
        and frame["row"].tolist() == found.rows.tolist()
    )
    assert found._repr_html_().count("<tr>") == 21 and "25 largest entries" in repr(found)


def test_bad_input():
    left, right = factors(4, 5, 3)
    with pytest.raises(
        ValueError, match=r"Expected factors \[n_rows, d\] and \[n_cols, d\], got \[4, 3\] and \[5, 2\]"
    ):
        tlb.top_pairs(left, right[:, :2], 1)
    with pytest.raises(ValueError, match=r"Expected factors \[n_rows, d\] .* got \[3\] and \[5, 3\]"):
        tlb.top_pairs(left[0], right, 1)
    with pytest.raises(
        ValueError, match=r"Expected 1 <= k <= 20 \(the pairs to choose from\), got k=21; choose a smaller k\."
    ):
        tlb.top_pairs(left, right, 21)
    with pytest.raises(ValueError, match=r"Expected 1 <= k <= 16 .* got k=17; choose a smaller k, or keep more"):
        tlb.top_pairs(left, right, 17, exclude_same=True)
    with pytest.raises(ValueError, match="got k=0"):
        tlb.top_pairs(left, right, 0)
    with pytest.raises(ValueError, match="Expected 1 <= k <= 0 .* or keep more rows and columns"):
        tlb.top_pairs(left, right, 1, mask=(torch.zeros(4, dtype=torch.bool), None))
    with pytest.raises(ValueError, match=r"Expected a mask of 5 booleans for right, got \[4\]"):
        tlb.top_pairs(left, right, 1, mask=(None, torch.ones(4, dtype=torch.bool)))
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = right.clone()
        broken[2, 1] = bad
        with pytest.raises(ValueError, match="Expected finite factors, got NaN or inf in right"):
            tlb.top_pairs(left, broken, 1)
    with pytest.raises(ValueError, match="Expected factors whose products fit torch.float32, got norms up to"):
        tlb.top_pairs(left * 1e30, right * 1e30, 1)
    with pytest.raises(ValueError, match="Expected factors of one dtype on one device, got torch.float64 on cpu and"):
        tlb.top_pairs(left.double(), right, 1)
