"""Sweeps over data: every figure against a brute-force one, one prompt at a time; merging, skipping, interrupting."""

import json
import math

import plain
import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, bridge, build, hooked, randomise, worlds
from shared import shared, stories

import tl_backward as tlb
from tl_backward._support.bootstrap import bootstrap
from tl_backward._support.storage import save_tensors
from tl_backward.editing.scores import ask as ask_of
from tl_backward.editing.scores import score
from tl_backward.lens import sweeps
from tl_backward.lens.control import RandomInit
from tl_backward.lens.segments import NAMES
from tl_backward.lens.sweep_result import load_sweep, merge
from tl_backward.lens.sweeps import sweep
from tl_backward.model import controls
from tl_backward.model.controls import random_init
from tl_backward.text.cases import EditCase
from tl_backward.text.options import TextOptions

every_world = pytest.mark.parametrize("world", worlds())


def local_attention():
    if not HAS_HOOKED_TRANSFORMER:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    return hooked(use_local_attn=True, window_size=4, attn_types=["global", "local"])


PROMPTS = ["w5 w6 w7 w8", "w9 w4", "w6 w6 w3 w11 w12 w13 w5", "w8 w7 w6", "w21 w22 w23 w24 w25"]
TARGETS = ["w9", "w10", "w3", "w30", "w31"]
SUBJECTS = ["w6 w7", None, "w11 w12", "w8", (1, 3)]
EVERYTHING = ("norm", "gradient_norm", "share", "rank", "target_rank", "answer_rank", "top_tokens")


def brute_force(model, prompt, target, subject, weight, answer=None, k=3):
    """One prompt's figures from the dense gradient of each token's share, in float64."""
    lens = tlb.backward_lens(model, prompt, target, subject=subject, k=k, answer=answer)
    _, cache = tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(target), weights=weight)
    (factors,) = cache.factors.values()
    x, d = (side[0].double() for side in (factors.inputs, factors.deltas))
    shares = torch.einsum("ni,no->nio", x, d)
    dense = shares.sum(0)
    segments = {name: mask[0] for name, mask in lens.segments.masks().items()}
    found = {
        "gradient_norm": dense.norm(),
        "rank": torch.linalg.matrix_rank(dense).double(),
        "norm": torch.full((len(NAMES),), math.nan, dtype=torch.float64),
        "share": torch.full((len(NAMES),), math.nan, dtype=torch.float64),
    }
    for name, where in segments.items():
        found["norm"][NAMES.index(name)] = d[where].norm(dim=-1).mean()
        found["share"][NAMES.index(name)] = (shares[where].sum(0) * dense).sum() / dense.square().sum()
    return found, lens


@every_world
def test_every_figure_is_the_brute_force_one(world):
    model = build(world)
    found = sweep(
        model,
        PROMPTS,
        TARGETS,
        subjects=SUBJECTS,
        collect=EVERYTHING,
        text_options=TextOptions(batch_size=2),
        k=3,
        control=None,
        show_progress=False,
    )
    assert found.items.tolist() == list(range(5)) and found.weights == ("blocks.0.mlp.W_out", "blocks.1.mlp.W_out")
    for item, (prompt, target, subject) in enumerate(zip(PROMPTS, TARGETS, SUBJECTS, strict=True)):
        for layer, weight in enumerate(found.weights):
            expected, lens = brute_force(model, prompt, target, subject, weight)
            for name, value in expected.items():
                torch.testing.assert_close(
                    found.values[name][item, layer], value, rtol=1e-9, atol=1e-12, equal_nan=True, msg=f"{name} {item}"
                )
            read = lens.shift[layer][lens.answer_position]
            assert found.values["target_rank"][item, layer] == read.target_rank
            assert found.values["answer_rank"][item, layer] == read.answer_rank
            assert found.values["top_ids"][item, layer].tolist() == read.top_ids.tolist()
            assert found.values["bottom_ids"][item, layer].tolist() == read.bottom_ids.tolist()
        assert abs(found.loss[item] - lens.loss) < 1e-9


