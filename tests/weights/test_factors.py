"""GradientFactors algebra against the dense gradient in float64, on odd shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TOKENS, bridge, build, worlds

import tl_backward as tlb
from tl_backward._support.lengths import lengths
from tl_backward.weights.factors import GradientFactors, Layout

CLOSE = dict(rtol=1e-9, atol=1e-10)


def make(kind="matrix", batch=2, pos=5, d_in=7, d_out=4, heads=3, dtype=torch.float64, seed=0):
    """Random factors of each kind that a capture can return."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    if kind == "lookup":
        ids = torch.randint(0, d_in, (batch, pos), generator=generator)
        return GradientFactors(ids, rand(batch, pos, d_out), Layout((d_in, d_out)))
    if kind == "bias":
        return GradientFactors(torch.ones(batch, pos, 1, dtype=dtype), rand(batch, pos, d_out), Layout((d_out,)))
    if kind == "heads_out":
        return GradientFactors(
            rand(batch, pos, d_in), rand(batch, pos, heads * d_out), Layout((heads, d_in, d_out), "out")
        )
    if kind == "per_head_out":
        layout = Layout((heads, d_in, d_out), "out")
        return GradientFactors(rand(batch, pos, heads, d_in), rand(batch, pos, heads, d_out), layout)
    if kind == "per_head_in":
        layout = Layout((heads, d_in, d_out), "in")
        return GradientFactors(rand(batch, pos, heads, d_in), rand(batch, pos, heads, d_out), layout)
    return GradientFactors(rand(batch, pos, d_in), rand(batch, pos, d_out), Layout((d_in, d_out)))


KINDS = ["matrix", "lookup", "bias", "heads_out", "per_head_out", "per_head_in"]


def whole(factors):
    """The dense [d_in, d_out] matrix by a sum of outer products in a loop, head blocks side by side."""
    rows, columns = factors.matrix_shape
    total = torch.zeros(rows, columns, dtype=torch.float64)
    x, d = factors.inputs.flatten(0, 1), factors.deltas.flatten(0, 1)
    for i in range(len(d)):
        if factors.is_lookup:
            total[x[i]] += d[i]
        elif factors.per_head:
            for h in range(d.shape[1]):
                block = torch.outer(x[i, h], d[i, h])
                if factors.layout.heads == "in":
                    total[h * x.shape[-1] : (h + 1) * x.shape[-1]] += block
                else:
                    total[:, h * d.shape[-1] : (h + 1) * d.shape[-1]] += block
        else:
            total += torch.outer(x[i], d[i])
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [dict(pos=5), dict(pos=1, batch=1), dict(pos=40), dict(d_in=2, d_out=9)])
def test_algebra(kind, shape):
    f, g = make(kind, **shape), make(kind, **shape, seed=1)
    dense, other = whole(f), whole(g)
    torch.testing.assert_close(f.gradient().flatten().sort().values, dense.flatten().sort().values, **CLOSE)
    torch.testing.assert_close(f.norm(), dense.norm(), **CLOSE)
    torch.testing.assert_close(f.inner(g), (dense * other).sum(), **CLOSE)
    torch.testing.assert_close(f.cosine(g), (dense * other).sum() / dense.norm() / other.norm(), **CLOSE)
    torch.testing.assert_close(f.cosine(f), torch.tensor(1.0, dtype=torch.float64), **CLOSE)
    u, s, v = f.svd()
    torch.testing.assert_close(u @ torch.diag(s) @ v.T, dense, **CLOSE)
    expected = torch.linalg.svdvals(dense)
    torch.testing.assert_close(s[: len(expected)], expected[: len(s)], **CLOSE)
    torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1], dtype=u.dtype), **CLOSE)
    u2, s2, v2 = f.svd(1)
    torch.testing.assert_close(u2 * s2 @ v2.T, u[:, :1] * s[:1] @ v[:, :1].T, **CLOSE)
    assert f.rank() == torch.linalg.matrix_rank(dense)
    torch.testing.assert_close(f.to_factored_matrix().AB, dense, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_parts(kind):
    f = make(kind)
    torch.testing.assert_close(sum(e.gradient() for e in f.per_example()), f.gradient(), **CLOSE)
    torch.testing.assert_close(f[:, :2].gradient() + f[:, 2:].gradient(), f.gradient(), **CLOSE)
    mask = torch.rand(2, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    torch.testing.assert_close(f[mask].gradient() + f[~mask].gradient(), f.gradient(), **CLOSE)
    norms = torch.stack([torch.stack([f[b, p].norm() for p in range(5)]) for b in range(2)])
    torch.testing.assert_close(f.token_norms(), norms, **CLOSE)
    torch.testing.assert_close(f[0, -1].norm(), norms[0, -1], **CLOSE)


def test_duplicate_tokens_cancel():
    """Two tokens with opposite deltas: no gradient at all, although both have one."""
    f = make(pos=1, batch=1)
    both = GradientFactors(f.inputs.repeat(1, 2, 1), torch.cat([f.deltas, -f.deltas], 1), f.layout)
    assert both.norm() == 0 and both.rank() == 0 and both.cosine(both) == 0
    assert (both.token_norms() > 0).all()


def test_norm_of_nearly_cancelling_float32():
    """The Gram route squares the cancellation; in float64 it stays accurate to float32."""
    f = make(pos=1, batch=1, dtype=torch.float32)
    inputs = torch.cat([f.inputs, f.inputs * (1 + 1e-4)], 1)
    near = GradientFactors(inputs, torch.cat([f.deltas, -f.deltas], 1), f.layout)
    exact = GradientFactors(inputs.double(), near.deltas.double(), f.layout).gradient().norm()
    torch.testing.assert_close(near.norm().double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("eps", [1e-3, 1e-4, 1e-5])
def test_examples_whose_tokens_cancel(eps):
    f = make(pos=1, batch=2, d_in=64, d_out=64, dtype=torch.float32)
    f = GradientFactors(torch.cat([f.inputs, f.inputs * (1 + eps)], 1), torch.cat([f.deltas, -f.deltas], 1), f.layout)
    wide = GradientFactors(f.inputs.double(), f.deltas.double(), f.layout)
    expected = torch.stack([whole(wide[e]).norm() for e in (0, 1)])
    torch.testing.assert_close(f.example_norms(), expected, rtol=1e-9 / eps, atol=0)


def test_sizes_that_no_square_has():
    f = GradientFactors(torch.full((1, 1, 2), 1e-30), torch.full((1, 1, 3), 1e30), Layout((2, 3)))
    for found in (f.norm(), f.example_norms()[0], f.token_norms()[0, 0]):
        torch.testing.assert_close(float(found), 6**0.5, rtol=1e-6, atol=0)
    huge = GradientFactors(
        torch.full((1, 1, 2, 3), 1e20), torch.full((1, 1, 2, 3), 1e20), Layout((2, 3, 3), heads="out")
    )
    assert huge.token_norms().isinf().all() and torch.isinf(lengths(torch.tensor([torch.inf, 1.0])))


def test_no_tokens():
    f = make()[:, :0]
    assert f.norm() == 0 and f.rank() == 0 and (f.gradient() == 0).all() and f.n_tokens == 0


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_inner_is_a_scalar_product(kind, batch, pos, d_in, d_out, seed):
    shape = dict(batch=batch, pos=pos, d_in=d_in, d_out=d_out)
    f, g = make(kind, **shape, seed=seed), make(kind, **shape, seed=seed + 1)
    torch.testing.assert_close(f.inner(g), g.inner(f), **CLOSE)
    assert f.inner(g).abs() <= f.norm() * g.norm() * (1 + 1e-9)
    assert f.rank() <= f.n_tokens * (3 if f.per_head else 1)
    assert f.norm() <= f.token_norms().sum() * (1 + 1e-9)


def test_gradients_keep_their_precision():
    f = make(dtype=torch.bfloat16)
    assert f.gradient().dtype == torch.bfloat16
    torch.testing.assert_close(f.norm().double(), whole(f).norm(), rtol=1e-2, atol=0)
    assert 1 <= f.rank() <= 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [2.0**-13, 1.0, 2.0**11])
def test_numbers_of_low_precision(kind, dtype, size):
    """A product of two gradients of 1e-4, and a norm of 1e6, are no float16 numbers."""
    pair = [make(kind, seed=seed) for seed in (1, 2)]
    low = [
        GradientFactors(f.inputs if f.is_lookup else (f.inputs * size).to(dtype), (f.deltas * size).to(dtype), f.layout)
        for f in pair
    ]
    f, g = (GradientFactors(f.inputs if f.is_lookup else f.inputs.double(), f.deltas.double(), f.layout) for f in low)
    numbers = {
        "norm": (low[0].norm(), whole(f).norm()),
        "inner": (low[0].inner(low[1]), (whole(f) * whole(g)).sum()),
        "cosine": (low[0].cosine(low[1]), (whole(f) * whole(g)).sum() / whole(f).norm() / whole(g).norm()),
        "token norms": (low[0].token_norms()[0, 0], whole(f[0, 0]).norm()),
        "examples": (low[0].example_norms()[1], whole(f[1]).norm()),
    }
    for name, (found, expected) in numbers.items():
        assert found.dtype in (torch.float32, torch.float64), name
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs()), msg=name)


