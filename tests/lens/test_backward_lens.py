"""Backward Lens against the definition, worked out by plain autograd; its control; the paper's own figures."""

import json

import pytest
import torch
from models import BRIDGED, HAS_HOOKED_TRANSFORMER, HOOKED, bridge, build, hooked, worlds
from shared import shared, stories

import tl_backward as tlb

every_world = pytest.mark.parametrize("world", worlds())
PROMPT, TARGET = "w5 w6 w7 w8", "w9"


def by_hand(model, prompt, target, layer):
    """(x of W_in, VJP of W_out) from forward and backward tensor hooks on the wrapped modules."""
    kept = {}
    if hasattr(model.blocks[layer].mlp, "W_in") and not hasattr(model, "original_model"):
        into, out = model.blocks[layer].mlp, model.blocks[layer].mlp
    else:
        into, out = (
            getattr(model.blocks[layer].mlp, "in").original_component,
            model.blocks[layer].mlp.out.original_component,
        )

    def read(module, args, output):
        kept["x"] = args[0].detach()

    def write(module, args, output):
        output.retain_grad()
        kept["y"] = output

    handles = [into.register_forward_hook(read), out.register_forward_hook(write)]
    logits = model(model.to_tokens(prompt), return_type="logits")
    (-logits.log_softmax(-1)[0, -1, model.to_tokens(target, prepend_bos=False)[0, 0]]).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return kept["x"][0], kept["y"].grad[0]


@pytest.mark.parametrize("family", ["ln", "ln_folded", "rms_gated", "parallel"] if HAS_HOOKED_TRANSFORMER else [])
def test_hooked_transformer(family):
    assert family in HOOKED
    check(hooked(family))


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2", "qwen2"])
def test_bridge(family):
    assert family in BRIDGED
    check(bridge(family))


def check(model):
    lens = tlb.backward_lens(model, PROMPT, TARGET, k=4)
    for layer in (0, 1):
        x, delta = by_hand(model, PROMPT, TARGET, layer)
        for read, vectors in ((lens.imprint[layer], x), (lens.shift[layer], delta)):
            expected = tlb.readout(model, vectors, k=4, target=TARGET, answer=lens.answer)
            torch.testing.assert_close(read.top_values, expected.top_values, rtol=1e-6, atol=1e-9)
            assert torch.equal(read.top_ids, expected.top_ids) and torch.equal(read.bottom_ids, expected.bottom_ids)
            assert torch.equal(read.target_rank, expected.target_rank)
            assert torch.equal(read.answer_rank, expected.answer_rank)
            torch.testing.assert_close(read.norm, vectors.norm(dim=-1))
    assert lens.shift[1].is_zero.tolist() == [True] * (len(lens.tokens) - 1) + [False]
    logits = model(model.to_tokens(PROMPT), return_type="logits")
    assert lens.answer == model.tokenizer.decode([int(logits[0, -1].argmax())])
    assert lens.tokens[-4:] == ["w5", "w6", "w7", "w8"] and len(lens.tokens) == model.to_tokens(PROMPT).shape[1]


@every_world
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_examples(world, side):
    model = build(world)
    model.tokenizer.padding_side = side
    prompts, targets = ["w5 w6 w7", "w8", "w9 w10"], ["w3 w4", "w11", "w12"]
    batch = tlb.backward_lens(model, prompts, targets, k=3, attention=True, subject=["w6", "w8", "w10"])
    assert batch.is_batch and batch.tokens[1].count("") == 3
    for example, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        one = tlb.backward_lens(model, prompt, target, k=3, attention=True)
        real = batch.mask[example]
        assert one.answer == batch.answer[example] and one.target == batch.target[example]
        for of, layers in one.readouts().items():
            for layer, read in layers.items():
                theirs = batch.readouts()[of][layer][example]
                for name in ("top_ids", "bottom_ids", "target_rank", "answer_rank"):
                    assert torch.equal(getattr(theirs, name)[real], getattr(read, name)), (of, layer, name)
                torch.testing.assert_close(theirs.norm[real], read.norm)
    tokens = [token for row in batch.tokens for token in row if token]
    assert batch.to_frame()["token"].tolist() == 4 * 2 * tokens and len(tokens) == int(batch.mask.sum())


