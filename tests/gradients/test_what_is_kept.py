"""What is learnt of a model is kept between passes: after every kind of change, captures are those of the changed model.

Each change comes after a capture that has learnt the model, and the next capture is held against autograd.
"""

import copy
import gc
import random
import weakref

import pytest
import torch
from models import TOKENS, bridge, hooked, worlds
from torch import nn
from torch.nn.utils import parametrize, prune
from unusual import holds
from weights.test_adapters import Adapted, AddedBefore

import tl_backward as tlb
from gradients.test_capture import let_autograd_see

every_world = pytest.mark.parametrize("world", worlds())
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


def built(world):
    """Without dropout, which draws in training mode."""
    return hooked() if world == "hooked" else bridge(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)


def matrices(model):
    """(module, name) of each block's last matrix: W_out."""
    if hasattr(model, "original_model"):
        return [(block.get_submodule("mlp.out").original_component, "weight") for block in model.blocks]
    return [(block.mlp, "W_out") for block in model.blocks]


def replace_parameter(model):
    module, name = matrices(model)[0]
    if name in module._parameters:  # else it is computed just now
        setattr(module, name, nn.Parameter(1.5 * getattr(module, name).detach()))


def replace_data(model):
    module, name = matrices(model)[0]
    if name in module._parameters:
        getattr(module, name).data = 1.5 * getattr(module, name).data


def tie(model):
    (first, name), (second, _) = matrices(model)
    if name in first._parameters and name in second._parameters:
        setattr(second, name, getattr(first, name))


def untie(model):
    for module, name in matrices(model):
        if name in module._parameters:
            setattr(module, name, nn.Parameter(getattr(module, name).detach().clone()))


def replace_module(model):
    model.blocks[0].mlp = copy.deepcopy(model.blocks[0].mlp)
    if hasattr(model, "original_model"):
        model.original_model.transformer.h[0]._modules["mlp"] = model.blocks[0].mlp


def freeze(model):
    model.requires_grad_(False)


def freeze_some(model):
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)


def train(model):
    model.train()


def train_a_part(model):
    model.blocks[0].mlp.train()


def evaluate(model):
    model.eval()


def computed(model):
    """The matrix is computed from a parameter."""
    module, name = matrices(model)[0]
    if not parametrize.is_parametrized(module, name):
        parametrize.register_parametrization(module, name, Tripled())


class Tripled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 3 * weight


def stored_again(model):
    module, name = matrices(model)[0]
    if parametrize.is_parametrized(module, name):
        parametrize.remove_parametrizations(module, name)


def pruned(model):
    module, name = matrices(model)[1]
    if name in module._parameters or name + "_orig" in module._parameters:
        prune.random_unstructured(module, name, 0.3)


def pruned_for_good(model):
    module, name = matrices(model)[1]
    if name + "_orig" in module._parameters:
        prune.remove(module, name)


def own_forward(model):
    """Each time another function: that of before is gone, and its place in memory may be taken by the next."""
    mlp = model.blocks[1].mlp
    mlp.__dict__.pop("forward", None)
    gc.collect()
    inner, factor = mlp.forward, torch.rand(()).double()
    object.__setattr__(mlp, "forward", lambda *args, **kwargs: factor * inner(*args, **kwargs))


def no_own_forward(model):
    model.blocks[1].mlp.__dict__.pop("forward", None)


def hook_of_a_module(model):
    """As before, of torch's hooks."""
    factor, module = torch.rand(()).double(), model.blocks[1].mlp
    for key, hook in list(module._forward_hooks.items()):
        if getattr(hook, "__name__", "") == "scaled":
            del module._forward_hooks[key]

    def scaled(module, args, output):
        return factor * output

    module.register_forward_hook(scaled)


def hooks_of_points(model):
    model.add_hook(
        "blocks.0.hook_resid_post" if "blocks.0.hook_resid_post" in model.hook_dict else "blocks.0.hook_out", scale
    )


def scale(tensor, hook):
    return 1.3 * tensor


def no_hooks(model):
    model.reset_hooks()


def extended(model):
    tlb.extend(model)


def unextended(model):
    tlb.unextend(model)


def turn(flag):
    def change(model):
        new = not getattr(model.cfg, flag, False)
        others = {"use_attn_in": "use_split_qkv_input", "use_split_qkv_input": "use_attn_in"}
        for name, value in ((others.get(flag), False), (flag, new)):
            if name is not None:
                setter = getattr(model, f"set_{name}", None)
                setattr(model.cfg, name, value) if setter is None else setter(value)

    change.__name__ = f"turn_{flag}"
    return change


CHANGES = [
    replace_parameter, replace_data, tie, untie, replace_module, freeze, freeze_some, train, train_a_part, evaluate, computed,
    stored_again, pruned, pruned_for_good, own_forward, no_own_forward, hook_of_a_module, hooks_of_points, no_hooks, extended,
    unextended, *map(turn, FLAGS),
]  # fmt: skip


