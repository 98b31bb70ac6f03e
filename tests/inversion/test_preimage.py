"""Preimages of given texts against brute force; what a result carries, shows and refuses."""

import re

import numpy
import pytest
import torch
from leaves_no_trace import Boom, assert_same, boom, state
from models import build, tokenizer, worlds

from inversion.oracle import scores
from inversion.tiny import cached
from tl_backward.inversion import Closeness, Place, pool_preimage, preimage_of, read_query
from tl_backward.inversion.preimage import assemble
from tl_backward.inversion.query import Scores
from tl_backward.text.encoded import encode, encode_rows
from tl_backward.text.options import TextOptions

every_world = pytest.mark.parametrize("world", worlds())
QUIET = {"show_progress": False}
QUERY = "w5 w6 w7 w8"
TEXTS = ["w5 w6 w7 w8", "w5 w6 w7", "w9", "w3 w3 w41 w10 w12", "w5 w6 w7 w8 w9", "w8 w7 w6 w5", "w5 w6"]
SITES = {("resid_mid", 1): ("blocks.1.hook_resid_mid", None, False), ("result", 1, 2): ("blocks.1.attn.hook_z", 2, True),
         ("z", 0, 1): ("blocks.0.attn.hook_z", 1, False)}  # fmt: skip


@every_world
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("match", "position"), [("any", -1), ("same", -2), ("same", 3)])
def test_brute_force(world, site, metric, match, position):
    model = cached(world)
    expected, at = scores(model, TEXTS, QUERY, SITES[site], position, metric, match)
    epsilon = sorted(expected)[3] + 1e-9
    found = preimage_of(
        model,
        QUERY,
        site,
        position,
        TEXTS,
        epsilon=Closeness(epsilon, metric=metric, match=match),
        text_options=TextOptions(batch_size=3),
        **QUIET,
    )
    numpy.testing.assert_allclose(found.distances.numpy(), expected, atol=1e-11)
    assert found.best_positions.tolist() == at
    n = sum(d <= epsilon for d in expected)
    assert found.inside.tolist() == [bool(d <= epsilon) for d in expected]
    assert found.diagnostics.share_inside == n / 7 and found.diagnostics.distinct == n
    torch.testing.assert_close(found.weights, found.inside.double() / n)
    assert found.diagnostics.effective_sample_size == pytest.approx(n)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_is_of_no_matter(side):
    model = build("bridge")
    plain = preimage_of(model, QUERY, ("resid_post", 1), -1, TEXTS, **QUIET)
    model.tokenizer = tokenizer(side)
    assert preimage_of(model, QUERY, ("resid_post", 1), -1, TEXTS, **QUIET).distances.equal(plain.distances)


def test_positions_by_token_and_by_function():
    model = cached("bridge")
    expected, _ = scores(model, TEXTS, QUERY, SITES[("resid_mid", 1)], 3, match="same")
    found = preimage_of(model, QUERY, ("resid_mid", 1), "w7", TEXTS, epsilon=Closeness(match="same"), **QUIET)
    there = [index for index, text in enumerate(TEXTS) if "w7" in text]
    assert found.position == 3 and found.best_positions.tolist() == [3, 3, -1, -1, 3, 2, -1]
    assert found.distances[there[:2]].tolist() == pytest.approx(expected[:2], abs=1e-12)
    assert found.distances[2] == torch.inf and not found.inside[2]
    by_function = preimage_of(
        model, QUERY, ("resid_mid", 1), lambda text, tokens: tokens.index("w7") if "w7" in tokens else None, TEXTS,
        epsilon=Closeness(match="same"), **QUIET,
    )  # fmt: skip
    assert by_function.distances.equal(found.distances)
    nowhere = preimage_of(model, QUERY, ("resid_mid", 1), 3, ["w9", "w5"], epsilon=Closeness(match="same"), **QUIET)
    assert nowhere.distances.tolist() == [torch.inf] * 2 and nowhere.best_positions.tolist() == [-1, -1]


def test_query_and_inputs_as_tokens():
    model = cached("bridge")
    texts = encode(model, TEXTS)
    by_text = preimage_of(model, QUERY, ("z", 1, 0), -1, TEXTS, **QUIET)
    query = read_query(model, QUERY, ("z", 1, 0), -1)
    for asked in (query, query.tokens):
        found = preimage_of(model, asked, ("z", 1, 0), -1, texts, **QUIET)
        assert found.distances.equal(by_text.distances) and found.texts == by_text.texts == tuple(TEXTS)
    assert found.tokens.equal(texts.tokens) and found.lengths.equal(texts.lengths)
    assert "Query('w5 w6 w7 w8', blocks.1.attn.hook_z[0], position 4)" == repr(query)


