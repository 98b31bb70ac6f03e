"""A watch of a training against the training itself: equal to the bit with and without, and sums as autograd's."""

import copy
import gc
import warnings
import weakref
from functools import partial

import pytest
import torch
from leaves_no_trace import assert_same, state
from models import D_VOCAB, HAS_HOOKED_TRANSFORMER, bridge, build, hooked, worlds
from torch import nn
from torch.utils.checkpoint import checkpoint

import tl_backward as tlb
from tl_backward.training import difference, explained, watch
from tl_backward.training.sketch import is_whole

every_world = pytest.mark.parametrize("world", worlds())


def batches(n, seed=0, shape=(3, 7)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, D_VOCAB, shape, generator=generator) for _ in range(n)]


def loss_of(model, tokens):
    return model(tokens, return_type="loss")


def descend(model, data, optimizer, *, loss=loss_of, accumulate=1, clip=None):
    """A plain loop; returns the losses."""
    losses = []
    for i, tokens in enumerate(data):
        value = loss(model, tokens)
        (value / accumulate).backward()
        losses.append(value.item())
        if (i + 1) % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return losses


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
}


@every_world
@pytest.mark.parametrize("of", OPTIMIZERS)
@pytest.mark.parametrize("given", [False, True], ids=["", "given"])
def test_the_training_is_the_same_to_the_bit(world, of, given):
    plain, watched = build(world), build(world)
    found = []
    for model in (plain, watched):
        model.train()
        torch.manual_seed(3)
        optimizer = OPTIMIZERS[of](model)
        data = batches(5)
        if model is plain:
            losses = descend(model, data, optimizer, accumulate=2, clip=0.5)
        else:
            with watch(model, optimizer=optimizer if given else None) as w:
                losses = descend(model, data, optimizer, accumulate=2, clip=0.5)
                w.result()
        found.append((losses, torch.get_rng_state(), [p.grad for p in model.parameters()]))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    for one, two in zip(found[0][2], found[1][2], strict=True):
        assert one is two is None or torch.equal(one, two)
    for (name, one), two in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, two), name


@every_world
def test_nothing_is_left(world):
    model = build(world)
    loss_of(model, batches(1)[0]).backward()
    before = state(model)
    with watch(model), pytest.raises(RuntimeError, match="struck"):
        loss_of(model, batches(1)[0])  # without a backward

        def strike(module, args, output):
            raise RuntimeError("struck")

        handle = model.blocks[1].mlp.register_forward_hook(strike)
        try:
            loss_of(model, batches(1)[0])
        finally:
            handle.remove()
    assert_same(before, state(model))


def summed(model, data, loss=loss_of):
    """The sum of all batches' gradients at the same weights, and each one's norm, by weight site."""
    sites = {name: site for name, site in tlb.weight_sites(model).items() if site.is_default}
    totals, norms = {}, {name: [] for name in sites}
    for tokens in data:
        parameters = [site.parameter for site in sites.values()]
        gradients = torch.autograd.grad(loss(model, tokens), parameters, allow_unused=True)
        for (name, site), gradient in zip(sites.items(), gradients, strict=True):
            gradient = torch.zeros_like(site.parameter) if gradient is None else gradient
            gradient = site.layout.from_stored(gradient)
            totals[name] = totals.get(name, 0) + gradient
            norms[name].append(float(gradient.norm()))
    return sites, totals, norms


FAMILIES = [
    *[("hooked", family) for family in ("ln", "gqa_grouped", "gqa_ungrouped", "split_qkv", "attn_result", "moe")],
    *[("bridge", family) for family in ("gpt2", "neox", "llama", "gemma2", "mixtral")],
]


