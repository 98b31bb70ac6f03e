"""Stitched models against the models themselves: with a kernel whose right answer is known, the logits are known."""

import pytest
import torch
from leaves_no_trace import Boom, assert_same, boom, interrupt, state
from models import BRIDGED, HAS_HOOKED_TRANSFORMER, HOOKED, TOKENS, bridge, build, hooked, worlds
from shared import stories

from tests.alignment.test_kernels import small
from tests.alignment.twins import twins
from tl_backward import alignment, dissimilarity
from tl_backward.alignment import random_kernel, token_map, translation, zero_shot_stitch
from tl_backward.dissimilarity.stitching.maps import StitchMap
from tl_backward.model.partial import logits_after, streams_after
from tl_backward.text.prompts import encode_prompts, forward

every_world = pytest.mark.parametrize("world", worlds())
CLOSE = {"hooked": 1e-9, "bridge": 3e-5}  # Hugging Face's RMSNorm computes in float32
FAMILIES = [("hooked", f) for f in HOOKED if HAS_HOOKED_TRANSFORMER and f != "shortformer"] + [
    ("bridge", f) for f in BRIDGED
]


def itself(model):
    return torch.eye(model.W_U.shape[0], dtype=model.W_U.dtype)


@pytest.mark.parametrize(("world", "family"), FAMILIES)
def test_a_model_stitched_to_itself_is_the_model(world, family):
    model = hooked(family) if world == "hooked" else bridge(family)
    with torch.no_grad():
        plain = model(TOKENS)
        for cut in range(3):
            stitched = zero_shot_stitch(model, cut, model, cut, kernel=itself(model))
            torch.testing.assert_close(stitched(TOKENS), plain, atol=1e-10, rtol=0)
        # Other cuts are other models: skipping or repeating a block is seen.
        assert not torch.allclose(zero_shot_stitch(model, 1, model, 2, kernel=itself(model))(TOKENS), plain, atol=1e-3)
        assert not torch.allclose(zero_shot_stitch(model, 1, model, 0, kernel=itself(model))(TOKENS), plain, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_compatibility_mode(family):
    model = bridge(family, compatibility=True)
    with torch.no_grad():
        plain = model(TOKENS)
        for cut in range(3):
            stitched = zero_shot_stitch(model, cut, model, cut, kernel=itself(model))
            torch.testing.assert_close(stitched(TOKENS), plain, atol=1e-10, rtol=0)


@every_world
@pytest.mark.parametrize("wider", [0, 8])
def test_a_twin_takes_over_anywhere(world, wider):
    model, twin, _, _ = twins(world, wider)
    with torch.no_grad():
        plain = model(TOKENS)
        for cut in range(3):
            torch.testing.assert_close(
                zero_shot_stitch(model, cut, twin, cut)(TOKENS), plain, atol=CLOSE[world], rtol=0
            )
            torch.testing.assert_close(
                zero_shot_stitch(twin, cut, model, cut)(TOKENS), plain, atol=CLOSE[world], rtol=0
            )
        kernel = random_kernel(translation(model, twin))
        assert not torch.allclose(zero_shot_stitch(model, 1, twin, 1, kernel=kernel)(TOKENS), plain, atol=1e-2)


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="HookedTransformer needs TransformerLens 3")
@pytest.mark.parametrize("first", ["hooked", "bridge"])
def test_worlds_mix(first):
    models = {"hooked": hooked("rms_gated"), "bridge": bridge("gpt2")}
    a = models.pop(first)
    (b,) = models.values()
    stitched = zero_shot_stitch(a, 1, b, 1)
    with torch.no_grad():
        stream = a.run_with_cache(TOKENS)[1]["blocks.0.hook_resid_post"] @ translation(a, b)
        by_hand = b.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: stream)])
        torch.testing.assert_close(stitched(TOKENS), by_hand, atol=1e-10, rtol=0)


