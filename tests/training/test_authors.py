"""Who wrote an answer: scores and words against dense gradients of autograd, and an author that was planted."""

import pytest
import torch
from models import D_VOCAB, build, worlds

import tl_backward as tlb
from tl_backward.training import who_wrote

every_world = pytest.mark.parametrize("world", worlds())


def facts(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, D_VOCAB, (n, 5), generator=generator).tolist()
    return [(" ".join(f"w{i}" for i in row[:-1]), f"w{row[-1]}") for row in rows]


def dense(model, prompt, target):
    """The gradients of every W_out, [d_in, d_out], by autograd, and what each reads at the last token."""
    sites = [site for name, site in tlb.weight_sites(model).items() if name.endswith("W_out")]
    tokens = model.to_tokens(prompt)
    loss = -model(tokens, return_type="logits")[0, -1].log_softmax(-1)[model.to_tokens(target, prepend_bos=False)[0, 0]]
    gradients = torch.autograd.grad(loss, [site.parameter for site in sites])
    read = [
        tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(target))[1].factors[s.name].inputs[0, -1]
        for s in sites
    ]
    return [site.layout.from_stored(each) for site, each in zip(sites, gradients, strict=True)], read


@every_world
@pytest.mark.parametrize("metric", ["cosine", "inner"])
def test_scores_and_words_are_autograds(world, metric):
    model, data, query = build(world), facts(24), ("w7 w8 w9", "w30")
    found = who_wrote(model, *query, data, metric=metric, n=5, k=4, n_random=22, show_progress=False)
    own, read = dense(model, *query)
    flat, rows = torch.cat([each.flatten() for each in own]), []
    for each in data:
        theirs, _ = dense(model, *each)
        other = torch.cat([grad.flatten() for grad in theirs])
        inner = flat @ other
        rows.append((inner if metric == "inner" else inner / (flat.norm() * other.norm()), theirs))
    expected = torch.stack([score for score, _ in rows]).double()
    torch.testing.assert_close(found.scores, expected, rtol=1e-8, atol=1e-12)
    assert found.top.tolist() == expected.topk(5).indices.tolist()
    for place, index in enumerate(found.top.tolist()):
        vector = -sum(x @ grad for x, grad in zip(read, rows[index][1], strict=True))
        words = tlb.readout(model, vector.float().to(vector.dtype), k=4, target=query[1])
        assert found.written.top_ids[place].tolist() == words.top_ids.tolist()
        assert int(found.written.target_rank[place]) == int(words.target_rank)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(24, generator=generator)[:22].tolist()
    others = torch.stack(
        [tlb.gradient_similarity(model, [data[i]], data, metric=metric, show_progress=False).matrix[0] for i in drawn]
    )
    others[torch.arange(22), drawn] = float("nan")
    torch.testing.assert_close(found.high, others.nanquantile(0.975, dim=0))
    torch.testing.assert_close(found.low, others.nanquantile(0.025, dim=0))


@every_world
def test_a_planted_author(world, tmp_path):
    model, data = build(world), facts(40)
    data[17] = ("w7 w8 w9", "w30")
    found = who_wrote(model, *data[17], data, n=3, show_progress=False)
    assert int(found.top[0]) == 17 and abs(float(found.scores[17]) - 1) < 1e-9 and found.stands_out[0]
    assert "number 17 ('w7 w8 w9 -> w30') would most write w30" in found.summary().replace("\u2423", "")
    frame = found.to_frame()
    assert frame["example"].tolist() == found.top.tolist() and frame["stands_out"][0]
    assert "<table" in found._repr_html_() and "Authors(40 examples" in repr(found)
    back = tlb.load_result(found.save(tmp_path / "authors.safetensors"), tokenizer=model.tokenizer)
    assert back.to_frame().equals(frame) and back.summary() == found.summary()


@every_world
def test_what_is_not_known_is_not_claimed(world):
    """Few random queries, or none that the example stands out from."""
    model, data = build(world), facts(30)
    few = who_wrote(model, *data[3], data, n_random=5, show_progress=False)
    assert few.high.isnan().all() and "it is not known" in few.summary() and few.to_frame()["stands_out"].isna().all()
    alike = who_wrote(model, *data[3], data, random_queries=[data[3]] * 20, show_progress=False)
    assert not alike.stands_out[0] and "none stands out" in alike.summary()
    against = data[[float(s) < 0 for s in who_wrote(model, *data[3], data, n_random=0).scores].index(True)]
    for n_random in (0, 20):
        none = who_wrote(model, *data[3], [against], n_random=n_random, show_progress=False).summary()
        assert "none would write" in none and "would make it no likelier (cosine -" in none
    attention = who_wrote(model, *data[3], data, weights="W_Q", n_random=0, show_progress=False)
    assert attention.written is None and "writes" not in attention.to_frame()


