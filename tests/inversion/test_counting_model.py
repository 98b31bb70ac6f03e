"""A real model by others, GPT-2 of two layers that counts letters, through pool, search, reading and patching."""

import functools
import json
import re

import numpy
import pytest
import torch
from models import worlds
from shared import shared

from inversion.oracle import once, scores
from tl_backward.inversion import (
    SearchOptions,
    common_features,
    compare_sites,
    compare_with_exact,
    enumerate_preimage,
    pool_preimage,
    search_preimage,
    verify_by_patching,
)

QUIET = {"show_progress": False}
QUERY = "vvzccvczvvvzvcvc|v:"


@functools.cache
def counting(kind):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(shared("models", "inversionview-counting"))
    inner, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if kind == "bridge":
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(folder, hf_model=inner, tokenizer=tokenizer, device="cpu")
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    c = inner.config
    cfg = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_heads=c.n_head, d_head=c.n_embd // c.n_head, d_mlp=4 * c.n_embd,
        d_vocab=c.vocab_size, n_ctx=c.n_positions, act_fn="gelu_new", normalization_type="LN",
        eps=c.layer_norm_epsilon, original_architecture="GPT2LMHeadModel", default_prepend_bos=True,
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=tokenizer)
    model.load_state_dict(convert_gpt2_weights(inner, cfg), strict=False)
    return model.eval()


@functools.cache
def pool():
    texts = json.loads(shared("data", "counting-heldout-2000.json").read_text())
    return tuple(text.split(":")[0] + ":" for text in texts)


def valid(text):
    found = re.fullmatch(r"([a-z]+)\|([a-z]):", text)
    return bool(found) and found[2] in found[1] and len(set(found[1])) <= 3 and max(map(found[1].count, found[1])) < 10


FEATURES = {
    "count": lambda text: text.split("|")[0].count(text[-2]),
    "query letter": lambda text: text[-2],
    "letters": lambda text: "".join(sorted(set(text.split("|")[0]))),
}


@pytest.mark.parametrize("kind", worlds())
def test_it_counts(kind):
    model = counting(kind)
    texts = json.loads(shared("data", "counting-heldout-2000.json").read_text())[:100]
    right = 0
    for text in texts:
        tokens = model.to_tokens(text)
        right += int(model(tokens[:, :-1])[0, -1].argmax() == tokens[0, -1])
    assert right >= 99


@pytest.mark.parametrize("kind", worlds())
@pytest.mark.parametrize(("site", "hook"), [(("resid_mid", 1), ("blocks.1.hook_resid_mid", None, False)),
                                            (("result", 0, 0), ("blocks.0.attn.hook_z", 0, True))])  # fmt: skip
def test_distances_against_brute_force(kind, site, hook):
    model, texts = counting(kind), pool()[:60]
    once.cache_clear()
    expected, at = scores(model, texts, QUERY, hook, -1)
    found = enumerate_preimage(model, QUERY, site, -1, texts, epsilon=2.0, **QUIET)
    assert len(found) == 60
    order = [texts.index(text) for text in found.texts]
    numpy.testing.assert_allclose(found.distances.numpy(), numpy.array(expected)[order], rtol=1e-4)
    assert found.best_positions.tolist() == [at[i] for i in order]


@pytest.mark.parametrize("kind", worlds())
def test_what_the_head_of_layer_one_knows(kind):
    """At ':' the head of layer 1 carries the count and neither the query letter nor the other letters."""
    model = counting(kind)
    found = search_preimage(
        model,
        QUERY,
        ("result", 1, 0),
        -1,
        proposals=pool(),
        valid=valid,
        search_options=SearchOptions(chains=32, steps=120),
        **QUIET,
    )
    d = found.diagnostics
    assert d.share_inside >= 0.8 and d.well_formed == 1 and d.distinct > 50 and d.chance < 0.02
    table = common_features(found, FEATURES, prior=pool())
    assert table.rows[0].feature == "count" and table["count"].rate.value >= 0.97 > 0.2 > table["count"].prior.value
    assert table["query letter"].rate.value < 0.7 and table["letters"].rate.value < 0.5
    near = pool_preimage(model, QUERY, ("result", 1, 0), -1, pool(), **QUIET)
    check = verify_by_patching(model, near, n=20)
    inside, outside = (check.kl[check.inside == side].mean() for side in (True, False))
    assert check.answer == "8" and check.kept[check.inside].all() and inside < 0.05 * outside


def test_search_comes_near_the_exact_preimage_of_a_small_domain():
    """All strings of six letters of three kinds, each query letter: 2,187 less those without it, enumerated."""
    from itertools import product

    model = counting("bridge")
    domain = ["".join(word) + f"|{letter}:" for word in product("vzc", repeat=6) for letter in "vzc" if letter in word]
    query = "vvzccv|v:"
    exact = enumerate_preimage(model, query, ("result", 1, 0), -1, domain, **QUIET)
    n = int(exact.inside.sum())
    assert 5 < n < len(domain) / 2
    members = set(domain)
    found = search_preimage(model, query, ("result", 1, 0), -1, proposals=domain[::20], valid=members.__contains__, search_options=SearchOptions(chains=64, steps=400, token_edits=("substitute", "swap", "relabel")), **QUIET)  # fmt: skip
    found = compare_with_exact(found, exact, FEATURES)
    assert found.diagnostics.recall > 0.8 and max(found.diagnostics.total_variation.values()) < 0.15


def test_sites_along_the_network():
    model = counting("bridge")
    table = compare_sites(
        model,
        QUERY,
        [("result", 0, 0), ("result", 1, 0)],
        inputs=pool(),
        features=FEATURES,
        positions=[-2, -1],
        **QUIET,
    )
    frame = table.to_frame().set_index(["site", "position", "feature"]).rate
    # At the query letter layer 0's head knows the letter; at ':' layer 1's head knows the count.
    assert frame["blocks.0.attn.hook_result[0]", len(QUERY) - 1, "query letter"] == 1
    assert frame["blocks.1.attn.hook_result[0]", len(QUERY), "count"] == 1
    assert torch.isfinite(table.preimages[0].distances).all()
