"""Projections against every score computed in float64 from the models' own modules."""

from importlib import import_module

import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, bridge, build, hooked, worlds
from shared import stories

import tl_backward as tlb
from tl_backward.embedding_space import VectorOptions

from .oracle import extremes, unembedding, vectors

every_world = pytest.mark.parametrize("world", worlds())
needs_hooked = pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
FOLDED = VectorOptions(fold_ln=True)
WEIGHTS = [("W_in", 0), ("W_out", 1), ("W_Q", 0), ("W_K", 1), ("W_V", 0), ("W_O", 1), ("W_E", None), ("W_U", None)]
GPT2 = [*WEIGHTS, ("b_out", 0), ("b_O", 1), ("ln1.w", 1), ("W_pos", None)]
LLAMA = [*WEIGHTS, ("W_gate", 1), ("ln1.w", 0)]


def check(model, weight, layer, k=7, **options):
    found = tlb.project_parameter(model, weight, layer, k=k, show_progress=False, **options)
    own = vectors(model, weight, layer)
    flat = own.reshape(-1, own.shape[-1])
    top_ids, top, bottom_ids, bottom = extremes(flat @ unembedding(model), k)
    close = {"rtol": 1e-9, "atol": 1e-10} if model.W_U.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.top_scores.double(), top, **close)
    torch.testing.assert_close(found.bottom_scores.double(), bottom, **close)
    if model.W_U.dtype == torch.float64:
        assert torch.equal(found.top_ids, top_ids) and torch.equal(found.bottom_ids, bottom_ids)
    torch.testing.assert_close(found.norm.double(), flat.norm(dim=1), rtol=1e-5, atol=1e-6)
    if own.ndim == 3:
        assert found.heads.tolist() == [h for h in range(own.shape[0]) for _ in range(own.shape[1])]
        assert found.index.tolist() == list(range(own.shape[1])) * own.shape[0]
    else:
        assert found.heads is None and found.index.tolist() == list(range(len(own)))
    return found


@needs_hooked
@pytest.mark.parametrize("weight, layer", GPT2)
def test_hooked_transformer(weight, layer):
    check(hooked(), weight, layer)


@needs_hooked
@pytest.mark.parametrize("family", ["rms_gated", "gqa_grouped", "gqa_ungrouped", "ln_folded", "parallel"])
def test_hooked_families(family):
    model = hooked(family)
    for weight, layer in WEIGHTS + ([("W_gate", 0)] if family == "rms_gated" else []):
        check(model, weight, layer)


@pytest.mark.parametrize("compatibility", [False, True])
@pytest.mark.parametrize("family, weights", [("gpt2", GPT2), ("llama", LLAMA)])
def test_bridge(family, weights, compatibility):
    model = bridge(family, compatibility=compatibility)
    for weight, layer in weights:
        if compatibility:  # the processed weights, which live in TransformerLens's own layout
            found = tlb.project_parameter(model, weight, layer, k=5, show_progress=False)
            stored = tlb.weight_sites(model)[found.weight]
            assert found.top_ids.shape == (len(found), 5) and stored.parameter.numel() == len(found) * model.cfg.d_model
        else:
            check(model, weight, layer)


@pytest.mark.parametrize("kind", worlds())
def test_stories(kind):
    """A real model with grouped-query attention and a gated MLP."""
    model = stories(kind)
    for weight, layer in [*WEIGHTS, ("W_gate", 4)]:
        check(model, weight, layer)


@needs_hooked
def test_both_worlds_say_the_same():
    pairs = [
        (tlb.zoo.load("facts", kind="hooked"), tlb.zoo.load("facts", kind="bridge")),
        (stories("hooked"), stories("bridge")),
    ]
    for one, other in pairs:
        for weight, layer in [("W_in", 1), ("W_K", 0), ("W_O", 2), ("W_E", None), ("ln2.w", 1)]:
            for options in (
                VectorOptions(),
                VectorOptions("pinv"),
                VectorOptions(fold_ln=True),
                VectorOptions("pinv", True),
            ):
                left, right = (
                    tlb.project_parameter(m, weight, layer, vector_options=options, show_progress=False)
                    for m in (one, other)
                )
                assert left.weight == right.weight and left.side == right.side
                scale = float(left.top_scores.abs().max())
                torch.testing.assert_close(left.top_scores, right.top_scores, rtol=1e-3, atol=1e-4 * scale)
                assert (left.top_ids == right.top_ids).float().mean() > 0.99


