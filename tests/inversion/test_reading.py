"""What preimages are read for: features and their intervals, agreement with the exact answer, sites, patching."""

import html
import math
import re
from dataclasses import replace

import numpy
import pytest
import torch
from leaves_no_trace import Boom, assert_same, boom, state
from models import HAS_HOOKED_TRANSFORMER, hooked, worlds
from scipy.stats import binomtest

from inversion.oracle import activations, domain, run, scores
from inversion.tiny import cached
from tl_backward.inversion import (
    Closeness,
    common_features,
    compare_sites,
    compare_with_exact,
    enumerate_preimage,
    feature_consistency,
    pool_preimage,
    preimage_of,
    verify_by_patching,
)
from tl_backward.inversion.features import Rate, marginal, total_variation, wilson
from tl_backward.text.options import TextOptions

every_world = pytest.mark.parametrize("world", worlds())
QUIET = {"show_progress": False}
DOMAIN = domain(["w5", "w6", "w40"], 3)
QUERY = "w6 w5"
SITE = ("resid_mid", 1)


def first(text):
    return text.split()[0]


def length(text):
    return len(text.split())


def with_given(texts, weights, **options):
    model = cached("bridge")
    return preimage_of(model, QUERY, SITE, -1, texts, epsilon=99.0, weights=torch.tensor(weights), **options, **QUIET)


@pytest.mark.parametrize("n", [1, 2, 17, 200])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_against_scipy(n, level):
    for k in {0, 1, n // 3, n}:
        expected = binomtest(k, n).proportion_ci(level, method="wilson")
        numpy.testing.assert_allclose(wilson(k / n, float(n), level), expected, atol=1e-12)
    assert wilson(0.3, math.inf) == (0.3, 0.3) and wilson(0.0, 0.0) == (0.0, 1.0)


def test_feature_consistency_is_the_weighted_share_that_keeps_the_querys_value():
    found = with_given(["w6 w40", "w5 w5", "w6", "w40"], [1.0, 2.0, 4.0, 1.0])
    by_hand = feature_consistency(found, first, prior=["w5", "w6 w6", "w40", "w3 w4"])
    assert by_hand.feature == "first" and by_hand.query_value == "w6"
    assert by_hand.rate.value == pytest.approx(5 / 8)
    n = 64 / (1 + 4 + 16 + 1)
    assert by_hand.rate.n == pytest.approx(n)
    assert (by_hand.rate.low, by_hand.rate.high) == pytest.approx(wilson(5 / 8, n))
    assert (by_hand.prior.value, by_hand.prior.n) == (0.25, 4)
    p, q = 5 / 8, 1 / 4
    assert by_hand.bits == pytest.approx(p * math.log2(p / q) + (1 - p) * math.log2((1 - p) / (1 - q)))
    assert feature_consistency(found, first).prior is None and "first = 'w6': 0.625" in repr(by_hand)
    rarer = feature_consistency(found, first, prior=["w6"] * 9)
    assert rarer.bits < 0  # rarer inside than in the prior
    same = replace(by_hand, rate=Rate(0.0, 0.0, 0.1, 50.0), prior=Rate(0.0, 0.0, 0.9, 3.0))
    assert same.bits == 0  # none of either, however many were looked at


def test_exact_rates_have_no_interval_and_nothing_inside_has_no_rate():
    model = cached("bridge")
    exact = enumerate_preimage(model, QUERY, SITE, -1, DOMAIN, epsilon=Closeness(1e-9, match="same"), **QUIET)
    rate = feature_consistency(exact, first).rate
    assert (rate.value, rate.low, rate.high, rate.n) == (1, 1, 1, math.inf) and exact.texts[0] == QUERY
    none = preimage_of(model, QUERY, SITE, -1, ["w40 w40"], epsilon=1e-9, **QUIET)
    rate = feature_consistency(none, first).rate
    assert math.isnan(rate.value) and (rate.low, rate.high, rate.n) == (0, 1, 0)


def test_many_features_are_ranked():
    found = with_given(["w6 w40", "w6 w6", "w6 w5", "w40"], [1.0] * 4)
    table = common_features(found, {"length": length, "first": first, "none": lambda text: None}, prior=DOMAIN)
    bits = [row.bits for row in table.rows]
    assert bits == sorted(bits, reverse=True) and table.rows[0].feature == "length"
    assert table["length"].rate.value == 0.75 and table["none"].rate.value == 1
    frame = table.to_frame()
    assert list(frame.feature) == [row.feature for row in table.rows] and frame.shape == (3, 10)
    assert repr(table).startswith("FeatureTable(3 features, first length 0.750, first 0.750")
    named = common_features(found, {"<b>": first}, prior=DOMAIN)
    assert "<b>" not in named._repr_html_() and html.escape("<b>") in named._repr_html_()
    with pytest.raises(KeyError, match="Expected one of the features <b>, got 'length'"):
        named["length"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: feature_consistency(p, lambda text: text[9]), "Expected the feature '<lambda>' to give a value, got IndexError: string index out of range for the text 'w6 w5'"),
        (lambda p: common_features(p, {"ninth": lambda text: 1 / (text == QUERY)}), "Expected the feature 'ninth' to give a value, got ZeroDivisionError: division by zero for the text 'w5 w5'"),
        (lambda p: feature_consistency(p, first, level=1.0), "Expected a confidence level between 0 and 1, got 1.0"),
        (lambda p: common_features(p, {}), "Expected at least one feature, got none"),
    ],
)  # fmt: skip
def test_features_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(with_given(["w5 w5"], [1.0]))


