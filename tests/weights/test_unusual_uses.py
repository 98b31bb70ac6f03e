"""Weights used beside themselves: without a gradient, by row, in two blocks, in a loss; against autograd."""

import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, TOKENS, bridge, hooked
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import tl_backward as tlb

needs_hooked = pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
WIDTHS = (24, 40)
"""[d_out, d_in] of what stands in the place of a Llama's down projection."""


class Grafted(nn.Module):
    """A layer whose forward is a function of its input and weights."""

    def __init__(self, forward):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        drawn = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / 5)  # noqa: E731
        self.w, self.table, self.experts, self.router = (
            drawn(*WIDTHS),
            drawn(7, WIDTHS[0]),
            drawn(3, *WIDTHS),
            drawn(40, 3),
        )
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


def graft(forward):
    model = bridge("llama")
    model.blocks[0].mlp._modules["out"]._modules["_original_component"] = layer = Grafted(forward)
    return model, layer


def loss(logits, tokens):
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (logits * weights).sum() + 0.1 * logits.square().sum()


def check(model, parameter, tokens=TOKENS, **options):
    """The gradient of one parameter, summed over its sites, is autograd's; nothing is left behind."""
    flag = parameter.requires_grad
    parameter.requires_grad_(True)
    (expected,) = torch.autograd.grad(loss(model(tokens, return_type="logits"), tokens), parameter)
    parameter.requires_grad_(flag)
    _, cache = tlb.run_with_gradient_cache(model, tokens, loss, weights=lambda name: True, names_filter=[], **options)
    total = 0
    for name, site in tlb.weight_sites(model).items():
        if site.parameter is parameter and not site.computed_from:
            whole = site.kind == "parameter"
            total = total + (cache.parameter_gradients[name] if whole else cache.factors[name].gradient("parameter"))
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)
    assert parameter.requires_grad == flag and parameter.grad is None
    return cache


def under_no_grad(layer, x):
    with torch.no_grad():
        double = layer.w * 2
    return F.linear(x, layer.w) + F.linear(x, double)


def through(layer, x):
    """A straight-through estimator: rounded forwards, itself backwards."""
    return F.linear(x, layer.w + (layer.w.round() - layer.w).detach())


