"""Low-rank adapters: PEFT's where it is installed, and one of our own that works alike."""

import warnings

import pytest
import torch
from models import BRIDGED, TOKENS, bridge, randomise, tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from unusual import autograd, holds

import tl_backward as tlb
from tl_backward.model.checks import AdapterWarning


class Adapted(nn.Module):
    """W x + s B A x, as PEFT computes it."""

    def __init__(self, base_layer, rank=3, scaling=1.5):
        super().__init__()
        conv = not isinstance(base_layer, nn.Linear)
        d_in, d_out = base_layer.weight.shape if conv else base_layer.weight.shape[::-1]
        self.base_layer, self.scaling, self.merged = base_layer, scaling, False
        self.lora_A = nn.ModuleDict({"default": nn.Linear(d_in, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, d_out, bias=False)})
        self.dropout = nn.Dropout(0.3)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        added = self.lora_B["default"](self.lora_A["default"](self.dropout(x)))
        return self.base_layer(x) + self.scaling * added


class AddedBefore(nn.Linear):
    """(W + B A) x: what is added is added to the weight."""

    def forward(self, x):
        return F.linear(x, self.weight + 0.5 * self.lora_B @ self.lora_A, self.bias)


def boot(family, inner):
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        BRIDGED[family][0], hf_model=inner, tokenizer=tokenizer(), device="cpu", dtype=torch.float64
    )
    return model.eval()


def hugging_face(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(BRIDGED[family][1], attn_implementation="eager").double().eval()


def adapted(family, *targets, make=Adapted):
    inner = hugging_face(family)
    for module in list(inner.modules()):
        for step, child in list(module._modules.items()):
            if step in targets:
                module._modules[step] = make(child).double()
    randomise(inner)
    return boot(family, inner.eval())


@pytest.mark.parametrize(
    "family,targets", [("llama", ("q_proj", "o_proj", "up_proj", "down_proj")), ("gpt2", ("c_fc",))]
)
def test_every_matrix_of_an_adapted_model(family, targets):
    model = adapted(family, *targets)
    sites, cache = holds(model)
    assert sites["blocks.0.mlp.W_in"].is_adapted and sites["blocks.0.mlp.W_in"].kind == "matrix"
    assert {"blocks.0.mlp.in.W_lora_A", "blocks.0.mlp.in.W_lora_B"} <= set(sites)
    assert not sites.missing
    lens = tlb.backward_lens(model, "w3 w4", "w5")
    assert lens.shift[0].top_ids.shape[0] == 3
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights="W_in")
    assert set(dict(cache.factors.items())) >= {"blocks.0.mlp.W_in"}
    with pytest.raises(
        ValueError, match="^Expected a weight that is all the model multiplies by, got blocks.0.mlp.W_in, to "
    ):
        tlb.project_parameter(model, "W_in", layer=0)


def test_the_sum_of_both_has_the_gradient_of_the_base():
    model = adapted("llama", "up_proj")
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights="W_in")
    module = model.blocks[0].get_submodule("mlp.in").original_component
    a, b = (module.lora_A["default"].weight, module.lora_B["default"].weight)
    merged = (module.base_layer.weight + module.scaling * b @ a).detach().requires_grad_(True)
    module.forward = lambda x: F.linear(x, merged)
    loss = tlb.next_token_loss(model(TOKENS, return_type="logits"), TOKENS)
    expected = torch.autograd.grad(loss, merged)[0]
    torch.testing.assert_close(cache.factors["W_in", 0].gradient("parameter"), expected, rtol=1e-9, atol=1e-13)


def test_dropout_of_an_adapter_in_training_mode():
    model = adapted("llama", "up_proj", "q_proj").train()
    sites = tlb.weight_sites(model)
    torch.manual_seed(5)
    value, gradients = autograd(model)
    torch.manual_seed(5)
    found, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=lambda name: "lora" in name)
    assert torch.equal(value, found) and len(cache.factors) == 8
    for name in cache.factors:
        expected = gradients[id(sites[name].parameter)]
        torch.testing.assert_close(cache.factors[name].gradient("parameter"), expected, rtol=1e-9, atol=1e-13)


def test_a_low_rank_update_that_is_added_to_the_weight():
    model = bridge("llama")
    module = model.blocks[0].get_submodule("mlp.in").original_component
    module.__class__ = AddedBefore
    module.lora_A = nn.Parameter(torch.randn(2, 24, dtype=torch.float64))
    module.lora_B = nn.Parameter(torch.randn(40, 2, dtype=torch.float64))
    sites, cache = holds(model)
    site = sites["blocks.0.mlp.W_in"]
    assert site.kind == "matrix" and site.parameter is module.weight and len(site.roots) == 3
    assert sites["blocks.0.mlp.in.lora_A"].kind == "parameter"


@pytest.mark.parametrize("family,target", [("gpt2", "c_attn"), ("neox", "query_key_value")])
def test_adapters_that_transformer_lens_loses_are_said(family, target):
    model = adapted(family, target)
    said = r"^Expected every adapter to take part in the pass, got none of '.*attn.*|.*attention.*' \(weights.test_adapters.Adapted\) and 1"
    with pytest.warns(AdapterWarning, match=said):
        sites = tlb.weight_sites(model)
    assert sites.missing["blocks.0.attn.qkv.W_lora_A"] == "did not run in this pass."


def test_merged_adapters_are_not_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        tlb.weight_sites(adapted("llama", "up_proj"))


# PEFT itself, where it is installed: it is none of what the tests need.


def peft_model(family, targets, second=False, **options):
    peft = pytest.importorskip("peft", reason="PEFT is not installed: its own layers are not tested")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(hugging_face(family), config)
    if second:
        more = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], init_lora_weights=False)
        wrapped.add_adapter("second", more)
    wrapped.double().eval()
    randomise(wrapped)
    return boot(family, wrapped.base_model.model), wrapped


@pytest.mark.parametrize(
    "family,targets,options",
    [
        ("llama", ["q_proj", "o_proj", "up_proj", "down_proj"], {}),
        ("llama", ["q_proj", "up_proj"], {"lora_dropout": 0.2}),
        ("llama", ["q_proj", "up_proj"], {"use_dora": True}),
        ("llama", ["lm_head", "embed_tokens"], {}),
        ("gpt2", ["c_fc"], {"fan_in_fan_out": True}),
        ("neox", ["dense_h_to_4h"], {}),
    ],
)
def test_peft(family, targets, options):
    model, _ = peft_model(family, targets, **options)
    sites, _ = holds(model)
    assert not any("lora" in name for name in sites.missing) and any("lora" in name for name in sites)


def test_several_adapters_of_peft():
    model, wrapped = peft_model("llama", ["q_proj", "up_proj"], second=True)
    sites, _ = holds(model)
    assert sites.missing["blocks.0.attn.q.lora_A.W_second"] == "did not run in this pass."
    wrapped.base_model.set_adapter(["default", "second"])
    sites, _ = holds(model)
    assert not sites.missing and {"blocks.0.attn.q.lora_A.W_second", "blocks.0.attn.q.W_lora_A"} <= set(sites)
    wrapped.base_model.disable_adapter_layers()
    sites, _ = holds(model)
    assert not any("lora" in name for name in sites) and not sites["blocks.0.attn.W_Q"].is_adapted
    tlb.project_parameter(model, "W_in", layer=0)
