"""What is remembered of a model's weights: for as long as it holds, and not a moment longer than the model lives."""

import gc
import weakref

import pytest
import torch
from models import build, worlds
from torch import nn

import tl_backward as tlb
from tl_backward.model.stamp import Stamp as stamp
from tl_backward.weights import weight_sites

every_world = pytest.mark.parametrize("world", worlds())


def a_matrix(model):
    """A module with a matrix, its name, and the matrix."""
    for module in (model, getattr(model, "original_model", model)):
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.ndim == 2:
                    return part, name, parameter
    raise AssertionError("no matrix")


def replace_parameter(model):
    """Another parameter in the place of one."""
    part, name, parameter = a_matrix(model)
    setattr(part, name, nn.Parameter(parameter.detach().clone()))


def replace_module(model):
    """A further module."""
    a_matrix(model)[0].add_module("extra", nn.Linear(2, 2))


def cast_one(model):
    """One parameter in another data type, which others have too."""
    _, _, parameter = a_matrix(model)
    other = next(p for p in model.parameters() if p is not parameter)
    other.data = other.data.float()
    known = stamp(model)
    parameter.data = parameter.data.float()
    assert stamp(model) != known


def compute_a_weight(model):
    """A weight that is computed from parameters."""
    part, name, _ = a_matrix(model)
    torch.nn.utils.parametrize.register_parametrization(part, name, nn.Identity())


def own_forward(model):
    """A method of the module's own."""
    part, _, _ = a_matrix(model)
    part.forward = part.forward


CHANGES = {
    "a parameter replaced": replace_parameter,
    "a module added": replace_module,
    "another data type": lambda model: model.float(),
    "another data type of one": cast_one,
    "training": lambda model: model.train(),
    "a part in training": lambda model: a_matrix(model)[0].train(),
    "a flag": lambda model: setattr(model.cfg, "use_attn_in", not getattr(model.cfg, "use_attn_in", False)),
    "a parametrization": compute_a_weight,
    "a method replaced": own_forward,
}


@every_world
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(world, change):
    model = build(world).eval()
    before = stamp(model)
    CHANGES[change](model)
    assert stamp(model) != before


@every_world
def test_compatibility_mode_is_noticed(world):
    model = build(world)
    if not hasattr(model, "enable_compatibility_mode"):
        pytest.skip("a HookedTransformer has no such mode")
    before = stamp(model)
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert stamp(model) != before


@every_world
def test_what_changes_nothing_lets_the_sites_be(world):
    """A capture, a frozen parameter, a gradient, a step, a hook: learnt once."""
    model = build(world)
    known, tokens = stamp(model), torch.arange(4)[None]
    weight_sites(model)
    tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss)
    model.requires_grad_(False).requires_grad_(True)
    tlb.next_token_loss(model(tokens), tokens).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    model.add_hook(next(iter(model.hook_dict)), lambda value, hook: value)
    assert stamp(model) == known


def hold(model):
    """A hook at each hook point that holds the model."""
    for point in model.hook_dict.values():
        point.register_forward_hook(lambda module, args, output: model.cfg and None)


@every_world
@pytest.mark.parametrize("hooked", [False, True])
def test_what_is_remembered_keeps_no_model_alive(world, hooked):
    """Also where hooks on the places that weights read hold the model."""
    model = build(world)
    if hooked:
        hold(model)
    tlb.run_with_gradient_cache(model, torch.arange(4)[None], tlb.next_token_loss)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
