"""Options of preimages: what they refuse, one order of arguments, and calls as they were before 0.2.0."""

import inspect
import re
import warnings

import pytest
import torch

from inversion.small import CONFIG, texts
from inversion.tiny import cached
from tl_backward import inversion
from tl_backward.inversion import (
    ActivationIndex,
    Closeness,
    Decoder,
    SamplingOptions,
    SearchOptions,
    TrainingOptions,
    compare_sites,
    enumerate_preimage,
    pool_preimage,
    preimage_of,
    search_preimage,
)
from tl_backward.inversion._old_calls import old_options
from tl_backward.inversion.options import TEXTS, InversionOptions
from tl_backward.text.options import TextOptions

QUIET = {"show_progress": False}
QUERY, SITE = "w6 w5", ("z", 1)
DOMAIN = [f"w{a} w{b}" for a in (5, 6, 7) for b in (5, 6, 7)]
SHORT = SearchOptions(chains=3, steps=8, thin=2)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        *((lambda e=e: Closeness(e), "Expected epsilon > 0, got .*; the paper's is 0.1.") for e in (0.0, -1.0, float("nan"), float("inf"))),
        (lambda: SearchOptions(tau=0.0), "Expected tau > 0 and plateau >= 0, got 0.0 and None"),
        (lambda: SearchOptions(plateau=-1.0), "Expected tau > 0 and plateau >= 0, got 0.001 and -1.0"),
        (lambda: SearchOptions(chains=0), "Expected chains and thin of at least 1 and 0 <= burn_in < steps, got chains=0"),
        (lambda: SearchOptions(burn_in=400), "burn_in=400, steps=400"),
        (lambda: SamplingOptions(temperature=0.0), "Expected temperature > 0 and noise >= 0, got 0.0 and 0.0"),
        (lambda: SamplingOptions(noise=-0.1), "got 1.0 and -0.1"),
        (lambda: InversionOptions(n=0), "Expected n and n_pool of at least 1, got 0 and 2000"),
        (lambda: TrainingOptions(epsilon=0.0), "Expected epsilon > 0, got 0.0"),
        (lambda: pool_preimage(cached("bridge"), QUERY, SITE, -1, DOMAIN, text_options=TextOptions(max_tokens=2)),
         "Expected text_options of batch_size and prepend_bos alone, got max_tokens=2, which preimages do not use"),
    ],
)  # fmt: skip
def test_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_a_number_is_the_papers_distance():
    assert Closeness.of(0.4) == Closeness(0.4, "euclidean", "any") and Closeness.of(Closeness()) == Closeness()


@pytest.mark.parametrize("function", [preimage_of, pool_preimage, enumerate_preimage, search_preimage])
def test_one_order_of_arguments(function):
    names = list(inspect.signature(function).parameters)
    assert names[:4] == ["model", "query", "site", "position"] and names[4] in ("texts", "pool", "inputs", "proposals")
    assert len(names) - len({"model", "query", names[4], "weights", "prior"} & set(names)) <= 8


def same(a, b):
    if isinstance(a, inversion.SiteComparison):
        return all(same(*each) for each in zip(a.preimages, b.preimages, strict=True))
    if isinstance(a, ActivationIndex):
        return a.values.equal(b.values) and a.texts.texts == b.texts.texts
    if not isinstance(a, inversion.Preimage):
        return torch.equal(a.tokens, b.tokens)
    asked = [(p.query.text, p.site, p.position, p.epsilon, p.metric, p.match, p.texts, p.diagnostics) for p in (a, b)]
    return asked[0] == asked[1] and a.distances.equal(b.distances) and a.weights.equal(b.weights)


