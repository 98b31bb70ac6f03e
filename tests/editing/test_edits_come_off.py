"""Edits that could not reach the model or come off again are refused before anything is written."""

import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, bridge, build, hooked
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import tl_backward as tlb
from editing.test_editing import PROMPT, TARGET, bits, every_world, same
from tl_backward.editing import (
    Edit,
    LostUpdateWarning,
    Update,
    compare_edits,
    find_layer,
    gradient_edit,
    load_edit,
    rank_one_edit,
    shift_edit,
)
from tl_backward.editing.comparison import shift_method
from tl_backward.text.cases import EditCase

NAME = "blocks.1.mlp.W_out"
CASES = [EditCase(prompt="w5 w6", target="w8"), EditCase(prompt="w7 w6 w5", target="w10")]


class Squashed(nn.Module):
    def forward(self, weight):
        return weight * torch.tanh(weight)


def holder(model):
    """(module, attribute) of the weight NAME."""
    mlp = model.blocks[1].mlp
    return (mlp.out.original_component, "weight") if hasattr(mlp, "out") else (mlp, "W_out")


def made_anew(model, how):
    """Have every pass make the weight NAME anew from a base that stays."""
    module, name = holder(model)
    if how == "parametrization":
        parametrize.register_parametrization(module, name, Squashed())
    elif how == "weight norm":
        parametrizations.weight_norm(module, name)
    else:
        base = getattr(module, name).detach().clone()

        def write(module, args):
            if how == "a new parameter":
                setattr(module, name, nn.Parameter(base * 1.5))
            elif how == "its data":
                getattr(module, name).data = base * 1.5
            else:
                with torch.no_grad():
                    getattr(module, name).copy_(base * 1.5)

        module.register_forward_pre_hook(write)
    model.double().eval()
    model(model.to_tokens(PROMPT))
    return model


@every_world
@pytest.mark.parametrize("how", ["a new parameter", "its data", "in place", "parametrization", "weight norm"])
def test_a_weight_that_is_made_anew_is_refused_before_anything_is_written(world, how, tmp_path):
    plain = build(world)
    edit = shift_edit(plain, PROMPT, TARGET, 1)
    update, path = edit.updates[NAME], edit.save(tmp_path / "edit.safetensors")
    model = made_anew(build(world), how)
    tokens = model.to_tokens(PROMPT)
    before, logits = bits(model), model(tokens).detach()
    loose = Edit(model, {NAME: update})
    attempts = {
        "shift": lambda: shift_edit(model, PROMPT, TARGET, 1),
        "gradient": lambda: gradient_edit(model, PROMPT, TARGET, weights=NAME, steps=2),
        "gradient by default": lambda: gradient_edit(model, PROMPT, TARGET),
        "rank one": lambda: rank_one_edit(model, NAME, update.x[0], update.v[0]),
        "apply": loose.apply,
        "load": lambda: load_edit(model, path),
        "compare": lambda: compare_edits(
            model, CASES, {"shift": shift_method(1, 2.0)}, n_tokens=0, show_progress=False
        ),
        "find": lambda: find_layer(model, PROMPT, TARGET, validation=CASES, layers=[1], show_progress=False),
    }
    for attempt in attempts.values():
        with pytest.raises(ValueError, match=r"Expected a (weight|matrix) .*blocks\.1\.mlp") as refused:
            attempt()
        assert "\n" not in str(refused.value) and not str(refused.value).endswith("..")
        assert same(bits(model), before) and torch.equal(model(tokens), logits)
    assert not loose.is_applied
    with shift_edit(model, PROMPT, TARGET, 0):  # its neighbour is as ever
        assert not torch.equal(model(tokens), logits)
    assert same(bits(model), before) and torch.equal(model(tokens), logits)


@every_world
def test_to_see_whether_a_weight_is_kept_leaves_no_trace(world):
    model = build(world)
    seen, before = [], bits(model)
    versions = [parameter._version for parameter in model.parameters()]
    model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: seen.append(x))
    state = torch.random.get_rng_state()
    rank_one_edit(model, NAME, *(torch.ones(d).double() for d in tlb.weight_sites(model)[NAME].layout.shape))
    assert not seen and same(bits(model), before) and torch.equal(torch.random.get_rng_state(), state)
    assert [parameter._version for parameter in model.parameters()] == versions
    assert all(parameter.grad is None for parameter in model.parameters())
    model.reset_hooks()


@every_world
def test_a_parametrization_that_returns_the_parameter_itself_is_edited(world):
    model = build(world)
    parametrize.register_parametrization(*holder(model), nn.Identity())
    tokens, before = model.to_tokens(PROMPT), bits(model)
    plain = model(tokens).detach()
    edit = shift_edit(model, PROMPT, TARGET, 1)
    with edit:
        assert not torch.equal(model(tokens), plain)
    assert same(bits(model), before)


def dense_share(before, after, update):
    """<written, asked> / <asked, asked>, in float64 and in full."""
    asked = update.x.double().T @ update.v.double()
    return float(((after.double() - before.double()) * asked).sum() / asked.square().sum())


@every_world
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_share_that_was_written(world, dtype):
    model = build(world, dtype=dtype)
    edit = gradient_edit(model, PROMPT, TARGET, lr=1e-4, weights=["W_out", "W_Q", "W_O", "b_in"])
    assert edit.written == {} and "written" not in repr(edit)
    before = {name: tlb.weight_sites(model)[name].parameter.detach().clone() for name in edit.updates}
    if dtype == torch.float32:
        edit.apply()
        assert "written" not in repr(edit)
    else:
        with pytest.warns(
            LostUpdateWarning, match=rf"^Expected an update that .* {dtype} numbers took 0\.\d\d; load "
        ) as said:
            edit.apply()
        assert len(said) == 1 and said[0].filename == __file__
        assert f"{edit.written[NAME]:.2f} written" in repr(edit)
    for name, update in edit.updates.items():
        site = tlb.weight_sites(model)[name]
        sides = [site.layout.from_stored(each) for each in (before[name], site.parameter.detach())]
        if site.layout.heads == "out" and sides[0].ndim == 3:
            sides = [side.permute(1, 0, 2) for side in sides]
        sides = [side.reshape(update.x.shape[1], update.v.shape[1]) for side in sides]
        assert edit.written[name] == pytest.approx(dense_share(*sides, update), rel=1e-3, abs=1e-6)
    edit.revert()
    assert all(torch.equal(tlb.weight_sites(model)[name].parameter, was) for name, was in before.items())


def test_steps_on_the_way_to_an_edit_do_not_warn(recwarn):
    gradient_edit(bridge("gpt2", dtype=torch.bfloat16), PROMPT, TARGET, lr=1e-4, steps=3)
    assert not [each for each in recwarn if each.category is LostUpdateWarning]


def test_an_update_of_zeros_is_written():
    model = bridge("gpt2")
    with Edit(model, {NAME: Update(torch.zeros(1, 96).double(), torch.zeros(1, 24).double())}) as edit:
        assert edit.written == {NAME: 1.0}


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_a_weight_that_was_seen_to_be_kept_is_looked_at_anew_once_something_makes_it():
    model = hooked()
    with shift_edit(model, PROMPT, TARGET, 1):
        pass
    made_anew(model, "in place")
    with pytest.raises(ValueError, match="which each pass of the model makes anew"):
        shift_edit(model, PROMPT, TARGET, 1)
