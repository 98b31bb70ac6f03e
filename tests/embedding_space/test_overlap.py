"""The R_k score against activations taken by TransformerLens's own cache and sets of Python."""

import pytest
import torch
from models import TOKENS, bridge, build, hooked, worlds
from shared import stories

import tl_backward as tlb
from tl_backward.embedding_space import parameter_activation_overlap

from .oracle import extremes, unembedding, vectors

every_world = pytest.mark.parametrize("world", worlds())


def oracle(model, tokens, weight, layer, k, k_state, n_vectors, order=None, real=None):
    hook = f"blocks.{layer}.attn.hook_z" if weight in ("W_V", "W_O") else f"blocks.{layer}.mlp.hook_post"
    seen = {}
    with torch.no_grad():
        options = {} if real is None else {"attention_mask": real.long()}
        names = {hook: "x", f"blocks.{layer}.hook_resid_post": "h"}
        hooks = [
            (name, lambda x, hook, short=short: seen.update({short: x.detach().clone()}))
            for name, short in names.items()
        ]
        with model.hooks(fwd_hooks=hooks, bwd_hooks=[]):
            model(tokens, **options)
        states = model.ln_final(seen["h"]) if hasattr(model, "ln_final") else seen["h"]
    x = seen["x"].reshape(*tokens.shape, -1).double()
    own = vectors(model, weight, layer)
    if own.ndim == 3:
        own = own.repeat_interleave(model.cfg.n_heads // len(own), dim=0).flatten(0, 1)
    named = extremes(own @ unembedding(model), k)[0]
    places = [(b, p) for b in range(tokens.shape[0]) for p in range(tokens.shape[1]) if real is None or real[b, p]]
    active = [set(named[x[place].topk(n_vectors).indices].flatten().tolist()) for place in places]
    active = active if order is None else [active[i] for i in order]
    said = [set((states[place].double() @ unembedding(model)).topk(k_state).indices.tolist()) for place in places]
    return torch.tensor([len(a & b) / k_state for a, b in zip(said, active, strict=True)]), places


def check(model, weight, layer=1, tokens=TOKENS, k=6, k_state=4, n_vectors=3):
    found = parameter_activation_overlap(
        model, tokens, weight, layer, k=k, k_state=k_state, n_vectors=n_vectors, seed=5, show_progress=False
    )
    expected, places = oracle(model, tokens, weight, layer, k, k_state, n_vectors)
    torch.testing.assert_close(found.aligned, expected)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(5)).tolist()
    torch.testing.assert_close(found.shuffled, oracle(model, tokens, weight, layer, k, k_state, n_vectors, order)[0])
    assert [tuple(place) for place in found.places.tolist()] == places
    return found


@every_world
@pytest.mark.parametrize("weight", ["W_in", "W_out", "W_V", "W_O"])
def test_plain(world, weight):
    check(build(world), weight)


@every_world
@pytest.mark.parametrize("weight", ["W_in", "W_gate", "W_out", "W_V", "W_O"])
def test_grouped_and_gated(world, weight):
    if world == "bridge":
        check(bridge("llama"), weight)
    else:
        check(hooked("gqa_grouped" if weight in ("W_V", "W_O") else "rms_gated"), weight, 0)


@pytest.mark.parametrize("kind", worlds())
def test_stories(kind):
    model = stories(kind)
    tokens = model.to_tokens("Once upon a time, there was a little girl named Lily.")
    for weight in ("W_gate", "W_out", "W_V", "W_O"):
        check(model, weight, 3, tokens, k=20)


@every_world
def test_padding_is_left_out(world):
    model = build(world)
    texts = ["w5 w9 w11", "w7", "w20 w21 w22 w23 w8"]
    together = parameter_activation_overlap(model, texts, "W_out", 0, k=6)
    alone = [parameter_activation_overlap(model, text, "W_out", 0, k=6) for text in texts]
    torch.testing.assert_close(together.aligned, torch.cat([one.aligned for one in alone]))
    assert together.tokens == [token for one in alone for token in one.tokens]


@every_world
def test_users_hooks_take_part_and_nothing_stays(world):
    model = build(world)
    before = parameter_activation_overlap(model, TOKENS, "W_out", 1, k=6)
    hooks = {name: len(point._forward_hooks) for name, point in model.hook_dict.items()}
    state, training = torch.get_rng_state(), model.training
    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", lambda x, hook: -x)], bwd_hooks=[]):
        changed = parameter_activation_overlap(model, TOKENS, "W_out", 1, k=6)
    assert not torch.equal(changed.aligned, before.aligned)
    after = parameter_activation_overlap(model, TOKENS, "W_out", 1, k=6)
    assert torch.equal(after.aligned, before.aligned) and torch.equal(torch.get_rng_state(), state)
    assert {name: len(point._forward_hooks) for name, point in model.hook_dict.items()} == hooks
    assert model.training == training and all(p.grad is None for p in model.parameters())

    def fail(x, hook):
        raise RuntimeError("stopped")

    with (
        pytest.raises(RuntimeError, match="stopped"),
        model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", fail)], bwd_hooks=[]),
    ):
        parameter_activation_overlap(model, TOKENS, "W_out", 1, k=6)
    assert {name: len(point._forward_hooks) for name, point in model.hook_dict.items()} == hooks


def test_a_trained_model_against_the_shuffle():
    model = tlb.zoo.load("facts")
    prompts = [example.prompt for example in tlb.zoo.facts.world().examples(relation="city")[:20]]
    found = parameter_activation_overlap(model, prompts, "W_out", 3)
    assert float(found.aligned.mean()) > 1.5 * float(found.shuffled.mean())


@every_world
def test_frame_and_html(world):
    found = parameter_activation_overlap(build(world), TOKENS, "W_O", 1, k=6)
    assert list(found.to_frame().columns) == ["example", "position", "token", "aligned", "shuffled"] and "W_O" in repr(
        found
    )
    assert found._repr_html_().count("<tr>") == 1 + 1 + TOKENS.numel()


@every_world
def test_bad_input(world):
    model = build(world)
    with pytest.raises(ValueError, match="Expected weight to be one of W_in, W_gate, W_out, W_V, W_O, got 'W_Q'"):
        parameter_activation_overlap(model, TOKENS, "W_Q", 0)
    with pytest.raises(ValueError, match=r"Expected 1 <= n_vectors <= \d+ \(blocks.0.mlp.W_out\), got 0; choose fewer"):
        parameter_activation_overlap(model, TOKENS, "W_out", 0, n_vectors=0)
    with pytest.raises(ValueError, match=r"Expected 1 <= k <= 50 \(the vocabulary\), got k=51"):
        parameter_activation_overlap(model, TOKENS, "W_out", 0, k_state=51)
    with pytest.raises(IndexError, match=r"Expected layers in \[-2, 2\), got 9"):
        parameter_activation_overlap(model, TOKENS, "W_out", 9)
    with pytest.raises(ValueError, match="Expected texts of at least one character, got an empty one"):
        parameter_activation_overlap(model, "", "W_out", 0)
