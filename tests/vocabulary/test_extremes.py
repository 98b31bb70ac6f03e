"""The largest, the smallest and ranks of a product that is never held whole, against all of it sorted."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tl_backward.vocabulary.extremes as module
from tl_backward.vocabulary.extremes import extremes


def sorted_whole(logits, k, largest):
    values, ids = logits.sort(dim=1, descending=largest, stable=True)
    return values[:, :k], ids[:, :k]


def check(vectors, matrix, k, wanted=None, columns=None, **options):
    """Values are those of the sorted whole, ids have them and none is said twice."""
    logits = vectors @ matrix if columns is None else (vectors @ matrix)[:, columns]
    found = extremes(vectors, matrix, k, wanted=wanted, columns=columns, **options)
    for (values, ids), largest in ((found.top, True), (found.bottom, False)):
        expected, _ = sorted_whole(logits, k, largest)
        assert torch.equal(values, expected)
        places = ids if columns is None else torch.searchsorted(columns, ids)
        assert torch.equal(logits.gather(1, places), values)
        assert all(len(row.unique()) == len(row) for row in ids)
    if wanted is not None:
        own = logits.gather(1, wanted)
        assert torch.equal(found.ranks, (logits[:, None] > own[:, :, None]).sum(2))
    return found


ORDERS = {
    "as drawn": lambda matrix: matrix,
    "ascending": lambda matrix: matrix.sort(1).values,
    "descending": lambda matrix: matrix.sort(1, descending=True).values,
    "one place": lambda matrix: matrix * (torch.arange(matrix.shape[1]) >= matrix.shape[1] - 130) * 8,
    "constant": lambda matrix: matrix[:, :1].expand_as(matrix).clone(),
}


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    d_vocab=st.integers(1, 3000),
    k=st.integers(1, 12),
    tile=st.sampled_from([40, 1000, 9000, 10**6]),
    order=st.sampled_from(sorted(ORDERS)),
    whole_numbers=st.booleans(),
    seed=st.integers(0, 99),
)
@example(n=5, d_vocab=3000, k=3, tile=9000, order="ascending", whole_numbers=False, seed=0)
@example(n=5, d_vocab=3000, k=3, tile=9000, order="as drawn", whole_numbers=True, seed=0)
def test_any_order_and_ties(n, d_vocab, k, tile, order, whole_numbers, seed):
    """Whole numbers make products that are exact in any order of adding, and tie."""
    generator = torch.Generator().manual_seed(seed)
    vectors, matrix = torch.randn(n, 1, generator=generator), torch.randn(1, d_vocab, generator=generator)
    if whole_numbers:
        vectors, matrix = (vectors * 2).round(), (matrix * 3).round()
    k = min(k, d_vocab)
    wanted = torch.randint(0, d_vocab, (n, 2), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_LOGIT_BYTES", 8 * tile)
        patch.setattr(module, "_CACHED", 700)
        check(vectors, ORDERS[order](matrix), k, wanted)


@pytest.mark.parametrize("k", [1, 4])
def test_few_rows_have_nearly_all(monkeypatch, k):
    """One row finds better entries in every tile, the others in the first alone."""
    monkeypatch.setattr(module, "MAX_LOGIT_BYTES", 8 * 8 * 640)
    up = torch.arange(6400.0)
    vectors = torch.tensor([[1.0], [-1.0], [-1.0], [-2.0], [-3.0], [-1.5], [-1.0], [-1.0]])
    check(vectors, up[None], k)
    check(-vectors, up[None], k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_infinite_logits_have_their_ids(monkeypatch, dtype):
    monkeypatch.setattr(module, "MAX_LOGIT_BYTES", 8 * 3 * 640)
    vectors, matrix = torch.ones(3, 1, dtype=dtype), torch.full((1, 4000), -torch.inf, dtype=dtype)
    matrix[0, 3900:3903] = torch.tensor([1.0, 3.0, 2.0])
    found = check(vectors, matrix, 5)
    assert found.top[1][:, :3].tolist() == [[3901, 3902, 3900]] * 3 and (found.top[1] >= 0).all()


def test_columns_and_functions(monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGIT_BYTES", 8 * 5 * 500)
    generator = torch.Generator().manual_seed(0)
    vectors, matrix = torch.randn(11, 1, generator=generator), torch.randn(1, 2500, generator=generator)
    columns = torch.randperm(2500, generator=generator)[:1700].sort().values
    check(vectors, matrix, 6, columns=columns)
    for product in (
        lambda rows: rows @ matrix,
        lambda rows: (matrix.T @ rows.T).T,
    ):  # the latter is no contiguous tensor
        found = extremes(vectors, product, 6, wanted=torch.full((11, 1), 3))
        expected = check(vectors, matrix, 6, torch.full((11, 1), 3))
        assert torch.equal(found.top[1], expected.top[1]) and torch.equal(found.ranks, expected.ranks)


def test_offset_and_transform(monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGIT_BYTES", 8 * 5 * 500)
    generator = torch.Generator().manual_seed(0)
    vectors, matrix = torch.randn(5, 1, generator=generator), torch.randn(1, 2500, generator=generator)
    offset = torch.randn(2500, generator=generator)
    found = extremes(vectors, matrix, 6, offset=offset, transform=torch.Tensor.tanh_)
    values, ids = sorted_whole((vectors @ matrix + offset).tanh(), 6, True)
    assert torch.equal(found.top[0], values) and torch.equal(found.top[1], ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d, n", [(64, 64), (64, 1), (300, 9)])
@pytest.mark.parametrize("n_wanted", [1, 2])
def test_copies_of_a_token_do_not_outrank_it(monkeypatch, dtype, d, n, n_wanted):
    """The wanted logit is computed apart, in a product whose last bit may differ; its copies' are equal all the same."""
    monkeypatch.setattr(module, "MAX_LOGIT_BYTES", 8 * n * 1000)
    generator = torch.Generator().manual_seed(0)
    vectors, matrix = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((n, d), (d, 5000)))
    matrix[:, 3000:] = matrix[:, :1]
    matrix[:, 50] = matrix[:, 7]
    matrix[:, 51] = matrix[:, 7]
    wanted = torch.tensor([[0, 7]])[:, :n_wanted].expand(n, -1)
    expected = (vectors.double() @ matrix[:, :3000].double())[:, None] > (
        vectors.double() @ matrix[:, [0, 7]].double()
    )[:, :n_wanted, None]
    expected[:, :, [0, 7, 50, 51]] &= torch.tensor([[False, True, True, True], [True, False, False, False]])[:n_wanted]
    above = expected.sum(2)
    if n_wanted == 2:  # the copies of token 0 lie beyond token 7 where it does
        above[:, 1] += 2000 * expected[:, 1, 0]
    assert torch.equal(extremes(vectors, matrix, 10, wanted=wanted).ranks, above)
    offset = torch.zeros(5000, dtype=dtype)
    offset[3000:] = 1e-3  # no copies any more: all 2,000 are larger
    assert torch.equal(
        extremes(vectors, matrix, 10, wanted=wanted[:, :1], offset=offset).ranks[:, 0], above[:, 0] + 2000
    )


