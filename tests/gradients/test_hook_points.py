"""extend: TransformerLens's own hooks observe and replace x and delta of every weight matrix."""

import copy
import pickle

import pytest
import torch
from models import BRIDGED, HOOKED, TOKENS, bridge, build, hooked, worlds

import tl_backward as tlb
from gradients.test_capture import needs_hooked

every_world = pytest.mark.parametrize("world", worlds())


def gradients(model, hooks=(), **options):
    return tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=lambda name: True, **options)[1]


def check_points(model):
    """Every point carries its matrix's x and delta, and the model is bit for bit the same."""
    plain = model(TOKENS, return_type="logits")
    expected, state, points = gradients(model), list(model.state_dict()), set(model.hook_dict)
    assert tlb.extend(model) is model
    assert torch.equal(model(TOKENS, return_type="logits"), plain)
    assert list(model.state_dict()) == state
    new = set(model.hook_dict) - points
    cache, seen = gradients(model), {}

    def keep(x, hook):
        seen[hook.name] = x.detach()

    with model.hooks(fwd_hooks=[(name, keep) for name in new]):
        model(TOKENS)
    checked = 0
    for name, site in tlb.weight_sites(model).items():
        if site.kind not in ("matrix", "embedding"):
            continue
        owner, _, weight = name.rpartition(".")
        stem = f"{owner}.hook_{weight}" if site.layer is not None else f"hook_{weight}"
        if site.layout.experts:  # each expert's call passes there, with rows of its own
            assert f"{stem}_out" in new and "several times" in cache.missing[f"{stem}_out"]
            continue
        delta = cache[f"{stem}_out"]
        assert cache.factors[name].deltas.equal(expected.factors[name].deltas)
        # An embedding's factors are of the table's rows, before Gemma's scale and without the padding row.
        if site.kind == "matrix" and delta.numel() == expected.factors[name].deltas.numel():
            assert torch.equal(delta.flatten(), expected.factors[name].deltas.flatten()), name
            checked += 1
        if f"{stem}_in" in new and seen[f"{stem}_in"].numel() == expected.factors[name].inputs.numel():
            assert torch.equal(seen[f"{stem}_in"].flatten(), expected.factors[name].inputs.flatten()), name
    assert checked >= 9
    tlb.unextend(model)
    assert set(model.hook_dict) == points and torch.equal(model(TOKENS, return_type="logits"), plain)


@needs_hooked
@pytest.mark.parametrize("family", ["ln", "ln_folded", "rms_gated", "gqa_grouped", "gqa_ungrouped", "moe", "attn_result",
                                    "split_qkv", "parallel", "solu_ln"])  # fmt: skip
def test_hooked_transformer(family):
    assert family in HOOKED
    check_points(hooked(family))


@pytest.mark.parametrize("family", BRIDGED)
def test_bridge(family):
    check_points(bridge(family))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bridge_in_compatibility_mode(family):
    check_points(bridge(family, compatibility=True))


@every_world
def test_names(world):
    model = tlb.extend(build(world))
    for name in ("blocks.1.mlp.hook_W_out_in", "blocks.1.mlp.hook_W_out_out", "blocks.0.attn.hook_W_Q_in",
                 "blocks.0.attn.hook_W_O_out", "hook_W_U_in", "hook_W_U_out", "hook_W_E_out", "hook_W_pos_out"):  # fmt: skip
        assert model.hook_dict[name].name == name


@every_world
@pytest.mark.parametrize("name", ["blocks.0.mlp.hook_W_out_in", "blocks.1.attn.hook_W_V_in", "hook_W_U_in"])
def test_replacing_x(world, name):
    """A hook that doubles x at one matrix doubles the factor, and autograd agrees."""
    model = tlb.extend(build(world))
    owner, _, point = name.rpartition(".")
    weight = f"{owner or 'unembed'}.{point.removeprefix('hook_').removesuffix('_in')}"
    site = tlb.weight_sites(model)[weight]
    hooks = [(name, lambda x, hook: 2 * x)]
    site.parameter.requires_grad_(True)
    cache = gradients(model, fwd_hooks=hooks)
    with model.hooks(fwd_hooks=hooks):
        loss = tlb.next_token_loss(model(TOKENS, return_type="logits"), TOKENS)
    (expected,) = torch.autograd.grad(loss, [site.parameter])
    if world == "bridge" and weight == "unembed.W_U":  # tied to the embedding
        expected = expected - cache.factors["embed.W_E"].gradient("parameter")
    torch.testing.assert_close(cache.factors[weight].gradient("parameter"), expected, rtol=1e-12, atol=1e-14)


