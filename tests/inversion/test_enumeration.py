"""Exact preimages over whole domains, against brute force; the index against the pass without one."""

import re
from collections import Counter

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaves_no_trace import assert_same, state
from models import worlds

from inversion.oracle import domain, scores
from inversion.tiny import cached
from tl_backward.inversion import ActivationIndex, Closeness, enumerate_preimage, resolve_place
from tl_backward.inversion.enumeration import _outside
from tl_backward.text.encoded import Encoded, encode
from tl_backward.text.options import TextOptions

every_world = pytest.mark.parametrize("world", worlds())
QUIET = {"show_progress": False}
DOMAIN = domain(["w5", "w6", "w40"], 3)  # 39 texts of one to three words
QUERY = "w6 w5"
SITES = {
    ("resid_mid", 1): ("blocks.1.hook_resid_mid", None, False),
    ("result", 0, 1): ("blocks.0.attn.hook_z", 1, True),
}


@every_world
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("match", "position"), [("any", -1), ("same", -1), ("same", 2)])
def test_brute_force(world, site, metric, match, position):
    model = cached(world)
    expected, at = scores(model, DOMAIN, QUERY, SITES[site], position, metric, match)
    index = ActivationIndex.of(
        model, site, position, DOMAIN, match=match, text_options=TextOptions(batch_size=7), **QUIET
    )
    for epsilon in (1e-9, sorted(expected)[4] + 1e-9, sorted(expected)[20] + 1e-9, 5.0):
        inside = [i for i, d in enumerate(expected) if d <= epsilon]
        whole = enumerate_preimage(
            model, QUERY, site, position, DOMAIN, epsilon=Closeness(epsilon, metric=metric, match=match), **QUIET
        )
        for found in (whole, index.preimage(QUERY, epsilon, metric=metric)):
            kept = [DOMAIN.index(text) for text in found.texts]
            assert kept[: len(inside)] == inside and found.inside.tolist() == [i in inside for i in kept]
            assert len(found) == 39  # all others fit into n_outside
            numpy.testing.assert_allclose(found.distances.numpy(), numpy.array(expected)[kept], atol=1e-11)
            assert found.best_positions.tolist() == [at[i] for i in kept]
            share = len(inside) / 39
            assert (found.diagnostics.share_inside, found.diagnostics.chance, found.diagnostics.recall) == (
                share,
                share,
                1,
            )
            torch.testing.assert_close(found.weights, found.inside.double() / max(1, len(inside)))
            assert found.method == "enumeration"


def random_index(n_texts, length, d, seed, match, dtype=torch.float32, scale=1.0):
    """An index over random activations, crowded round the first one, of a model that is never run."""
    generator = torch.Generator().manual_seed(seed)
    n = n_texts if match == "same" else n_texts * length
    centre = torch.randn(d, generator=generator)
    values = (centre + torch.randn(n, d, generator=generator) * torch.rand(n, 1, generator=generator)) * scale
    values = values.to(dtype)
    tokens = torch.randint(3, 50, (n_texts, length), generator=generator)
    texts = Encoded(tokens, torch.full((n_texts,), length), None)
    starts = torch.arange(n_texts + 1) * (1 if match == "same" else length)
    model = cached("bridge")
    site = resolve_place(model, ("resid_post", 0))
    return ActivationIndex(model, texts, site, -1, match, values, torch.linalg.vecdot(values, values), starts)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 60), st.integers(1, 4), st.integers(1, 70), st.integers(0, 999), st.sampled_from(["any", "same"]),
    st.sampled_from(["euclidean", "cosine"]), st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_what_lies_at_the_threshold_is_decided_without_cancellation(n, length, d, seed, match, metric, scale):
    from tl_backward.inversion.query import Query

    index = random_index(n, length, d, seed, match, scale=scale)
    z = index.values[0]
    query = Query("", torch.tensor([0]), index.site, 0, -1, z)
    each = index.values.double().numpy()
    reference = z.double().numpy()
    if metric == "euclidean":
        d_each = numpy.sqrt(((each - reference) ** 2).sum(1)) / numpy.sqrt((reference**2).sum())
    else:
        d_each = 1 - each @ reference / numpy.sqrt((each**2).sum(1) * (reference**2).sum())
    d_text = d_each.reshape(n, -1).min(1)
    for epsilon in {float(numpy.quantile(d_text, q)) for q in (0.0, 0.3, 0.8)}:  # each is some text's own distance
        for edge in (epsilon * (1 + 1e-9) + 1e-13, epsilon * (1 - 1e-9) - 1e-13):
            if edge > 0:
                found = index.preimage(query, edge, metric=metric, n_outside=0)
                assert len(found) == int((d_text <= edge).sum())
    order = index.nearest(query, n, metric=metric)
    assert sorted(order.tolist()) == list(range(n))
    # D^2 is what is taken for the order in float32.
    assert (
        numpy.diff(d_text[order.numpy()] ** (2 if metric == "euclidean" else 1)) > -1e-4 * (1 + d_text.max() ** 2)
    ).all()


