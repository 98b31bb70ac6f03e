"""Capture together with the user's hooks, padding, frozen parameters, low precision and every kind of loss."""

import copy

import pytest
import torch
from models import BRIDGED, HAS_HOOKED_TRANSFORMER, HOOKED, TOKENS, bridge, build, hooked, worlds

import tl_backward as tlb
from gradients.test_capture import check, needs_hooked

every_world = pytest.mark.parametrize("world", worlds())
MATRICES = lambda name: ".W_" in name  # noqa: E731


def scale(tensor, hook):
    return tensor * 1.7


def scale_in_place(tensor, hook):
    tensor.mul_(1.7)


def scale_part_in_place(tensor, hook):
    tensor[:, 1:3] *= 0.3


def ablate_in_place(tensor, hook):
    tensor[:, 2] = 0
    return tensor


HOOKED_AT = {
    "hooked": ["blocks.0.attn.hook_q", "blocks.0.attn.hook_z", "blocks.1.attn.hook_v", "blocks.0.mlp.hook_pre",
               "blocks.1.mlp.hook_post", "blocks.0.hook_mlp_out", "blocks.0.hook_attn_out", "blocks.1.hook_resid_pre",
               "blocks.0.ln2.hook_normalized", "hook_embed", "unembed.hook_in", "unembed.hook_out"],
    "bridge": ["blocks.0.attn.q.hook_out", "blocks.0.attn.o.hook_in", "blocks.1.attn.v.hook_out",
               "blocks.0.mlp.in.hook_out", "blocks.1.mlp.out.hook_in", "blocks.0.mlp.hook_out",
               "blocks.0.attn.hook_out", "blocks.1.hook_in", "blocks.0.ln2.hook_normalized", "embed.hook_out",
               "unembed.hook_in", "unembed.hook_out"],
}  # fmt: skip


@every_world
@pytest.mark.parametrize("hook", [scale, scale_in_place, scale_part_in_place, ablate_in_place])
@pytest.mark.parametrize("place", range(12))
@pytest.mark.filterwarnings("ignore:.*(native|edit).*")
def test_forward_hooks(world, hook, place):
    name = HOOKED_AT[world][place]
    in_place_norm = "normalized" in name and hook is not scale
    if world == "bridge" and in_place_norm:
        pytest.skip("a Bridge norm ignores in-place edits of its hooks")
    model = build(world)
    tied = {"embed.W_E", "unembed.W_U"} if world == "bridge" else set()
    check(model, hooks=[(name, hook)], weights=lambda weight: MATRICES(weight) and weight not in tied)


@every_world
@pytest.mark.parametrize("how", ["before", "context", "argument", "permanent"])
def test_every_way_to_attach_a_hook(world, how):
    model, name = build(world), HOOKED_AT[world][0]
    argument = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=[(name, scale)])[1]
    if how == "before":
        model.add_hook(name, scale)
    if how == "permanent":
        model.add_perma_hook(name, scale)
    with model.hooks(fwd_hooks=[(name, scale)] if how == "context" else []):
        given = [(name, scale)] if how == "argument" else []
        cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=given)[1]
    for weight, factors in argument.factors.items():
        assert torch.equal(factors.gradient(), cache.factors[weight].gradient()), weight


@every_world
def test_backward_hooks_rescale(world):
    """A backward hook on hook_resid_mid's gradient changes what reaches everything before it."""
    model = build(world)
    name = "blocks.1.hook_resid_pre"
    plain = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)[1]
    tripled = tlb.run_with_gradient_cache(
        model, TOKENS, tlb.next_token_loss, bwd_hooks=[(name, lambda grad, hook: 3 * grad)]
    )[1]
    for weight in ("W_in", "W_out", "W_Q"):
        torch.testing.assert_close(tripled.factors[weight, 0].deltas, 3 * plain.factors[weight, 0].deltas)
        assert torch.equal(tripled.factors[weight, 1].deltas, plain.factors[weight, 1].deltas)


@every_world
def test_gradients_at_hook_points_are_transformerlens_own(world):
    model = build(world)
    seen = {}

    def keep(gradient, hook):
        seen[hook.name] = gradient.clone()

    names = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_pattern", "blocks.0.hook_mlp_out", "blocks.1.attn.hook_q"]
    with model.hooks(bwd_hooks=[(name, keep) for name in names]):
        tlb.next_token_loss(model(TOKENS, return_type="logits"), TOKENS).backward()
    model.zero_grad()
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, names_filter=names)
    assert len(cache) == len(names)
    for name in names:
        theirs = next(iter(seen[key] for key in (name, model.hook_dict[name].name) if key in seen))
        torch.testing.assert_close(cache[name], theirs, rtol=1e-12, atol=1e-14)
    assert torch.equal(cache["resid_post", 0], cache["blocks.0.hook_resid_post"])
    assert torch.equal(cache["pattern", -1], cache["blocks.1.attn.hook_pattern"])