@pytest.mark.parametrize(("world", "family"), FAMILIES, ids=lambda value: str(value))
@pytest.mark.parametrize("small", [False, True], ids=["whole", "sketched"])
def test_sums_are_autograds(world, family, small, monkeypatch):
    """Where sums are kept whole, and where a sketch is forced that holds their rank."""
    if world not in worlds():
        pytest.skip("NOT RUN: this TransformerLens has no HookedTransformer")
    if small:
        monkeypatch.setattr("tl_backward.training.sketch.is_whole", lambda shape, rank: False)
    model, data = (hooked if world == "hooked" else bridge)(family), batches(3)
    sites, totals, norms = summed(model, data)
    with watch(model, rank=40) as w:
        for tokens in data:
            loss_of(model, tokens).backward()
            model.zero_grad()
    result = w.result()
    assert set(result.weights) == set(sites) and not result.missing
    for name, site in sites.items():
        full = totals[name].transpose(0, 1) if site.layout.heads == "out" else totals[name]
        dense = result.sums[name].dense()
        error = float((dense - full.reshape(dense.shape)).abs().max())
        assert error <= 1e-9 * max(1e-3, float(full.abs().max())), (name, error)
        torch.testing.assert_close(result.norms[name], torch.tensor(norms[name]).double(), rtol=1e-5, atol=1e-9)
        assert result.written[name].norm == 0, "no step was made"
        u, s = torch.linalg.svdvals(-full.reshape(dense.shape)), result.gradient[name].S
        torch.testing.assert_close(s, u[: len(s)], rtol=1e-6, atol=1e-8)


@every_world
def test_tokens_that_contributed_most(world):
    """Against every token's own rank-1 term, captured apart."""
    model, data = build(world), batches(4)
    with watch(model, "W_out", n_examples=5) as w:
        for tokens in data:
            loss_of(model, tokens).backward()
    result = w.result()
    for layer in (0, 1):
        expected, of_examples = [], []
        for step, tokens in enumerate(data):
            norms = (
                tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss)[1].factors["W_out", layer].token_norms()
            )
            expected += [
                (float(norms[i, j]), step, i, j, tuple(tokens[i].tolist())) for i in range(3) for j in range(7)
            ]
            of_examples += [(float(norms[i].sum()), step, i, -1) for i in range(3)]
        found = result.tokens[f"blocks.{layer}.mlp.W_out"]
        for one, two in zip(found, sorted(expected, reverse=True)[:5], strict=True):
            assert one[1:] == two[1:] and abs(one.norm / two[0] - 1) < 1e-9
        for one, two in zip(
            result.examples[f"blocks.{layer}.mlp.W_out"], sorted(of_examples, reverse=True), strict=False
        ):
            assert one[1:4] == two[1:] and abs(one.norm / two[0] - 1) < 1e-9
    frame = result.contributions("blocks.0.mlp.W_out")
    assert list(frame["norm"]) == sorted(frame["norm"], reverse=True) and len(frame) == 5
    first = result.tokens["blocks.0.mlp.W_out"][0]
    assert frame["token"][0] in (f"w{first.ids[first.position]}", f" w{first.ids[first.position]}")


