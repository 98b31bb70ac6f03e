"""Which entries of a projected gradient are kept, against dense gradients and eigenvectors in float64."""

import pytest
import torch

from tl_backward.gradients.gram import ExampleRows
from tl_backward.training.projections import Moments, Projection

D_IN, D_OUT = 5, 7
COUNTS = [1, 3, 2, 4, 3, 1, 2, 2]


def drawn(seed=0, scale=None):
    """Rows of examples of one to four tokens, the gradients [example, d_in, d_out] of them, and their norms."""
    generator = torch.Generator().manual_seed(seed)
    stretch = torch.tensor(0.6) ** torch.arange(D_OUT)
    x = torch.randn(sum(COUNTS), D_IN, generator=generator) * stretch[:D_IN]
    d = torch.randn(sum(COUNTS), D_OUT, generator=generator) * stretch.flip(0)
    if scale is not None:
        d = d * scale.repeat_interleave(torch.tensor(COUNTS))[:, None].float()
    pairs = zip(x.double().split(COUNTS), d.double().split(COUNTS), strict=True)
    dense = torch.stack([each.T @ delta for each, delta in pairs])
    return ExampleRows(x, d, torch.tensor(COUNTS)), dense, dense.norm(dim=(1, 2))


def learnt(n, rows, norms, kind="pca") -> Projection:
    moments = Moments(D_IN, D_OUT)
    moments.add(rows, norms)
    return moments.projection(n, kind, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("n", [1, 4, 6, 13, 34, 35, 50])
def test_the_pairs_with_the_largest_products(n):
    rows, dense, norms = drawn()
    found = learnt(n, rows, norms)
    x, d = rows.inputs.double(), rows.deltas.double() / norms.repeat_interleave(rows.counts)[:, None]
    (of_x, p), (of_d, q) = (torch.linalg.eigh(side.T @ side) for side in (x, d))
    products = of_x.flip(0)[:, None] * of_d.flip(0)
    best = products.flatten().sort(descending=True).values[:n]
    i, j = found.entries // found.deltas.shape[1], found.entries % found.deltas.shape[1]
    assert found.n_entries == min(n, D_IN * D_OUT) and found.entries.unique().numel() == found.n_entries
    order = found.entries if found.n_leading == found.n_entries else products[i, j].neg()
    assert order.diff().ge(0).all()  # the largest lead
    assert found.inputs.shape == (D_IN, i.max() + 1) and found.deltas.shape == (D_OUT, j.max() + 1)
    torch.testing.assert_close(products[i, j].sort(descending=True).values, best)
    # What is kept of the dense gradients, but for the signs of eigenvectors.
    expected = (p.flip(1).T @ dense @ q.flip(1))[:, i, j]
    torch.testing.assert_close(found.of(rows).double().abs(), expected.abs(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.of(rows, norms).double().abs(), (expected / norms[:, None]).abs(), rtol=1e-4, atol=1e-6
    )
    if n >= D_IN * D_OUT:
        torch.testing.assert_close(found.of(rows).double().norm(dim=1), norms, rtol=1e-5, atol=0)
    assert found.of(rows[:0]).shape == (0, found.n_entries)


@pytest.mark.parametrize("n", [6, 12, 20])
def test_no_rectangle_of_as_many_keeps_as_much(n):
    rows, _, norms = drawn()
    x, d = rows.inputs.double(), rows.deltas.double() / norms.repeat_interleave(rows.counts)[:, None]
    of_x, of_d = (torch.linalg.eigvalsh(side.T @ side).flip(0) for side in (x, d))
    found = learnt(n, rows, norms)
    i, j = found.entries // found.deltas.shape[1], found.entries % found.deltas.shape[1]
    kept = (of_x[i] * of_d[j]).sum()
    rectangles = [
        float(of_x[:p].sum() * of_d[:q].sum()) for p in range(1, D_IN + 1) for q in range(1, D_OUT + 1) if p * q <= n
    ]
    assert float(kept) > max(rectangles)


def test_large_losses_do_not_choose_the_directions():
    scale = torch.ones(len(COUNTS), dtype=torch.float64)
    scale[3] = 512.0
    one, other = (learnt(12, rows, norms) for rows, _, norms in (drawn(), drawn(scale=scale)))
    assert one.entries.equal(other.entries)
    for side in ("inputs", "deltas"):
        overlaps = (getattr(one, side).T @ getattr(other, side)).abs()
        torch.testing.assert_close(overlaps, torch.eye(len(overlaps)), rtol=1e-4, atol=1e-4)
    assert other.delta_moments.trace() > 1e3 * one.delta_moments.trace()  # K-FAC's are of the gradients as they are


def test_gaussian_ones_keep_all_pairs():
    rows, dense, norms = drawn()
    found = learnt(12, rows, norms, "random")
    assert found.inputs.shape == (D_IN, 3) and found.deltas.shape == (D_OUT, 4) and found.n_entries == 12
    expected = (found.inputs.double().T @ dense @ found.deltas.double()).flatten(1)
    torch.testing.assert_close(found.of(rows).double(), expected, rtol=1e-4, atol=1e-5)
