"""One query at many sites and positions: the way that is taken, what stands beside it, and what is refused."""

from itertools import product

import pytest
from models import worlds

from inversion.tiny import cached
from tl_backward import inversion
from tl_backward.inversion import Closeness, InversionOptions, enumerate_preimage, invert, pool_preimage, task_of_texts
from tl_backward.text.options import TextOptions

QUIET = {"show_progress": False}
QUERY = "w6 w5 w9"
TEXTS = [f"w{a} w{b} w{c}" for a in (5, 6) for b in (5, 6) for c in (7, 8, 9)]


def test_given_texts_are_a_pool_at_every_site_and_position():
    model, near = cached("bridge"), Closeness(0.5, "cosine", "same")
    found = invert(
        model, QUERY, None, [-1, 1], task_of_texts(TEXTS), options=InversionOptions(n=5), epsilon=near, **QUIET
    )
    asked = [(str(one.preimage.site), one.preimage.position) for one in found.readings]
    assert asked == [(f"blocks.{layer}.hook_resid_post", at) for layer in range(model.cfg.n_layers) for at in (3, 1)]
    for one in found.readings:
        p = one.preimage
        alone = pool_preimage(model, QUERY, p.site, p.position, TEXTS, n=5, epsilon=near, **QUIET)
        assert (p.method, p.metric, p.match, one.retrieval, one.exact) == ("pool", "cosine", "same", None, None)
        assert p.distances.sort().values.tolist() == pytest.approx(alone.distances.tolist(), abs=1e-12)
    sites = {str(p.site) for p in found.comparison.preimages}
    assert len(sites) == model.cfg.n_layers and len(found.comparison.preimages) == model.cfg.n_layers * 3
    assert repr(found).startswith(f"Inversion({len(asked)} readings, first SiteReading(Preimage(")


@pytest.mark.parametrize("kind", worlds())
@pytest.mark.parametrize("match", ["any", "same"])
@pytest.mark.parametrize("method", ["pool", "enumerate"])
def test_together_is_one_by_one(kind, match, method, monkeypatch):
    """However the pool is cut into batches and passes; a position twice, by token, by a function, of no text but one."""
    model, near = cached(kind), Closeness(0.6, "euclidean", match)
    texts = [*TEXTS, "w9", "w5 w6", "w7 w8 w9 w5 w6 w7", "w6 w5 w9 w6"]
    rules, task = [-1, "w6", 2, lambda text, strings: 1, -1], task_of_texts(texts)
    places = [("resid_post", 0), ("z", 1, 0), ("resid_mid", 1)]
    monkeypatch.setattr("tl_backward.activations.reader._SCORES", 40)
    monkeypatch.setattr("tl_backward.inversion.query._HELD", 1)
    options = InversionOptions(method, n=100)
    found = invert(model, QUERY, places, rules, task, options=options, epsilon=near, **QUIET)
    monkeypatch.undo()
    assert len(found.readings) == len(places) * len(rules)
    for one, (place, rule) in zip(found.readings, product(places, rules), strict=True):
        p = one.preimage
        if method == "pool":
            alone = pool_preimage(model, QUERY, place, rule, list(task.draw(2000, 0)), n=100, epsilon=near, **QUIET)
        else:
            alone = enumerate_preimage(model, QUERY, place, rule, list(task.domain()), epsilon=near, **QUIET)
        assert p.site == alone.site and p.position == alone.position
        mine, theirs = (dict(zip(each.texts, each.distances.tolist(), strict=True)) for each in (p, alone))
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12) and mine.keys() == set(texts)
        assert p.diagnostics.share_inside == alone.diagnostics.share_inside


@pytest.mark.parametrize(("method", "named"), [("enumerate", "enumeration"), ("search", "search")])
def test_another_way_stands_beside_retrieval(method, named):
    task = task_of_texts(TEXTS)
    found = invert(
        cached("bridge"), QUERY, ("resid_mid", 1), -1, task, options=InversionOptions(method, n=4), compared=False, **QUIET
    )  # fmt: skip
    (one,) = found.readings
    assert (one.preimage.method, one.retrieval.method, found.comparison) == (named, "pool", None)
    assert one.preimage.diagnostics.chance == one.retrieval.diagnostics.chance


def test_given_texts_are_cut():
    found = invert(
        cached("bridge"), "w6 w5", ("resid_mid", 1), -1, task_of_texts(TEXTS), text_options=TextOptions(max_tokens=3),
        compared=False, **QUIET,
    )  # fmt: skip
    assert set(found.readings[0].preimage.lengths.tolist()) == {3}


def test_refused():
    model, counting = cached("bridge"), inversion.task_of("counting")
    with pytest.raises(
        ValueError, match=r"Expected a model whose decoder ships \(addition, .*'decoder', got none; train"
    ):
        invert(model, QUERY, None, -1, task_of_texts(TEXTS), options=InversionOptions("decoder"), **QUIET)
    with pytest.raises(
        ValueError, match="Expected a task of finitely many inputs with method 'enumerate', got 'counting'"
    ):
        invert(model, QUERY, None, -1, counting, options=InversionOptions("enumerate"), **QUIET)
