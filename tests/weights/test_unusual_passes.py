"""Passes that are not as usual: checkpointed, compiled, overwritten in place, through TransformerLens's flags."""

import pytest
import torch
from models import TOKENS, bridge, build, worlds
from torch import nn
from unusual import autograd, holds

import tl_backward as tlb

every_world = pytest.mark.parametrize("world", worlds())


def checkpointing(family, use_reentrant):
    """A model in training mode that computes its blocks anew in the backward pass."""
    model = bridge(family)
    model.original_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.train()
    model.original_model.train()
    for module in model.original_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_checkpointing(family):
    model, plain = checkpointing(family, False), bridge(family)
    holds(model)
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    _, expected = tlb.run_with_gradient_cache(plain, TOKENS, tlb.next_token_loss)
    assert set(cache) == set(expected) and set(cache.factors) == set(expected.factors)
    for name in expected:
        torch.testing.assert_close(cache[name], expected[name], rtol=1e-9, atol=1e-12)
    lens, same = (tlb.backward_lens(each, "w3 w4", "w5") for each in (model, plain))
    torch.testing.assert_close(lens.shift[0].top_values, same.shift[0].top_values)
    with tlb.shift_edit(model, "w3 w4", "w5", layer=0):
        pass
    kernels = [tlb.gradient_similarity(each, ["w3 w4", "w5 w6"], show_progress=False) for each in (model, plain)]
    torch.testing.assert_close(*(kernel.inner for kernel in kernels))
    quiet = dict(control=None, show_progress=False)
    swept, of_plain = (
        tlb.sweep(each, ["w3 w4", "w5 w6 w7"], ["w5", "w8"], batch_size=2, **quiet) for each in (model, plain)
    )
    for quantity, values in of_plain.values.items():
        torch.testing.assert_close(swept.values[quantity], values, equal_nan=True)
    edit, other = (tlb.gradient_edit(each, "w3 w4", "w5", lr=0.05, steps=2) for each in (model, plain))
    for name, update in other.updates.items():
        torch.testing.assert_close(edit.updates[name].x.T @ edit.updates[name].v, update.x.T @ update.v)
    scored = [tlb.evaluate_edit(each, None, tlb.EditCase("w3 w4", "w5")) for each in (model, plain)]
    assert scored[0].efficacy == scored[1].efficacy


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_reentrant_checkpointing_is_refused(family):
    model = checkpointing(family, True)
    said = r"^Expected gradients that autograd can be asked for, got reentrant gradient checkpointing of .*; switch to "
    for ask in (
        lambda: tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss),
        lambda: tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=[]),
        lambda: tlb.backward_lens(model, "w3 w4", "w5"),
        lambda: tlb.sweep(model, ["w3 w4"], losses=[tlb.target_loss("w5")], show_progress=False),
        lambda: tlb.shift_edit(model, "w3 w4", "w5", layer=0),
        lambda: tlb.gradient_edit(model, "w3 w4", "w5", lr=0.05),
        lambda: tlb.gradient_similarity(model, ["w3 w4"], show_progress=False),
    ):
        with pytest.raises(RuntimeError, match=said):
            ask()
    model.eval()
    model.original_model.eval()
    holds(model)


def compiled_in_place(model):
    model.original_model.compile()


def compiled_inside(model):
    model.original_model.get_submodule("model").compile()


def compiled_layer(model):
    model.original_model.model.layers[1] = torch.compile(model.original_model.model.layers[1])


def compiled_forward(model):
    mlp = model.original_model.model.layers[1].mlp
    mlp.forward = torch.compile(mlp.forward)


@pytest.mark.parametrize("how", [compiled_in_place, compiled_inside, compiled_layer, compiled_forward])
def test_compiled_models_are_refused(how):
    model = bridge("llama")
    how(model)
    for ask in (
        lambda: tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss),
        lambda: tlb.backward_lens(model, "w3 w4", "w5"),
    ):
        with pytest.raises(
            TypeError, match=r"^Expected an uncompiled model, got one whose .* was compiled with torch.comp"
        ):
            ask()


