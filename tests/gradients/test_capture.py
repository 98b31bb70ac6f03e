"""Every captured factor against autograd's own gradient, in float64, for every architecture in both worlds."""

import pytest
import torch
from models import BRIDGED, HAS_HOOKED_TRANSFORMER, HOOKED, TOKENS, bridge, hooked, tokenizer

import tl_backward as tlb

needs_hooked = pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
EVERY = lambda name: True  # noqa: E731


def autograd_gradients(model, tokens, loss, sites, hooks=(), **options):
    """dL/dparameter by plain autograd through the same model and hooks."""
    for site in sites.values():
        site.parameter.requires_grad_(True)
    parameters = list({id(site.parameter): site.parameter for site in sites.values()}.values())
    with model.hooks(fwd_hooks=list(hooks)):
        value = loss(model(tokens, return_type="logits", **options), tokens)
    return value, dict(zip(map(id, parameters), torch.autograd.grad(value, parameters, allow_unused=True), strict=True))


def errors(factors, gradients, sites, parameters=None):
    """max|err| / max|grad| per parameter; sites that share a parameter (tied embeddings) add up to its gradient.

    The denominator is at least 1e-3 of the largest gradient: a key bias of softmax attention has none at all.
    """
    floor = 1e-3 * max(float(g.abs().max()) for g in gradients.values() if g is not None)
    sums, names = {}, {}
    for name, site in sites.items():
        dense = parameters[name] if site.kind == "parameter" else factors[name].gradient("parameter")
        assert dense.shape == site.parameter.shape, name
        key = id(site.parameter)
        sums[key] = sums[key] + dense if key in sums else dense
        names[key] = [*names.get(key, []), name]
    return {
        "+".join(names[key]): float((dense - gradients[key]).abs().max() / gradients[key].abs().max().clamp(min=floor))
        if gradients[key] is not None
        else float(dense.abs().max())
        for key, dense in sums.items()
    }


def check(
    model, tolerance=1e-12, tokens=TOKENS, loss=tlb.next_token_loss, hooks=(), weights=EVERY, loose=(), **options
):
    sites = tlb.weight_sites(model)
    sites = {name: site for name, site in sites.items() if weights(name)}
    value, gradients = autograd_gradients(model, tokens, loss, sites, hooks, **options)
    captured, cache = tlb.run_with_gradient_cache(
        model, tokens, loss, weights=weights, names_filter=[], fwd_hooks=list(hooks), **options
    )
    assert torch.equal(captured, value.detach())
    for name, error in errors(cache.factors, gradients, sites, cache.parameter_gradients).items():
        assert error <= (1e-6 if name in loose or name.endswith(tuple(loose)) else tolerance), (name, error)
    return sites, cache


@needs_hooked
@pytest.mark.parametrize("family", HOOKED)
def test_hooked_transformer(family):
    sites, _ = check(hooked(family))
    assert len(sites) >= 12


@pytest.mark.parametrize("family", BRIDGED)
def test_bridge(family):
    # Hugging Face's Gemma computes its norms in float32 whatever the model's dtype, so autograd itself rounds there.
    loose = (".w",) if family == "gemma2" else ()
    check(bridge(family), loose=loose)


def let_autograd_see(model):
    """In compatibility mode a gated MLP multiplies by copies that are not parameters: make them the parameters."""
    for block in model.blocks:
        if getattr(block.mlp, "_use_processed_weights", False):
            for part in ("gate", "in", "out"):
                layer = getattr(block.mlp, part).original_component
                object.__setattr__(block.mlp, f"_processed_W_{part}", layer.weight)
                object.__setattr__(block.mlp, f"_processed_b_{part}", layer.bias)


@pytest.mark.parametrize("family", [name for name in BRIDGED if name != "mixtral"])
def test_bridge_in_compatibility_mode(family):
    model = bridge(family, compatibility=True)
    let_autograd_see(model)
    check(model, weights=lambda name: not name.startswith("embed") or family != "gemma2", loose=(".w",))


