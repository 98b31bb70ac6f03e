"""Stitched models against the same computation by hand; maps against least squares; penalties text by text."""

import inspect
import json
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from leaves_no_trace import assert_same, state
from models import D_VOCAB, bridge, build, worlds
from shared import shared, stories

from tl_backward.dissimilarity import FitOptions, StitchedModel, stitch, stitching_grid
from tl_backward.dissimilarity.options import MapKind
from tl_backward.dissimilarity.stitching.maps import StitchMap
from tl_backward.dissimilarity.stitching.sgd import batch_of, learning_rate
from tl_backward.text.options import TextOptions

KINDS = get_args(MapKind)
every_world = pytest.mark.parametrize("world", worlds())
QUIET = {"show_progress": False}


def sentences(n, seed=0, longest=14):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest, (n,), generator=generator).tolist()
    return [
        " ".join(f"w{int(i)}" for i in torch.randint(3, D_VOCAB, (length,), generator=generator)) for length in lengths
    ]


TEXTS = sentences(40)
SHORT = FitOptions(steps=12, warmup_steps=3, learning_rate=0.05, save_every=5)


def residuals(model, texts, layer, skip=0):
    """[sample, d] one text at a time."""
    name = f"blocks.{layer}.hook_resid_post"
    return torch.cat([model.run_with_cache(model.to_tokens(text))[1][name][0, skip:].detach() for text in texts])


def by_hand(a, layer_a, b, layer_b, map, tokens):
    """Logits with B's stream replaced under TransformerLens's own hooks."""
    stream = map(a.run_with_cache(tokens)[1][f"blocks.{layer_a}.hook_resid_post"])
    return b.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer_b}.hook_resid_post", lambda value, hook: stream)])


@every_world
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_stitched_to_itself_is_itself(world, kind):
    model = build(world)
    found = stitch(model, 0, model, 0, TEXTS, map=kind, text_options=TextOptions(batch_size=4), **QUIET)
    tokens = model.to_tokens(TEXTS[0])
    torch.testing.assert_close(found.model(tokens), model(tokens), rtol=1e-6, atol=1e-7)
    assert abs(found.penalty.nats) < 1e-7 and abs(found.penalty.bits_per_byte) < 1e-7
    assert found.n_fit_texts == 32 and found.penalty.n_texts == 8


@every_world
@pytest.mark.parametrize("layers", [(0, 1), (1, 0), (1, 1)])
def test_it_computes_what_it_says(world, layers):
    a, b = build(world), bridge("llama")
    for first, second in ((a, b), (b, a)):
        found = stitch(first, layers[0], second, layers[1], TEXTS, **QUIET)
        tokens = first.to_tokens(TEXTS[1])
        expected = by_hand(first, layers[0], second, layers[1], found.model.map, tokens)
        torch.testing.assert_close(found.model(tokens), expected, rtol=1e-6, atol=1e-8)
        assert torch.equal(found.model(TEXTS[1]), found.model(tokens))
        loss = torch.nn.functional.cross_entropy(expected[0, :-1], tokens[0, 1:])
        torch.testing.assert_close(found.model(tokens, return_type="loss"), loss, rtol=1e-6, atol=1e-8)


def test_maps_are_least_squares():
    a, b = build(worlds()[0]), bridge("gpt2")
    fit = TEXTS[:32]
    x, y = residuals(a, fit, 1), residuals(b, fit, 0)
    x1 = torch.cat([x, torch.ones(len(x), 1)], 1)
    u, _, vh = torch.linalg.svd(x.T @ y, full_matrices=False)
    solved = torch.linalg.lstsq(x1, y).solution
    expected = {"linear": torch.linalg.lstsq(x, y).solution, "affine": solved[:-1], "orthogonal": u @ vh}
    for kind, weight in expected.items():
        map = stitch(a, 1, b, 0, TEXTS, map=kind, text_options=TextOptions(batch_size=8), **QUIET).model.map
        torch.testing.assert_close(map.weight, weight, rtol=1e-6, atol=1e-8)
        if kind == "affine":
            torch.testing.assert_close(map.linear.bias, solved[-1], rtol=1e-6, atol=1e-8)
    normed = stitch(
        a, 1, b, 0, TEXTS, fit_options=FitOptions(layer_norm=True), text_options=TextOptions(batch_size=8), **QUIET
    ).model.map
    z1 = torch.cat([torch.nn.functional.layer_norm(x, x.shape[1:]), torch.ones(len(x), 1)], 1)
    torch.testing.assert_close(normed(x), z1 @ torch.linalg.lstsq(z1, y).solution, rtol=1e-4, atol=1e-4)
    without = stitch(a, 1, b, 0, TEXTS, text_options=TextOptions(exclude_first=True, batch_size=8), **QUIET).model.map
    x, y = residuals(a, fit, 1, skip=1), residuals(b, fit, 0, skip=1)
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    torch.testing.assert_close(without.weight, solved[:-1], rtol=1e-6, atol=1e-8)