@needs_hooked
@pytest.mark.parametrize("family", ["ln", "rms_gated", "gqa_grouped", "parallel", "no_norm"])
def test_folding_reads_a_raw_model_as_a_folded_one(family):
    raw, folded = hooked(family), hooked(family)
    folded.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    for weight, layer in WEIGHTS + ([("W_gate", 1)] if family == "rms_gated" else []):
        one = tlb.project_parameter(raw, weight, layer, vector_options=FOLDED)
        two = tlb.project_parameter(folded, weight, layer)
        again = tlb.project_parameter(folded, weight, layer, vector_options=FOLDED)
        torch.testing.assert_close(one.top_scores, two.top_scores, rtol=1e-5, atol=1e-5)  # it folds in float32
        assert torch.equal(one.top_ids, two.top_ids) and torch.equal(one.bottom_ids, two.bottom_ids)
        assert torch.equal(again.top_ids, two.top_ids)
        if family != "no_norm" and weight != "W_E":
            assert not torch.equal(one.top_ids, tlb.project_parameter(raw, weight, layer).top_ids)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_folding_by_hand(family):
    """Each norm's weight times the columns of the matrix that reads from it, then LayerNorm's centring."""
    model = bridge(family)
    inner = model.original_model
    final, one, two = (
        (inner.transformer.ln_f, inner.transformer.h[1].ln_1, inner.transformer.h[1].ln_2)
        if family == "gpt2"
        else (inner.model.norm, inner.model.layers[1].input_layernorm,
              inner.model.layers[1].pre_feedforward_layernorm if family == "gemma2" else inner.model.layers[1].post_attention_layernorm)
    )  # fmt: skip
    added = 1 if family == "gemma2" else 0

    def folded(rows, norm):
        rows = rows if norm is None else rows * (norm.weight.detach().double() + added)
        return rows - rows.mean(-1, keepdim=True) if family == "gpt2" else rows

    embedding = folded(unembedding(model).T, final).T
    for weight, norm in (("W_Q", one), ("W_K", one), ("W_V", one), ("W_in", two), ("W_out", None), ("W_O", None)):
        own = vectors(model, weight, 1)
        own = own.reshape(-1, own.shape[-1])
        top_ids, top, bottom_ids, _ = extremes((own if norm is None else folded(own, norm)) @ embedding, 5)
        found = tlb.project_parameter(model, weight, 1, k=5, vector_options=FOLDED)
        torch.testing.assert_close(found.top_scores, top, rtol=1e-9, atol=1e-10)
        assert torch.equal(found.top_ids, top_ids) and torch.equal(found.bottom_ids, bottom_ids)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2", "qwen2"])
def test_folding_agrees_with_compatibility_mode(family):
    """Centring the unembedding over the vocabulary moves all scores of a vector alike: the tokens stay."""
    raw, folded = bridge(family), bridge(family, compatibility=True)
    gated = [] if family in ("gpt2", "neox") else [("W_gate", 0)]
    for weight, layer in [("W_in", 0), ("W_Q", 1), ("W_K", 0), ("W_V", 1), *gated]:
        one, two = (
            tlb.project_parameter(raw, weight, layer, vector_options=FOLDED),
            tlb.project_parameter(folded, weight, layer),
        )
        assert torch.equal(one.top_ids, two.top_ids) and torch.equal(one.bottom_ids, two.bottom_ids), weight