WAYS = {"metric": "cosine", "match": "same"}
NEAR = Closeness(0.3, "cosine", "same")
TEXT = {"batch_size": 4, "prepend_bos": True}
READ = TextOptions(batch_size=4, prepend_bos=True)
OLD = {
    "preimage_of": (
        lambda m, **k: preimage_of(m, DOMAIN, QUERY, SITE, -1, epsilon=0.3, **WAYS, **TEXT, **k),
        lambda m, **k: preimage_of(m, QUERY, SITE, -1, DOMAIN, epsilon=NEAR, text_options=READ, **k),
        ["preimage_of(model, texts, query, site, position) is now preimage_of(model, query, site, position, texts)",
         "preimage_of(metric=...) is now preimage_of(epsilon=Closeness(metric=...))",
         "preimage_of(batch_size=...) is now preimage_of(text_options=TextOptions(batch_size=...))"],
    ),
    "pool_preimage": (
        lambda m, **k: pool_preimage(m, DOMAIN, QUERY, site=SITE, position=-1, n=4, **k),
        lambda m, **k: pool_preimage(m, QUERY, SITE, -1, DOMAIN, n=4, **k),
        ["pool_preimage(model, pool, query, site, position) is now pool_preimage(model, query, site, position, pool)"],
    ),
    "a pool of tokens": (
        lambda m, **k: pool_preimage(m, m.to_tokens(DOMAIN), m.to_tokens(QUERY)[0], SITE, -1, match="same", **k),
        lambda m, **k: pool_preimage(m, m.to_tokens(QUERY)[0], SITE, -1, m.to_tokens(DOMAIN), epsilon=Closeness(match="same"), **k),
        ["is now pool_preimage(model, query, site, position, pool)"],
    ),
    "enumerate_preimage": (
        lambda m, **k: enumerate_preimage(m, DOMAIN, SITE, -1, QUERY, 0.3, n_outside=2, **WAYS, **k),
        lambda m, **k: enumerate_preimage(m, QUERY, SITE, -1, DOMAIN, epsilon=NEAR, n_outside=2, **k),
        ["enumerate_preimage(model, inputs, site, position, query, epsilon) is now enumerate_preimage(model, query, site, position, inputs)"],
    ),
    "ActivationIndex.of": (
        lambda m, **k: ActivationIndex.of(m, DOMAIN, SITE, -1, match="same", batch_size=4, **k),
        lambda m, **k: ActivationIndex.of(m, SITE, -1, DOMAIN, match="same", text_options=TextOptions(batch_size=4), **k),
        ["of(model, inputs, site, position) is now of(model, site, position, inputs)"],
    ),
    "search_preimage": (
        lambda m, **k: search_preimage(m, QUERY, SITE, -1, proposals=DOMAIN, chains=3, steps=8, thin=2, seed=1, match="same", **k),
        lambda m, **k: search_preimage(m, QUERY, SITE, -1, DOMAIN, search_options=SHORT, seed=1, epsilon=Closeness(match="same"), **k),
        ["search_preimage(chains=...) is now search_preimage(search_options=SearchOptions(chains=...))"],
    ),
    "compare_sites": (
        lambda m, **k: compare_sites(m, QUERY, SITE, inputs=DOMAIN, features={"n": len}, positions=[-1, 1], **WAYS, epsilon=0.3, **k),
        lambda m, **k: compare_sites(m, QUERY, SITE, [-1, 1], inputs=DOMAIN, features={"n": len}, epsilon=NEAR, **k),
        ["compare_sites(match=...) is now compare_sites(epsilon=Closeness(match=...))"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_an_old_call_does_what_the_new_one_does(name):
    model = cached("bridge")
    old, new, messages = OLD[name]
    with pytest.warns(DeprecationWarning) as said:
        before = old(model, **QUIET)
    told = [str(each.message) for each in said if each.category is DeprecationWarning]
    assert all(any(message in each for each in told) for message in messages), told
    assert all(each.filename == __file__ for each in said if each.category is DeprecationWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert same(before, new(model, **QUIET))


def test_an_old_keyword_leaves_the_other_defaults():
    given = []

    @old_options
    def function(model, text_options=TEXTS):
        given.append(text_options)

    with pytest.warns(DeprecationWarning):
        function(None, prepend_bos=False)
    assert given == [TextOptions(batch_size=256, prepend_bos=False)]


@pytest.mark.parametrize("function", [preimage_of, pool_preimage, enumerate_preimage])
def test_one_row_of_tokens_may_be_either_and_is_refused(function):
    model = cached("bridge")
    row = model.to_tokens(QUERY)
    message = (
        "Expected a query's tokens [pos] after the model, got shape [1, 3], which may be inputs too; pass tokens[0]"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        function(model, row, SITE, -1, row, **QUIET)
    function(model, row[0], SITE, -1, row, **QUIET)


def test_a_decoders_and_trainings_old_keywords():
    from models import build

    from inversion.small import options

    with pytest.warns(
        DeprecationWarning, match=re.escape("train(name=...) is now train(options=TrainingOptions(name=...))")
    ):
        decoder = inversion.train(
            build("bridge"), SITE, texts, budget=32, config=CONFIG, options=options(), name="mine", **QUIET
        )  # fmt: skip
    assert isinstance(decoder, Decoder) and decoder.description["model"] == "mine"
    assert "name" not in decoder.description["options"]
    how = {"site": SITE, "position": -1, "n": 5, **QUIET}
    with pytest.warns(DeprecationWarning, match="SamplingOptions"):
        before = decoder.preimage(QUERY, temperature=2.0, noise=0.1, metric="cosine", **how)
    hot = SamplingOptions(2.0, 0.1)
    assert same(before, decoder.preimage(QUERY, sampling_options=hot, epsilon=Closeness(metric="cosine"), **how))
    with pytest.warns(DeprecationWarning, match="SamplingOptions"):
        drawn = decoder.sample(QUERY, 5, site=SITE, position=-1, temperature=2.0)
    assert same(drawn, decoder.sample(QUERY, 5, site=SITE, position=-1, sampling_options=SamplingOptions(2.0)))
    with warnings.catch_warnings():  # the call that is promised
        warnings.simplefilter("error", DeprecationWarning)
        decoder.preimage(QUERY, site="blocks.1.attn.hook_z", position=-1, epsilon=0.1, n=5, seed=0, **QUIET)
