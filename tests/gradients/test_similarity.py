"""Inner products between examples' gradients, against the dense gradients of plain autograd."""

import pytest
import torch
from models import build, worlds

import tl_backward as tlb
from tl_backward.gradients.examples import Example, by_length
from tl_backward.gradients.similarity import gradient_similarity
from tl_backward.text.cases import EditCase
from tl_backward.text.options import TextOptions

every_world = pytest.mark.parametrize("world", worlds())
TEXTS = ["w5 w6 w7 w8", "w9 w4", "w6 w6 w3 w11 w12 w13 w5", "w8 w7 w6", "w21 w22 w23 w24 w25"]
PAIRS = [("w5 w6 w7", "w9"), ("w4 w11", "w3 w10"), ("w9", "w8")]
WEIGHTS = ["W_out", "W_Q", "W_in", "pos_embed.W_pos", "blocks.0.mlp.b_in"]  # no embeddings: they are tied in one world


def dense(model, examples, weights):
    """Each example's flattened gradient of each weight, by backward() in float64: [weight][example, numbers]."""
    sites = tlb.weight_sites(model)
    rows = [[] for _ in weights]
    for example in examples:
        text, target = (example, None) if isinstance(example, str) else example
        tokens = model.to_tokens(text)
        ids = model.to_tokens(target, prepend_bos=False)[0] if target else None
        given = tokens if ids is None else torch.cat([tokens, ids[None, :-1]], 1)
        logits = model(given, return_type="logits").log_softmax(-1)
        if ids is None:
            loss = -logits[0, :-1].gather(1, tokens[0, 1:, None]).mean()
        else:
            at = torch.arange(tokens.shape[1] - 1, given.shape[1])
            loss = -logits[0, at, ids].mean()
        model.zero_grad()
        loss.backward()
        for row, name in zip(rows, weights, strict=True):
            row.append(sites[name].parameter.grad.flatten().double().clone())
    model.zero_grad()
    return [torch.stack(row) for row in rows]