@every_world
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_and_the_next_one(world, change):
    model = built(world)
    for _ in range(3):
        holds(model)
        change(model)
    holds(model)


@every_world
@pytest.mark.parametrize("seed", range(6))
def test_changes_in_any_order(world, seed):
    model, choose = built(world), random.Random(seed)
    torch.manual_seed(seed)
    order = [choose.choice(CHANGES) for _ in range(8)]
    for change in order:
        change(model)
        holds(model)


@every_world
def test_a_cast(world):
    model = built(world)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)) * 2:
        model.to(dtype)
        _, cache = holds(model, tolerance=tolerance)
        assert {factors.deltas.dtype for factors in cache.factors.values()} == {dtype}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_compatibility_mode(family):
    model = bridge(family)
    holds(model)
    model.enable_compatibility_mode(disable_warnings=True)
    for parameter in model.original_model.parameters():  # it adds biases in float32 whatever the dtype
        parameter.data = parameter.data.to(torch.float64)
    let_autograd_see(model)
    holds(model)
    cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)[1]
    assert {*cache} | set(cache.missing) >= {*model.hook_dict} and len(cache) > 50


def test_adapters_put_on_switched_off_and_taken_off():
    model = bridge("llama")
    component = model.blocks[0].get_submodule("mlp.in")
    plain, (sites, _) = component.original_component, holds(model)
    adapted = Adapted(plain).double().eval()
    nn.init.normal_(adapted.lora_B["default"].weight)
    component._modules["_original_component"] = adapted
    more, cache = holds(model)
    assert more["blocks.0.mlp.W_in"].is_adapted and more.keys() > sites.keys()
    assert "blocks.0.mlp.in.W_lora_A" in cache.factors
    adapted.forward = plain.forward
    less, _ = holds(model)
    assert not less["blocks.0.mlp.W_in"].is_adapted and less.missing.keys() == more.keys() - sites.keys()
    del adapted.forward
    assert holds(model)[0].keys() == more.keys()
    component._modules["_original_component"] = plain
    assert holds(model)[0].keys() == sites.keys()


def test_a_layer_of_another_class():
    model = bridge("llama")
    holds(model)
    module = model.blocks[0].get_submodule("mlp.in").original_component
    module.lora_A = nn.Parameter(torch.randn(2, 24, dtype=torch.float64))
    module.lora_B = nn.Parameter(torch.randn(40, 2, dtype=torch.float64))
    assert not holds(model)[0]["blocks.0.mlp.W_in"].roots
    module.__class__ = AddedBefore
    assert len(holds(model)[0]["blocks.0.mlp.W_in"].roots) == 3
    module.__class__ = nn.Linear
    assert not holds(model)[0]["blocks.0.mlp.W_in"].roots


@every_world
def test_what_is_given_may_be_changed(world):
    model = built(world)
    sites = tlb.weight_sites(model)
    names = list(sites)
    sites.clear()
    assert list(tlb.weight_sites(model)) == names


@every_world
def test_another_parameter_in_the_memory_of_one_that_is_gone(world):
    model = built(world)
    module, name = matrices(model)[0]
    for turn in range(5):
        value = (turn + 1.0) * getattr(module, name).detach()
        setattr(module, name, None)
        gc.collect()
        setattr(module, name, nn.Parameter(value))
        holds(model)


@every_world
def test_hook_points_come_and_go(world):
    """With flags, an extension, and compatibility mode."""
    model = built(world)

    def captured():
        cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)[1]
        known = {*cache} | set(cache.missing)
        assert known >= {*model.hook_dict}
        return {*cache}

    plain = captured()
    turn("use_attn_result")(model)
    assert any("hook_result" in name for name in captured() - plain)
    tlb.extend(model)
    assert "blocks.1.mlp.hook_W_out_out" in captured()
    tlb.unextend(model)
    turn("use_attn_result")(model)
    assert captured() == plain


@every_world
def test_a_hook_that_a_hook_adds_in_the_pass(world):
    """Gradients at a hook point are those after all its hooks, those of this pass too."""
    first, later = (
        ("hook_embed", "blocks.1.hook_resid_pre") if world == "hooked" else ("embed.hook_out", "blocks.1.hook_in")
    )
    model = built(world)

    def add(tensor, hook):
        model.hook_dict[later].add_hook(scale)

    options = {"weights": [], "names_filter": [later]}
    found = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=[(first, add)], **options)[1]
    model.reset_hooks()
    for again in range(2):
        expected = tlb.run_with_gradient_cache(
            model, TOKENS, tlb.next_token_loss, fwd_hooks=[(later, scale)], **options
        )[1]
        assert torch.equal(found[later], expected[later]), again