def test_agreement_with_the_exact_preimage():
    model = cached("bridge")
    expected, _ = scores(model, DOMAIN, QUERY, ("blocks.1.hook_resid_mid", None, False), -1)
    epsilon = float(numpy.quantile(expected, 0.5))
    inside = [text for text, d in zip(DOMAIN, expected, strict=True) if d <= epsilon]
    exact = enumerate_preimage(model, QUERY, SITE, -1, DOMAIN, epsilon=epsilon, **QUIET)
    some = [inside[0], inside[0], inside[3], "w40 w40 w40"]
    found = compare_with_exact(
        preimage_of(model, QUERY, SITE, -1, some, epsilon=epsilon, **QUIET), exact, {"first": first}
    )
    kept = [text for text in some if text in inside]
    assert found.diagnostics.recall == len(set(kept)) / len(inside)
    p = {word: sum(first(text) == word for text in kept) / len(kept) for word in ("w5", "w6", "w40")}
    q = {word: sum(first(text) == word for text in inside) / len(inside) for word in ("w5", "w6", "w40")}
    assert found.diagnostics.total_variation["first"] == pytest.approx(sum(abs(p[w] - q[w]) for w in p) / 2)
    assert marginal(exact, first) == pytest.approx({w: x for w, x in q.items() if x})
    assert compare_with_exact(exact, exact, {"first": first}).diagnostics.total_variation == {"first": 0}
    assert total_variation({}, q) == 1.0 and total_variation({"w5": 1.0}, {"w6": 1.0}) == 1.0
    with pytest.raises(ValueError, match="Expected the enumerated preimage of the same question"):
        compare_with_exact(found, enumerate_preimage(model, QUERY, SITE, -1, DOMAIN, epsilon=epsilon * 2, **QUIET))
    with pytest.raises(ValueError, match="Expected the enumerated preimage of the same question"):
        compare_with_exact(found, found)


@every_world
@pytest.mark.parametrize("match", ["any", "same"])
def test_sites_side_by_side_are_each_its_own(world, match):
    model = cached(world)
    before = state(model)
    sites, positions = [("resid_post", 0), ("result", 1, 1), ("z", 0)], [-1, 1]
    table = compare_sites(
        model, QUERY, sites, inputs=DOMAIN, features={"first": first, "length": length}, positions=positions,
        epsilon=Closeness(0.4, match=match), text_options=TextOptions(batch_size=11), **QUIET,
    )  # fmt: skip
    assert_same(before, state(model))
    assert len(table.preimages) == 6
    pairs = [(site, position) for site in sites for position in positions]
    for (site, position), preimage, features in zip(pairs, table.preimages, table.features, strict=True):
        alone = pool_preimage(model, QUERY, site, position, DOMAIN, n=39, epsilon=Closeness(0.4, match=match), **QUIET)
        order = [preimage.texts.index(text) for text in alone.texts]
        torch.testing.assert_close(preimage.distances[order], alone.distances)
        assert preimage.best_positions[order].equal(alone.best_positions)
        own = common_features(alone, {"first": first}, prior=DOMAIN)["first"]
        for rate, expected in ((features["first"].rate, own.rate), (features["first"].prior, own.prior)):
            assert (rate.value, rate.low, rate.high, rate.n) == pytest.approx(
                (expected.value, expected.low, expected.high, expected.n), nan_ok=True
            )
    frame = table.to_frame()
    assert len(frame) == 12 and set(frame.feature) == {"first", "length"}
    assert frame.share_inside.tolist()[::2] == [p.diagnostics.share_inside for p in table.preimages]
    assert table._repr_html_().count("<tr>") == 7 and "6 preimages at 3 sites, 2 features" in repr(table)


def test_sites_over_a_whole_domain_are_exact_and_features_are_asked_once():
    asked = []
    table = compare_sites(
        cached("bridge"), QUERY, [("resid_post", 0), ("z", 1)], inputs=DOMAIN, positions="w5", exact=True,
        features={"first": lambda text: asked.append(text) or first(text)}, **QUIET,
    )  # fmt: skip
    assert all(f["first"].rate.low == f["first"].rate.high for f in table.features)
    assert sorted(asked) == sorted(DOMAIN)
    with pytest.raises(ValueError, match="Expected at least one position, got an empty list"):
        compare_sites(
            cached("bridge"), QUERY, ("z", 1), inputs=DOMAIN, features={"first": first}, positions=[], **QUIET
        )