@every_world
def test_all_hook_points_by_default(world):
    _, cache = tlb.run_with_gradient_cache(build(world), TOKENS, tlb.next_token_loss)
    for name in ("resid_pre", "resid_post", "mlp_out", "attn_out", "q", "k", "v", "z", "pattern"):
        assert cache[name, 1].shape[0] == 2, name
    assert (
        "resid_post" in repr(list(cache))
        and len(tlb.run_with_gradient_cache(build(world), TOKENS, tlb.next_token_loss, names_filter=[])[1]) == 0
    )


PADDED = torch.tensor([[0, 4, 5, 6, 9, 7], [1, 1, 0, 9, 3, 3]]), torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])


@every_world
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(world, side):
    tokens, mask = PADDED if side == "left" else (PADDED[0].flip(1), PADDED[1].flip(1))
    model = build(world)
    model.tokenizer.padding_side = side

    def loss(logits, ids):
        return tlb.next_token_loss(logits, ids, mask.bool())

    _, cache = check(model, tokens=tokens, loss=loss, attention_mask=mask)
    for name, factors in cache.factors.items():
        if MATRICES(name) and factors.deltas.shape[:2] == tokens.shape:
            assert (factors.deltas[~mask.bool()] == 0).all(), name


@every_world
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_and_each_example_keeps_its_own_gradient(world, side):
    each_its_own(build(world), side)


@pytest.mark.parametrize("compatibility", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "qwen2"])
def test_left_padding_is_no_matter_to_a_bridge(family, compatibility):
    """TransformerLens itself answers a left-padded batch with NaN: plain rotary Bridges, and any in compatibility mode."""
    each_its_own(bridge(family, compatibility=compatibility), "left")


def each_its_own(model, side):
    model.tokenizer.padding_side = side
    prompts, targets = ["w5 w6 w7 w8", "w9 w10"], ["w11 w12", "w13"]
    _, batch = tlb.run_with_gradient_cache(model, prompts, tlb.target_loss(targets, reduction="sum"))
    assert batch.mask is not None and not batch.mask.all()
    for example, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        _, single = tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(target))
        for name, factors in single.factors.items():
            torch.testing.assert_close(
                batch.factors[name].per_example()[example].gradient(), factors.gradient(), rtol=1e-9, atol=1e-12
            )


@every_world
def test_a_gradient_that_is_not_finite_is_refused(world):
    model = build(world)

    def poison(activation, hook):
        activation = activation.clone()
        activation.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), float("nan")))
        return activation

    hooks = [("blocks.1.hook_resid_pre", poison)]
    with pytest.raises(
        ValueError, match=r"a finite gradient of blocks.0.attn.W_Q, got NaN or inf; .*\(pad on the right\)"
    ) as caught:
        tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=hooks)
    assert caught.value.index == 1
    later = tlb.run_with_gradient_cache(
        model, TOKENS, tlb.next_token_loss, fwd_hooks=hooks, weights="blocks.1.mlp.W_in"
    )
    assert later[1].factors["W_in", 1].deltas.isfinite().all()


@every_world
def test_multi_token_target_is_teacher_forced(world):
    model = build(world)
    value, cache = tlb.run_with_gradient_cache(model, "w5 w6", tlb.target_loss("w7 w8 w9"))
    tokens = torch.tensor([[0, 5, 6, 7, 8]])
    assert torch.equal(cache.tokens, tokens)
    log_probs = model(tokens, return_type="logits").log_softmax(-1)[0]
    expected = -(log_probs[2, 7] + log_probs[3, 8] + log_probs[4, 9]) / 3
    torch.testing.assert_close(value, expected.detach())