@every_world
@pytest.mark.parametrize("max_bytes", [1 << 30, 8000, 1])
@pytest.mark.parametrize("within", [False, True])
def test_inner_products_are_those_of_the_dense_gradients(world, within, max_bytes):
    model = build(world)
    found = gradient_similarity(
        model,
        TEXTS,
        None if within else PAIRS,
        weights=WEIGHTS,
        max_bytes=max_bytes,
        text_options=TextOptions(batch_size=2),
        show_progress=False,
    )
    a = dense(model, TEXTS, found.weights)
    b = a if within else dense(model, PAIRS, found.weights)
    expected = torch.stack([one @ two.T for one, two in zip(a, b, strict=True)])
    torch.testing.assert_close(found.inner, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.norms_a, torch.stack([one.norm(dim=1) for one in a]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.norms_b, torch.stack([two.norm(dim=1) for two in b]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.matrix, torch.cat(a, 1) @ torch.cat(b, 1).T, rtol=1e-9, atol=1e-12)


@every_world
def test_cosines_and_ranked_pairs(world):
    model = build(world)
    found = gradient_similarity(model, TEXTS, metric="cosine", weights=["W_out", "W_in"], show_progress=False)
    long = torch.cat(dense(model, TEXTS, found.weights), 1)
    expected = torch.nn.functional.cosine_similarity(long[:, None], long[None], dim=-1)
    torch.testing.assert_close(found.matrix, expected, rtol=1e-9, atol=1e-12)
    one = dense(model, TEXTS, [found.weights[0]])[0]
    torch.testing.assert_close(
        found.of_weight(found.weights[0]), torch.nn.functional.cosine_similarity(one[:, None], one[None], dim=-1)
    )
    frame = found.pairs(20)
    assert len(frame) == 10 and (frame["a"] < frame["b"]).all() and frame["cosine"].is_monotonic_decreasing
    best = expected.triu(1).masked_fill(torch.ones(5, 5).tril().bool(), -2)
    assert (frame["a"][0], frame["b"][0]) == divmod(int(best.argmax()), 5)
    assert frame["example_a"][0] == TEXTS[frame["a"][0]]
    worst = found.pairs(1, largest=False)
    assert worst["cosine"][0] == pytest.approx(float(expected.masked_fill(best == -2, 2).min()))
    assert found.to_frame().loc[TEXTS[0], TEXTS[1]] == pytest.approx(float(expected[0, 1]))
    assert "GradientSimilarity(5 x 5 examples, cosine of 4 weights)" == repr(found) and "<table" in found._repr_html_()
    with pytest.raises(KeyError, match="Expected one of"):
        found.of_weight("W_out")


def test_many_tiles_give_the_same(monkeypatch):
    """Examples and tokens cut into tiles of one or three; symmetric and not."""
    from tl_backward.gradients import gram, similarity

    model = build(worlds()[-1])
    options = dict(weights=["W_out", "embed.W_E"], show_progress=False)
    whole = [gradient_similarity(model, TEXTS, other, **options).inner for other in (None, PAIRS)]
    for rows in (1, 3, 7):
        monkeypatch.setattr(gram, "_TILE", (rows, 2 * rows))
        monkeypatch.setattr(gram, "_BLOCK_BYTES", rows * 8 * 23)
        monkeypatch.setattr(similarity, "_TILE", rows)
        tiled = [gradient_similarity(model, TEXTS, other, **options).inner for other in (None, PAIRS)]
        for one, two in zip(whole, tiled, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


@every_world
def test_an_examples_gradient_falls_along_itself(world):
    """To first order a step of b changes a's loss by -lr <g_a, g_b> (TracIn, eq. 1)."""
    model = build(world)
    found = gradient_similarity(model, PAIRS, weights="W_out", show_progress=False)
    lr = 1e-5
    before = [tlb.run_with_gradient_cache(model, text, tlb.target_loss(target))[0] for text, target in PAIRS]
    with tlb.gradient_edit(model, *PAIRS[1], weights="W_out", lr=lr):
        after = [tlb.run_with_gradient_cache(model, text, tlb.target_loss(target))[0] for text, target in PAIRS]
    change = (torch.stack(after) - torch.stack(before)).double()
    torch.testing.assert_close(change, -lr * found.matrix[:, 1], rtol=1e-3, atol=1e-12)


def test_cases_losses_and_what_is_refused():
    model = build(worlds()[-1])
    cases = [EditCase(prompt, target) for prompt, target in PAIRS]
    expected = gradient_similarity(model, PAIRS, show_progress=False)
    found = gradient_similarity(model, cases, show_progress=False)
    torch.testing.assert_close(found.matrix, expected.matrix)
    assert found.names_a == expected.names_a == ("w5 w6 w7 -> w9", "w4 w11 -> w3 w10", "w9 -> w8")
    own = gradient_similarity(model, [(text, tlb.target_loss(target)) for text, target in PAIRS], show_progress=False)
    torch.testing.assert_close(own.matrix, expected.matrix)
    for examples, message in (
        ([], "Expected a list of examples"),
        ([cases[0], "w5"], "Expected edit cases alone"),
        (["w5 w6", ""], "Prompt 1: Expected texts of at least one character, got an empty one"),
        (["w5 w6", "w5 " * 30], "Prompt 1: Expected at most n_ctx"),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_similarity(model, examples, show_progress=False)
    with pytest.raises(ValueError, match="Expected max_bytes of at least 1, got 0"):
        gradient_similarity(model, TEXTS, max_bytes=0)
    with pytest.raises(ValueError, match="Prompt 1: Expected a finite loss"):
        gradient_similarity(model, [("w5", "w6"), ("w5", lambda logits, tokens: logits.sum() * float("nan"))])


def test_batches_hold_each_example_once_and_fit_a_pass(monkeypatch):
    model = build(worlds()[0])
    drawn = torch.randint(1, 15, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    given = [Example(index, [5] * length, 0, tlb.next_token_loss, -1) for index, length in enumerate(drawn)]
    for size, fits in ((64, 10**9), (64, 40), (3, 40), (64, 1)):
        cost = 3 * model.cfg.d_vocab + 32 * model.cfg.n_layers * model.cfg.d_model
        monkeypatch.setattr("tl_backward.gradients.examples._NUMBERS", fits * cost)
        batches = list(by_length(model, given, size))
        assert sorted(each.index for batch in batches for each in batch) == list(range(70))
        lengths = [[len(each.tokens) for each in batch] for batch in batches]
        assert sum(lengths, []) == sorted(drawn)
        for batch in lengths:
            assert len(batch) <= size and (len(batch) <= 8 or len(batch) * max(batch) <= fits)
        for batch, after in zip(lengths, lengths[1:], strict=False):  # no batch could have been longer
            assert len(batch) == size or (len(batch) >= 8 and (len(batch) + 1) * after[0] > fits)
