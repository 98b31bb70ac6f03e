"""Quantised weights have no gradient: they are said to have none, and all else is captured."""

import pytest
import torch
from models import BRIDGED, TOKENS, bridge, tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from unusual import holds

import tl_backward as tlb

WHY = "a quantised weight, which has no gradient"


class Packed(torch.Tensor):
    """A tensor subclass that keeps int8 numbers and knows one operation, as torchao's do."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype, device=codes.device)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return Packed(inner["codes"], inner["scale"])

    def __repr__(self):
        return f"Packed({list(self.shape)})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
            return F.linear(x, weight.codes.to(x.dtype) * weight.scale, bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return type(args[0])(args[0].codes, args[0].scale)
        raise NotImplementedError(f"Packed dispatch: {func}")


class PackedWithActivations(Packed):
    """The same with activations that are rounded too, as torchao's: the product is one of integers."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            with torch.no_grad():
                return super().__torch_function__(func, types, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)


class Packed8(nn.Parameter):
    """Codes in a parameter of a class of its own, as bitsandbytes's."""

    def __new__(cls, codes):
        return torch.Tensor._make_subclass(cls, codes, False)


def pack(module, kind=Packed):
    weight = module.weight.detach()
    scale = weight.abs().max() / 127
    module.weight = nn.Parameter(kind((weight / scale).round().to(torch.int8), scale), requires_grad=False)


class Linear8(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def pack8(module):
    weight = module.weight.detach()
    module.scale = weight.abs().max() / 127
    module.weight = Packed8((weight / module.scale).round().to(torch.int8))
    module.__class__ = Linear8


def pack_with_activations(module):
    pack(module, PackedWithActivations)


def whole(change, dtype=torch.float64):
    """A Bridge around a Llama that is changed before."""
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(BRIDGED["llama"][1], attn_implementation="eager").to(dtype).eval()
    return TransformerBridge.boot_transformers(
        BRIDGED["llama"][0], hf_model=change(inner), tokenizer=tokenizer(), device="cpu", dtype=dtype
    ).eval()


def quantised(how, of):
    """A Bridge whose linear layers of these names are quantised, and the rest are not."""

    def inside(inner):
        for name, module in inner.named_modules():
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1].endswith(of):
                how(module)
        return inner

    return whole(inside)


EVERY = {"pack": ("_proj", "lm_head"), "pack8": ("_proj",)}  # TransformerLens 3.9 gives lm_head a bias of its dtype
HALF = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("how", [pack, pack8])
def test_half_of_a_model(how):
    model = quantised(how, HALF)
    sites, cache = holds(model)
    assert sites.missing["blocks.0.mlp.W_in"] == f"{WHY}."
    rows = cache.account().set_index("parameter")["reason"]
    assert sum(reason == WHY for reason in rows) == 6
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    assert sorted(name.rsplit(".", 1)[1] for name in dict(cache.factors.items())) == sorted(
        "W_Q W_K W_V W_O".split() * 2
    )
    assert cache.left_out().startswith("captured ") and cache.left_out().endswith(f"because: {WHY}")


@pytest.mark.parametrize("how", [pack, pack8])
def test_a_whole_model(how):
    model = quantised(how, EVERY[how.__name__])
    with pytest.raises(
        ValueError, match=rf"^Expected a model with a matrix whose gradient can be captured, got none \(.*{WHY}\)"
    ):
        tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    for weight in ("W_Q", *(["W_U"] if how is pack else []), "blocks.0.mlp.W_out"):
        with pytest.raises(ValueError, match=f"^Expected a weight that can be captured, got '{weight}': {WHY}"):
            tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=weight)
    for ask in (
        lambda: tlb.backward_lens(model, "w3 w4", "w5"),
        lambda: tlb.shift_edit(model, "w3 w4", "w5", layer=0),
        lambda: tlb.sweep(model, ["w3 w4"], losses=[tlb.target_loss("w5")], show_progress=False),
        lambda: tlb.project_parameter(model, "W_in", layer=0),
    ):
        with pytest.raises(ValueError, match=f"^Expected .*{WHY}"):
            ask()
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=[])
    assert cache["blocks.0.hook_resid_post"].any()


