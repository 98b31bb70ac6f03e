"""Scores of edits against their formulas worked out by hand, in both worlds; settings chosen on edits apart."""

import json
import math

import pytest
import torch
from models import build, worlds
from shared import shared, stories

import tl_backward as tlb
from tl_backward.editing import compare_edits, edit_methods, evaluate_edit, find_layer, shift_edit, shift_method
from tl_backward.editing.scores import METRICS, encode, generation_entropy, probabilities, sample
from tl_backward.text.cases import EditCase
from tl_backward.zoo import edit_cases, facts

every_world = pytest.mark.parametrize("world", worlds())
CASE = EditCase(
    prompt="w5 w6 w7",
    target="w9 w3",
    answer="w10",
    paraphrases=("w7 w5 w6 w8", "w6 w5"),
    neighbours=(("w5 w8", "w10"), ("w11 w12 w13", "w14 w15")),
    relations=(("w5 w20", "w21"),),
    portability=(("w5 w30", "w31"), ("w5 w30", "w32")),
    generation=("w5", "w6 w7"),
)


def by_hand(model, prompt, answer):
    """(geometric mean probability, every token the most likely one), one prompt at a time."""
    tokens, ids = model.to_tokens(prompt), model.to_tokens(answer, prepend_bos=False)[0].tolist()
    logs, right = [], []
    for token in ids:
        with torch.no_grad():
            last = model(tokens, return_type="logits")[0, -1].log_softmax(-1)
        logs.append(float(last[token]))
        right.append(int(last.argmax()) == token)
        tokens = torch.cat([tokens, torch.tensor([[token]])], 1)
    return math.exp(sum(logs) / len(logs)), all(right)


@every_world
def test_probabilities_are_those_of_each_prompt_alone(world):
    model = build(world)
    said = model.tokenizer.decode([int(model(model.to_tokens("w5 w6"), return_type="logits")[0, -1].argmax())])
    asked = [
        ("w5 w6 w7", "w9 w3"),
        ("w5", "w10"),
        ("w5 w6 w7", "w10"),
        ("w6 w8 w9 w10 w11", "w3 w4 w5"),
        ("w5 w6", said),
    ]
    found, right = probabilities(model, encode(model, asked))
    for (prompt, answer), p, hit in zip(asked, found, right, strict=True):
        expected = by_hand(model, prompt, answer)
        # Read in float32 even from a float64 model.
        assert float(p) == pytest.approx(expected[0], rel=1e-5) and bool(hit) == expected[1]
    assert bool(right[-1])


@every_world
def test_every_score_is_its_formula(world):
    model = build(world)
    edit = shift_edit(model, CASE.prompt, CASE.target, 1, 4.0)
    with edit:
        new = {
            prompt: by_hand(model, prompt, CASE.target)
            for prompt in (CASE.prompt, *CASE.paraphrases, "w5 w8", "w11 w12 w13")
        }
        old = {prompt: by_hand(model, prompt, CASE.answer) for prompt in (CASE.prompt, *CASE.paraphrases)}
        near = {prompt: by_hand(model, prompt, answer) for prompt, answer in CASE.neighbours}
        others = [by_hand(model, *pair)[1] for pair in CASE.relations]
        follows = [by_hand(model, *pair)[1] for pair in CASE.portability]
        texts = sample(model, CASE.generation, n_tokens=6, seed=3)
    scores = evaluate_edit(model, edit, CASE, n_tokens=6, seed=3)
    gaps = {prompt: new[prompt][0] - old[prompt][0] for prompt in old}
    kept = {prompt: near[prompt][0] - new[prompt][0] for prompt in near}
    phrases = [gaps[prompt] for prompt in CASE.paraphrases]
    expected = {
        "efficacy": float(gaps[CASE.prompt] > 0),
        "efficacy_magnitude": gaps[CASE.prompt],
        "efficacy_top1": float(new[CASE.prompt][1]),
        "paraphrase": sum(gap > 0 for gap in phrases) / 2,
        "paraphrase_magnitude": sum(phrases) / 2,
        "paraphrase_top1": sum(new[prompt][1] for prompt in CASE.paraphrases) / 2,
        "neighbourhood": sum(gap > 0 for gap in kept.values()) / 2,
        "neighbourhood_magnitude": sum(kept.values()) / 2,
        "neighbourhood_top1": sum(hit for _, hit in near.values()) / 2,
        "relations": sum(others) / 1,
        "portability": sum(follows) / 2,
        "entropy": sum(map(generation_entropy, texts)) / 2,
    }
    for name, value in expected.items():
        assert getattr(scores, name) == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert scores.efficacy == 1.0 and not edit.is_applied
    with edit:  # what is applied stays applied
        assert evaluate_edit(model, edit, CASE, n_tokens=6, seed=3) == scores and edit.is_applied
    parts = [scores.efficacy, scores.paraphrase, scores.neighbourhood]
    assert scores.score == pytest.approx(0 if 0 in parts else 3 / sum(1 / part for part in parts))
    assert list(scores.to_frame()["metric"]) == list(METRICS) and "<table" in scores._repr_html_()