@every_world
@pytest.mark.parametrize("fold_ln", [False, True])
def test_pseudo_inverse(world, fold_ln):
    """A reading vector v becomes v E'^T, so that (x E)(v E'^T)^T = x . v for every x that E can tell apart."""
    model = build(world)
    embedding = unembedding(model)
    gain = model.ln_final.w if world == "hooked" else model.original_model.transformer.ln_f.weight
    before = model.blocks[0].ln2.w if world == "hooked" else model.original_model.transformer.h[0].ln_2.weight
    own = vectors(model, "W_in", 0)
    if fold_ln:
        center = torch.eye(len(embedding), dtype=torch.float64) - 1 / len(embedding)
        embedding = center @ torch.diag(gain.detach().double()) @ embedding
        own = own @ torch.diag(before.detach().double()) @ center
    scores = own @ torch.linalg.pinv(embedding, rtol=1e-10).T
    top_ids, top, bottom_ids, _ = extremes(scores, 6)
    found = tlb.project_parameter(model, "W_in", 0, k=6, vector_options=VectorOptions("pinv", fold_ln))
    assert torch.equal(found.top_ids, top_ids) and torch.equal(found.bottom_ids, bottom_ids)
    torch.testing.assert_close(found.top_scores, top, rtol=1e-8, atol=1e-10)
    written = [
        tlb.project_parameter(model, "W_out", 0, vector_options=VectorOptions(inverse, fold_ln))
        for inverse in ("pinv", "transpose")
    ]
    assert torch.equal(written[0].top_scores, written[1].top_scores)


@needs_hooked
def test_experts():
    model = hooked("moe")
    expert = model.blocks[1].mlp.experts[2]
    for weight, rows in (
        ("W_in", expert.W_in.weight),
        ("W_gate", expert.W_gate.weight),
        ("W_out", expert.W_out.weight.T),
    ):
        found = tlb.project_parameter(model, f"experts.2.{weight}", 1, k=4)
        assert torch.equal(found.top_ids, extremes(rows.detach() @ unembedding(model), 4)[0]) and len(found) == 28
    assert len(tlb.project_parameter(model, "blocks.1.mlp.W_gate", k=4)) == 3  # the router's


@every_world
def test_heads_of_a_group_share_keys(world):
    model = hooked("gqa_grouped") if world == "hooked" else bridge("llama")
    for weight, n_stored in (("W_Q", 4), ("W_K", 2), ("W_V", 2), ("W_O", 4)):
        every = tlb.project_parameter(model, weight, 1)
        assert sorted(set(every.heads.tolist())) == list(range(n_stored))
        for head in range(-4, 4):
            one = tlb.project_parameter(model, weight, 1, head=head)
            stored = head % 4 // (4 // n_stored)
            assert set(one.heads.tolist()) == {stored}
            assert torch.equal(one.top_ids, every[every.heads == stored].top_ids)


@every_world
def test_tensors_and_differences(world):
    model = build(world)
    one, two = (vectors(model, "W_out", layer) for layer in (0, 1))
    found = tlb.project_parameter(model, one - two, k=4)
    top_ids, top, _, _ = extremes((one - two) @ unembedding(model), 4)
    assert torch.equal(found.top_ids, top_ids) and found.weight == "tensor" and found.side == "write"
    torch.testing.assert_close(found.top_scores, top)
    assert len(tlb.project_parameter(model, one[0])) == 1
    assert len(tlb.project_parameter(model, one.reshape(2, -1, one.shape[1]))) == len(one)
    read = tlb.project_parameter(model, vectors(model, "W_in", 0), side="read", vector_options=VectorOptions("pinv"))
    assert torch.equal(
        read.top_ids, tlb.project_parameter(model, "W_in", 0, vector_options=VectorOptions("pinv")).top_ids
    )