@every_world
def test_shares_sum_to_one_and_the_frame_holds_the_means(world):
    found = sweep(build(world), PROMPTS, TARGETS, subjects=SUBJECTS, control=None, show_progress=False)
    torch.testing.assert_close(found.values["share"].nansum(-1), torch.ones(5, 2).double())
    frame = found.to_frame(n_boot=50).set_index(["quantity", "weight", "segment"])
    for w, weight in enumerate(found.weights):
        norms = found.values["norm"][:, w, NAMES.index("subject")]
        row = frame.loc["norm", weight, "subject"]
        assert row["mean"] == pytest.approx(float(norms.nanmean())) and row["n"] == 4
        assert row["low"] <= row["mean"] <= row["high"]
        assert frame.loc["gradient_norm", weight, ""]["mean"] == pytest.approx(
            float(found.values["gradient_norm"][:, w].mean())
        )
    assert ("norm", found.weights[0], "target") not in frame.index  # no target of several tokens, no row
    assert "Sweep(5 prompts" in repr(found) and "<table" in found._repr_html_()


@every_world
def test_the_control_averages_over_draws_of_the_weights(world):
    """Prompt i sees draw i % n_draws, and keeps the trained model's answer."""
    model = build(world)
    found = sweep(
        model, PROMPTS, TARGETS, subjects=SUBJECTS, control=RandomInit(2, 7), weights="W_out", show_progress=False
    )
    assert found.control.draws.tolist() == [0, 1, 0, 1, 0] and torch.equal(found.control.answers, found.answers)
    for item in range(5):
        untrained = random_init(model, seed=7 + item % 2)
        for layer, weight in enumerate(found.weights):
            expected, lens = brute_force(
                untrained, PROMPTS[item], TARGETS[item], SUBJECTS[item], weight, answer=int(found.answers[item])
            )
            torch.testing.assert_close(
                found.control.values["norm"][item, layer], expected["norm"], rtol=1e-9, atol=1e-12, equal_nan=True
            )
            rank = lens.shift[layer][lens.answer_position].answer_rank
            assert found.control.values["answer_rank"][item, layer] == rank
    assert {"control_mean", "control_low", "control_high"} <= set(found.to_frame(n_boot=20).columns)


@every_world
def test_batches_do_not_matter_and_parts_merge_into_one_run(world, tmp_path):
    model = build(world)
    options = dict(collect=EVERYTHING, control=RandomInit(2), k=2, show_progress=False)
    whole = sweep(model, PROMPTS, TARGETS, subjects=SUBJECTS, text_options=TextOptions(batch_size=5), **options)
    parts = [
        sweep(
            model,
            PROMPTS[a:b],
            TARGETS[a:b],
            subjects=SUBJECTS[a:b],
            start=a,
            text_options=TextOptions(batch_size=1),
            **options,
        )
        for a, b in ((0, 3), (3, 4), (4, 5))
    ]
    assert merge(parts[0]) is parts[0]
    with pytest.raises(TypeError, match="Expected the sweeps of the parts, got nothing; load"):
        merge()
    with pytest.raises(TypeError):
        merge(parts[0], "part-1.safetensors")
    for found in (merge(*parts), merge(*parts[::-1]), load_sweep(whole.save(tmp_path / "a.safetensors"))):
        for one, two in ((found, whole), (found.control, whole.control)):
            assert one.items.tolist() == two.items.tolist() and one.draws.tolist() == two.draws.tolist()
            assert set(one.values) == set(two.values)
            for name, values in two.values.items():
                torch.testing.assert_close(one.values[name], values, rtol=1e-9, atol=1e-12, equal_nan=True)
    with pytest.raises(
        ValueError, match="Expected sweeps over different prompts, got 3 of the same index .the first is 0"
    ):
        merge(parts[0], parts[0])
    other = sweep(model, PROMPTS[3:], TARGETS[3:], start=3, show_progress=False)
    with pytest.raises(ValueError, match="same options"):
        merge(parts[0], other)
    another = build(world)
    randomise(another, seed=1)
    apart = sweep(
        another,
        PROMPTS[3:],
        TARGETS[3:],
        subjects=SUBJECTS[3:],
        start=3,
        text_options=TextOptions(batch_size=1),
        **options,
    )
    with pytest.raises(ValueError, match="Expected two sweeps of one model, got two whose weights differ"):
        merge(parts[0], apart)