@pytest.mark.parametrize(
    "forward",
    [
        lambda layer, x: F.linear(x, layer.w) + F.linear(x, layer.w.data),
        lambda layer, x: F.linear(x, layer.w) + F.linear(x, layer.w.detach()),
        lambda layer, x: F.linear(x, layer.w) + F.linear(x, layer.w.clone().detach_()),
        lambda layer, x: F.linear(x, layer.w.detach().T.contiguous().T) + F.linear(x, layer.w),
        under_no_grad,
        through,
    ],
    ids=["data", "detach", "detach_", "view", "no_grad", "through"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_use_without_a_gradient_counts_for_nothing(forward, frozen):
    model, layer = graft(forward)
    model.requires_grad_(not frozen)
    check(model, layer.w)


@pytest.mark.parametrize("padding", [-1, -3, 4, None])
def test_the_row_for_padding_has_no_gradient(padding):
    def forward(layer, x):
        return F.linear(x, layer.w) + F.embedding((x[..., 0] * 10).long() % 7, layer.table, padding_idx=padding)

    model, layer = graft(forward)
    check(model, layer.table)


def by_row(change):
    """Each token's row times the matrix of the expert that its router says."""

    def forward(layer, x):
        flat = x.flatten(0, -2)
        expert = (flat @ layer.router).argmax(-1)
        return torch.bmm(flat[:, None], change(layer.experts[expert]))[:, 0].view(*x.shape[:-1], WIDTHS[0])

    return forward


@pytest.mark.parametrize("shape", [(3, 7), (2, 4), (1, 5)])
@pytest.mark.parametrize(
    ("change", "factored"),
    [
        (lambda rows: rows.mT, True),
        (lambda rows: rows.transpose(1, 2), True),
        (lambda rows: rows.mT * 2, False),
        (lambda rows: rows.mT.contiguous(), False),
        (lambda rows: torch.cat([rows[:, :10], rows[:, 10:]], 1).mT, False),
    ],
    ids=["mT", "transposed", "scaled", "copied", "joined"],
)
def test_experts_gathered_by_row(change, factored, shape):
    """As they were gathered or turned they have factors by expert; changed after that, their gradient whole."""
    model, layer = graft(by_row(change))
    tokens = torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(1))
    cache = check(model, layer.experts, tokens)
    name = next(name for name, site in tlb.weight_sites(model).items() if site.parameter is layer.experts)
    assert (name in cache.factors) == factored
    if factored:
        assert cache.factors[name].n_experts == 3
        assert cache.factors[name].gradient().shape == (3, WIDTHS[1], WIDTHS[0])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_function_of_a_frozen_parameter(frozen):
    model, layer = graft(lambda layer, x: F.linear(x, layer.w.exp()))
    model.requires_grad_(not frozen)
    check(model, layer.w)

    class Squashed(nn.Module):
        def forward(self, weight):
            return weight * torch.tanh(weight)

    model = bridge("llama")
    inner = model.blocks[0].mlp._modules["out"]._modules["_original_component"]
    parametrize.register_parametrization(inner, "weight", Squashed())
    model.requires_grad_(not frozen)
    check(model, inner.parametrizations.weight.original)


def test_a_batch_norm_does_not_count_our_pass():
    model, layer = graft(lambda layer, x: F.linear(layer.norm(x.flatten(0, -2)).view_as(x), layer.w))
    layer.norm = nn.BatchNorm1d(40).double()
    model.train()
    model.original_model.train()
    before = {name: buffer.clone() for name, buffer in layer.norm.named_buffers()}
    tlb.weight_sites(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.norm.named_buffers())


@needs_hooked
@pytest.mark.parametrize("part", ["mlp", "attn", "ln1"])
def test_a_module_in_two_blocks(part):
    model = hooked("ln")
    setattr(model.blocks[1], part, getattr(model.blocks[0], part))
    for parameter in getattr(model.blocks[0], part).parameters():
        check(model, parameter)


@needs_hooked
def test_a_forward_in_the_place_of_a_modules_own():
    model = hooked("ln")
    tlb.weight_sites(model)  # what is remembered must be forgotten
    model.embed.forward = lambda tokens: model.embed.W_E[tokens] + model.embed.W_E[(tokens + 1) % 50]
    check(model, model.embed.W_E)
    mlp = model.blocks[0].mlp
    mlp.forward = lambda x: F.gelu(x @ mlp.W_in + mlp.b_in) @ mlp.W_out
    check(model, mlp.W_in)


@needs_hooked
def test_a_class_that_changes_is_looked_at_anew():
    model = hooked("ln")
    tlb.weight_sites(model)
    attention = model.blocks[0].attn
    attention.__class__ = type("Mine", (type(attention),), {})
    check(model, attention.W_Q)
    assert set(tlb.weight_sites(model).account()["reason"]) == {""}


MODELS = [lambda: bridge("llama")] + ([lambda: hooked("ln")] if HAS_HOOKED_TRANSFORMER else [])


@pytest.mark.parametrize("build", MODELS)
def test_a_loss_that_reads_a_weight_is_refused(build):
    model = build()
    weight = next(iter(tlb.weight_sites(model).values())).parameter
    before = [p.detach().clone() for p in model.parameters()]
    for read in (lambda: weight.square().sum(), lambda: weight.T.sum(), lambda: torch.stack([weight, weight]).sum()):
        with pytest.raises(ValueError, match="a loss of the logits alone, got one that reads"):
            tlb.run_with_gradient_cache(model, TOKENS, lambda logits, tokens, read=read: loss(logits, tokens) + read())
    for constant in (lambda: weight.detach().square().sum(), lambda: weight.data.sum(), lambda: float(weight.shape[0])):
        plain, _ = tlb.run_with_gradient_cache(model, TOKENS, loss)
        value, _ = tlb.run_with_gradient_cache(
            model, TOKENS, lambda logits, tokens, constant=constant: loss(logits, tokens) + constant()
        )
        assert float(value) == pytest.approx(float(plain) + float(constant()))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("build", MODELS)
def test_second_derivatives_are_refused(build):
    def penalty(logits, tokens):
        (slope,) = torch.autograd.grad(logits.square().sum(), logits, create_graph=True)
        return slope.square().sum()

    with pytest.raises(RuntimeError, match="second derivatives"):
        tlb.run_with_gradient_cache(build(), TOKENS, penalty)

    def of_itself(layer, x):
        (slope,) = torch.autograd.grad(F.linear(x, layer.w).square().sum(), layer.w, create_graph=True)
        return F.linear(x, slope)

    with pytest.raises(RuntimeError, match="second derivatives"):
        tlb.weight_sites(graft(of_itself)[0])


def test_examples_that_are_not_told_apart_say_so():
    """Rows in an order of a layer's own are found out by the gradient of one example."""
    for forward in (
        lambda layer, x: F.linear(x.flip(0), layer.w).flip(0),
        lambda layer, x: F.linear(x.transpose(0, 1).flatten(0, 1), layer.w).view(*x.shape[1::-1], -1).transpose(0, 1),
        lambda layer, x: F.linear(x.roll(1, 0), layer.w).roll(-1, 0),
    ):
        model, layer = graft(forward)
        cache = check(model, layer.w)
        name = next(name for name, site in tlb.weight_sites(model).items() if site.parameter is layer.w)
        for part in (cache.factors[name].per_example, lambda factors=cache.factors[name]: factors[:, 1]):
            with pytest.raises(ValueError, match="whose examples and tokens are known"):
                part()
    model, layer = graft(lambda layer, x: F.linear(x.flatten(0, 1), layer.w).view(*x.shape[:-1], -1))
    cache = check(model, layer.w)
    name = next(name for name, site in tlb.weight_sites(model).items() if site.parameter is layer.w)
    assert len(cache.factors[name].per_example()) == len(TOKENS)


def test_an_unembedding_in_another_module_is_said():
    model = bridge("llama")
    inside = model.unembed._modules["_original_component"]
    model.unembed._modules["_original_component"] = nn.Sequential(nn.Identity(), inside)
    with pytest.raises(ValueError, match="an unembedding with a weight of its own"):
        tlb.backward_lens(model, "w3 w4", "w5")
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, loss)
    assert "blocks.0.mlp.W_out" in cache.factors