@every_world
def test_the_prompts_last_token_is_where_the_answer_is_asked_for(world):
    model = build(world)
    model.tokenizer.padding_side = "left"
    lens = tlb.backward_lens(model, ["w5 w6 w7", "w8"], ["w3 w4 w10", "w11 w9 w3"], subject=["w6", "w8"])
    tokens = [[lens.tokens[i][p] for p in range(lens.token_ids.shape[1])] for i in range(2)]
    assert [tokens[i][int(p)] for i, p in enumerate(lens.answer_position)] == ["w7", "w8"]
    labels = [
        [label for label, is_real in zip(row, real, strict=True) if is_real]
        for row, real in zip(lens.segments.labels(), lens.mask.tolist(), strict=True)
    ]
    assert labels[0][-5:] == ["other", "subject", "last", "target", "target"]
    assert labels[1][-4:] == ["first", "last", "target", "target"]
    one = tlb.backward_lens(model, "w5 w6 w7", "w3 w4 w10")
    assert one.answer == lens.answer[0] and one.tokens[int(one.answer_position)] == "w7"


def test_targets_are_encoded_as_they_stand_after_the_prompt():
    """Sentencepiece would give " boy" a lone space first."""
    model = stories()
    lens = tlb.backward_lens(model, "There was a little", " boy")
    pieces = model.tokenizer.convert_ids_to_tokens([*lens.token_ids[-2:].tolist()])
    assert pieces == ["\u2581b", "o"] and lens.target == " b"


@pytest.mark.parametrize("family", ["split_qkv", "attn_result", "attn_in"] if HAS_HOOKED_TRANSFORMER else [])
def test_attention_with_an_input_for_each_head(family):
    """Without hooks all heads read and write the same, so their mean is what the plain model has."""
    lens, plain = (tlb.backward_lens(hooked(name), PROMPT, TARGET, attention=True) for name in (family, "ln"))
    for of in ("attn_imprint", "attn_shift"):
        for layer, read in getattr(lens, of).items():
            torch.testing.assert_close(read.norm, getattr(plain, of)[layer].norm)
            assert torch.equal(read.target_rank, getattr(plain, of)[layer].target_rank)


@every_world
def test_segments(world):
    model = build(world)
    lens = tlb.backward_lens(model, PROMPT, TARGET, subject="w6", control="random_init")
    frame = lens.to_frame()
    shift = frame[(frame["readout"] == "shift") & (frame["layer"] == 0)]
    assert shift["segment"].tolist() == ["first", "other", "subject", "other", "last"]
    means = lens.segment_means("norm").set_index(["layer", "segment"])
    norms = lens.shift[0].norm
    assert means.loc[(0, "subject"), "mean"] == pytest.approx(norms[2].item())
    assert means.loc[(0, "other"), "mean"] == pytest.approx(norms[[1, 3]].mean().item())
    beside = [draw.shift[0].norm[4].item() for draw in lens.controls]
    assert means.loc[(0, "last"), "control"] == pytest.approx(sum(beside) / len(beside))
    ranks = lens.segment_means("target_rank").set_index(["layer", "segment"])
    assert ranks.loc[(1, "first"), "n"] == 0 and ranks.loc[(1, "last"), "n"] == 1


@every_world
def test_control_is_the_same_architecture_untrained(world):
    model = build(world)
    model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: x * 2)  # an intervention is not part of the control
    one = tlb.backward_lens(model, PROMPT, TARGET, control="random_init", seed=1)
    two = tlb.backward_lens(model, PROMPT, TARGET, control="random_init", seed=1)
    other = tlb.backward_lens(model, PROMPT, TARGET, control="random_init", seed=2)
    assert torch.equal(one.control.shift[0].top_values, two.control.shift[0].top_values)
    assert not torch.equal(one.control.shift[0].top_values, other.control.shift[0].top_values)
    assert one.control.answer == one.answer and one.control.tokens == one.tokens
    assert not one.control.control


@pytest.mark.parametrize("compatibility", [False, True])
def test_the_control_of_a_processed_model_is_fresh_too(compatibility):
    """In compatibility mode a gated MLP multiplies by copies of its parameters; they must be drawn anew as well."""
    from tl_backward.model.controls import random_init

    model = bridge("llama", compatibility=compatibility)
    control = random_init(model, seed=0)
    for block, fresh in zip(model.blocks, control.blocks, strict=True):
        for letter in ("W_in", "W_out", "W_gate"):
            assert not torch.equal(getattr(block.mlp, letter), getattr(fresh.mlp, letter))
        if hasattr(fresh.mlp, "_processed_W_in"):  # TransformerLens 3's
            assert torch.equal(fresh.mlp._processed_W_in, getattr(fresh.mlp, "in").original_component.weight)