@every_world
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_skipped_by_index(world, where):
    """A NaN in one prompt's pass leaves the other prompts' figures as they are."""
    model = build(world)
    expected = sweep(model, PROMPTS, TARGETS, control=None, show_progress=False)
    bad = int(model.to_tokens("w11", prepend_bos=False)[0, 0])
    ids = []

    def remember(module, args):
        ids.append(args[0])

    def poison(activation, hook):
        rows = (ids[-1] == bad).any(1)
        if where == "loss":
            activation = activation.clone()
            activation[rows] = math.nan
            return activation
        if activation.requires_grad:  # a finite loss whose gradient is not
            activation = activation.clone()
            activation.register_hook(lambda grad: grad.masked_fill(rows[:, None, None], math.inf))
        return activation

    handle = next(module for name, module in model.named_modules() if name == "embed").register_forward_pre_hook(
        remember
    )
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", poison)], bwd_hooks=[]):
        found = sweep(model, PROMPTS, TARGETS, control=None, show_progress=False)
    handle.remove()
    assert list(found.skipped) == [2] and "finite" in found.skipped[2] and found.items.tolist() == [0, 1, 3, 4]
    for name, values in expected.values.items():
        torch.testing.assert_close(found.values[name], values[[0, 1, 3, 4]], equal_nan=True)


@every_world
def test_interrupted_while_a_control_is_drawn_it_returns_what_it_has(world, monkeypatch):
    model, original, drawn = build(world), controls.fresh_model, []

    def interrupted(*arguments, **options):
        drawn.append(1)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(controls, "fresh_model", interrupted)
    found = sweep(model, PROMPTS, TARGETS, control=RandomInit(3), show_progress=False)
    assert found.interrupted and len(found.items) == len(PROMPTS)
    assert found.control.draws.tolist() == [0] * len(found.control.items) and len(found.control.items)


