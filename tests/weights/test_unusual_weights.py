"""Weights that are functions of parameters when they are used, and layers that are not what their class says."""

import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, TOKENS, bridge, hooked
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from unusual import autograd, holds, layer

import tl_backward as tlb
from tl_backward.editing.edit import Edit, Update

needs_hooked = pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
FAMILIES = ("gpt2", "llama")


class Squashed(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight * torch.tanh(weight)


class Half(nn.Module):
    """A parametrization of several parts: W = left right."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return u * s, v


def used_gradient(model, module, attribute="weight"):
    """DL/d of what a module's weight is when it is used, by autograd from a copy of it in its place."""
    module.eval()
    used = getattr(module, attribute).detach().clone().requires_grad_(True)
    forward = module.forward
    conv = not isinstance(module, nn.Linear)

    def with_copy(x):
        if conv:  # GPT-2's Conv1D
            return torch.addmm(module.bias, x.reshape(-1, x.shape[-1]), used).view(*x.shape[:-1], -1)
        return F.linear(x, used, module.bias)

    module.forward = with_copy
    try:
        value = tlb.next_token_loss(model(TOKENS, return_type="logits"), TOKENS)
        return torch.autograd.grad(value, used)[0]
    finally:
        del module.forward
        assert module.forward == forward


@pytest.mark.parametrize("family", FAMILIES)
def test_one_parameter_behind_a_parametrization(family):
    model = bridge(family)
    module = layer(model, "mlp.in")
    parametrize.register_parametrization(module, "weight", Squashed())
    sites, cache = holds(model)
    site = sites["blocks.0.mlp.W_in"]
    assert site.kind == "matrix" and site.is_function and site.parameter is module.parametrizations.weight.original
    used = used_gradient(model, module)
    torch.testing.assert_close(cache.factors["W_in", 0].gradient().reshape(-1), _as_tl(used, module).reshape(-1))
    assert len(tlb.backward_lens(model, "w3 w4", "w5").shift) == 2


def _as_tl(used, module):
    return used.T if isinstance(module, nn.Linear) else used


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["parametrization", "legacy hook", "product"])
def test_several_parameters_behind_one_matrix(family, how):
    model = bridge(family)
    module = layer(model, "mlp.in")
    if how == "product":
        parametrize.register_parametrization(module, "weight", Half())
    else:
        made = parametrizations.weight_norm if how == "parametrization" else torch.nn.utils.weight_norm
        made(module, "weight")
    sites, cache = holds(model)
    site = sites["blocks.0.mlp.W_in"]
    assert site.kind == "matrix" and len(site.roots) == 2 and len(site.computed_from) == 2
    used = used_gradient(model, module)
    torch.testing.assert_close(cache.factors["W_in", 0].gradient(), _as_tl(used, module), rtol=1e-9, atol=1e-13)
    with pytest.raises(
        ValueError,
        match=r"^Expected a weight with a parameter of its own, got blocks.0.mlp.W_in, which is "
        r"computed from .* and .*; take gradient\('tl'\)",
    ):
        cache.factors["W_in", 0].gradient("parameter")
    lens = tlb.backward_lens(model, "w3 w4", "w5")
    torch.testing.assert_close(lens.loss, tlb.run_with_gradient_cache(model, "w3 w4", tlb.target_loss("w5"))[0])
    default = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)[1]
    assert "blocks.0.mlp.W_in" in dict(default.factors.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["spectral_norm", "legacy spectral_norm", "prune", "orthogonal"])
def test_buffers_are_part_of_the_function(family, how):
    model = bridge(family)
    module = layer(model, "mlp.in")
    if how == "prune":
        prune.random_unstructured(module, "weight", 0.3)
    elif how == "orthogonal":
        parametrizations.orthogonal(module, "weight", use_trivialization=False)
    else:
        (parametrizations if how == "spectral_norm" else torch.nn.utils).spectral_norm(module, "weight")
    model.double().eval()
    sites, cache = holds(model)
    assert sites["blocks.0.mlp.W_in"].kind == "matrix"
    used = used_gradient(model, module) if how in ("spectral_norm", "orthogonal") else None
    if used is not None:
        torch.testing.assert_close(cache.factors["W_in", 0].gradient(), _as_tl(used, module), rtol=1e-9, atol=1e-12)
    if how == "prune":  # each step of pruning replaces its mask
        before = cache.factors["W_in", 0].gradient("parameter")
        prune.random_unstructured(module, "weight", 0.3)
        _, cache = holds(model)
        assert (cache.factors["W_in", 0].gradient("parameter") != before).any()


class TwiceMasked(nn.Linear):
    """A subclass with a forward of its own: nothing of it is what its class says."""

    def forward(self, x):
        return F.linear(2 * x, self.weight * self.mask, self.bias)


class Twice(nn.Linear):
    """Uses its weight twice, for two things."""

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + F.linear(x.tanh(), self.weight.exp())


@pytest.mark.parametrize("cls", [TwiceMasked, Twice])
@pytest.mark.parametrize("buffer", [True, False])
def test_a_subclass_of_linear_with_a_forward_of_its_own(cls, buffer):
    model = bridge("llama")
    module = layer(model, "mlp.out")
    module.__class__ = cls
    mask = torch.ones_like(module.weight.detach()).tril(3)
    module.register_buffer("mask", mask) if buffer else setattr(module, "mask", mask)
    sites, _ = holds(model)
    assert sites["blocks.0.mlp.W_out"].kind == ("matrix" if buffer and cls is TwiceMasked else "parameter")