@every_world
def test_gradient_surgery_on_one_weight(world):
    """Zeroing delta of W_out in layer 1 stops its gradient and that of all before it in that branch, nothing else."""
    model = tlb.extend(build(world))
    plain = gradients(model)
    cut = gradients(model, bwd_hooks=[("blocks.1.mlp.hook_W_out_out", lambda grad, hook: torch.zeros_like(grad))])
    assert (cut.factors["W_out", 1].deltas == 0).all() and (cut.factors["W_in", 1].deltas == 0).all()
    assert torch.equal(cut.factors["W_O", 1].deltas, plain.factors["W_O", 1].deltas) is False
    assert torch.equal(cut.factors["unembed.W_U"].deltas, plain.factors["unembed.W_U"].deltas)


@every_world
def test_together_with_the_users_own_hooks(world):
    """x at hook_W_out_in is what the matrix reads after a user's hook, whichever was attached first."""
    name = "blocks.0.mlp.hook_post" if world == "hooked" else "blocks.0.mlp.out.hook_in"
    for order in ("before", "after"):
        model, seen = build(world), []
        if order == "before":
            model.add_hook(name, lambda x, hook: x * 3)
        tlb.extend(model)
        if order == "after":
            model.add_hook(name, lambda x, hook: x * 3)
        with model.hooks(
            fwd_hooks=[("blocks.0.mlp.hook_W_out_in", lambda x, hook, seen=seen: seen.append(x.detach()))]
        ):
            cache = gradients(model)
        assert torch.equal(seen[0], cache.factors["W_out", 0].inputs)


@every_world
def test_run_with_cache_including_backward(world):
    model = tlb.extend(build(world))
    _, cache = model.run_with_cache(
        TOKENS, names_filter=lambda name: "hook_W_out" in name, incl_bwd=True, return_type="loss"
    )
    expected = gradients(model)
    for layer in (0, 1):
        stem = f"blocks.{layer}.mlp.hook_W_out"
        assert torch.equal(cache[f"{stem}_in"], expected.factors["W_out", layer].inputs)
        torch.testing.assert_close(cache[f"{stem}_out_grad"], expected.factors["W_out", layer].deltas)
    model.zero_grad()


@every_world
def test_methods_and_idempotence(world):
    model = build(world)
    points = set(model.hook_dict)
    tlb.extend(tlb.extend(model))
    loss, _ = model.run_with_gradient_cache("w5 w6", tlb.target_loss("w7"))
    lens = model.backward_lens("w5 w6", "w7", k=3)
    assert lens.shift[0].top_ids.shape == (3, 3) and torch.equal(lens.loss, loss)
    n_hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    tlb.extend(model)
    assert n_hooks == sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    tlb.unextend(tlb.unextend(model))
    assert set(model.hook_dict) == points
    assert not hasattr(model, "backward_lens") and not hasattr(model, "run_with_gradient_cache")


@every_world
def test_copies(world):
    model = tlb.extend(build(world))
    twin, fired = copy.deepcopy(model), []
    for parameter in twin.parameters():
        with torch.no_grad():
            parameter.mul_(1.1)
    twin.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.mlp.hook_W_out_in", lambda x, hook: fired.append(1))])
    assert fired == [1] and twin.run_with_gradient_cache.args == (twin,)
    assert twin.hook_dict["hook_W_U_in"] is not model.hook_dict["hook_W_U_in"]
    if world == "hooked":  # TransformerLens's Bridge holds local functions and cannot be pickled, extended or not
        read = pickle.loads(pickle.dumps(model))
        assert torch.equal(read(TOKENS), model(TOKENS)) and read.backward_lens.args == (read,)
    tlb.unextend(twin)
    assert "hook_W_U_in" in model.hook_dict and "hook_W_U_in" not in twin.hook_dict
    assert torch.equal(model.to("cpu")(TOKENS), model(TOKENS))