@every_world
def test_a_pass_that_fails_leaves_nothing(world):
    model, struck = built(world), []

    def strike(*args, **kwargs):
        struck.append({type(parameter) for parameter in model.parameters()})
        raise RuntimeError("struck")

    point = "blocks.1.hook_resid_pre" if world == "hooked" else "blocks.1.hook_in"
    tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    for loss, hooks in ((strike, []), (tlb.next_token_loss, [(point, strike)])):
        with pytest.raises(RuntimeError, match="struck"):
            tlb.run_with_gradient_cache(model, TOKENS, loss, fwd_hooks=hooks)
        assert {type(parameter) for parameter in model.parameters()} == {nn.Parameter}
        assert not any("forward" in vars(point) for point in model.hook_dict.values())
    assert len(struck) == 2


@every_world
def test_a_pass_is_freed_at_once(world):
    """Whatever held what the pass recorded is gone when its results are: not when the cycle collector runs."""
    model, seen = built(world), []
    tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)

    def note(tensor, hook):
        seen.append(weakref.ref(tensor))

    gc.collect()
    gc.disable()
    try:
        _, cache = tlb.run_with_gradient_cache(
            model, TOKENS, tlb.next_token_loss, fwd_hooks=[(lambda name: "mlp" in name, note)]
        )
        assert cache.factors
        del cache
        assert seen and not [tensor for tensor in seen if tensor() is not None]
    finally:
        gc.enable()


@every_world
def test_another_shape_at_the_same_place(world):
    """A square matrix whose numbers stay where they are, turned: nothing but its strides tells."""
    model = built(world)
    if world == "hooked":
        module, name = model.blocks[0].attn, "W_Q"
    else:
        module, name = model.blocks[0].get_submodule("attn.o").original_component, "weight"
    for _ in range(2):
        holds(model)
        parameter = getattr(module, name)
        parameter.data = (
            parameter.data.transpose(-1, -2) if parameter.shape[-1] == parameter.shape[-2] else parameter.data
        )
    holds(model)


@every_world
def test_a_loss_that_changes_the_model_when_it_is_bound(world):
    class Changing:
        def bind(self, model, n_examples):
            replace_parameter(model)
            return tlb.next_token_loss

        def __call__(self, logits, tokens):
            raise AssertionError("not bound")

    model, other = built(world), built(world)
    for _ in range(2):
        loss, cache = tlb.run_with_gradient_cache(model, TOKENS, Changing())
        replace_parameter(other)
        expected, wanted = tlb.run_with_gradient_cache(other, TOKENS, tlb.next_token_loss)
        assert loss == expected
        for key, factors in wanted.factors.items():
            torch.testing.assert_close(cache.factors[key].gradient(), factors.gradient())
    holds(model)


@every_world
def test_uses_where_subclasses_are_not_asked(world):
    """A weight is seen whatever its use is wrapped in."""
    model = built(world)
    _, expected = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    inner, mlp = model.blocks[1].mlp.forward, model.blocks[1].mlp

    def forward(*args, **kwargs):
        with torch._C.DisableTorchFunctionSubclass():
            return inner(*args, **kwargs)

    object.__setattr__(mlp, "forward", forward)
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    assert {*cache.factors} == {*expected.factors}
    for key, factors in expected.factors.items():
        assert torch.equal(cache.factors[key].deltas, factors.deltas)


@every_world
def test_weights_in_a_hook_are_what_they_are(world):
    """They may be copied, and made parameters of."""
    model, seen = built(world), []

    def look(tensor, hook):
        module, name = matrices(model)[1]
        weight = getattr(module, name)
        seen.append((type(weight), type(copy.deepcopy(weight)), type(nn.Parameter(weight))))

    point = "blocks.1.hook_resid_pre" if world == "hooked" else "blocks.1.hook_in"
    tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=[(point, look)])
    assert set(seen) == {(nn.Parameter,) * 3}


@pytest.mark.parametrize("how", ["subclass", "patch"])
def test_a_hook_point_that_computes(how, monkeypatch):
    """Its class's own forward is part of the pass, with gradients at hook points and without."""
    if "hooked" not in worlds():
        pytest.skip("NOT RUN: this TransformerLens has no HookedTransformer")
    from transformer_lens.hook_points import HookPoint

    class Scaled(HookPoint):
        def forward(self, x):
            return 2 * x

    model = built("hooked")
    if how == "subclass":
        model.blocks[0].hook_mlp_out = Scaled()
        model.setup()
    else:
        monkeypatch.setattr(HookPoint, "forward", lambda self, x: 1.1 * x)
    expected = tlb.next_token_loss(model(TOKENS), TOKENS)
    for names in (None, []):
        found, _ = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, names_filter=names)
        torch.testing.assert_close(found, expected.detach())
