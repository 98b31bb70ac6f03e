"""Both ways to inner products against the gradients themselves, formed in float64."""

import pytest
import torch

from tl_backward.gradients import gram
from tl_backward.gradients.gram import ExampleRows, inner_products

ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6}


def rows(n_examples, d_in, d_out, longest, dtype, generator):
    """Examples of 0 to `longest` rows."""
    counts = torch.randint(0, longest + 1, (n_examples,), generator=generator)
    x, d = (torch.randn(int(counts.sum()), width, generator=generator).to(dtype) for width in (d_in, d_out))
    return ExampleRows(x, d, counts)


def dense(side):
    """[example, d_in d_out]"""
    parts = zip(
        side.inputs.double().split(side.counts.tolist()), side.deltas.double().split(side.counts.tolist()), strict=True
    )
    return torch.stack([(x.T @ d).flatten() for x, d in parts])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(5, 7, 9, 4, 3), (12, 9, 17, 31, 40), (1, 1, 5, 5, 1), (13, 2, 64, 90, 5)], ids=str)
@pytest.mark.parametrize("way", [gram._by_entries, gram._by_tokens, inner_products])
def test_are_those_of_the_formed_gradients(way, shape, dtype, monkeypatch):
    monkeypatch.setattr(gram, "_TILE", (7, 11))
    monkeypatch.setattr(gram, "_BLOCK_BYTES", 4000)
    n_a, n_b, d_in, d_out, longest = shape
    generator = torch.Generator().manual_seed(sum(shape))
    a, b = (rows(n, d_in, d_out, longest, dtype, generator) for n in (n_a, n_b))
    for one, two in ((a, b), (a, a)):
        expected = dense(one) @ dense(two).T
        scale = dense(one).norm(dim=1)[:, None] * dense(two).norm(dim=1)
        assert ((way(one, two) - expected).abs() <= ROUNDING[dtype] * scale + 1e-300).all()


def test_row_ids_of_an_embedding(monkeypatch):
    monkeypatch.setattr(gram, "_TILE", (3, 4))
    ids, counts = torch.tensor([3, 1, 3, 0, 1, 1, 2, 3]), torch.tensor([3, 0, 4, 1])
    deltas = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    side = ExampleRows(ids, deltas, counts)
    hot = ExampleRows(torch.nn.functional.one_hot(ids, 4).double(), deltas, counts)
    assert torch.allclose(inner_products(side, side), dense(hot) @ dense(hot).T, rtol=1e-13)


def test_the_cheaper_way_is_taken(monkeypatch):
    """Long texts of a small matrix by its entries, single tokens of a large one by tokens."""
    taken = []
    for name in ("_by_entries", "_by_tokens"):
        monkeypatch.setattr(gram, name, lambda a, b, name=name: taken.append(name) or torch.zeros(8, 8))
    for n_rows, width in ((64, 16), (1, 512)):
        side = ExampleRows(torch.zeros(n_rows * 8, width), torch.zeros(n_rows * 8, width), torch.full((8,), n_rows))
        inner_products(side, side)
    assert taken == ["_by_entries", "_by_tokens"]


def test_examples_in_any_order_lie_beside_each_other():
    found = ExampleRows.of(torch.arange(4.0)[:, None], torch.ones(4, 1), torch.tensor([2, 0, 2, 0]), n_examples=4)
    assert found.inputs.flatten().tolist() == [1, 3, 0, 2] and found.counts.tolist() == [2, 0, 2, 0]
    assert found.row_bytes == 8


def test_examples_are_written_behind_each_other_and_taken_apart():
    generator = torch.Generator().manual_seed(0)
    one, two = (rows(4, 3, 5, 6, torch.float32, generator) for _ in range(2))
    n = len(one.deltas) + len(two.deltas)
    room = one.room(n + 1)
    assert room.has_room(one) and not one.room(len(one.deltas) - 1).has_room(one)
    first = room.followed_by(one)
    assert first.has_room(two) and not first.followed_by(two).has_room(two)
    both = first.followed_by(two)
    assert both.inputs.data_ptr() == room.inputs.data_ptr() and both[:8].inputs.data_ptr() == room.inputs.data_ptr()
    assert torch.equal(dense(both[:8]), torch.cat([dense(one), dense(two)]))
    assert torch.equal(dense(both[3:6]), torch.cat([dense(one)[3:], dense(two)[:2]]))