@every_world
def test_gradients_at_hook_points_and_options(world):
    model = build(world)
    lens = tlb.backward_lens(model, PROMPT, TARGET, layers=[-1], names_filter="blocks.1.attn.hook_pattern", k=2)
    assert lens.layers == [1] and lens.cache["pattern", 1].shape[-2:] == (5, 5)
    given = tlb.backward_lens(model, PROMPT, TARGET, answer="w20")
    assert given.answer == "w20"
    tokens = model.to_tokens(PROMPT)
    assert torch.equal(tlb.backward_lens(model, tokens[0], TARGET).shift[0].norm, given.shift[0].norm)
    assert "layer 1" in lens._repr_html_() and "BackwardLens(5 tokens, layers=[1]" in repr(lens)


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_attention_alone():
    model = hooked("attn_only")
    with pytest.raises(
        ValueError, match="Expected an MLP, experts or a mixer in layer 0, but there is attention alone"
    ):
        tlb.backward_lens(model, PROMPT, TARGET)
    lens = tlb.backward_lens(model, PROMPT, TARGET, attention=True)
    assert lens.layers == [0, 1] and not lens.shift and lens.attn_imprint[0].norm.shape == (5,)
    assert lens.kinds == {0: "attention", 1: "attention"}


@pytest.mark.parametrize("kind", worlds())
def test_a_real_llama(kind):
    """stories260K (GQA, gated): factors reproduce autograd, both readouts are made, the worlds agree."""
    model = stories(kind)
    prompt, target = "Once upon a time, there was a little", " boy"
    sites = tlb.weight_sites(model)
    for site in sites.values():
        site.parameter.requires_grad_(True)
    loss = tlb.target_loss(target)
    _, cache = tlb.run_with_gradient_cache(model, prompt, loss, weights=lambda name: "blocks" in name)
    value = loss.bind(model, 1)(model(cache.tokens, return_type="logits"), cache.tokens)
    names = list(cache.factors)
    for name, gradient in zip(
        names, torch.autograd.grad(value, [sites[name].parameter for name in names]), strict=True
    ):
        error = (cache.factors[name].gradient("parameter") - gradient).abs().max() / gradient.abs().max()
        assert error < 1e-5, name
    lens = tlb.backward_lens(model, prompt, target, control="random_init", subject="little", attention=True)
    assert lens.layers == list(range(5)) and lens.tokens[1] == " Once"
    assert lens.cache.factors["W_gate", 2].inputs.equal(lens.cache.factors["W_in", 2].inputs)
    if HAS_HOOKED_TRANSFORMER:
        other = tlb.backward_lens(stories("bridge" if kind == "hooked" else "hooked"), prompt, target)
        for layer in lens.layers:
            torch.testing.assert_close(other.shift[layer].norm, lens.shift[layer].norm, rtol=1e-3, atol=1e-6)
            assert torch.equal(other.shift[layer].target_rank, lens.shift[layer].target_rank)


@every_world
def test_facts_model_old_answer_on_top_and_target_at_the_bottom(world):
    """The finding that training makes: the old answer at the top of the last shift, not so at random init."""
    model = tlb.zoo.load("facts", kind=world)
    prompt, target = tlb.zoo.facts.example_edit()
    lens = tlb.backward_lens(model, prompt, target, control="random_init")
    last = lens.shift[lens.layers[-1]]
    assert last.target_rank_from_bottom[-1] == 0 and last.answer_rank[-1] == 0
    assert lens.control.shift[lens.layers[-1]].target_rank_from_bottom[-1] == 0  # so this one proves nothing
    assert lens.control.shift[lens.layers[-1]].answer_rank[-1] > 0


@pytest.mark.network
@every_world
def test_the_papers_own_figures(world):
    """What the paper's demo printed for GPT-2 small: every rank within 3, every norm within 2 %."""
    reference = json.loads(shared("reference", "backward_lens_gpt2.json").read_text())
    if world == "hooked":
        from transformer_lens import HookedTransformer

        model = HookedTransformer.from_pretrained_no_processing("gpt2", device="cpu")
    else:
        from transformer_lens.model_bridge import TransformerBridge

        model = TransformerBridge.boot_transformers("gpt2", device="cpu")
    lens = tlb.backward_lens(model, reference["prompt"], reference["target"], prepend_bos=False)
    assert lens.tokens == reference["tokens"] and lens.answer == reference["model_answer"]
    assert lens.loss.item() == pytest.approx(reference["loss"], rel=1e-3)
    for position, token in enumerate(reference["tokens"]):
        for layer, read in lens.shift.items():
            norm = reference["vjp_norm_by_token_and_layer"][token][layer]
            assert read.norm[position].item() == pytest.approx(norm, rel=0.02, abs=6e-5), (token, layer)
            if not read.is_zero[position]:
                rank = reference["target_rank_by_token_and_layer"][token][layer]
                assert abs(int(read.target_rank[position]) - rank) <= 3, (token, layer)