def test_validity_weights_chance_and_what_is_distinct():
    model = cached("bridge")
    doubled = [QUERY, QUERY, "w5 w6 w7 w8 w9", "w40 w40"]  # the first three reach the query's activation exactly
    found = preimage_of(
        model, QUERY, ("resid_mid", 1), -1, doubled, epsilon=1e-6, weights=torch.tensor([1.0, 3.0, 4.0, 9.0]),
        valid=lambda text: len(text.split()) == 4, prior=[QUERY, "w40 w41", "w44 w3", "w9 w8"], **QUIET,
    )  # fmt: skip
    assert found.inside.tolist() == [True, True, True, False] and found.best_positions.tolist()[:3] == [4, 4, 4]
    assert found.weights.tolist() == [0.25, 0.75, 0, 0]
    d = found.diagnostics
    assert (d.share_inside, d.distinct, d.well_formed, d.chance) == (0.75, 2, 0.5, 0.25)
    assert d.effective_sample_size == pytest.approx(1 / (0.25**2 + 0.75**2))
    assert d.acceptance is None and d.recall is None
    outside = preimage_of(model, QUERY, ("resid_mid", 1), -1, ["w40 w40"], epsilon=1e-6, **QUIET)
    assert outside.weights.tolist() == [0] and outside.diagnostics.effective_sample_size == 0


def test_frame_repr_and_html():
    model = cached("bridge")
    found = preimage_of(model, QUERY, ("result", 0, 1), -1, TEXTS, epsilon=0.3, **QUIET)
    frame = found.to_frame()
    assert list(frame) == ["text", "distance", "position", "inside", "weight"] and len(frame) == len(found) == 7
    assert frame.distance.tolist() == found.distances.tolist()
    n = int(found.inside.sum())
    assert (
        repr(found)
        == f"Preimage('{QUERY}' at blocks.0.attn.hook_result[1], position 4: {n} of 7 texts within 0.3, by given)"
    )
    assert found.site == Place("blocks.0.attn.hook_result", head=1)
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + max(n, 7 - n) and "w3 w3 w41" in html and "<script" not in html


def test_html_escapes_untrusted_text():
    model = cached("bridge")
    query = read_query(model, QUERY, ("z", 1), -1)
    texts = encode_rows(model, [[0, 5]], source=("<img src=x onerror=alert(1)>",))
    scores = Scores(torch.zeros(1).double(), torch.zeros(1).long())
    one = assemble(query, Closeness(), texts, scores, "given")
    html = one._repr_html_()
    assert "<img" not in html and "&lt;img" in html


def test_retrieval_from_a_pool():
    model = cached("bridge")
    expected, at = scores(model, TEXTS, QUERY, SITES[("resid_mid", 1)], -1)
    found = pool_preimage(model, QUERY, ("resid_mid", 1), -1, TEXTS, n=3, epsilon=0.5, **QUIET)
    numpy.testing.assert_allclose(found.distances.numpy(), numpy.sort(expected)[:3], atol=1e-11)
    own = [expected[TEXTS.index(text)] for text in found.texts]
    numpy.testing.assert_allclose(found.distances.numpy(), own, atol=1e-11)
    share = sum(d <= 0.5 for d in expected) / 7
    assert (found.diagnostics.share_inside, found.diagnostics.chance, found.method) == (share, share, "pool")
    assert len(pool_preimage(model, QUERY, ("resid_mid", 1), -1, TEXTS, **QUIET)) == 7
    with pytest.raises(ValueError, match="Expected n of at least 1, got 0"):
        pool_preimage(model, QUERY, ("resid_mid", 1), -1, TEXTS, n=0, **QUIET)


def zero(x, hook):
    return x * 0


@every_world
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epsilon": 0.0}, ValueError, "Expected epsilon > 0, got 0.0"),
        ({"site": ("resid_md", 1)}, ValueError, "Expected a hook point of the model, got 'blocks.1.hook_resid_md'"),
        ({"position": 5}, ValueError, "Expected a position in the query's 5 tokens"),
        ({"position": "w30"}, ValueError, "got 'w30'"),
        ({"texts": []}, ValueError, "Expected at least one text, got none"),
        ({"texts": ["w3 " * 20]}, ValueError, "Expected at most n_ctx=16 tokens in every text, got 21 in text 0"),
        ({"query": "w3 " * 20}, ValueError, "Expected at most n_ctx=16 tokens in every text, got 21"),
        ({"valid": lambda text: 1 / 0}, ValueError, "Expected valid(text) to give a bool, got ZeroDivisionError: division by zero for the text 'w5"),
    ],
)  # fmt: skip
def test_refused_without_a_trace(world, change, error, message):
    model = cached(world)
    before = state(model)
    options = {"texts": TEXTS, "query": QUERY, "site": ("resid_mid", 1), "position": -1} | change | QUIET
    texts, query, site, position = (options.pop(name) for name in ("texts", "query", "site", "position"))
    with pytest.raises(error, match=re.escape(message)):
        preimage_of(model, query, site, position, texts, **options)
    assert_same(before, state(model))


@every_world
def test_a_query_of_zero_norm_and_a_model_that_raises(world):
    model = cached(world)
    before = state(model)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_mid", zero)]):
        with pytest.raises(ValueError, match="Expected a query activation of non-zero norm, got zeros"):
            preimage_of(model, QUERY, ("resid_mid", 1), -1, TEXTS, **QUIET)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", boom)]), pytest.raises(Boom):
        preimage_of(model, QUERY, ("resid_mid", 1), -1, TEXTS, **QUIET)
    preimage_of(model, QUERY, ("resid_mid", 1), -1, TEXTS, **QUIET)
    assert_same(before, state(model))
