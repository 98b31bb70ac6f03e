"""Readouts against float64 logits computed by hand, and against TransformerLens's own logit readout."""

from importlib import import_module

import pytest
import torch
from models import BRIDGED, HAS_HOOKED_TRANSFORMER, HOOKED, TOKENS, bridge, build, hooked, worlds

import tl_backward as tlb

every_world = pytest.mark.parametrize("world", worlds())


def vectors(model, *lead, number=1):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(*lead, model.cfg.d_model, generator=generator, dtype=torch.float64).to(model.W_U.dtype)


def full_logits(model, v, bias=False):
    """What the model's own last modules make of v as the final residual stream."""
    flat = v.reshape(1, -1, v.shape[-1])
    with torch.no_grad():
        normed = model.ln_final(flat) if hasattr(model, "ln_final") else flat
        logits = normed @ model.W_U + (model.b_U if bias else 0)
        cap = getattr(model.cfg, "output_logits_soft_cap", 0) or 0
        logits = cap * (logits / cap).tanh() if cap > 0 else logits
    return logits[0].reshape(*v.shape[:-1], -1)


def check(model, **options):
    v = vectors(model, 3, 4)
    read = tlb.readout(model, v, k=5, target=7, answer="w8", **options)
    logits = full_logits(model, v, options.get("bias", False))
    top, bottom = logits.topk(5), logits.topk(5, largest=False)
    torch.testing.assert_close(read.top_values, top.values, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(read.bottom_values, bottom.values, rtol=1e-10, atol=1e-12)
    assert torch.equal(read.top_ids, top.indices) and torch.equal(read.bottom_ids, bottom.indices)
    assert torch.equal(read.target_rank, (logits > logits[..., 7:8]).sum(-1))
    assert torch.equal(read.answer_rank, (logits > logits[..., 8:9]).sum(-1))
    assert torch.equal(read.target_rank_from_bottom, (logits < logits[..., 7:8]).sum(-1))
    torch.testing.assert_close(read.norm, v.norm(dim=-1))
    return read


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", ["ln", "ln_folded", "no_norm", "gqa_grouped", "softcap", "solu_ln"])
def test_hooked_transformer(family):
    assert family in HOOKED
    check(hooked(family))
    check(hooked(family), bias=True)


@pytest.mark.parametrize("compatibility", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_bridge(family, compatibility):
    assert family in BRIDGED
    check(bridge(family, compatibility=compatibility))


@every_world
def test_tokens_are_strings(world):
    model = build(world)
    read = tlb.readout(model, vectors(model, 4), k=3)
    assert read.top_tokens == [[model.tokenizer.decode([i]) for i in row] for row in read.top_ids.tolist()]
    assert read[1].top_tokens == read.top_tokens[1]
    frame = read.to_frame()
    assert list(frame.index) == [0, 1, 2, 3] and frame["top_tokens"][2] == read.top_tokens[2]
    assert read.top_tokens[0][0] in read._repr_html_() and "<script" not in read._repr_html_()


@every_world
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_low_precision(world, dtype):
    """The norm of 60,000 in each direction is no float16 number."""
    model = build(world, dtype=dtype)
    v = (vectors(model, 3).sign() * torch.tensor([[6e4], [1.0], [3e-7]])).to(dtype)
    for found in (tlb.readout(model, v, normalize=True).norm, tlb.project_parameter(model, v).norm):
        torch.testing.assert_close(found.double(), v.double().norm(dim=-1), rtol=1e-6, atol=0)


@every_world
def test_normalize_and_ln(world):
    model, v = build(world), None
    v = vectors(model, 5) * 1e-9
    unit = v / v.norm(dim=-1, keepdim=True)
    one, two = tlb.readout(model, v, normalize=True), tlb.readout(model, unit)
    torch.testing.assert_close(one.top_values, two.top_values)
    torch.testing.assert_close(one.norm, v.norm(dim=-1))
    raw = tlb.readout(model, unit, ln=False)
    torch.testing.assert_close(raw.top_values, (unit @ model.W_U.detach()).topk(10).values)


@every_world
def test_zero_vectors_are_marked_not_decoded(world):
    model = build(world)
    v = vectors(model, 3)
    v[1] = 0
    v[2] *= 1e-200  # its square underflows, but it is not zero
    read = tlb.readout(model, v, k=2, target=4)
    assert read.is_zero.tolist() == [False, True, False]
    assert read.top_ids[1].tolist() == [-1, -1] and read.top_tokens[1] == ["", ""]
    assert read.target_rank[1] == -1 and read.target_rank_from_bottom[1] == -1 and read.target_rank[0] >= 0


@every_world
def test_chunks_and_batches_agree(world, monkeypatch):
    model = build(world)
    v = vectors(model, 3, 5)
    whole = tlb.readout(model, v, target=torch.arange(15).reshape(3, 5) + 3)
    # The package's `readout` is the function of that name, so the module is reached by its path.
    monkeypatch.setattr(
        import_module("tl_backward.vocabulary.extremes"), "MAX_LOGIT_BYTES", 4 * 12 * 7
    )  # 7 columns at a time
    monkeypatch.setattr(import_module("tl_backward.vocabulary.extremes"), "_ROWS", 4)
    parts = tlb.readout(model, v, target=torch.arange(15).reshape(3, 5) + 3)
    for name in ("top_ids", "bottom_ids", "target_rank", "norm"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
    torch.testing.assert_close(whole.top_values, parts.top_values)
    assert tlb.readout(model, v[:0], target=3).top_ids.shape == (0, 5, 10)


@every_world
def test_ranks_agree_with_the_lists(world):
    """Whatever rounding does, the i-th token of the list has rank i, from either end."""
    model = build(world, dtype=torch.float32)
    v = vectors(model, 30)
    read = tlb.readout(model, v, k=10)
    for i in range(10):
        assert (tlb.readout(model, v, target=read.top_ids[:, i]).target_rank == i).all()
        assert (tlb.readout(model, v, target=read.bottom_ids[:, i]).target_rank_from_bottom == i).all()


@every_world
def test_users_hooks_do_not_take_part(world):
    model = build(world)
    v = vectors(model, 2)
    before = tlb.readout(model, v)
    fired = []
    names = [name for name in model.hook_dict if name.startswith(("ln_final", "unembed"))]
    with model.hooks(fwd_hooks=[(name, lambda x, hook: fired.append(hook.name)) for name in names]):
        handle = model.ln_final.register_forward_hook(lambda *a: fired.append("raw"))
        after = tlb.readout(model, v)
        handle.remove()
    assert not fired and torch.equal(before.top_values, after.top_values)


@every_world
def test_padded_vocabulary(world):
    """Rows of W_U beyond the tokenizer are shown by their id."""
    from models import bridge as make_bridge

    if world == "hooked":
        model = hooked(d_vocab=60)
    else:
        model = make_bridge("gpt2", vocab_size=60)
    with torch.no_grad():
        model.W_U[:, 55] = 1e3 * vectors(model, 1)[0] - 1e3 * vectors(model, 1)[0].mean()
    read = tlb.readout(model, vectors(model, 1), k=3, ln=False)
    assert read.top_tokens[0][0] == "[55]"


def test_agrees_with_transformerlens_logit_readout():
    analysis = pytest.importorskip("transformer_lens.tools.analysis")
    if not hasattr(analysis, "logit_readout"):
        pytest.skip("this TransformerLens has no logit_readout (it came with 4.2)")
    for family in ("gpt2", "llama", "gemma2", "neox"):
        model = bridge(family, dtype=torch.float32)
        v = vectors(model, 6)
        theirs = analysis.logit_readout(model, v)
        ours = tlb.readout(model, v, k=10, bias=True, target=9)
        torch.testing.assert_close(ours.top_values, theirs.values.detach().topk(10).values, rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.target_rank, (theirs.values > theirs.values[:, 9:10]).sum(-1))


@every_world
def test_the_final_stream_gives_the_models_own_answer(world):
    model = build(world)
    logits, cache = model.run_with_cache(TOKENS, names_filter=lambda name: name.endswith("hook_resid_post"))
    read = tlb.readout(model, cache["blocks.1.hook_resid_post"], k=1, bias=True)
    assert torch.equal(read.top_ids[..., 0], logits.argmax(-1))


@every_world
def test_bad_input(world):
    model = build(world)
    d = model.cfg.d_model
    with pytest.raises(ValueError, match=rf"Expected vectors \[..., d_model={d}\], got shape \[3, {d + 1}\]"):
        tlb.readout(model, torch.zeros(3, d + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="Expected finite vectors, got NaN"):
        tlb.readout(model, torch.full((d,), float("nan"), dtype=torch.float64))
    with pytest.raises(ValueError, match=r"Expected 1 <= k <= 50 \(the vocabulary\), got k=51"):
        tlb.readout(model, torch.ones(d, dtype=torch.float64), k=51)
    with pytest.raises(ValueError, match="Expected one token, got 'w3 w4', which is 2"):
        tlb.readout(model, torch.ones(d, dtype=torch.float64), target="w3 w4")