@every_world
def test_padding_is_masked_in_both(world):
    a, b = build(world), build(world)
    texts = ["w5 w6 w7 w8 w9", "w11 w12"]
    stitched = zero_shot_stitch(a, 1, b, 1)
    with torch.no_grad():
        together = stitched(texts)
        for row, text in zip(together, texts, strict=True):
            alone = stitched(text)[0]
            torch.testing.assert_close(row[: len(alone)], alone, atol=1e-10, rtol=0)
        plain = forward(a, encode_prompts(a, texts))
        own = zero_shot_stitch(a, 1, a, 1, kernel=itself(a))(texts)
        torch.testing.assert_close(own[0], plain[0], atol=1e-10, rtol=0)
        torch.testing.assert_close(own[1, :3], plain[1, :3], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", worlds())
def test_grouped_queries_and_rotary_positions(kind):
    model = stories(kind)
    with torch.no_grad():
        plain = model("Once upon a time, there was")
        for cut in (0, 2, 5):
            stitched = zero_shot_stitch(model, cut, model, cut)
            torch.testing.assert_close(stitched("Once upon a time, there was"), plain, atol=2e-3, rtol=0)


@every_world
def test_hooks_of_the_layers_that_take_part_fire_and_no_others(world):
    a, b = build(world), build(world)
    seen = []
    for name, model in (("a", a), ("b", b)):
        for point in ("hook_embed", "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.0.mlp.hook_post",
                      "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post", "ln_final.hook_scale"):  # fmt: skip
            model.add_hook(point, lambda x, hook, name=name, point=point: seen.append((name, point)))
    stitched = zero_shot_stitch(a, 1, b, 1)
    with torch.no_grad():
        plain = stitched(TOKENS)
        first = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.mlp.hook_post", "blocks.0.hook_resid_post"]
        last = ["blocks.1.mlp.hook_post", "blocks.1.hook_resid_post", "ln_final.hook_scale"]
        assert seen == [("a", point) for point in first] + [("b", point) for point in last]
        with a.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda x, hook: x * 2)]):
            changed = stitched(TOKENS)
        with b.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x * 0)]):
            emptied = stitched(TOKENS)
        assert not torch.allclose(plain, changed, atol=1e-4) and not torch.allclose(plain, emptied, atol=1e-4)
        torch.testing.assert_close(stitched(TOKENS), plain, atol=0, rtol=0)


@every_world
@pytest.mark.parametrize("error", [None, boom, interrupt])
@pytest.mark.parametrize("where", ["a", "b"])
def test_both_models_are_left_as_they_were(world, error, where):
    a, b = build(world).train(), build(world)
    before = state(a), state(b)
    stitched = zero_shot_stitch(a, 1, b, 1)
    if error is None:
        stitched(TOKENS)
    else:
        model, point = {"a": (a, "blocks.0.hook_resid_mid"), "b": (b, "blocks.1.hook_resid_mid")}[where]
        with pytest.raises((Boom, KeyboardInterrupt)), model.hooks(fwd_hooks=[(point, error)]):
            stitched(TOKENS)
    for model, was in zip((a, b), before, strict=True):
        assert_same(was, state(model))
        assert not any("forward" in vars(module) for module in model.modules() if hasattr(module, "hook_in"))


@every_world
def test_gradients_flow_through_both(world):
    a, b = build(world), build(world)
    (zero_shot_stitch(a, 1, b, 1)(TOKENS)[..., 3].sum()).backward()
    used = {"a": stream_parameter(a, 0), "b": stream_parameter(b, 1)}
    unused = {"a": stream_parameter(a, 1), "b": stream_parameter(b, 0)}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in used.values())
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in unused.values())


def stream_parameter(model, layer):
    if hasattr(model, "original_model"):
        return model.original_model.transformer.h[layer].mlp.c_proj.weight
    return model.blocks[layer].mlp.W_out