@pytest.mark.parametrize("wrong", [[0], True, 3, ["blocks.0.hook_resid_post", None]])
def test_what_is_no_filter_of_names_is_refused(wrong):
    with pytest.raises(Exception, match="names_filter"):  # where types are checked, by the check of types
        tlb.run_with_gradient_cache(bridge("llama"), TOKENS, loss, names_filter=wrong)


def with_activations_in_place(kind):
    """A model whose own activation changes in place what its W_in wrote, and one of its hook points it was at."""
    if kind == "hooked":
        model = hooked()
        for block in model.blocks:
            block.mlp.act_fn = F.relu_
        return model, "blocks.1.mlp.hook_pre"
    model = bridge("gpt2")
    for block in model.blocks:
        block.mlp.original_component.act = nn.ReLU(inplace=True)
    return model, "blocks.1.mlp.in.hook_out"


@pytest.mark.parametrize("kind", [pytest.param("hooked", marks=needs_hooked), "bridge"])
def test_activations_in_place(kind):
    model, point = with_activations_in_place(kind)
    for name, site in tlb.weight_sites(model).items():
        if name.endswith(("W_in", "W_out")):
            check(model, site.parameter)
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, loss)
    assert cache.missing[point].startswith("its tensor was overwritten in place")
    with pytest.raises(
        RuntimeError, match="let what does so, a hook or an in-place activation of the model's own, return"
    ):
        tlb.run_with_gradient_cache(model, TOKENS, loss, names_filter=[point])
    assert tlb.backward_lens(model, TOKENS, [7] * len(TOKENS)).layers


@pytest.mark.parametrize("kind", [pytest.param("hooked", marks=needs_hooked), "bridge"])
def test_a_lens_of_a_module_that_blocks_share(kind):
    """Its rows are those of all its uses: exact as a gradient, of no single block."""
    model = hooked() if kind == "hooked" else bridge("gpt2")
    layers = model.blocks if kind == "hooked" else model.original_model.transformer.h
    layers[1].mlp = layers[0].mlp
    with pytest.raises(ValueError, match="used several times in a pass, by a module that blocks share or under split"):
        tlb.backward_lens(model, TOKENS, [7] * len(TOKENS))
    check(model, next(site.parameter for name, site in tlb.weight_sites(model).items() if name.endswith("W_in")))


class Rounded(torch.autograd.Function):
    """A quantiser with a gradient of its own: computed where autograd is off, it joins the graph again as a whole."""

    @staticmethod
    def forward(ctx, weight):
        step = weight.abs().mean()
        return (weight / step).round() * step

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_a_quantiser_that_is_an_autograd_function():
    model, layer = graft(lambda layer, x: F.linear(x, Rounded.apply(layer.w)))
    site = next(each for each in tlb.weight_sites(model).values() if each.parameter is layer.w)
    assert site.kind == "matrix" and site.is_function
    factors = check(model, layer.w).factors[site.name]
    torch.testing.assert_close(factors.gradient("parameter"), 2 * factors.gradient("tl").T)