@pytest.mark.parametrize("make", [lambda: bridge("gemma2"), local_attention], ids=["sliding", "local"])
def test_short_prompts_beside_long_ones_where_attention_is_local(make):
    """In float64 padding as wide as the window would be NaN, and reach the real tokens."""
    model = make()
    prompts = ["w5", "w5 w6", "w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w3 w4"]
    whole, single = (
        sweep(
            model,
            prompts,
            ["w7"] * 3,
            control=None,
            text_options=TextOptions(batch_size=size),
            show_progress=False,
        )
        for size in (64, 1)
    )
    assert not whole.skipped
    torch.testing.assert_close(whole.loss, single.loss)
    for name, values in single.values.items():
        torch.testing.assert_close(whole.values[name], values, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_more_padding_than_a_window_is_refused_in_float64_alone():
    prompts = ["w5", "w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w3 w4"]
    case = EditCase("w5", "w7", "w8", paraphrases=(prompts[1],))
    for ask in (
        lambda model: tlb.run_with_gradient_cache(model, prompts, tlb.next_token_loss),
        lambda model: score(model, ask_of(model, case), n_tokens=0),
    ):
        with pytest.raises(
            ValueError, match=r"lengths differ by at most 7 tokens in float64, .* window is 8 .*got 1[12]"
        ):
            ask(bridge("gemma2"))
    model = bridge("gemma2", dtype=torch.float32)
    both, _ = tlb.run_with_gradient_cache(model, prompts, tlb.target_loss("w7"))
    single = [tlb.run_with_gradient_cache(model, prompt, tlb.target_loss("w7"))[0] for prompt in prompts]
    torch.testing.assert_close(both, torch.stack(single).mean())


@every_world
def test_interrupted_it_returns_what_it_has(world):
    model = build(world)
    calls = []

    def stop(activation, hook):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", stop)], bwd_hooks=[]):
        found = sweep(model, PROMPTS, TARGETS, text_options=TextOptions(batch_size=2), show_progress=False)
    assert found.interrupted and len(found.items) == 4 and not found.control
    whole = sweep(model, PROMPTS, TARGETS, text_options=TextOptions(batch_size=2), control=None, show_progress=False)
    torch.testing.assert_close(found.values["norm"], whole.values["norm"][found.items], equal_nan=True)
    assert not whole.interrupted


def same(a, b):
    """Two sweeps, bit by bit."""
    assert torch.equal(a.items, b.items) and torch.equal(a.loss, b.loss) and torch.equal(a.draws, b.draws)
    assert torch.equal(a.answers, b.answers) and a.skipped == b.skipped and a.interrupted == b.interrupted
    assert a.values.keys() == b.values.keys() and a.about == b.about
    assert all(torch.equal(value.nan_to_num(-9), b.values[name].nan_to_num(-9)) for name, value in a.values.items())
    assert bool(a.control) == bool(b.control)
    if a.control and b.control:
        same(a.control, b.control)


@every_world
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_from_its_checkpoint_it_goes_on_to_the_same_numbers(world, error, tmp_path, monkeypatch):
    """Stopped at every one of its batches, the control's too; what was saved is not measured again."""
    monkeypatch.setattr(sweeps, "SAVE_EVERY", 1)
    model, calls = build(world), []
    options = dict(
        text_options=TextOptions(batch_size=2), control=RandomInit(2), collect=["norm", "share", "top_tokens"],
        show_progress=False,
    )  # fmt: skip
    whole = sweep(model, PROMPTS, TARGETS, **options)
    original = sweeps.capture_batch

    def failing(*arguments):
        calls.append(1)
        if len(calls) % 2 == 0:
            raise error
        return original(*arguments)

    monkeypatch.setattr(sweeps, "capture_batch", failing)
    path, rounds = tmp_path / "sweep.safetensors", 0
    while True:
        rounds += 1
        try:
            found = sweep(model, PROMPTS, TARGETS, checkpoint=path, **options)
        except ZeroDivisionError:
            assert error is ZeroDivisionError
            continue
        if not found.interrupted:
            break
    same(found, whole)
    same(load_sweep(path, tokenizer=model.tokenizer), whole)
    n_batches = len(calls) - (rounds - 1)  # each but the last ended with one that failed
    assert rounds > 3 and n_batches == 3 + sum(-(-len([i for i in range(5) if i % 2 == d]) // 2) for d in range(2))
    calls.clear()
    same(sweep(model, PROMPTS, TARGETS, checkpoint=path, **options), whole)
    assert not calls
    for changes in (
        {"text_options": TextOptions(batch_size=3)},
        {"control": RandomInit(2, 1)},
        {"start": 1},
        {"control": None},
        {"weights": "W_in"},
    ):
        with pytest.raises(
            ValueError, match="Expected the checkpoint of this run in .*differs in prompts, options or model"
        ):
            sweep(model, PROMPTS, TARGETS, checkpoint=path, **options | changes)
    with torch.no_grad():
        model.W_E[:, 0] += 1
    with pytest.raises(ValueError, match="differs in prompts, options or model"):
        sweep(model, PROMPTS, TARGETS, checkpoint=path, **options)
    with torch.no_grad():
        model.W_E[:, 0] -= 1
    with pytest.raises(ValueError, match="differs in prompts, options or model"):
        sweep(model, PROMPTS[::-1], TARGETS, checkpoint=path, **options)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged or another's"):
        sweep(model, PROMPTS, TARGETS, checkpoint=path, **options)


@every_world
def test_one_target_for_all(world):
    model = build(world)
    each, one = (sweep(model, PROMPTS, losses, show_progress=False) for losses in (["w9"] * len(PROMPTS), "w9"))
    by_id = sweep(model, PROMPTS, int(model.to_tokens("w9")[0, -1]), control=None, show_progress=False)
    for name, values in each.values.items():
        assert torch.equal(values.nan_to_num(), one.values[name].nan_to_num())
        assert torch.equal(values.nan_to_num(), by_id.values[name].nan_to_num())


@every_world
def test_losses_of_ones_own_and_longer_targets(world):
    model = build(world)
    found = sweep(model, PROMPTS, tlb.next_token_loss, control=None, show_progress=False)
    for item, prompt in enumerate(PROMPTS):
        loss, cache = tlb.run_with_gradient_cache(model, prompt, tlb.next_token_loss, weights="W_out")
        assert found.loss[item] == pytest.approx(loss.item())
        torch.testing.assert_close(found.values["gradient_norm"][item, 1], cache.factors["W_out", 1].norm())
    assert found.values["target_rank"].isnan().all()
    own = sweep(model, PROMPTS, [lambda logits, tokens: logits[:, -1, 3].mean()] * 5, control=None, show_progress=False)
    assert own.values["target_rank"].isnan().all() and not own.values["answer_rank"].isnan().any()
    longer = sweep(model, PROMPTS[:2], ["w9 w10 w3", "w4"], control=None, show_progress=False)
    assert not longer.values["norm"][0, 0, NAMES.index("target")].isnan()
    assert longer.values["norm"][1, 0, NAMES.index("target")].isnan()
    loss, cache = tlb.run_with_gradient_cache(model, PROMPTS[0], tlb.target_loss("w9 w10 w3"), weights="W_out")
    torch.testing.assert_close(longer.values["gradient_norm"][0, 1], cache.factors["W_out", 1].norm())
    bound = sweep(model, PROMPTS[:2], [tlb.target_loss("w9 w10 w3"), tlb.target_loss("w4")], control=None,
                  show_progress=False)  # fmt: skip
    torch.testing.assert_close(bound.values["norm"], longer.values["norm"], equal_nan=True)


@every_world
def test_a_loss_of_one_number_with_axes_beside_a_scalar(world):
    def own(logits, tokens):
        return logits[:, -1, 3]

    found = sweep(build(world), PROMPTS[:2], [own, tlb.next_token_loss], control=None, show_progress=False)
    alone = sweep(build(world), PROMPTS[:1], lambda *given: own(*given).sum(), control=None, show_progress=False)
    assert found.loss.shape == (2,) and found.loss[0] == pytest.approx(alone.loss[0].item())


@every_world
def test_warnings_name_each_prompt_for_what_it_has(world):
    """A space at one's end hides no unknown word of another."""
    prompts = ["w5 w6 ", "w5 zzz", "w7"]
    with pytest.warns(UserWarning) as seen:
        sweep(build(world), prompts, "w9", control=None, show_progress=False)
    said = sorted(str(each.message) for each in seen if "prompt" in str(each.message) or "text" in str(each.message))
    assert len(said) == 2 and "A text has words" in said[0] and said[0].endswith("unknown: 'zzz'."), said
    assert said[1].startswith("The prompt 'w5 w6 ' ends in a space"), said


@every_world
def test_every_weight_can_be_swept(world):
    model = build(world)
    weights = ["W_in", "W_Q", "W_V", "W_O", "W_out", "unembed.W_U", "embed.W_E"]
    found = sweep(model, PROMPTS, TARGETS, weights=weights, collect=EVERYTHING, control=None, show_progress=False)
    _, cache = tlb.run_with_gradient_cache(model, PROMPTS[2], tlb.target_loss(TARGETS[2]), weights=weights)
    for index, name in enumerate(found.weights):
        torch.testing.assert_close(found.values["gradient_norm"][2, index], cache.factors[name].norm())
        assert found.values["rank"][2, index] == cache.factors[name].rank()
        readable = name.rpartition(".")[2] not in ("W_U", "W_E")
        assert bool(found.values["target_rank"][:, index].isnan().any()) != readable
    assert found.layers[-2:] == [1, None] or None in found.layers


def test_cases_bring_their_targets():
    model = build(worlds()[0])
    cases = [EditCase(p, t, subject=p.split()[0]) for p, t in zip(PROMPTS, TARGETS, strict=True)]
    found = sweep(model, cases, control=None, show_progress=False)
    same = sweep(model, PROMPTS, TARGETS, subjects=[p.split()[0] for p in PROMPTS], control=None, show_progress=False)
    torch.testing.assert_close(found.values["norm"], same.values["norm"], equal_nan=True)
    named = sweep(model, [EditCase(PROMPTS[0], "w9", "w20 w21")], control=None, show_progress=False)
    assert named.answers.tolist() == model.to_tokens("w20", prepend_bos=False)[0].tolist()


def test_top_tokens_are_counted():
    model = build(worlds()[0])
    found = sweep(model, PROMPTS, ["w9"] * 5, collect=["top_tokens"], k=3, show_progress=False)
    frame = found.top_tokens(found.weights[1], "bottom", n=4)
    assert frame["token"][0] == "w9" and frame["count"][0] == 5 and frame["share"][0] == 1.0
    counts = {}
    for lens in (tlb.backward_lens(model, prompt, "w9", k=3) for prompt in PROMPTS):
        for token in lens.shift[1][lens.answer_position].bottom_tokens:
            counts[token] = counts.get(token, 0) + 1
    assert all(counts[token] == count for token, count in zip(frame["token"], frame["count"], strict=True))
    assert set(found.values) == {"top_ids", "bottom_ids"} and "control" in frame
    assert list(found.per_item()["target"]) == ["w9"] * 5


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (
            (["w5 w6"], ["w9", "w8"]),
            {},
            "Expected a target or loss for each of the 1 prompts, got a list of 2; pair them, or give one",
        ),
        ((["w5 w6", "w7"], ["w9", "w8"]), {"subjects": ["w5", "w6"]}, "Prompt 1: Expected the subject to occur"),
        ((["w5 w6", "w7"], ["w9", "w8"]), {"subjects": [None, (1, 5)]}, "Prompt 1: Expected a subject span within"),
        ((["w5 w6", "w7"], ["w9", "nonsense"]), {}, "Prompt 1: Expected a target in the model's vocabulary"),
        ((["w5", ""], ["w9", "w8"]), {}, "Prompt 1: Expected texts of at least one character, got an empty one"),
        ((["w5 " * 40], ["w9"]), {}, "Prompt 0: Expected at most n_ctx"),
        ((["w5 " * 15], ["w9 w8 w7"]), {}, "Prompt 0: Expected at most n_ctx"),
        (("w5 w6", "w9"), {}, "Expected a list of prompts or edit cases, got one text"),
        (([], []), {}, "Expected a list of prompts or edit cases, got none"),
        ((["w5"],), {}, "Expected one target or loss a prompt, got none"),
        (
            ([("w5 w6", "w9")], ["w8"]),
            {},
            "Expected .prompt, target. pairs alone, got other tuples, or texts or losses",
        ),
        ((["w5"], ["w9"]), {"batch_size": 0}, "Expected batch_size of at least 1, got 0"),
        ((["w5"], ["w9"]), {"n_draws": 0}, "Expected n_draws of at least 1, got 0"),
        ((["w5"], ["w9"]), {"weights": "W_outt"}, "W_outt"),
        ((["w5"], ["w9"]), {"text_options": TextOptions(max_tokens=3)}, "with batch_size and prepend_bos alone"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        sweep(build(worlds()[0]), *arguments, show_progress=False, **options)
    case = EditCase("w5 w6", "w9")
    with pytest.raises(ValueError, match="Expected edit cases alone"):
        sweep(build(worlds()[0]), [case, "w5"], ["w9", "w8"])


def test_options_of_the_wrong_kind_get_a_sentence_without_type_checks():
    """In the tests jaxtyping refuses these first; users run without it."""
    script = """
import sys
sys.path.insert(0, "tests")
from models import bridge
from tl_backward import next_token_loss, run_with_gradient_cache
from tl_backward.lens.sweeps import sweep
model = bridge()
for options in ({"collect": ["norms"]}, {"collect": "norm"}, {"control": "noise"}):
    try:
        sweep(model, ["w5"], ["w9"], **options)
    except ValueError as error:
        print(error)
try:
    run_with_gradient_cache(model, "w5 w6", next_token_loss, weights=3)
except TypeError as error:
    print(error)
"""
    done = plain.run(script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "got 'norms'; the nearest are 'norm'" in lines[0] and "Expected a list of quantities" in lines[1]
    assert "no other control is known" in lines[2] and "a list of names or a predicate, got int" in lines[3]


@every_world
def test_pairs_are_prompts_with_their_targets(world):
    model, prompts, targets = build(world), ["w5 w6", "w7 w8 w9"], ["w9", "w8"]
    found = sweep(model, list(zip(prompts, targets, strict=True)), control=None, show_progress=False)
    same = sweep(model, prompts, targets, control=None, show_progress=False)
    assert found.to_frame().equals(same.to_frame())


def test_other_tuples_are_refused_without_type_checks():
    script = """
import sys
sys.path.insert(0, "tests")
from models import bridge
from tl_backward.lens.sweeps import sweep
for prompts in ([("w5 w6", "w9"), "w7"], [("w5 w6", "w9", "w5")]):
    try:
        sweep(bridge(), prompts, control=None)
    except ValueError as error:
        print(error)
"""
    done = plain.run(script)
    assert done.stdout.count("Expected (prompt, target) pairs alone, got other tuples") == 2, done.stderr


def test_one_of_many_prompts_that_is_no_text_is_named_without_type_checks():
    script = """
import sys
sys.path.insert(0, "tests")
from models import bridge
from tl_backward.lens.sweeps import sweep
try:
    sweep(bridge(), ["w5 w6"] * 11 + [None], "w9", control=None)
except TypeError as error:
    print(error)
"""
    done = plain.run(script)
    assert done.stdout.startswith("Prompt 11: Expected a prompt as text"), done.stderr


def test_a_file_of_another_kind_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="Expected a file that tl_backward saved"):
        load_sweep(tmp_path / "other.safetensors")
    save_tensors(tmp_path / "ours.safetensors", {"x": torch.zeros(1)}, {"format": "tl_backward edit 1"})
    with pytest.raises(ValueError, match="of another format"):
        load_sweep(tmp_path / "ours.safetensors")
    whole = sweep(build(worlds()[0]), ["w5 w6"], ["w9"], show_progress=False).save(tmp_path / "s.safetensors")
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"):
        load_sweep(whole)


def test_bootstrap_intervals():
    """Against the normal approximation, with missing values, and groups that widen it."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 5.0, -3.0])
    values[::4, 2] = math.nan
    found = bootstrap(values, n_boot=4000)
    half = 1.96 * values[:, 0].std() / 20
    torch.testing.assert_close(found.mean, values.nanmean(0))
    assert found.n.tolist() == [400, 400, 300]
    assert float((found.high - found.low)[0] / (2 * half)) == pytest.approx(1, abs=0.06)
    assert float((found.high - found.low)[2] / (found.high - found.low)[0]) == pytest.approx(
        (400 / 300) ** 0.5, abs=0.12
    )
    groups = torch.arange(400) % 4
    shifted = values[:, :1] + groups[:, None].double()  # what is random is mostly the group
    wide = bootstrap(shifted, groups=groups, n_boot=1000)
    narrow = bootstrap(shifted, n_boot=1000)
    assert float((wide.high - wide.low) / (narrow.high - narrow.low)) > 5
    again = bootstrap(values, n_boot=4000)
    assert torch.equal(again.low, found.low)
    empty = bootstrap(torch.full((3, 2), math.nan))
    assert empty.mean.isnan().all() and empty.n.tolist() == [0, 0]
    with pytest.raises(ValueError, match="confidence level"):
        bootstrap(values, level=95.0)


@pytest.mark.parametrize("kind", ["bridge", *(["hooked"] if len(worlds()) > 1 else [])])
def test_stories(kind):
    """A real Llama over real text, each prompt asked for another story's next word."""
    model = stories(kind)
    texts = [text.split() for text in json.loads(shared("data", "tinystories-1000.json").read_text())[:25]]
    prompts, targets = [" ".join(words[:12]) for words in texts[:24]], [f" {words[12]}" for words in texts[1:]]
    found = sweep(model, prompts, targets, control=RandomInit(2), show_progress=False)
    assert not found.skipped and len(found.items) == 24
    frame = found.to_frame(n_boot=100).set_index(["quantity", "layer", "segment"])
    last = model.cfg.n_layers - 1
    # The target at the very bottom is algebra: it is there in the control too. The old answer on top is not.
    target, answer = frame.loc["target_rank", last, ""], frame.loc["answer_rank", last, ""]
    assert target["mean"] == target["control_mean"] == model.cfg.d_vocab - 1
    assert answer["high"] < answer["control_low"]


def test_the_bar_counts_prompts(capsys):
    """Eight are eight, whatever the control does with them."""
    model = tlb.zoo.load("facts")
    tlb.sweep(model, tlb.zoo.edit_cases("test")[:8], collect=["norm"])
    said = capsys.readouterr().err
    assert "sweep" in said and "control" in said and "8/8" in said and "/16" not in said