def test_cases_and_words_of_facts():
    """Of the shipped model's facts: its own sentence among 60 others."""
    model, cases = tlb.zoo.load("facts"), tlb.zoo.edit_cases("test")[:61]
    case = cases[11]
    found = who_wrote(model, case.prompt, case.target, cases, weights=["W_out", "W_O"], show_progress=False)
    assert int(found.top[0]) == 11 and found.stands_out[0] and int(found.written.target_rank[0]) == 0


@every_world
@pytest.mark.parametrize(
    ("options", "words"),
    [({"n": 0}, "n of at least 1"), ({"n_random": -1}, "n_random of at least 0"), ({"k": -1}, "k")],
)
def test_bad_input(world, options, words):
    with pytest.raises(ValueError, match=words):
        who_wrote(build(world), "w5", "w6", facts(3), show_progress=False, **options)
    with pytest.raises(ValueError, match="Expected a list of examples"):
        who_wrote(build(world), "w5", "w6", [], show_progress=False)


@every_world
def test_scores_of_another_method(world):
    """Are taken as they are: order and words, no interval and no claim."""
    model, data = build(world), facts(30)
    own = who_wrote(model, *data[3], data, n=4, show_progress=False)
    ranks = own.scores.argsort().argsort()
    for scores in (own.scores, own.scores.numpy(), own.scores.tolist(), own.scores.float(), ranks, ranks.int().numpy()):
        found = who_wrote(model, *data[3], data, n=4, scores=scores, show_progress=False)
        assert found.top.tolist() == own.top.tolist() and found.written.top_ids.equal(own.written.top_ids)
        assert found.metric == "score" and found.weights == own.weights and found.n_random == 0
    assert (
        f"(score {float(ranks.max()):.3g}); of scores that were given" in found.summary()
        and "score" in found.to_frame()
        and found.high.isnan().all()
    )
    upside_down = who_wrote(model, *data[3], data, n=4, scores=-own.scores, show_progress=False)
    assert upside_down.top.tolist() == own.scores.topk(4, largest=False).indices.tolist()
    for scores, got in ((own.scores[1:], r"got shape \[29\]"), ([float("nan")] * 30, "got some that are NaN or inf")):
        with pytest.raises(ValueError, match=f"a finite score for each of the 30 examples, {got}"):
            who_wrote(model, *data[3], data, scores=scores, show_progress=False)


def test_of_equal_scores_the_first_lead():
    model = build(worlds()[0])
    data = [("w5 w6", "w7"), ("w8 w9", "w10"), ("w5 w6", "w7"), ("w8 w9", "w10"), ("w11", "w12")]
    found = who_wrote(model, *data[0], data, scores=torch.ones(5), n=3, show_progress=False)
    assert found.top.tolist() == [0, 1, 2]
    given = who_wrote(model, *data[0], data, scores=[0, 2, 1, 2, 1], n=5, show_progress=False)
    assert given.top.tolist() == [1, 3, 2, 4, 0]


def test_the_sentence_says_no_more_than_the_table():
    """The nearest gradient need not write the answer itself, and of equal scores none leads."""
    model = tlb.zoo.load("facts")
    facts = [(case.prompt, case.target) for case in tlb.zoo.edit_cases("test")[:30]]
    query = ("The pet of Anna Berg is a", " cat")
    found = who_wrote(model, *query, facts, n=5, show_progress=False)
    rank = int(found.written.target_rank[0])
    assert rank > 0 and found.scores[found.top[0]] > 0
    word = found.written.top_tokens[0][0].strip()
    assert "would most favour" in found.summary() and f"would write there is \u2423{word} " in found.summary()
    assert f"(\u2423cat has rank {rank})" in found.summary()
    tied = who_wrote(model, *query, facts[:6], k=0, scores=[0.5] * 6, show_progress=False)
    assert tied.summary().startswith("Of 6 examples 6 have the same largest score for \u2423cat, number 0 (")
    assert "would most" not in tied.summary()