def test_layers_that_no_gradient_passes_through():
    """Autograd's gradients would be those of the residual stream around them, without a word."""
    model = quantised(pack_with_activations, HALF)
    sites = tlb.weight_sites(model)
    assert sites.missing["blocks.0.mlp.W_in"] == "a quantised weight, whose layer lets no gradient through."
    assert sorted(sites.missing) == [f"blocks.{i}.mlp.{name}" for i in range(2) for name in ("W_gate", "W_in", "W_out")]
    for ask in (
        lambda: tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss),
        lambda: tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=[]),
        lambda: tlb.gradient_similarity(model, ["w3 w4", "w5 w6"], weights="W_Q", show_progress=False),
        lambda: tlb.training.watch(model, "W_Q"),
    ):
        with pytest.raises(ValueError, match=r"got a quantised one at blocks\.0\.mlp\.W_gate whose output has none"):
            ask()
    assert tlb.readout(model, torch.ones(model.cfg.d_model, dtype=torch.float64)).top_tokens  # no gradient is needed
    assert not any(module._forward_hooks for module in model.original_model.modules())


def test_layers_of_pytorch_that_no_gradient_passes_through():
    """Their weights are no parameters: they are known by their classes, and called by their paths."""

    def inside(inner):
        asked = {name for name, _ in inner.named_modules() if name.endswith(HALF)}
        return torch.ao.quantization.quantize_dynamic(inner.float(), asked, dtype=torch.qint8)

    model = whole(inside, torch.float32)
    names = [f"layers.{i}.mlp.{name}.weight" for i in range(2) for name in HALF]
    missing = tlb.weight_sites(model).missing
    assert len(missing) == 6 and all(any(each.endswith(name) for each in missing) for name in names)
    with pytest.raises(ValueError, match=r"got a quantised one at .*mlp\.\w+_proj\.weight whose output has none"):
        tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)


class Chooses(nn.Module):
    """Multiplies by one of three numbers, which a quantised layer chooses."""

    def __init__(self, d):
        super().__init__()
        self.among = nn.Linear(d, 3, bias=False).double()
        self.chosen = Chosen(self.among)

    def forward(self, x):
        return F.silu(x) * torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype)[self.chosen(x)][..., None]


class Chosen(nn.Module):
    """Indices, which have no gradient whatever they are computed with."""

    def __init__(self, linear):
        super().__init__()
        pack(linear)
        self.weight = linear.weight

    def forward(self, x):
        return F.linear(x, self.weight).argmax(-1)


def test_a_quantised_layer_that_chooses_lets_gradients_pass():
    def inside(inner):
        for layer in inner.model.layers:
            layer.mlp.act_fn = Chooses(inner.config.intermediate_size)
        return inner

    model = whole(inside, torch.float64)
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    loss = tlb.next_token_loss(model(TOKENS), TOKENS)
    name = "blocks.0.mlp.W_in"
    (expected,) = torch.autograd.grad(loss, tlb.weight_sites(model)[name].parameter)
    torch.testing.assert_close(cache.factors[name].gradient(), expected.T)


def test_gradients_at_hook_points_are_those_of_the_model_in_full_numbers():
    model, full = quantised(pack, HALF), quantised(lambda module: None, HALF)
    for block in range(2):
        for of in ("mlp.in", "mlp.gate", "mlp.out"):
            packed = model.blocks[block].get_submodule(of).original_component.weight
            target = full.blocks[block].get_submodule(of).original_component.weight
            target.data.copy_(packed.codes.double() * packed.scale)
    _, found = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    _, expected = tlb.run_with_gradient_cache(full, TOKENS, tlb.next_token_loss)
    for name in ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z"):
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(found.factors["W_Q", 0].gradient(), expected.factors["W_Q", 0].gradient())


def test_plain_integers_are_not_called_quantised():
    model = bridge("llama")
    layer = model.blocks[0].get_submodule("mlp.in").original_component
    layer.counts = nn.Parameter(torch.arange(3), requires_grad=False)
    reasons = set(tlb.weight_sites(model).account()["reason"])
    assert reasons == {"", "not a floating-point parameter"}