@every_world
def test_many_queries_of_one_index_leave_no_trace(world):
    model = cached(world)
    before = state(model)
    index = ActivationIndex.of(model, ("z", 1, 0), -1, encode(model, DOMAIN), **QUIET)
    for query in DOMAIN[7:10]:
        found = index.preimage(query, 1e-6)
        assert query in found.texts[: int(found.inside.sum())]
        nearest = index.nearest(query, 5)
        every = index.preimage(query, 99.0)
        assert every.distances[nearest].tolist() == pytest.approx(every.distances.sort().values[:5].tolist(), abs=1e-7)
    assert_same(before, state(model))
    assert repr(index).startswith("ActivationIndex(39 texts at blocks.1.attn.hook_z[0], match='any'")


def test_outside_is_a_seeded_draw_and_texts_without_the_position_are_never_inside():
    model = cached("bridge")
    draws = [enumerate_preimage(model, QUERY, ("z", 1), -1, DOMAIN, epsilon=Closeness(1e-6, match="same"), n_outside=5, seed=seed, **QUIET)
             for seed in (0, 0, 1)]  # fmt: skip
    assert draws[0].texts == draws[1].texts != draws[2].texts and len(draws[0]) == 6
    rng = torch.get_rng_state()
    third = enumerate_preimage(model, "w5 w5 w5", ("z", 1), 3, DOMAIN, epsilon=Closeness(5.0, match="same"), **QUIET)
    assert torch.equal(rng, torch.get_rng_state())
    assert int(third.inside.sum()) == 27 and third.diagnostics.share_inside == 27 / 39
    index = ActivationIndex.of(model, ("z", 1), 3, DOMAIN, match="same", **QUIET)
    assert len(index.values) == 27 and int(index.preimage("w5 w5 w5", 5.0).inside.sum()) == 27
    with pytest.raises(ValueError, match=re.escape("Expected n in [1, 27], the texts that have the position, got 28")):
        index.nearest("w5 w5 w5", 28)


@pytest.mark.parametrize(
    ("n_texts", "inside", "n"), [(7, [0, 1, 4], 2), (7, [], 3), (7, [6], 6), (5, [0, 1, 2, 3, 4], 3), (9, [2, 3], 50)]
)
def test_the_draw_outside_is_uniform_and_without_replacement(n_texts, inside, n):
    others = sorted(set(range(n_texts)) - set(inside))
    counts, rounds = Counter(), 600
    for seed in range(rounds):
        drawn = _outside(n_texts, torch.tensor(inside, dtype=torch.long), n, seed).tolist()
        assert drawn == sorted(set(drawn)) and set(drawn) <= set(others) and len(drawn) == min(n, len(others))
        counts.update(drawn)
    share = min(n, len(others)) / max(1, len(others))
    for other in others:  # within five standard errors
        assert abs(counts[other] / rounds - share) <= 5 * (share * (1 - share) / rounds) ** 0.5


def test_a_domain_that_does_not_fit():
    model = cached("bridge")  # d_model 24, float64; 39 texts of 138 tokens with BOS
    tokens = sum(len(text.split()) + 1 for text in DOMAIN)
    whole, one = tokens * 25 * 8, 39 * 25 * 8
    message = (
        f"Expected a domain whose activations fit in max_memory={one / 1e9:.3g} GB, got {tokens} of width 24, which take "
        f"{whole / 1e9:.3g} GB; pass match='same' ({one / 1e9:.3g} GB), use enumerate_preimage, which holds none, index "
        f"{39 * one // whole} texts at a time, or raise max_memory."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ActivationIndex.of(model, ("resid_mid", 0), -1, DOMAIN, max_memory=one, **QUIET)
    with pytest.raises(ValueError, match="; use enumerate_preimage, which holds none"):
        ActivationIndex.of(model, ("resid_mid", 0), -1, DOMAIN, match="same", max_memory=one - 1, **QUIET)
    ActivationIndex.of(model, ("resid_mid", 0), -1, DOMAIN, max_memory=whole, **QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -0.1}, "Expected epsilon > 0, got -0.1"),
        ({"position": 9}, "Expected a position in the query's 3 tokens"),
        ({"site": ("resid", 0)}, "Expected a hook point of the model"),
        ({"inputs": iter(())}, "Expected at least one text, got none"),
    ],
)
def test_refused(change, message):
    options = {"inputs": DOMAIN, "site": ("z", 1), "position": -1, "query": QUERY} | change
    with pytest.raises(ValueError, match=message):
        enumerate_preimage(cached("bridge"), **options, **QUIET)


def test_the_index_refuses_as_much():
    index = ActivationIndex.of(cached("bridge"), ("z", 1), -1, DOMAIN, **QUIET)
    with pytest.raises(ValueError, match="Expected epsilon > 0"):
        index.preimage(QUERY, 0.0)