@every_world
def test_plain_descent_is_explained(world):
    """By the learning rate of each step; without it in direction alone."""
    model = build(world)
    before = build(world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with watch(model, optimizer=optimizer) as w:
        for tokens in batches(4):
            descend(model, [tokens], optimizer, clip=0.3)
            schedule.step()
    change = difference(before, model)
    frame = explained(w.result(), change)
    assert len(frame) == len(w.records) and (frame["share"] - 1).abs().max() < 1e-9
    assert (frame["cosine"] - 1).abs().max() < 1e-9 and not frame["error"].any()
    for name in change.weights:
        expected = tlb.weight_sites(model)[name].parameter - tlb.weight_sites(before)[name].parameter
        assert abs(change.changes[name].norm / float(expected.detach().norm()) - 1) < 1e-9
        written = w.result().written[name]
        torch.testing.assert_close(written.S, change.changes[name].S, rtol=1e-6, atol=1e-12)


@every_world
def test_adam_is_not_plain_descent(world):
    """What was written is known, and that the gradients do not explain all of it."""
    model, before = build(world), build(world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer=optimizer) as w:
        descend(model, batches(6), optimizer)
    change, result = difference(before, model), w.result()
    frame = explained(result, change)
    assert (frame["share"] < 0.9).all() and (frame["cosine"] < 0.99).all() and (frame["cosine"] > 0.1).all()
    for name in change.weights:
        assert abs(result.written[name].norm / change.changes[name].norm - 1) < 1e-6


@every_world
def test_a_small_sketch_says_what_it_misses(world, monkeypatch):
    monkeypatch.setattr("tl_backward.training.sketch.is_whole", lambda shape, rank: False)
    model, before = build(world), build(world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer=optimizer, rank=1) as w:
        descend(model, batches(8), optimizer)
    monkeypatch.undo()
    frame = explained(w.result(), difference(before, model))
    assert (frame["share"] < 1 - 1e-6).any()
    missing = 1 - frame["share"]
    assert 0.5 < float((frame["error"].sum()) / missing.sum()) < 2
    assert is_whole((20, 28), 1)


@every_world
def test_killed_and_resumed(world, tmp_path):
    """To the same bits, in sums, norms and contributions."""
    whole = build(world)
    data, optimizer = batches(6), torch.optim.AdamW(whole.parameters(), lr=1e-2)
    with watch(whole, optimizer=optimizer) as w:
        descend(whole, data, optimizer)
    expected = w.result()
    model = build(world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer=optimizer) as w:
        descend(model, data[:3], optimizer)
        w.save(tmp_path / "state.safetensors")
    with watch(model, optimizer=optimizer, resume=tmp_path / "state.safetensors") as w:
        descend(model, data[3:], optimizer)
    result = w.result()
    assert result.steps == expected.steps == 6
    for name in expected.weights:
        for key, each in expected.sums[name].tensors().items():
            assert torch.equal(result.sums[name].tensors()[key], each)
        assert torch.equal(result.norms[name], expected.norms[name])
        assert result.tokens[name] == expected.tokens[name] and result.examples[name] == expected.examples[name]
        for of in ("gradient", "written"):
            torch.testing.assert_close(getattr(result, of)[name].V, getattr(expected, of)[name].V)
    with pytest.raises(ValueError, match="Expected the model as it was"):
        watch(model, optimizer=optimizer, resume=tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="differs in rank"):
        watch(model, rank=3, resume=tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="differs in weights"):
        watch(model, "W_out", optimizer=optimizer, resume=tmp_path / "state.safetensors")
    (tmp_path / "state.safetensors").write_bytes((tmp_path / "state.safetensors").read_bytes()[:-40])
    with pytest.raises(ValueError):
        watch(model, optimizer=optimizer, resume=tmp_path / "state.safetensors")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_loop_over_the_hugging_face_model(family):
    """Inside a Bridge, by its own loss and under its own names."""
    one, two = bridge(family), bridge(family)
    found = []
    for model in (one, two):
        with watch(model) as w:
            for tokens in batches(3):
                if model is one:
                    loss_of(model, tokens).backward()
                else:
                    model.original_model(input_ids=tokens, labels=tokens).loss.backward()
        found.append(w.result())
    for name in found[0].weights:
        # Its loss is taken in float32.
        torch.testing.assert_close(found[0].sums[name].dense(), found[1].sums[name].dense(), rtol=1e-4, atol=1e-6)
        assert found[0].tokens[name][0][1:] == found[1].tokens[name][0][1:]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_checkpointing(family):
    """That which is not reentrant hands over the same; the other kind is left out by name, and trains on."""
    found = []
    for kind in ("none", "use_reentrant=False"):
        model = bridge(family).train()
        if kind != "none":
            model.original_model.gradient_checkpointing_enable({"use_reentrant": False})
        with watch(model) as w:
            for tokens in batches(2):
                model.original_model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        found.append(w.result())
        assert not found[-1].missing
    dropout = family == "gpt2"
    for name in found[0].weights:
        assert found[1].tokens[name]
        if not dropout:
            torch.testing.assert_close(found[0].sums[name].dense(), found[1].sums[name].dense())


@every_world
def test_autocast(world):
    model = build(world, dtype=torch.float32)
    with watch(model) as w, torch.autocast("cpu", dtype=torch.bfloat16):
        for tokens in batches(2):
            loss_of(model, tokens).backward()
    result = w.result()
    assert not result.missing
    for name in result.weights:
        parameter = tlb.weight_sites(model)[name].parameter
        assert abs(float(result.sums[name].dense().norm()) / float(parameter.grad.norm()) - 1) < 0.02
        assert result.tokens[name]


@every_world
def test_a_scaled_loss(world):
    class Scaler:
        def get_scale(self):
            return 1024.0

    model, found = build(world), []
    for scale in (1.0, 1024.0):
        with watch(model, scaler=Scaler() if scale > 1 else None) as w:
            (scale * loss_of(model, batches(1)[0])).backward()
        found.append(w.result())
    for name in found[0].weights:
        torch.testing.assert_close(found[0].sums[name].dense(), found[1].sums[name].dense())
        assert abs(found[0].tokens[name][0].norm / found[1].tokens[name][0].norm - 1) < 1e-9


@every_world
def test_several_passes_in_one_backward_and_several_backwards_of_one_pass(world):
    model, (a, b) = build(world), batches(2)
    _, totals, _ = summed(model, [a, b])
    with watch(model) as w:
        (loss_of(model, a) + loss_of(model, b)).backward()
    once = w.result()
    with watch(model) as w:
        value = loss_of(model, a)
        value.backward(retain_graph=True)
        value.backward()
    twice = w.result()
    assert once.steps == 1 and twice.steps == 2
    _, single, _ = summed(model, [a])
    for name in once.weights:
        assert abs(float(once.sums[name].dense().norm()) / float(totals[name].norm()) - 1) < 1e-9
        assert abs(float(twice.sums[name].dense().norm()) / (2 * float(single[name].norm())) - 1) < 1e-9
    assert {each.step for each in twice.tokens[twice.weights[0]]} == {0, 1}


@every_world
def test_every_other_backward(world):
    model = build(world)
    with watch(model, every=2) as w:
        for tokens in batches(4):
            loss_of(model, tokens).backward()
    result = w.result()
    assert {each.step for each in result.tokens[result.weights[0]]} == {0, 2} and len(
        result.norms[result.weights[0]]
    ) == 4


@every_world
def test_frozen_weights(world):
    """Those that are trained are watched; a frozen one where it is named and a gradient passes it."""
    model = build(world)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("blocks.1" in name or ".h.1." in name)
    with watch(model) as w:
        loss_of(model, batches(1)[0]).backward()
    assert w.records and all(name.startswith("blocks.1") for name in w.records)
    asked = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(True)
    _, totals, _ = summed(model, batches(1))
    for parameter, each in zip(model.parameters(), asked, strict=True):
        parameter.requires_grad_(each)
    first, last = "blocks.0.mlp.W_out", "blocks.1.mlp.W_out"
    tlb.weight_sites(model)[last].parameter.requires_grad_(False)
    with watch(model, [first, last]) as w:
        loss_of(model, batches(1)[0]).backward()
    assert "frozen" in w.missing[first] and last not in w.missing
    assert abs(float(w.result().sums[last].dense().norm()) / float(totals[last].norm()) - 1) < 1e-9
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="Expected a weight that is trained"):
        watch(model)