@every_world
def test_losses_of_all_kinds(world):
    model = build(world)
    logits = model(TOKENS, return_type="logits").detach()
    log_probs = logits.log_softmax(-1)
    cases = [
        (tlb.target_loss(7), -log_probs[:, -1, 7].mean()),
        (tlb.target_loss(7, positions=[1, 3]), -log_probs[:, [1, 3], 7].mean()),
        (tlb.target_loss(["w7", "w8"]), -(log_probs[0, -1, 7] + log_probs[1, -1, 8]) / 2),
        (tlb.target_loss(torch.tensor([[7], [8]]), reduction="sum"), -(log_probs[0, -1, 7] + log_probs[1, -1, 8])),
        (tlb.logit_difference("w7", "w8"), (logits[:, -1, 7] - logits[:, -1, 8]).mean()),
        (tlb.next_token_loss, -log_probs[:, :-1].gather(-1, TOKENS[:, 1:, None]).mean()),
        ((lambda logits, tokens: logits[0, 2].square().sum()), logits[0, 2].square().sum()),
    ]
    for loss, expected in cases:
        value, _ = tlb.run_with_gradient_cache(model, TOKENS, loss, weights="W_in", names_filter=[])
        torch.testing.assert_close(value, expected)


@every_world
def test_frozen_model(world):
    model = build(world)
    expected = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights=lambda name: True)[1]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for names_filter in (None, []):
        _, cache = tlb.run_with_gradient_cache(
            model, TOKENS, tlb.next_token_loss, weights=lambda name: True, names_filter=names_filter
        )
        for name, factors in expected.factors.items():
            torch.testing.assert_close(cache.factors[name].deltas, factors.deltas, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(cache.factors["W_out", 0].deltas, expected.factors["W_out", 0].deltas)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@every_world
def test_frozen_model_with_an_in_place_hook(world):
    model = build(world)
    hook = [(HOOKED_AT[world][0], scale_part_in_place)]
    expected = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=hook)[1]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=hook, names_filter=[])[1]
    for name, factors in expected.factors.items():
        torch.testing.assert_close(cache.factors[name].gradient(), factors.gradient(), rtol=1e-12, atol=1e-15)


@every_world
def test_constant_residual_stream(world):
    """A hook that replaces the stream by a constant cuts off every weight before it, exactly."""
    model = build(world)
    _, cache = tlb.run_with_gradient_cache(
        model, TOKENS, tlb.next_token_loss,
        fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: torch.ones_like(x))],
    )  # fmt: skip
    assert (cache.factors["W_out", 0].deltas == 0).all()
    assert (cache.factors["W_out", 1].deltas != 0).any()


FAMILIES = [("hooked", name) for name in HOOKED if HAS_HOOKED_TRANSFORMER] + [("bridge", name) for name in BRIDGED]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("world", "family"), FAMILIES)
def test_low_precision(world, family, dtype, tolerance):
    """Each gradient against autograd's in the same precision: the dense product rounds once, as autograd's does."""
    model = (hooked if world == "hooked" else bridge)(family, dtype=dtype)
    check(model, tolerance, weights=lambda name: MATRICES(name) and "blocks" in name)


@every_world
def test_a_deep_copy_gives_the_same(world):
    model = build(world)
    twin = copy.deepcopy(model)
    one, two = (tlb.run_with_gradient_cache(m, TOKENS, tlb.next_token_loss)[1] for m in (model, twin))
    for name, factors in one.factors.items():
        assert torch.equal(factors.deltas, two.factors[name].deltas)


@needs_hooked
@pytest.mark.parametrize("flags", [{"use_split_qkv_input": True}, {"use_attn_result": True}])
def test_per_head_factors_with_hooks(flags):
    name = "blocks.0.hook_q_input" if "use_split_qkv_input" in flags else "blocks.0.attn.hook_result"

    def one_head(tensor, hook):
        tensor[:, :, 1] *= 0.5
        return tensor

    _, cache = check(hooked("ln", **flags), hooks=[(name, one_head)])
    key = "W_Q" if "use_split_qkv_input" in flags else "W_O"
    assert cache.factors[key, 0].per_head


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_a_hook_between_a_bias_and_the_attentions_output(family):
    """A Bridge that splits q, k and v off one matrix has hook_hidden_states between b_O and hook_out."""
    model = bridge(family)
    model.set_use_attn_result(True)
    for name in ("blocks.0.attn.hook_hidden_states", "blocks.0.attn.hook_out"):
        check(model, hooks=[(name, scale)])


def test_both_worlds_agree():
    if not HAS_HOOKED_TRANSFORMER:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    models = [tlb.zoo.load("facts", kind=kind) for kind in ("hooked", "bridge")]
    prompt, target = tlb.zoo.facts.example_edit()
    one, two = (tlb.run_with_gradient_cache(m, prompt, tlb.target_loss(target))[1] for m in models)
    assert torch.equal(one.tokens, two.tokens)
    for name, factors in one.factors.items():
        torch.testing.assert_close(two.factors[name].gradient(), factors.gradient(), rtol=1e-3, atol=1e-5)