def patched_by_hand(model, preimage, text, site, answer):
    """KL and logit change of one donor by TransformerLens's own hooks, one forward pass at a time."""
    name, head, _ = site
    index = preimage.texts.index(text)
    donor = run(model, text)[name][0, int(preimage.best_positions[index])]

    def put(value, hook):
        value = value.clone()
        if head is None:
            value[:, preimage.position] = donor
        else:
            value[:, preimage.position, head] = donor[head]
        return value

    tokens = model.to_tokens(preimage.query.text)
    clean = model(tokens)[0, -1].detach().numpy()
    patched = model.run_with_hooks(tokens, fwd_hooks=[(name, put)])[0, -1].detach().numpy()
    p, q = (numpy.exp(x - x.max()) / numpy.exp(x - x.max()).sum() for x in (clean, patched))
    return (
        (p * numpy.log(p / q)).sum(),
        (patched - patched.mean())[answer] - (clean - clean.mean())[answer],
        patched.argmax() == clean.argmax(),
    )


@every_world
@pytest.mark.parametrize(
    ("site", "hook"),
    [(("resid_post", 0), ("blocks.0.hook_resid_post", None, False)), (("z", 0, 1), ("blocks.0.attn.hook_z", 1, False)),
     (("result", 0, 2), ("blocks.0.attn.hook_z", 2, False)), (("mlp_out", 1), ("blocks.1.hook_mlp_out", None, False))],
)  # fmt: skip
def test_patching_by_hand(world, site, hook):
    model = cached(world)
    before = state(model)
    near = pool_preimage(model, QUERY, site, 2, DOMAIN, n=39, epsilon=99.0, **QUIET)
    epsilon = float(near.distances[20])
    found = pool_preimage(model, QUERY, site, 2, DOMAIN, n=39, epsilon=epsilon, **QUIET)
    check = verify_by_patching(model, found, n=6, answer="w9", seed=1)
    assert_same(before, state(model))
    answer = model.to_tokens("w9")[0, -1].item()
    assert check.inside.tolist() == [True] * 6 + [False] * 6 and "w9" in check.answer
    for index, text in enumerate(check.texts):
        kl, change, kept = patched_by_hand(model, found, text, hook, answer)
        assert float(check.kl[index]) == pytest.approx(kl, abs=1e-10)
        assert float(check.logit_change[index]) == pytest.approx(change, abs=1e-9)
        assert bool(check.kept[index]) == kept
        assert check.distances[index] == found.distances[found.texts.index(text)]
    summary = check.means()
    assert summary.loc["inside", "kl"] == pytest.approx(float(check.kl[:6].mean())) and summary.loc["outside", "n"] == 6
    assert len(check.to_frame()) == 12 and "mean KL" in repr(check) and "<table" in check._repr_html_()


@every_world
def test_the_querys_own_activation_changes_nothing(world):
    model = cached(world)
    own = preimage_of(model, QUERY, ("result", 1, 0), 1, [QUERY, QUERY], epsilon=Closeness(match="same"), **QUIET)
    check = verify_by_patching(model, own)
    assert len(check.texts) == 2 and check.kl.abs().max() < 1e-12 and check.logit_change.abs().max() < 1e-10
    clean = model(model.to_tokens(QUERY))[0, -1]
    assert check.answer.strip() == model.tokenizer.decode([int(clean.argmax())]).strip() and check.kept.all()


@every_world
def test_patching_refuses_and_leaves_no_trace(world):
    model = cached(world)
    before = state(model)
    none = preimage_of(model, QUERY, SITE, -1, ["w40 w40"], epsilon=1e-9, **QUIET)
    with pytest.raises(ValueError, match="Expected a preimage with texts inside, got Preimage"):
        verify_by_patching(model, none)
    some = preimage_of(model, QUERY, SITE, -1, DOMAIN, epsilon=0.5, **QUIET)
    with pytest.raises(ValueError, match="Expected n of at least 1, got 0"):
        verify_by_patching(model, some, n=0)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", boom)]), pytest.raises(Boom):
        verify_by_patching(model, some)
    assert_same(before, state(model))


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has TransformerBridge alone")
def test_a_heads_result_is_what_its_z_gives():
    model = hooked("attn_result")
    cache = run(model, QUERY)
    mine = activations(model, cache, ("blocks.1.attn.hook_z", 2, True))
    numpy.testing.assert_allclose(mine, cache["blocks.1.attn.hook_result"][0, :, 2].detach().numpy(), atol=1e-12)