@every_world
def test_a_pass_without_a_backward_is_freed(world):
    model, kept = build(world), []
    with watch(model) as w:
        kept.append(weakref.ref(model(batches(1)[0], return_type="logits")))
        gc.collect()
        assert kept[0]() is None
        hook = model.blocks[1].mlp.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
        model(batches(1)[0])
        hook.remove()
        gc.collect()
        assert kept[1]() is None
        with torch.no_grad():
            model(batches(1)[0])
        with pytest.raises(ValueError, match="Expected a loop with a backward pass"):
            w.result()


@every_world
def test_watched_twice(world):
    model = build(world)
    with watch(model), pytest.raises(ValueError, match="watched already"), watch(model):
        pass
    with watch(model) as w:
        loss_of(model, batches(1)[0]).backward()
    assert w.steps == 1


@every_world
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "W_uot"}, "W_uot"),
        ({"weights": "b_out"}, "Expected matrices, got blocks.0.mlp.b_out, which is a bias; name matrices alone"),
        ({"every": 0}, "Expected every of at least 1"),
        ({"rank": 0}, "Expected rank of at least 1"),
        ({"n_examples": 0}, "Expected n_examples of at least 1"),
        ({"k": 1000}, "k"),
        ({"resume": "nowhere.safetensors"}, "nowhere"),
    ],
)
def test_bad_input(world, options, words):
    with pytest.raises(ValueError, match=words):
        watch(build(world), **options)


