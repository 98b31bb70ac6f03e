"""Edits: what they add, and that they come off to the bit."""

import random

import pytest
import torch
from gradients.test_capture import needs_hooked
from models import TOKENS, bridge, build, hooked, worlds

import tl_backward as tlb
from tl_backward.editing import gradient_edit, load_edit, rank_one_edit, shift_edit

every_world = pytest.mark.parametrize("world", worlds())
PROMPT, TARGET = "w5 w6 w7", "w9"


def bits(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@every_world
def test_rank_one_edit_adds_an_outer_product_to_every_weight(world):
    """In TransformerLens's shape, for every matrix and bias, whatever the stored layout."""
    model = build(world)
    generator = torch.Generator().manual_seed(0)
    for name, site in tlb.weight_sites(model).items():
        if site.layer != 1 or site.kind not in ("matrix", "bias"):
            continue
        _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=name, names_filter=[])
        d_in, d_out = cache.factors[name].matrix_shape
        x, v = (torch.randn(d, generator=generator, dtype=torch.float64) for d in (d_in, d_out))
        before = site.parameter.detach().clone()
        with rank_one_edit(model, name, x, v, scale=0.5):
            added = site.parameter.detach() - before
        torch.testing.assert_close(added, 0.5 * site.layout.to_stored(torch.outer(x, v)), rtol=1e-12, atol=1e-14)
        assert torch.equal(site.parameter, before)


@pytest.mark.parametrize("compatibility", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_an_edit_reaches_the_forward_pass(family, compatibility):
    """y changes by outer(x, v): the edited model's W_out writes v more at tokens like x."""
    model = bridge(family, compatibility=compatibility)
    x = shift_edit(model, PROMPT, TARGET, 1, scale=3.0).updates["blocks.1.mlp.W_out"].x[0]
    v = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, name = model.to_tokens(PROMPT), "blocks.1.mlp.hook_out" if family != "gpt2" else "blocks.1.hook_mlp_out"
    with rank_one_edit(model, "blocks.1.mlp.W_out", x, v):
        edited = model.run_with_cache(tokens)[1][name][0, -1]
    plain = model.run_with_cache(tokens)[1][name][0, -1]
    read = tlb.run_with_gradient_cache(model, tokens, tlb.target_loss(9), weights="W_out")[1].factors["W_out", 1].inputs
    torch.testing.assert_close(edited - plain, (read[0, -1] @ x) * v, rtol=1e-9, atol=1e-11)


@every_world
@pytest.mark.parametrize("scaling", ["unit", "raw"])
def test_shift_edit_is_the_papers(world, scaling):
    model = build(world)
    edit = shift_edit(model, PROMPT, "w9 w11", 1, scale=2.0, scaling=scaling)
    (update,) = edit.updates.values()
    loss = tlb.target_loss("w9 w11")
    x = tlb.run_with_gradient_cache(model, PROMPT, loss, weights="W_out")[1].factors["W_out", 1].inputs[0, -2:]
    v = model.W_U[:, [9, 11]].T
    if scaling == "unit":
        x, v = x / x.norm(dim=-1, keepdim=True), v / v.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(update.x, x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(update.v, 2 * v.detach(), rtol=1e-10, atol=1e-12)
    assert shift_edit(model, PROMPT, "w9", -1).updates.keys() == {"blocks.1.mlp.W_out"}


@every_world
def test_gradient_edit_is_sgd(world):
    model = build(world)
    weights = ["W_out", "blocks.0.attn.W_Q", "blocks.1.mlp.b_in"]
    edit = gradient_edit(model, PROMPT, TARGET, weights=weights, lr=0.05, steps=3)
    with edit:
        ours = bits(model)
    parameters = [tlb.weight_sites(model)[name].parameter for name in edit.updates]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    tokens, loss = model.to_tokens(PROMPT), tlb.target_loss(9)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model(tokens, return_type="logits"), tokens).backward()
        optimizer.step()
    for mine, theirs in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-9, atol=1e-12)