class OnePlus(nn.LayerNorm):
    """A norm that multiplies by 1 + w, as Nemotron's."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Rounded(nn.Linear):
    """A quantiser with a straight-through gradient, as BitNet's, of weights and of activations."""

    def forward(self, x):
        scale = self.weight.abs().mean().clamp(min=1e-5)
        weight = self.weight + ((self.weight / scale).round().clamp(-1, 1) * scale - self.weight).detach()
        return F.linear(x + ((x * 8).round() / 8 - x).detach(), weight, self.bias)


def test_one_plus_w_and_a_quantiser():
    model = bridge("gpt2")
    model.blocks[0].ln1.original_component.__class__ = OnePlus
    sites, _ = holds(model)
    assert sites["blocks.0.ln1.w"].kind == "norm"
    model = bridge("llama")
    layer(model, "mlp.in").__class__ = Rounded
    sites, _ = holds(model)
    assert sites["blocks.0.mlp.W_in"].kind == "matrix"


def test_bitnet_layers():
    bitnet = pytest.importorskip("transformers.integrations.bitnet", reason="transformers without BitNet")
    model = bridge("llama")
    for of in ("mlp.in", "mlp.out", "attn.o"):
        module = layer(model, of)
        new = bitnet.AutoBitLinear(
            module.in_features, module.out_features, bias=False, dtype=torch.float64, online_quant=True
        )
        new.to(torch.float64).weight = module.weight
        parent, _, step = of.rpartition(".")
        component = model.blocks[0].get_submodule(parent)._modules[step]
        component._modules["_original_component"] = new
    sites, _ = holds(model, tolerance=1e-6)  # its quantiser computes in float32
    assert sites["blocks.0.mlp.W_out"].kind in ("matrix", "parameter")


@pytest.mark.parametrize(
    "make",
    [
        parametrizations.weight_norm,
        lambda m, a: prune.random_unstructured(m, a, 0.3),
        lambda m, a: parametrize.register_parametrization(m, a, Squashed()),
    ],
)
def test_edits_and_readings_of_functions_are_refused(make):
    model = bridge("llama")
    module = layer(model, "mlp.out")
    make(module, "weight")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edit = Edit(model, {"blocks.0.mlp.W_out": Update(torch.ones(1, 40).double(), torch.ones(1, 24).double())})
    with pytest.raises(
        ValueError, match="^Expected a weight that an edit can write, got blocks.0.mlp.W_out, which is used as"
    ):
        edit.apply()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(
        ValueError, match="^Expected a weight that is used as it is stored, got blocks.0.mlp.W_out, of which"
    ):
        tlb.project_parameter(model, "W_out", layer=0)
    tlb.project_parameter(model, "W_out", layer=1)


def test_edits_of_experts_are_refused():
    model = bridge("mixtral")
    name = next(name for name, site in tlb.weight_sites(model).items() if site.layout.experts)
    edit = Edit(model, {name: Update(torch.ones(1, 24).double(), torch.ones(1, 40).double())})
    with pytest.raises(ValueError, match="^Expected a weight that an edit can write, .* one matrix for each expert"):
        edit.apply()


def test_hook_points_of_computed_matrices_fire():
    model = bridge("llama")
    parametrizations.weight_norm(layer(model, "mlp.out"), "weight")
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    tlb.extend(model)
    seen = []
    try:
        with model.hooks(
            bwd_hooks=[("blocks.0.mlp.hook_W_out_out", lambda gradient, hook: seen.append(gradient.clone()))]
        ):
            tlb.next_token_loss(model(TOKENS, return_type="logits"), TOKENS).backward()
    finally:
        tlb.unextend(model)
    torch.testing.assert_close(seen[0], cache.factors["W_out", 0].deltas)


@needs_hooked
@pytest.mark.parametrize(
    "where", ["mlp.W_in", "attn.W_O", "attn.W_Q", "ln1.w", "unembed.W_U", "embed.W_E", "mlp.b_out"]
)
@pytest.mark.parametrize("family", ["ln", "rms_gated"])
def test_parametrized_hooked_transformer(family, where):
    model = hooked(family)
    path, attribute = where.split(".")
    module = model.get_submodule(path if path in ("embed", "unembed") else f"blocks.0.{path}")
    parametrize.register_parametrization(module, attribute, Squashed())
    holds(model)


@needs_hooked
@pytest.mark.parametrize("made", ["weight_norm", "prune", "own mlp", "own norm"])
def test_hooked_transformers_whose_modules_are_not_its_own(made):
    model = hooked("ln")
    mlp, norm = model.blocks[0].mlp, model.blocks[0].ln1
    if made == "weight_norm":
        parametrizations.weight_norm(mlp, "W_in")
    elif made == "prune":
        prune.random_unstructured(mlp, "W_in", 0.3)
    elif made == "own mlp":

        class Mlp(type(mlp)):
            def forward(self, x):
                return super().forward(x) + x @ self.W_in @ self.W_out

        mlp.__class__ = Mlp
    else:

        class Norm(type(norm)):
            def forward(self, x):
                return (x - x.mean(-1, keepdim=True)) * (1 + self.w) + self.b

        norm.__class__ = Norm
    model.double()
    sites, cache = holds(model)
    if made == "weight_norm":
        assert len(sites["blocks.0.mlp.W_in"].roots) == 2
        assert tlb.backward_lens(model, "w3 w4", "w5").loss > 0


def test_the_check_can_fail():
    """The oracle sees a weight that is captured wrongly."""
    model = bridge("llama")
    _, gradients = autograd(model)
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    found = cache.factors["W_in", 0].gradient("parameter")
    site = tlb.weight_sites(model)["blocks.0.mlp.W_in"]
    layer(model, "mlp.in").__class__ = Rounded
    _, other = autograd(model)
    assert not torch.allclose(found, other[id(site.parameter)]) and torch.allclose(found, gradients[id(site.parameter)])