@every_world
def test_zero_vectors_are_marked(world):
    model = build(world)
    some = torch.randn(3, model.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    some[1] = 0
    found = tlb.project_parameter(model, some, k=3)
    assert found.is_zero.tolist() == [False, True, False]
    assert (
        found.top_ids[1].tolist() == [-1] * 3
        and found.top_tokens[1] == [""] * 3
        and found.top_scores[1].abs().sum() == 0
    )


@every_world
def test_tiles_agree(world, monkeypatch):
    model = build(world)
    allowed = torch.arange(3, 50, 2)
    whole = [
        tlb.project_parameter(model, "W_in", 0, k=9),
        tlb.project_parameter(model, "W_in", 0, k=9, vector_options=VectorOptions(tokens=allowed)),
    ]
    monkeypatch.setattr(import_module("tl_backward.vocabulary.extremes"), "MAX_LOGIT_BYTES", 12 * 4 * 5)
    monkeypatch.setattr(import_module("tl_backward.vocabulary.extremes"), "_ROWS", 4)
    tiled = [
        tlb.project_parameter(model, "W_in", 0, k=9),
        tlb.project_parameter(model, "W_in", 0, k=9, vector_options=VectorOptions(tokens=allowed)),
    ]
    for one, other in zip(whole, tiled, strict=True):
        assert torch.equal(one.top_ids, other.top_ids) and torch.equal(one.bottom_ids, other.bottom_ids)
    ids, scores, bottom, _ = extremes(vectors(model, "W_in", 0) @ unembedding(model), 9, allowed)
    assert torch.equal(whole[1].top_ids, ids) and torch.equal(whole[1].bottom_ids, bottom) and whole[1].n_tokens == 24
    torch.testing.assert_close(whole[1].top_scores, scores)


@every_world
def test_low_precision(world):
    model = build(world, dtype=torch.bfloat16)
    found = tlb.project_parameter(model, "W_out", 0, k=3, vector_options=VectorOptions("pinv", True))
    assert torch.isfinite(found.top_scores).all() and found.top_ids.shape[1] == 3


@every_world
def test_frame_and_html(world):
    model = build(world)
    found = tlb.project_parameter(model, "W_Q", 0, k=3)
    frame = found.to_frame()
    assert list(frame.columns) == [
        "head",
        "index",
        "norm",
        "top_tokens",
        "top_scores",
        "bottom_tokens",
        "bottom_scores",
    ]
    assert frame["top_tokens"][1] == [model.tokenizer.decode([i]) for i in found.top_ids[1].tolist()]
    assert "head" not in tlb.project_parameter(model, "W_in", 0, k=3).to_frame()
    assert found[2].top_tokens == [found.top_tokens[2]] and "W_Q" in repr(found)
    page = found._repr_html_()
    assert page.count("<tr>") == min(30, len(found)) + 1 and "<script" not in page
    hostile = found.__class__(**{**vars(found), "tokenizer": Hostile()})
    assert "<img" not in hostile._repr_html_() and "&lt;img" in hostile._repr_html_()


class Hostile:
    def decode(self, ids):
        return "<img src=x onerror=alert(1)>"

    def convert_ids_to_tokens(self, i):
        return "<img src=x onerror=alert(1)>"


@every_world
def test_the_model_is_left_alone(world):
    model = build(world)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, training = torch.get_rng_state(), model.training
    found = tlb.project_parameter(model, "W_V", 0, vector_options=VectorOptions("pinv", True))
    assert (
        not found.top_scores.requires_grad and torch.equal(torch.get_rng_state(), state) and model.training == training
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every_world
def test_bad_input(world):
    model = build(world)
    d = model.cfg.d_model
    n_heads = model.cfg.n_heads
    with pytest.raises(IndexError, match=r"Expected layers in \[-2, 2\), got 2; the model has 2 layers"):
        tlb.project_parameter(model, "W_in", 2)
    with pytest.raises(IndexError, match=rf"Expected head in \[-{n_heads}, {n_heads}\), got {n_heads}; the model has"):
        tlb.project_parameter(model, "W_Q", 0, head=n_heads)
    for weight in ("b_in", "b_Q"):
        with pytest.raises(ValueError, match=r"Expected a weight with a d_model side, got '[\w.]+' of shape \["):
            tlb.project_parameter(model, weight, 0)
    with pytest.raises(ValueError, match="Expected the name of a weight, got 'W_on'; the nearest are"):
        tlb.project_parameter(model, "W_on", 0)
    with pytest.raises(
        ValueError,
        match="Expected a layer for 'W_in', which 2 blocks have, got none; name one of them, such as layer=0",
    ):
        tlb.project_parameter(model, "W_in")
    with pytest.raises(ValueError, match="Expected no layer for 'W_E', which is in no block, got 1"):
        tlb.project_parameter(model, "W_E", 1)
    with pytest.raises(ValueError, match="Expected a layer with 'blocks.0.mlp.W_in', got layer 1, which has none"):
        tlb.project_parameter(model, "blocks.0.mlp.W_in", 1)
    with pytest.raises(ValueError, match="Expected no head for 'blocks.0.mlp.W_in', which has none, got head=0"):
        tlb.project_parameter(model, "W_in", 0, head=0)
    with pytest.raises(ValueError, match=r"Expected 1 <= k <= 50 \(the vocabulary\), got k=51"):
        tlb.project_parameter(model, "W_in", 0, k=51)
    with pytest.raises(ValueError, match=r"Expected 1 <= k <= 2 \(the tokens that the filters leave\), got k=3"):
        tlb.project_parameter(model, "W_in", 0, k=3, vector_options=VectorOptions(tokens=["w5", 7]))
    with pytest.raises(ValueError, match=r"Expected vectors \[..., d_model=\d+\], got shape \[3, 4\]; transpose"):
        tlb.project_parameter(model, torch.ones(3, 4))
    with pytest.raises(ValueError, match="Expected neither layer nor head with a tensor, got layer=0, head=None"):
        tlb.project_parameter(model, torch.ones(3, d), 0)
    with pytest.raises(ValueError, match="Expected no side for 'W_in', whose own is known, got side='read'"):
        tlb.project_parameter(model, "W_in", 0, side="read")
    with pytest.raises(ValueError, match="Expected finite weights, got NaN or inf in the tensor"):
        tlb.project_parameter(model, torch.full((3, d), float("nan")))
    with pytest.raises(ValueError, match="Expected side to be 'read' or 'write', got 'up'"):
        tlb.project_parameter(model, torch.ones(3, d), side="up")
    site = tlb.weight_sites(model)["blocks.1.mlp.W_out"]
    with torch.no_grad():
        site.parameter[0, 0] = float("inf")
    with pytest.raises(
        ValueError, match="Expected finite weights, got NaN or inf in blocks.1.mlp.W_out; load or train"
    ):
        tlb.project_parameter(model, "W_out", 1)
    with torch.no_grad():
        tlb.weight_sites(model)["unembed.W_U"].parameter[0, 0] = float("nan")
    with pytest.raises(ValueError, match="Expected finite weights, got NaN or inf in unembed.W_U; load or train"):
        tlb.project_parameter(model, "W_out", 0)
    with pytest.raises(ValueError, match="Expected inverse 'transpose' or 'pinv', got 'inverse'"):
        tlb.project_parameter(model, "W_out", 0, vector_options=VectorOptions("inverse"))
    with pytest.raises(TypeError, match="Expected a TransformerLens model"):
        tlb.project_parameter(torch.nn.Linear(2, 2), "W_out", 1)


def test_a_norm_that_runs_once_a_head_is_folded_too():
    model = bridge("gpt2")
    plain = tlb.project_parameter(model, "W_Q", 0, vector_options=FOLDED)
    model.set_use_split_qkv_input(True)
    forked = tlb.project_parameter(model, "W_Q", 0, vector_options=FOLDED)
    assert forked.to_frame().equals(plain.to_frame())


@every_world
def test_several_devices(world):
    model = build(world)
    model.blocks[1].to("meta")
    with pytest.raises(ValueError, match="Expected a model whose parameters are in memory, got .* on the meta device"):
        tlb.project_parameter(model, "W_out", 0)