@pytest.mark.parametrize("flag", ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_bridge_flags(family, flag):
    if flag == "use_attn_in" and family == "llama":
        pytest.skip("attn_in gives every query head an input, which grouped keys cannot read")
    model = bridge(family)
    getattr(model, f"set_{flag}")(True)
    check(model)


@needs_hooked
def test_what_a_model_never_reads_or_hides_is_listed():
    """A gated MLP of TransformerLens's with solu_ln skips W_in and b_in."""
    model = hooked("ln", gated_mlp=True, act_fn="solu_ln")
    sites, _ = check(model)
    assert "blocks.1.mlp.W_gate" in sites and "blocks.1.mlp.W_in" not in sites
    with pytest.raises(ValueError, match="got 'b_in': did not run in this pass"):
        tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights="b_in")


@needs_hooked
def test_vectors_without_a_place_have_their_gradient():
    """xIELU trains numbers inside an activation, and attention sinks are no matrix."""
    model = hooked("ln", act_fn="xielu", use_attention_sinks=True)
    sites, cache = check(model)
    names = [name for name, site in sites.items() if site.kind == "parameter"]
    assert set(names) == {
        f"blocks.{layer}.{name}"
        for layer in (0, 1)
        for name in ("mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n", "attn.sinks")
    }
    assert not sites_missing(model) and all(cache.parameter_gradients[name].abs().max() > 0 for name in names[:3])


def sites_missing(model):
    return tlb.weight_sites(model).missing


def test_a_forked_norm_is_captured_too():
    """With split_qkv_input the norm runs once a head, outside its hook points."""
    model = bridge("gpt2")
    model.set_use_split_qkv_input(True)
    assert not sites_missing(model)
    check(model, weights=lambda name: ".ln1." in name)


def test_the_models_own_tokens_count_not_the_tokenizers():
    """A Bridge that is given a tokenizer anew takes its size for cfg.d_vocab."""
    padded, small = bridge("gpt2", vocab_size=60), bridge("gpt2", vocab_size=40)
    for model in (padded, small):
        model.tokenizer = tokenizer()
        assert model.cfg.d_vocab == 50
    tokens = torch.tensor([[0, 59, 5, 52]])
    _, cache = tlb.run_with_gradient_cache(padded, tokens, tlb.next_token_loss)
    assert torch.equal(cache.tokens, tokens)
    assert tlb.readout(padded, cache.factors["blocks.1.mlp.W_out"].deltas, target=59).target_rank.shape == (1, 4)
    for run in (
        lambda: tlb.run_with_gradient_cache(small, "w5 w45", tlb.next_token_loss),
        lambda: tlb.inversion.pool_preimage(small, "w5", ("resid_post", 1), -1, ["w5 w45"], show_progress=False),
    ):
        with pytest.raises(ValueError, match=r"Expected token ids in \[0, 40\), got 0 to 45"):
            run()
    with pytest.raises(ValueError, match=r"Expected target ids in \[0, 40\), got \[45\]"):
        tlb.backward_lens(small, "w5 w6", 45)


def test_a_first_token_behind_padding_needs_no_logit():
    generator = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(1, 4, 5, generator=generator), torch.tensor([[0, 9, 1, 2]])
    padded = tlb.next_token_loss(logits, tokens, tokens > 0)
    torch.testing.assert_close(padded, tlb.next_token_loss(logits[:, 1:], tokens[:, 1:]))


@needs_hooked
def test_a_model_that_has_no_logits_of_some_tokens_it_reads():
    model = hooked(d_vocab_out=40)
    tlb.run_with_gradient_cache(model, "w5 w45", tlb.target_loss("w6"))
    vectors = model.W_U.T[:2]
    for run in (
        lambda: tlb.run_with_gradient_cache(model, "w5 w45", tlb.next_token_loss),
        lambda: tlb.run_with_gradient_cache(model, "w5", tlb.target_loss("w45")),
        lambda: tlb.readout(model, vectors, target="w45"),
        lambda: tlb.readout(model, vectors, target=torch.tensor([3, 45])),
        lambda: tlb.backward_lens(model, "w5 w6", "w7", answer=torch.tensor([45])),
    ):
        with pytest.raises(ValueError, match=r"Expected .* in \[0, 40\).*got \[?45"):
            run()