@every_world
def test_200_random_sequences_come_off_to_the_bit(world):
    model, dice = build(world, dtype=torch.float32), random.Random(0)
    before, stack = bits(model), []
    edits = [shift_edit(model, PROMPT, f"w{9 + i}", i % 2, scale=i + 1.0) for i in range(4)]
    edits += [gradient_edit(model, PROMPT, TARGET, weights=["W_in", "W_V"], lr=0.1)]
    for _ in range(200):
        action = dice.choice(["apply", "revert", "raise", "raise"])
        if action == "apply" and len(stack) < len(edits):
            stack.append(dice.choice([edit for edit in edits if not edit.is_applied]).apply())
        elif action == "revert" and stack:
            stack.pop().revert()
        elif action == "raise":
            idle = [edit for edit in edits if not edit.is_applied]
            if idle:
                now = bits(model)
                with pytest.raises(KeyError), dice.choice(idle):
                    raise KeyError
                assert same(bits(model), now)
        assert same(bits(model), before) or stack
    while stack:
        stack.pop().revert()
    assert same(bits(model), before)


@every_world
def test_saved_and_loaded(world, tmp_path):
    model = build(world)
    edit = gradient_edit(model, PROMPT, TARGET, weights=["W_out"], lr=0.1, steps=2)
    path = edit.save(tmp_path / "edit.safetensors")
    assert path.stat().st_size < 40_000 and [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]
    read = load_edit(model, path)
    with edit:
        one = bits(model)
    with read:
        two = bits(model)
    assert same(one, two) and read.how["method"] == "gradient"
    other = hooked(d_vocab=60) if world == "hooked" else bridge("gpt2", vocab_size=60)
    with pytest.raises(ValueError, match="Expected an edit of a model with .*d_vocab 60, got one of .*d_vocab 50"):
        load_edit(other, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged"):
        load_edit(model, path)


@every_world
def test_refusals(world):
    model = build(world)
    edit = shift_edit(model, PROMPT, TARGET, 0)
    later = shift_edit(model, PROMPT, TARGET, 0, scale=1.0)
    with pytest.raises(RuntimeError, match="Expected an edit that is applied"):
        edit.revert()
    edit.apply()
    with pytest.raises(RuntimeError, match="Expected an edit that is not applied"):
        edit.apply()
    later.apply()
    with pytest.raises(RuntimeError, match="blocks.0.mlp.W_out as the edit left it, but it was changed since"):
        edit.revert()
    later.revert()
    edit.revert()
    with pytest.raises(IndexError, match=r"layers in \[-2, 2\), got 4"):
        shift_edit(model, PROMPT, TARGET, 4)
    with pytest.raises(ValueError, match="Expected vectors of .* numbers for blocks.0.mlp.W_out, got 3 and 4"):
        rank_one_edit(model, "blocks.0.mlp.W_out", torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="Expected at least one step"):
        gradient_edit(model, PROMPT, TARGET, steps=0)


def test_a_tied_weight_is_refused():
    model = bridge("gpt2")
    with pytest.raises(ValueError, match=r"unembed.W_U, which is tied to embed.W_E: an edit would change both"):
        rank_one_edit(model, "unembed.W_U", torch.ones(24), torch.ones(50))


@needs_hooked
def test_a_layer_without_one_matrix_that_writes():
    with pytest.raises(
        ValueError, match=r"^Expected one matrix that each block writes with, got blocks.0.mlp with 3 \(exp"
    ):
        shift_edit(hooked("moe"), PROMPT, TARGET, 0)


@every_world
def test_shift_edit_changes_the_shipped_models_answer(world):
    model = tlb.zoo.load("facts", kind=world)
    prompt, target = tlb.zoo.facts.example_edit()
    with shift_edit(model, prompt, target, layer=2, scale=2.0):
        edited = model.to_string(model(prompt, return_type="logits")[0, -1].argmax())
    assert edited == target
    assert model.to_string(model(prompt, return_type="logits")[0, -1].argmax()) != target