@every_world
def test_stream_is_what_a_hook_sees(world):
    model = build(world)
    batch = encode_prompts(model, TOKENS)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
        names = {-1: "blocks.0.hook_resid_pre", 0: "blocks.0.hook_resid_post", 1: "blocks.1.hook_resid_post"}
        for layer, name in names.items():
            found = streams_after(model, batch.tokens, [layer])[layer]
            torch.testing.assert_close(found, cache[name], atol=0, rtol=0)
        start = (0, cache["blocks.0.hook_resid_post"])
        later = streams_after(model, batch.tokens, [1], start=start)[1]
        torch.testing.assert_close(later, cache["blocks.1.hook_resid_post"], atol=1e-12, rtol=0)


@every_world
def test_one_stitched_model_and_one_convention(world):
    """Blocks counted by `zero_shot_stitch` and layers named by `stitch` are the same places of the one class."""
    assert alignment.StitchedModel is dissimilarity.StitchedModel
    a, b = build(world), build(world)
    by_blocks = zero_shot_stitch(a, 1, b, 2)
    assert (by_blocks.layer_a, by_blocks.layer_b, by_blocks.cut_a, by_blocks.cut_b) == (0, 1, 1, 2)
    map = StitchMap("linear", *by_blocks.kernel.shape).to(by_blocks.kernel)
    map.set(by_blocks.kernel)
    by_layers = dissimilarity.StitchedModel(a, 0, b, 1, map)
    with torch.no_grad():
        torch.testing.assert_close(by_layers(TOKENS), by_blocks(TOKENS), atol=1e-12, rtol=0)
        stream = streams_after(a, TOKENS, [0])[0]
        expected = logits_after(b, TOKENS, 1, stream @ map.weight)
        torch.testing.assert_close(by_blocks(TOKENS), expected, atol=1e-12, rtol=0)
    assert by_layers.cut_b == 2 and "blocks 0-0 of A, StitchMap('linear'" in repr(by_layers)


@every_world
def test_other_vocabularies(world):
    a, b = build(world), small(world)
    stitched = zero_shot_stitch(a, 1, b, 1, token_map=token_map(a, b))
    with torch.no_grad():
        assert tuple(stitched(TOKENS).shape) == (2, 7, 37)
    with pytest.raises(ValueError, match="share a vocabulary"):
        zero_shot_stitch(a, 1, b, 1)


@every_world
def test_bad_input_and_repr(world):
    a, b = build(world), build(world)
    for cuts, name in (((-1, 0), "cut_a"), ((0, 3), "cut_b")):
        with pytest.raises(IndexError, match=rf"Expected {name} in \[0, 2\]"):
            zero_shot_stitch(a, cuts[0], b, cuts[1])
    with pytest.raises(ValueError, match=r"finite kernel of shape \[\d+, \d+\].*got \[3, 3\]"):
        zero_shot_stitch(a, 0, b, 0, kernel=torch.eye(3, dtype=torch.float64))
    d_model = a.W_U.shape[0]
    assert (
        repr(zero_shot_stitch(a, 0, b, 2))
        == f"StitchedModel(A's embedding, kernel [{d_model}, {d_model}], B's unembedding)"
    )
    assert "blocks 0-0 of A" in repr(zero_shot_stitch(a, 1, b, 1)) and "blocks 1-1 of B" in repr(
        zero_shot_stitch(a, 1, b, 1)
    )
    b.cfg.n_ctx = 5
    with pytest.raises(ValueError, match=r"at most n_ctx=5 tokens \(model B's\), got 7"):
        zero_shot_stitch(a, 1, b, 1)(TOKENS)


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="HookedTransformer needs TransformerLens 3")
def test_shortformer_can_only_come_first():
    a, b = hooked("shortformer"), hooked("ln")
    with torch.no_grad():
        assert zero_shot_stitch(a, 1, b, 1)(TOKENS).isfinite().all()
    with pytest.raises(ValueError, match="got shortformer attention"):
        zero_shot_stitch(b, 1, a, 1)