def test_memory_of_many_of_a_sorted_vocabulary():
    """Groups that nearly all hold something are no few: each tile's own k are merged."""
    before = module._Best._wait
    vectors, matrix = torch.ones(3, 1), torch.arange(40_000.0)[None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_LOGIT_BYTES", 8 * 3 * 4096)
        patch.setattr(module._Best, "_wait", lambda *args: pytest.fail("entries wait one by one"))
        check(vectors, matrix, 300)
    assert module._Best._wait is before


def test_scaled_columns(monkeypatch):
    """Each by its own factor before the offset, which ranks and copies of a column heed too."""
    monkeypatch.setattr(module, "MAX_LOGIT_BYTES", 8 * 5 * 40)
    generator = torch.Generator().manual_seed(0)
    vectors, matrix, scale, offset = (
        torch.randn(*shape, generator=generator).mul(3).round() for shape in ((5, 4), (4, 200), (200,), (200,))
    )
    matrix[:, 150] = matrix[:, 7]
    scale[150] = scale[7] + 1
    logits, wanted = vectors @ matrix * scale + offset, torch.full((5, 1), 7)
    found = extremes(vectors, matrix, 6, wanted=wanted, scale=scale, offset=offset)
    for (values, ids), largest in ((found.top, True), (found.bottom, False)):
        assert torch.equal(values, sorted_whole(logits, 6, largest)[0]) and torch.equal(logits.gather(1, ids), values)
    assert torch.equal(found.ranks[:, 0], (logits > logits[:, 7:8]).sum(1))