@every_world
def test_a_fault_of_ours_does_not_stop_the_training(world, monkeypatch):
    """It is named and warned of, and the training goes on to the same bits."""
    plain, model = build(world), build(world)
    descend(plain, batches(3), torch.optim.SGD(plain.parameters(), lr=0.1))

    def fault(self, factors):
        raise RuntimeError("no room")

    monkeypatch.setattr("tl_backward.training.record.Record.see", fault)
    with pytest.warns(tlb.training.UnwatchedWarning, match="no room"), watch(model) as w:
        descend(model, batches(3), torch.optim.SGD(model.parameters(), lr=0.1))
    assert set(w.missing) == set(w.records)
    for one, two in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


@every_world
def test_summary_and_frames(world):
    model = build(world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer=optimizer, k=3) as w:
        descend(model, batches(3), optimizer)
    result = w.result()
    assert result.summary().startswith("3 backward passes wrote most into blocks.")
    frame = result.to_frame()
    assert set(frame["weight"]) == set(result.weights) and frame["share"].between(0, 1).all()
    for row in frame.itertuples():
        short = row.weight.rpartition(".")[2]
        assert (row.shift is not None) == (short in ("W_O", "W_out"))
        assert (row.imprint is not None) == (short in ("W_Q", "W_K", "W_V", "W_in", "W_gate"))
    assert "<table" in result._repr_html_() and "3 backward passes" in repr(result)
    with pytest.raises(ValueError, match="Expected of="):
        result.to_frame("both")
    with pytest.raises(ValueError, match="nearest"):
        result.contributions("blocks.0.mlp.W_uot")