PLACES = {
    "hooked": ["hook_embed", "blocks.0.hook_resid_post", "blocks.0.attn.hook_q", "blocks.0.attn.hook_z",
               "blocks.0.mlp.hook_post", "blocks.0.hook_mlp_out", "ln_final.hook_normalized"],
    "bridge": ["embed.hook_out", "blocks.0.hook_resid_post", "blocks.0.attn.hook_q", "blocks.0.attn.hook_z",
               "blocks.0.mlp.hook_post", "blocks.0.hook_mlp_out", "ln_final.hook_out"],
}  # fmt: skip


@every_world
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("number", range(7))
def test_hooks_that_change_in_place(world, number, part):
    """Factors are those of the changed pass; only the gradients at what was overwritten are left out, and named."""
    point = PLACES[world][number]

    def change(x, hook):
        (x[:, :1] if part else x).mul_(0.5)

    def out_of_place(x, hook):
        return torch.cat([x[:, :1] * 0.5, x[:, 1:]], 1) if part else x * 0.5

    model = build(world)
    holds(model, hooks=[(point, change)])
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=[(point, change)])
    _, expected = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=[(point, out_of_place)])
    assert set(cache.factors) == set(expected.factors)
    for name in cache.factors:
        torch.testing.assert_close(cache.factors[name].gradient(), expected.factors[name].gradient())
    for name in expected:
        if name in cache:
            torch.testing.assert_close(cache[name], expected[name], msg=name)
        else:
            assert "overwritten in place" in cache.missing[name]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "neox"])
@pytest.mark.parametrize("flag", ["use_attn_result", "use_split_qkv_input", "use_attn_in"])
def test_flags(family, flag):
    """Grouped keys with an input a head among them."""
    model = bridge(family)
    getattr(model, f"set_{flag}")(True)
    model(TOKENS)
    holds(model)


def test_points_beside_the_path_say_so():
    model = bridge("llama")
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    assert cache.missing["blocks.0.ln1.hook_normalized"] == (
        "no gradient flows through it: TransformerLens computes it beside the model's own path, with autograd off."
    )
    assert cache.missing["embed.hook_in"] == "what passes there is no floating-point tensor."
    assert cache.missing["blocks.0.attn.hook_result"] == "it did not run in this pass."


def test_the_oracle_sees_hooks():
    model = bridge("llama")
    _, plain = autograd(model)
    _, hooked = autograd(model, hooks=[("blocks.0.hook_resid_post", lambda x, hook: x * 2)])
    assert any(not torch.equal(plain[key], hooked[key]) for key in plain if plain[key] is not None)


class Switched(nn.Module):
    """A linear layer that uses its weight, or twice it, as a flag says."""

    def __init__(self, linear, flag):
        super().__init__()
        self.weight = linear.weight
        if isinstance(flag, torch.Tensor):
            self.register_buffer("doubled", flag)
        else:
            self.doubled = flag

    def forward(self, x):
        return nn.functional.linear(x, 2 * self.weight if self.doubled else self.weight)


@pytest.mark.parametrize("flag", [False, torch.tensor(0)], ids=["attribute", "buffer"])
def test_a_module_that_begins_to_use_a_function_of_its_weight(flag):
    model = bridge("llama")
    component = model.blocks[0].get_submodule("mlp.in")
    component._modules["_original_component"] = switched = Switched(component.original_component, flag)
    for doubled in (False, True, False, True):
        if isinstance(flag, torch.Tensor):
            switched.doubled.fill_(doubled)
        else:
            switched.doubled = doubled
        sites, _ = holds(model)
        assert "blocks.0.mlp.W_in" in sites


def test_a_class_that_is_patched(monkeypatch):
    model = bridge("llama")
    holds(model)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: nn.functional.linear(x, 3 * self.weight, self.bias))
    holds(model)
    monkeypatch.undo()
    holds(model)


def test_parameters_cut_in_place():
    model = bridge("llama")
    holds(model)
    for name in ("mlp.gate", "mlp.in", "mlp.out"):
        weight = model.blocks[0].get_submodule(name).original_component.weight
        weight.data = weight.data[:, :30] if name == "mlp.out" else weight.data[:30]
    holds(model)