@every_world
def test_what_a_case_lacks_is_not_scored(world):
    model = build(world)
    scores = evaluate_edit(model, None, EditCase("w5 w6", "w9"), n_tokens=0)
    assert scores.efficacy == 0.0 and scores.efficacy_magnitude < 0  # against the model's own answer
    for name in ("paraphrase", "neighbourhood", "relations", "portability", "entropy"):
        assert math.isnan(getattr(scores, name))
    assert scores.score == 0.0


def test_the_entropy_is_romes():
    """Against its formula: n-grams of words and punctuation marks, weighted 2/3 and 4/3, halved."""
    assert generation_entropy("to to to to to") == 0.0
    words = "a b a b c .".split()
    grams = {n: [tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for n in (2, 3)}
    h = {
        n: -sum(each.count(g) / len(each) * math.log2(each.count(g) / len(each)) for g in set(each))
        for n, each in grams.items()
    }
    assert generation_entropy("a b a b c.") == pytest.approx((2 / 3 * h[2] + 4 / 3 * h[3]) / 2)
    assert generation_entropy("") == 0.0 and generation_entropy("one") == 0.0


@every_world
def test_sampling_is_among_the_most_likely_and_leaves_the_rng(world):
    model = build(world)
    state = torch.random.get_rng_state()
    texts = sample(model, ["w5", "w6 w7 w8"], n_tokens=5, top_k=2, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert texts == sample(model, ["w5", "w6 w7 w8"], n_tokens=5, top_k=2, seed=1)
    tokens = model.to_tokens("w6 w7 w8")
    for token in model.to_tokens(texts[1], prepend_bos=False)[0]:
        assert token in model(tokens, return_type="logits")[0, -1].topk(2).indices
        tokens = torch.cat([tokens, token.reshape(1, 1)], 1)
    assert tokens.shape[1] == 4 + 5
    longest = sample(model, ["w5 w6 w7"], n_tokens=100)
    assert model.to_tokens("w5 w6 w7" + " " + longest[0]).shape[1] == model.cfg.n_ctx


@every_world
def test_methods_are_compared_on_the_same_cases(world):
    model = build(world)
    cases = [CASE, EditCase("w11 w12", "w13", "w14", paraphrases=("w12 w11",))]
    before = [parameter.clone() for parameter in model.parameters()]
    found = compare_edits(model, cases, edit_methods(1, 3.0, 0.5, steps=3), n_tokens=4, show_progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert found.methods == ("no edit", "forward-pass shift", "1 gradient step", "3 gradient steps")
    frame = found.to_frame(n_boot=50).set_index(["method", "metric"])
    by_case = [evaluate_edit(model, shift_edit(model, c.prompt, c.target, 1, 3.0), c, n_tokens=4) for c in cases]
    for name in METRICS:
        values = [getattr(each, name) for each in by_case]
        values = [value for value in values if not math.isnan(value)]
        row = frame.loc["forward-pass shift", name]
        assert row["n"] == len(values) and row["mean"] == pytest.approx(sum(values) / len(values), rel=1e-6)
        assert row["low"] <= row["mean"] + 1e-12 and row["mean"] <= row["high"] + 1e-12
    assert frame.loc["no edit", "relations"]["n"] == 1
    columns, rows = found.table()
    assert columns[0] == "method" and len(rows) == 4 and "to" in rows[1][1]
    assert found.best in found.methods and "<table" in found._repr_html_()
    with pytest.raises(ValueError, match="at least one case and one method"):
        compare_edits(model, [], edit_methods(1, 3.0, 0.5))
    with pytest.raises(IndexError, match=r"Case 0 .*: Expected layers in \[-2, 2\)"):
        compare_edits(model, cases, {"far": shift_method(7, 1.0)}, show_progress=False)


@every_world
def test_the_layer_is_chosen_on_edits_apart(world):
    model = build(world)
    validation = [
        CASE,
        EditCase(
            "w11 w12", "w13", "w14", paraphrases=("w12 w11",), neighbours=(("w4 w4", "w14"),), relations=(("w3", "w4"),)
        ),
    ]
    scales = (0.5, 3.0, 6.0)
    grid = find_layer(model, "w20 w21", "w22", validation=validation, scales=scales, show_progress=False)
    assert grid.scores.shape == (len(METRICS), 2, 3) and grid.layers == (0, 1) and grid.scales == scales
    for i, layer in enumerate(grid.layers):
        for j, scale in enumerate(scales):
            each = [
                evaluate_edit(model, shift_edit(model, c.prompt, c.target, layer, scale), c, n_tokens=0)
                for c in validation
            ]
            for name in ("efficacy", "paraphrase_magnitude", "neighbourhood", "relations"):
                values = [value for value in (getattr(one, name) for one in each) if not math.isnan(value)]
                cell = grid.scores[grid.metrics.index(name), i, j]
                assert float(cell) == pytest.approx(sum(values) / len(values), rel=1e-6)
            with shift_edit(model, "w20 w21", "w22", layer, scale):
                assert float(grid.probability[i, j]) == pytest.approx(by_hand(model, "w20 w21", "w22")[0], rel=1e-5)
    layer, scale = grid.best
    i, j = grid.layers.index(layer), scales.index(scale)
    assert grid.objective[i, j] >= grid.objective.max() - 1e-12
    assert grid.before == pytest.approx(by_hand(model, "w20 w21", "w22")[0], rel=1e-5)
    assert (
        len(grid.to_frame()) == 6 and "<table" in grid._repr_html_() and f"layer {layer}, scale {scale:g}" in repr(grid)
    )
    with pytest.raises(ValueError, match="apart from this one, got its prompt in case 0"):
        find_layer(model, "w6 w5", "w22", validation=validation)
    with pytest.raises(ValueError, match="at least one (validation edit|scale), got"):
        find_layer(model, "w6 w5", "w22", validation=[])


@every_world
def test_bad_input(world):
    model = build(world)
    with pytest.raises(ValueError, match="Expected an edit of this model, got one of another"):
        evaluate_edit(model, shift_edit(build(world), "w5", "w9", 1), CASE)
    with pytest.raises(ValueError, match="Expected the case's true answer, got none while the edit is applied"):
        with shift_edit(model, "w5", "w9", 1) as edit:
            evaluate_edit(model, edit, EditCase("w5", "w9"))
    said = model.tokenizer.decode([int(model(model.to_tokens("w5 w6"), return_type="logits")[0, -1].argmax())])
    with pytest.raises(ValueError, match="Expected a target other than the model's answer"):
        evaluate_edit(model, None, EditCase("w5 w6", said))
    with pytest.raises(ValueError, match="Expected a target other than the model's answer, .* which it says already"):
        shift_edit(model, "w5 w6", said, 1)
    with pytest.raises(ValueError, match="Expected a target other than the model's answer, .* which it says already"):
        tlb.gradient_edit(model, "w5 w6", said)


def test_the_facts_cases_share_no_person_and_are_true():
    validation, test = edit_cases("validation"), edit_cases("test")
    assert len(validation) == 40 and len(test) == 100
    assert not {case.subject for case in validation} & {case.subject for case in test}
    shown, _ = facts.example_edit()
    world = facts.world()
    for case in (*validation, *test):
        person = world.person(case.subject)
        assert (
            case.answer == f" {person.city}" and case.target[1:] in facts.answers("city") and person.name not in shown
        )
        assert len(case.paraphrases) == 5 and case.prompt not in case.paraphrases
        for prompt, answer in case.neighbours:
            assert answer == case.answer and person.name not in prompt
        new = facts.country_of(case.target[1:])
        assert {answer for _, answer in case.portability} == {f" {new}", f" {facts.language_of(new)}"}
        assert new != person.country and len(case.relations) == 10
        for prompt, answer in case.relations:
            assert person.name in prompt
            assert any(answer == f" {person.answer(relation)}" for relation in facts.RELATIONS)
    pets = edit_cases("test", relation="pet")
    assert all(case.portability == () and case.target != case.answer for case in pets)
    for bad, message in (({"part": "train"}, "Expected part among"), ({"relation": "shoe"}, "Expected relation among")):
        with pytest.raises(ValueError, match=message):
            edit_cases(**bad)


def test_the_shipped_model_can_be_edited():
    """Twenty of the test edits, at the setting that the validation edits choose (`tl-backward edits` runs them all)."""
    model = tlb.zoo.load("facts")
    found = compare_edits(
        model, edit_cases("test")[:20], edit_methods(2, 0.8, 0.005, steps=2), n_tokens=0, show_progress=False
    )
    frame = found.to_frame(n_boot=10).set_index(["method", "metric"])["mean"]
    before, shift = frame["no edit"], frame["forward-pass shift"]
    assert before["efficacy"] == 0 and before["neighbourhood"] == 1 and before["relations"] == 1
    assert (
        shift["efficacy"] > 0.8
        and shift["paraphrase"] > 0.8
        and shift["neighbourhood"] > 0.7
        and shift["relations"] > 0.9
    )
    assert shift["portability"] < 0.3  # the country does not follow the city


@pytest.mark.parametrize("kind", ["bridge", *(["hooked"] if len(worlds()) > 1 else [])])
def test_stories_can_be_edited(kind):
    """A real Llama: one shift makes the story go on otherwise; the same bits come back."""
    model = stories(kind)
    text = json.loads(shared("data", "tinystories-1000.json").read_text())[0].split()
    prompt = " ".join(text[:8])
    case = EditCase(prompt, " cat", paraphrases=(" ".join(text[1:8]),), neighbours=(("The sky is", " blue"),))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    none = evaluate_edit(model, None, case, n_tokens=20)
    best = max(
        (
            evaluate_edit(model, shift_edit(model, prompt, " cat", 3, scale), case, n_tokens=20)
            for scale in (5.0, 20.0, 80.0)
        ),
        key=lambda scores: scores.efficacy_magnitude,
    )
    assert none.efficacy == 0 and best.efficacy == 1 and best.efficacy_magnitude > none.efficacy_magnitude
    assert none.entropy > 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