def test_words_of_a_direction():
    """A weight that is trained to write one token says so, and with the sign that inputs point along."""
    model = tlb.zoo.load("facts")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tokens = model.to_tokens("Anna Berg lives in the city of Oslo")
    with watch(model, "W_out", optimizer=optimizer) as w:
        for _ in range(3):
            logits = model(tokens)
            nn.functional.cross_entropy(logits[0, -2:-1], tokens[0, -1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
    last = w.result().written["blocks.3.mlp.W_out"]
    assert last.shift.top_tokens[0][0] == " Oslo" and last.imprint is None
    assert "Oslo" in repr(last)


def test_checkpointed_blocks_of_the_other_kind_are_named():
    if "hooked" not in worlds():
        pytest.skip("NOT RUN: this TransformerLens has no HookedTransformer")
    model = hooked()
    inner = model.blocks[1].forward

    def forward(*args, **kwargs):
        return checkpoint(lambda *each: inner(*each, **kwargs), *args, use_reentrant=True)

    model.blocks[1].forward = forward
    with watch(model) as w:
        loss_of(model, batches(1)[0]).backward()
    assert {name for name in w.missing if name.startswith("blocks.1")} and not any(
        name.startswith("blocks.0") for name in w.missing
    )
    assert all("no_grad" in reason for reason in w.missing.values())


def big(world):
    """With weights that are kept as sketches."""
    wide = dict(d_model=256, d_mlp=1024, n_heads=4, d_head=64)
    return hooked(**wide) if world == "hooked" else bridge(n_embd=256, n_head=4)


@every_world
def test_what_else_contributes_to_a_gradient_is_in_its_sum(world):
    """A penalty on the weight, the user's own hook: what is accumulated counts."""
    model, name = big(world), "blocks.0.mlp.W_out"
    site = tlb.weight_sites(model)[name]
    parameter, tokens = site.parameter, batches(1)[0]
    handle = parameter.register_hook(lambda gradient: 0.5 * gradient)
    with watch(model, name) as w:
        (loss_of(model, tokens) + 0.5 * parameter.pow(2).sum()).backward()
    handle.remove()
    result, expected = w.result(), float(parameter.grad.norm())
    assert abs(float(result.norms[name][0]) / expected - 1) < 1e-6
    assert abs(result.gradient[name].norm / expected - 1) < 0.5 and result.tokens[name]


@every_world
def test_a_backward_that_fails(world):
    """The next ones are watched."""
    model, name = build(world), "blocks.0.mlp.W_out"
    broken = tlb.weight_sites(model)["blocks.0.attn.W_Q"].parameter
    with watch(model, name) as w:
        loss_of(model, batches(1)[0]).backward()
        handle = broken.register_hook(lambda gradient: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loss_of(model, batches(1)[0]).backward()
        handle.remove()
        for tokens in batches(3):
            loss_of(model, tokens).backward()
    assert w.steps == 4 and {each.step for each in w.result().tokens[name]} >= {1, 2, 3}


@every_world
def test_looking_at_a_gradient_is_no_backward(world):
    model, name = build(world), "blocks.0.mlp.W_out"
    parameter = tlb.weight_sites(model)[name].parameter
    with watch(model, name) as w:
        torch.autograd.grad(loss_of(model, batches(1)[0]), [parameter])
        loss_of(model, batches(1)[0]).backward()
    assert w.steps == 1 and len(w.result().norms[name]) == 1
    assert abs(w.result().gradient[name].norm / float(parameter.grad.norm()) - 1) < 1e-9


@every_world
@pytest.mark.parametrize("how", ["closure", "maximize", "scaled"])
def test_what_an_optimizer_reads(world, how):
    """Gradients that a closure makes within the step; upwards; those that a fused step unscales itself."""
    # Not GPT-2: a fused step on the CPU writes wrongly into weights that are views (findings/).
    make = hooked if world == "hooked" else partial(bridge, "llama")
    model, before = make(dtype=torch.float32), make(dtype=torch.float32)
    options = {"maximize": True} if how == "maximize" else {"fused": True} if how == "scaled" else {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024) if how == "scaled" else None
    with watch(model, optimizer=optimizer, scaler=scaler) as w:
        for tokens in batches(3):

            def closure(tokens=tokens):
                optimizer.zero_grad()
                value = loss_of(model, tokens)
                (value if scaler is None else scaler.scale(value)).backward()
                return value

            if how == "closure":
                optimizer.step(closure)
            else:
                closure()
                optimizer.step() if scaler is None else scaler.step(optimizer)
                if scaler is not None:
                    scaler.update()
    frame = explained(w.result(), difference(before, model))
    assert (frame["share"] - 1).abs().max() < 1e-3 and all(len(each) == 3 for each in w.result().norms.values())


@every_world
def test_gradients_that_are_not_finite(world):
    model = build(world)
    with watch(model, "W_out") as w:
        (loss_of(model, batches(1)[0]) * float("inf")).backward()
        loss_of(model, batches(1)[0]).backward()
    result = w.result()
    assert all("1 of its gradients were not finite" in result.missing[name] for name in result.weights)
    assert all(each.norm > 0 and each.S.isfinite().all() for each in result.gradient.values())


@every_world
def test_a_weight_that_is_frozen_or_replaced_is_named(world):
    model, name = build(world), "blocks.0.mlp.W_out"
    parameter = tlb.weight_sites(model)[name].parameter
    with pytest.warns(tlb.training.UnwatchedWarning, match="frozen or thawed"), watch(model, "W_out") as w:
        loss_of(model, batches(1)[0]).backward()
        parameter.requires_grad_(False)
        loss_of(model, batches(1)[0]).backward()
    assert name in w.missing and "blocks.1.mlp.W_out" not in w.missing
    parameter.requires_grad_(True)
    other = torch.optim.SGD([tlb.weight_sites(model)["blocks.1.mlp.W_out"].parameter], lr=0.1)
    with watch(model, "W_out", optimizer=other) as w:
        loss_of(model, batches(1)[0]).backward()
        other.step()
    assert "none of the optimizer's" in w.missing[name]
    with watch(model, "W_out") as w:
        loss_of(model, batches(1)[0]).backward()
        hooked_kind = world == "hooked"
        module = model.blocks[0].mlp if hooked_kind else model.blocks[0].get_submodule("mlp.out").original_component
        setattr(module, "W_out" if hooked_kind else "weight", nn.Parameter(parameter.detach().clone()))
    assert "was replaced" in w.result().missing[name]


@every_world
def test_a_refused_watch_leaves_the_first_alone(world):
    model = build(world)
    first, second = watch(model, "W_out"), watch(model, "W_out")
    first.__enter__()
    with pytest.raises(ValueError, match="watched already"):
        second.__enter__()
    second.__exit__(None, None, None)
    loss_of(model, batches(1)[0]).backward()
    first.__exit__(None, None, None)
    assert first.steps == 1


@every_world
def test_a_loss_that_is_kept_keeps_no_activations(world):
    model, losses = build(world), []
    with watch(model) as w:
        for tokens in batches(3):
            losses.append(loss_of(model, tokens))
            losses[-1].backward()
            kept = [each for each in w._passes._done if each.entries]
            assert len(kept) == 1, "that of the last pass alone"
    assert len(losses) == 3 and not w._passes._done


def test_a_copy_made_within_a_watch_is_not_watched():
    if "hooked" not in worlds():
        pytest.skip("NOT RUN: this TransformerLens has no HookedTransformer")
    model = hooked()
    with watch(model) as w:
        loss_of(model, batches(1)[0]).backward()
        average = copy.deepcopy(model)
        loss_of(average, batches(1)[0]).backward()
        assert w.steps == 1
    loss_of(average, batches(1)[0]).backward()


def test_a_mask_is_no_text():
    """The words of contributions are those of the tokens, whatever else the model is given."""
    model, tokens = bridge("llama"), batches(1)[0]
    with watch(model, "W_out") as w:
        model.original_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
    first = w.result().tokens["blocks.1.mlp.W_out"][0]
    assert first.ids == tuple(tokens[first.example].tolist())


def test_text_is_read_as_tokens():
    if "hooked" not in worlds():
        pytest.skip("NOT RUN: this TransformerLens has no HookedTransformer")
    model = hooked()
    with watch(model, "W_out") as w:
        model(["w5 w6 w7"], return_type="loss").backward()
    assert w.result().tokens["blocks.1.mlp.W_out"][0].ids == (0, 5, 6, 7)


def test_weights_that_are_computed_are_named():
    """Unasked they are left out, and said to be."""
    from torch.nn.utils import parametrize

    class Tripled(nn.Module):
        def forward(self, weight):
            return 3 * weight

    model = bridge("llama")
    parametrize.register_parametrization(
        model.blocks[0].get_submodule("mlp.out").original_component, "weight", Tripled()
    )
    with watch(model) as w:
        loss_of(model, batches(1)[0]).backward()
    result = w.result()
    left = [name for name in result.missing if name.startswith("blocks.0.mlp")]
    assert left and not set(left) & set(result.weights) and "blocks.1.mlp.W_out" in result.weights


@pytest.mark.parametrize("kind", ["bridge", *["hooked"] * HAS_HOOKED_TRANSFORMER])
@pytest.mark.parametrize("fused", [True, False])
def test_fused_steps_that_go_elsewhere_are_said_once(kind, fused):
    """Of a Bridge's q, k and v, which are views of one matrix: the step is not that of AdamW."""
    model = tlb.zoo.load("facts", kind=kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    with warnings.catch_warnings(record=True) as said, tlb.training.watch(model, optimizer=optimizer):
        warnings.simplefilter("always")
        for _ in range(2):
            model("Anna Berg lives in the city of Oslo", return_type="loss").backward()
            optimizer.step()
            optimizer.zero_grad()
    found = [each for each in said if "fused" in str(each.message)]
    assert len(found) == (1 if fused and kind == "bridge" else 0)