def test_errors():
    with pytest.raises(
        ValueError, match=r"Expected two gradients of the same weight, got matrices \[7, 4\] and \[6, 4\]"
    ):
        make().inner(make(d_in=6))
    with pytest.raises(IndexError, match="Expected an index over"):
        make()[0, 1, 2]
    with pytest.raises(IndexError, match=r"Expected an index in \[-5, 5\), got 9"):
        make()[:, 9]


@pytest.mark.parametrize("world", worlds())
def test_shapes_of_a_models_weights(world):
    """gradient() has TransformerLens's shape, gradient("parameter") the stored one, and they are the same numbers."""
    model = build(world)
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=lambda name: True)
    for name, site in tlb.weight_sites(model).items():
        shape = cache.factors[name].gradient().shape
        assert cache.factors[name].gradient("parameter").shape == site.parameter.shape
        if site.layer is not None and site.kind == "matrix":
            theirs = getattr(model, site.short_name)[site.layer]
            assert shape == theirs.shape, name


def test_the_tl_layout_is_transformerlens_own():
    """dL/dW_Q in TL's [head, d_model, d_head] equals the derivative along TL's own W_Q property."""
    model = bridge("gpt2")  # Llama's norms round to float32, which drowns a finite difference
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    parameter = tlb.weight_sites(model)["blocks.0.attn.W_Q"].parameter
    before = model.blocks[0].attn.W_Q.detach().clone()
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            parameter += step * direction
        losses.append(tlb.next_token_loss(model(TOKENS, return_type="logits"), TOKENS).item())
        if step > 0:
            moved = model.blocks[0].attn.W_Q.detach() - before
    slope = (losses[0] - losses[1]) / 2e-6
    assert abs(float((cache.factors["W_Q", 0].gradient() * moved).sum()) / 1e-6 - slope) < 1e-6 * abs(slope) + 1e-8