def test_ridge_shrinks():
    a, b = build(worlds()[0]), bridge("gpt2")
    x, y = residuals(a, TEXTS[:32], 1), residuals(b, TEXTS[:32], 0)
    gram = x.T @ x
    expected = torch.linalg.solve(gram + 0.1 * gram.trace() / len(gram) * torch.eye(len(gram)).to(gram), x.T @ y)
    map = stitch(
        a,
        1,
        b,
        0,
        TEXTS,
        map="linear",
        fit_options=FitOptions(ridge=0.1),
        text_options=TextOptions(batch_size=8),
        **QUIET,
    ).model.map
    torch.testing.assert_close(map.weight, expected, rtol=1e-6, atol=1e-8)


@every_world
def test_the_penalty_is_brute_force(world):
    a, b = build(world), bridge("gpt2")
    found = stitch(a, 1, b, 0, TEXTS, text_options=TextOptions(batch_size=8), **QUIET)
    mine, own, tokens, sizes = [], [], [], []
    for text in TEXTS[32:]:
        ids = b.to_tokens(text)
        for losses, logits in ((mine, by_hand(a, 1, b, 0, found.model.map, ids)), (own, b(ids))):
            losses.append(float(torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")))
        tokens.append(ids.shape[1] - 1)
        sizes.append(len(b.tokenizer.decode(ids[0, 1:].tolist()).encode()))
    more = torch.tensor(mine, dtype=torch.float64) - torch.tensor(own, dtype=torch.float64)
    n, size = torch.tensor(tokens).double(), torch.tensor(sizes).double()
    p = found.penalty
    assert p.nats == pytest.approx(float(more.sum() / n.sum()), abs=1e-6)
    assert p.loss == pytest.approx(sum(mine) / sum(tokens), abs=1e-6) and p.tail_loss == pytest.approx(
        sum(own) / sum(tokens), abs=1e-6
    )
    assert p.bits_per_byte == pytest.approx(float(more.sum() / math.log(2) / size.sum()), abs=1e-6)
    keep = ~torch.eye(8, dtype=torch.bool)
    left_out = torch.stack([more[k].sum() / n[k].sum() for k in keep])
    error = float(((left_out - left_out.mean()).square().sum() * 7 / 8).sqrt())
    assert p.standard_error == pytest.approx(error, abs=1e-6) and p.n_texts == 8 and p.n_tokens == sum(tokens)
    assert p.interval == (
        pytest.approx(p.nats - 1.959964 * error, abs=1e-6),
        pytest.approx(p.nats + 1.959964 * error, abs=1e-6),
    )
    frame = found.to_frame()
    assert frame["penalty_nats"].item() == p.nats and frame["tail_loss"].item() == p.tail_loss
    assert "<table" in found._repr_html_() and "nats a token" in repr(found)
    assert f"change B's loss by {p.nats:+.3f} nats" in found.summary() and f"{p.nats:+.4f} nats" in repr(p)
    for interval, word in (((0.1, 0.3), "clearly worse"), ((-0.3, -0.1), "clearly better"), ((-0.1, 0.1), "no clear")):
        assert word in replace(found, penalty=replace(p, interval=interval)).summary()


def test_held_out_data_and_token_batches():
    a, b = build(worlds()[0]), bridge("gpt2")
    one = stitch(a, 1, b, 0, TEXTS, text_options=TextOptions(batch_size=8), **QUIET)
    other = stitch(a, 1, b, 0, TEXTS[:32], held_out=TEXTS[32:], text_options=TextOptions(batch_size=8), **QUIET)
    assert one.penalty == other.penalty
    tokens = [a.to_tokens(text) for text in TEXTS]
    third = stitch(a, 1, b, 0, tokens[:32], held_out=tokens[32:], **QUIET)
    assert third.penalty.nats == pytest.approx(one.penalty.nats, abs=1e-6)


# ---- hooks


@every_world
def test_hooks_work_in_it(world):
    a, b = build(world), bridge("llama")
    stitched = stitch(a, 0, b, 0, TEXTS, **QUIET).model
    tokens = a.to_tokens(TEXTS[2])
    plain = stitched(tokens)
    seen = []
    names = [
        "head.blocks.0.hook_resid_pre",
        "hook_stitch_in",
        "hook_stitch_out",
        "tail.blocks.1.hook_resid_post",
        "tail.unembed.hook_out",
    ]
    for name in names:
        hooked = stitched.run_with_hooks(
            tokens, fwd_hooks=[(name, lambda x, hook: seen.append(hook.name) or x * torch.linspace(0, 2, x.shape[-1]))]
        )
        assert (hooked - plain).abs().max() > 1e-4, name
        assert torch.equal(stitched(tokens), plain)
    assert len(seen) == len(names) and seen[1:3] == names[1:3]
    logits, cache = stitched.run_with_cache(tokens)
    assert torch.equal(logits, plain) and set(names) <= set(cache) and len(cache) > 20
    torch.testing.assert_close(cache["hook_stitch_out"], stitched.map(cache["hook_stitch_in"]))
    assert torch.equal(cache["head.blocks.0.hook_resid_post"], cache["hook_stitch_in"])
    assert not any(name.startswith(("head.blocks.1", "head.ln_final", "tail.blocks.0", "tail.embed")) for name in cache)
    few = stitched.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_resid_post"))[1]
    assert sorted(few) == ["head.blocks.0.hook_resid_post", "tail.blocks.1.hook_resid_post"]
    assert list(stitched.run_with_cache(tokens, names_filter="hook_stitch_in")[1]) == ["hook_stitch_in"]
    with pytest.raises(
        ValueError, match="hook point of the stitched model, got 'hook_stich_in'; the nearest are 'hook_stitch_in'"
    ):
        stitched.run_with_hooks(tokens, fwd_hooks=[("hook_stich_in", lambda x, hook: x)])
    with pytest.raises(ValueError, match="got 'tail.blocks.0.hook_resid_pre'"):
        stitched.run_with_hooks(tokens, fwd_hooks=[("tail.blocks.0.hook_resid_pre", lambda x, hook: x)])


@every_world
def test_hooks_of_the_models_themselves_take_part(world):
    a, b = build(world), bridge("llama")
    stitched = stitch(a, 0, b, 0, TEXTS, **QUIET).model
    tokens, plain = a.to_tokens(TEXTS[2]), stitched(TEXTS[2])
    for model, name in ((a, "blocks.0.hook_resid_pre"), (b, "blocks.1.hook_mlp_out")):
        with model.hooks(fwd_hooks=[(name, lambda x, hook: x * 2)]):
            assert (stitched(tokens) - plain).abs().max() > 1e-4
    assert torch.equal(stitched(tokens), plain)


@every_world
def test_one_models_head_and_tail_are_told_apart(world):
    model = build(world)
    stitched = stitch(model, 0, model, 0, TEXTS, **QUIET).model
    tokens, calls = model.to_tokens(TEXTS[2]), []
    stitched.run_with_hooks(tokens, fwd_hooks=[("head.blocks.0.hook_mlp_out", lambda x, hook: calls.append("head"))])
    stitched.run_with_hooks(tokens, fwd_hooks=[("tail.blocks.1.hook_mlp_out", lambda x, hook: calls.append("tail"))])
    assert calls == ["head", "tail"]


@every_world
def test_backward_hooks_see_gradients(world):
    a, b = build(world), bridge("gpt2")
    stitched = stitch(a, 0, b, 0, TEXTS, **QUIET).model
    tokens, seen = a.to_tokens(TEXTS[3]), {}
    names = ["hook_stitch_out", "tail.blocks.1.hook_resid_post", "head.blocks.0.hook_resid_post"]

    def keep(grad, hook):
        seen[hook.name] = grad.detach().clone()

    with stitched.hooks(bwd_hooks=[(name, keep) for name in names]):
        loss = stitched(tokens, return_type="loss")
        loss.backward()
    assert len(seen) == 3
    delta = 1e-4 * torch.randn(
        seen["hook_stitch_out"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    moved = [
        stitched.run_with_hooks(
            tokens, fwd_hooks=[("hook_stitch_out", lambda x, hook, s=sign: x + s * delta)], return_type="loss"
        )
        for sign in (1, -1)
    ]
    assert float((moved[0] - moved[1]) / 2) == pytest.approx(float((seen["hook_stitch_out"] * delta).sum()), rel=1e-3)


@every_world
def test_leaves_no_trace(world):
    a, b = build(world), bridge("llama")
    a.add_hook("blocks.0.hook_resid_pre", lambda x, hook: x * 1.1)
    before = state(a), state(b)
    stitched = stitch(a, 0, b, 0, TEXTS, fit="sgd", fit_options=SHORT, **QUIET).model
    stitched.run_with_cache(TEXTS[0])
    stitched.generate(TEXTS[0], max_new_tokens=3, temperature=1.0)
    stitched.train().eval()
    stitching_grid(a, b, TEXTS[:16], **QUIET)

    def fail(x, hook):
        raise ZeroDivisionError

    for name in ("head.blocks.0.hook_resid_pre", "hook_stitch_in", "tail.blocks.1.hook_resid_post"):
        with pytest.raises(ZeroDivisionError):
            stitched.run_with_hooks(TEXTS[0], fwd_hooks=[(name, fail)])
    assert all(not hooks for hooks in stitched._hooked.values()) and not stitched.hook_stitch_in.fwd_hooks
    assert_same(before[0], state(a))
    assert_same(before[1], state(b))
    assert {name.split(".")[0] for name, _ in stitched.named_parameters()} == {"map"}


# ---- descent


def held_out_loss(found):
    return found.penalty.loss


@every_world
def test_sgd_lowers_the_loss_of_what_it_is_fitted_on(world):
    a, b = build(world), bridge("llama")
    found = stitch(
        a,
        0,
        b,
        0,
        TEXTS,
        fit="sgd",
        fit_options=FitOptions(steps=60, warmup_steps=5, learning_rate=0.03),
        text_options=TextOptions(batch_size=32),
        **QUIET,
    )
    assert len(found.losses) == 60 and found.losses[-1] < found.losses[0] - 0.05
    assert found.fit_penalty.tail_loss == found.penalty.tail_loss and found.fit_penalty.nats != found.penalty.nats
    assert found.model.map.norm is not None and all(p.grad is None for p in found.model.parameters())
    again = stitch(
        a,
        0,
        b,
        0,
        TEXTS,
        fit="sgd",
        fit_options=FitOptions(steps=60, warmup_steps=5, learning_rate=0.03),
        text_options=TextOptions(batch_size=32),
        **QUIET,
    )
    assert again.losses == found.losses


def test_the_first_step_is_the_gradient_of_the_stitched_loss():
    a, b = build(worlds()[0]), bridge("gpt2")
    options = dict(map="linear", text_options=TextOptions(batch_size=32), **QUIET)
    start = stitch(a, 0, b, 0, TEXTS, **options).model
    step = stitch(
        a,
        0,
        b,
        0,
        TEXTS,
        fit="sgd",
        fit_options=FitOptions(steps=1, warmup_steps=0, learning_rate=1e-4, momentum=0.5, clip=1e9, layer_norm=False),
        **options,
    )
    weight = start.map.linear.weight
    total, count = 0.0, 0
    for text in TEXTS[:32]:
        tokens = a.to_tokens(text)
        logits = start(tokens)[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits.float(), tokens[0, 1:], reduction="sum")
        count += tokens.shape[1] - 1
    (gradient,) = torch.autograd.grad(total / count, weight)
    # Nesterov's first step is gradient + momentum * gradient.
    torch.testing.assert_close(step.model.map.linear.weight - weight, -1.5e-4 * gradient, rtol=1e-4, atol=1e-9)


def test_an_orthogonal_map_stays_orthogonal():
    a, b = build(worlds()[0]), bridge("gpt2")
    found = stitch(a, 0, b, 0, TEXTS, map="orthogonal", fit="sgd", fit_options=SHORT, **QUIET)
    q = found.model.map.weight
    start = stitch(
        a, 0, b, 0, TEXTS, map="orthogonal", fit_options=FitOptions(layer_norm=True), **QUIET
    ).model.map.weight
    torch.testing.assert_close(q @ q.T, torch.eye(len(q), dtype=torch.float64), rtol=0, atol=1e-10)
    assert (q - start).abs().max() > 1e-5 and not hasattr(found.model.map.linear, "parametrizations")


@pytest.mark.parametrize("kind", ["affine", "orthogonal"])
def test_an_interrupted_descent_goes_on(tmp_path, monkeypatch, kind):
    a, b = build(worlds()[0]), bridge("gpt2")
    options = dict(map=kind, fit="sgd", fit_options=replace(SHORT, checkpoint=tmp_path / "descent"), **QUIET)
    from tl_backward.dissimilarity.stitching.penalty import TextBatch

    original, calls = TextBatch.losses, []

    def failing(self, logits):
        calls.append(None)
        if len(calls) == 1 + 8:  # one of the held-out batches, then the eighth step
            raise KeyboardInterrupt
        return original(self, logits)

    with monkeypatch.context() as patch:
        patch.setattr(TextBatch, "losses", failing)
        with pytest.raises(KeyboardInterrupt):
            stitch(a, 0, b, 0, TEXTS, **options)
    saved = (tmp_path / "descent").stat().st_size
    assert saved
    resumed = stitch(a, 0, b, 0, TEXTS, **options)
    (tmp_path / "descent").unlink()
    whole = stitch(a, 0, b, 0, TEXTS, **options)
    torch.testing.assert_close(resumed.model.map.weight, whole.model.map.weight, rtol=1e-9, atol=1e-11)
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-9) and resumed.penalty.nats == pytest.approx(
        whole.penalty.nats, abs=1e-9
    )
    with pytest.raises(ValueError, match="Expected the checkpoint of this run in .*differs in steps"):
        stitch(a, 0, b, 0, TEXTS, **{**options, "fit_options": FitOptions(steps=13, checkpoint=tmp_path / "descent")})


def test_the_rate_warms_up_and_falls():
    options = FitOptions(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(options, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates[-1] < 0.001
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert sorted(batch_of(options, step, 7) for step in range(7, 14)) == list(range(7))
    assert FitOptions().steps == 2000 and FitOptions().warmup_steps == 200


# ---- the grid


@every_world
def test_grid(world):
    a, b = build(world), bridge("llama")
    grid = stitching_grid(a, b, TEXTS, text_options=TextOptions(batch_size=8), **QUIET)
    assert list(grid.penalties) == ["A->B", "B->A", "A->A", "B->B"]
    models = {"A": a, "B": b}
    for direction in grid.penalties:
        head, tail = direction.split("->")
        for i in (0, 1):
            for j in (0, 1):
                one = stitch(models[head], i, models[tail], j, TEXTS, text_options=TextOptions(batch_size=8), **QUIET)
                assert grid.nats(direction)[i, j] == pytest.approx(one.penalty.nats, abs=1e-5)
                assert grid.penalties[direction][i][j].interval == pytest.approx(one.penalty.interval, abs=1e-5)
    assert grid.nats("A->A").diag().abs().max() < 1e-6 and grid.nats("B->B").diag().abs().max() < 1e-6
    frame = grid.to_frame()
    assert len(frame) == 16
    row = frame[(frame.direction == "A->B") & (frame.head_layer == 1) & (frame.tail_layer == 0)].iloc[0]
    assert row["penalty_nats"] == grid.nats("A->B")[1, 0] and row["baseline_nats"] == grid.nats("B->B")[1, 0]
    assert grid._repr_html_().count("<table") == 4 and "StitchingGrid(2 x 2 layers" in repr(grid)
    with pytest.raises(KeyError, match="direction among"):
        grid.nats("A->C")
    small = stitching_grid(a, b, TEXTS, layers_a=-1, layers_b=[1], map="orthogonal", baselines=False, **QUIET)
    assert list(small.penalties) == ["A->B", "B->A"] and small.nats("A->B").shape == (1, 1) and small.layers_a == (1,)


# ---- bad input

BAD = {
    "map": (
        dict(map="quadratic"),
        ValueError,
        "Expected map among 'identity', 'orthogonal', 'linear', 'affine', got 'quadratic'",
    ),
    "fit": (dict(fit="adam"), ValueError, "Expected fit among 'least_squares', 'sgd', got 'adam'"),
    "layer": (dict(layer_a=5), IndexError, r"layers in \[-2, 2\)"),
    "widths": (dict(map="identity"), ValueError, "models of one width for map='identity', got 20 and 24"),
    "held out": (dict(held_out=1.0), ValueError, r"held_out in \(0, 1\)"),
    "one batch": (dict(data=["w3 w4"]), ValueError, "at least 2 batches"),
    "no data": (dict(data=[]), ValueError, "the iterator is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    options, error, message = BAD[case]
    a, b = build("hooked") if "hooked" in worlds() else bridge("gpt2", n_embd=20, n_head=2), bridge("llama")
    options = {"layer_a": 0, "data": TEXTS} | options
    with pytest.raises(error, match=message):
        inspect.unwrap(stitch)(
            a, options.pop("layer_a"), b, 0, options.pop("data"), **options, **QUIET
        )  # as without beartype


def test_more_bad_input():
    a = build(worlds()[0])
    with pytest.raises(ValueError, match="a map with parameters for fit='sgd'"):
        stitch(a, 0, a, 1, TEXTS, map="identity", fit="sgd", fit_options=replace(SHORT, layer_norm=False), **QUIET)
    with pytest.raises(ValueError, match="Expected map among"):
        inspect.unwrap(stitching_grid)(a, a, TEXTS, map="cubic", **QUIET)
    with pytest.raises(ValueError, match="at least one step"):
        FitOptions(steps=0)
    with pytest.raises(TypeError, match="TransformerLens model"):
        stitch(torch.nn.Linear(2, 2), 0, a, 0, TEXTS)
    with pytest.raises(ValueError, match="return_type 'logits', 'loss' or None"):
        stitch(a, 0, a, 0, TEXTS, **QUIET).model(TEXTS[0], return_type="both")
    from dissimilarity.test_comparison import letters

    b = bridge("llama")
    b.tokenizer = letters()
    with pytest.raises(ValueError, match="one tokenizer, got two whose vocabularies differ"):
        stitch(a, 0, b, 0, TEXTS, **QUIET)
    with pytest.raises(ValueError, match="finite loss, got nan at step 0"):
        with a.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: x * float("nan"))]):
            stitch(a, 0, a, 0, TEXTS, fit="sgd", fit_options=SHORT, **QUIET)


def test_a_map_by_itself():
    map = StitchMap("linear", 3, 5)
    map.set(torch.arange(15.0).view(3, 5))
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(map(x), x @ map.weight)
    assert repr(map) == "StitchMap('linear', 3 -> 5)" and StitchMap("identity", 3, 3).weight is None


# ---- real models


@every_world
def test_a_stitched_model_generates_text(world):
    model = stories(world)
    texts = json.loads(shared("data", "tinystories-1000.json").read_text())[:24]
    same = stitch(model, 2, model, 2, texts, text_options=TextOptions(max_tokens=40, batch_size=4), **QUIET)
    prompt = "Once upon a time, there was a"
    own = model.generate(prompt, max_new_tokens=12, do_sample=False, use_past_kv_cache=False, verbose=False)
    said = same.model.generate(prompt, max_new_tokens=12)
    assert said.startswith(prompt) and own.split() == said.split()
    moved = stitch(model, 1, model, 2, texts, text_options=TextOptions(max_tokens=40, batch_size=4), **QUIET)
    text = moved.model.generate(prompt, max_new_tokens=30)
    assert text.startswith(prompt) and len(text) > len(prompt) + 20 and text.isprintable()
    assert 0 < moved.penalty.nats < 1.5 and moved.penalty.interval[0] > 0
    drawn = [moved.model.generate(prompt, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    several = moved.model.generate([prompt, prompt], max_new_tokens=5)
    assert several[0] == several[1] and several[0] == moved.model.generate(prompt, max_new_tokens=5)
    with pytest.raises(ValueError, match="texts of one length in tokens"):
        moved.model.generate([prompt, "Once"])
    tokens = moved.model.generate(model.to_tokens(prompt), max_new_tokens=5)
    assert tokens.shape == (1, model.to_tokens(prompt).shape[1] + 5)


def test_both_worlds_give_one_stitch():
    if len(worlds()) == 1:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    texts = json.loads(shared("data", "tinystories-1000.json").read_text())[:12]
    found = [
        stitch(
            stories(one), 1, stories(other), 2, texts, text_options=TextOptions(max_tokens=30, batch_size=4), **QUIET
        ).penalty.nats
        for one, other in (("bridge", "bridge"), ("hooked", "bridge"), ("bridge", "hooked"))
    ]
    assert found == pytest.approx([found[0]] * 3, abs=1e-3)


def test_stitched_model_is_a_module_of_the_map_alone():
    a = build(worlds()[0])
    stitched = StitchedModel(a, 0, a, 1, StitchMap("identity", a.W_U.shape[0], a.W_U.shape[0]))
    assert not list(stitched.parameters()) and "StitchedModel(" in repr(stitched)
    assert stitched.model_a is a and stitched.cfg is a.cfg and stitched.tokenizer is a.tokenizer
