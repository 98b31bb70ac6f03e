"""Classifiers against heads computed by hand, translated to twins whose answers are known."""

import pandas
import pytest
import torch
from leaves_no_trace import assert_same, state
from models import build, worlds

from tests.alignment.test_stitching import CLOSE
from tests.alignment.twins import twins
from tl_backward._support.bootstrap import bootstrap
from tl_backward.alignment import (
    Classifier,
    fine_tune,
    match_parameters,
    random_kernel,
    transfer_head,
    translation,
)
from tl_backward.studies import alignment as study
from tl_backward.zoo import facts, load
from tl_backward.zoo.classification import LabelledPrompts, relation_task
from tl_backward.zoo.facts_task import recall

every_world = pytest.mark.parametrize("world", worlds())
PROMPTS = ["w5 w6 w7", "w8", "w9 w10 w11 w12", "w20 w21", "w30 w5 w6", "w40 w41 w42"]


def classifier_of(model, n_labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    d_model = model.W_U.shape[0]
    weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((d_model, n_labels), (n_labels,))
    )
    return Classifier(model, weight, bias)


@every_world
def test_logits_are_those_of_the_last_token(world):
    model = build(world)
    classifier = classifier_of(model)
    found = classifier.logits(PROMPTS)
    with torch.no_grad():
        for row, prompt in zip(found, PROMPTS, strict=True):
            _, cache = model.run_with_cache(model.to_tokens(prompt))
            x = cache["blocks.1.hook_resid_post"][0, -1]
            norm = model.ln_final if world == "hooked" else model.original_model.transformer.ln_f
            x = norm(x[None, None])[0, 0]
            torch.testing.assert_close(row, x @ classifier.weight + classifier.bias, atol=1e-9, rtol=0)
    assert classifier.predict(PROMPTS).tolist() == found.argmax(-1).tolist()
    assert torch.equal(classifier.logits(PROMPTS[0]), classifier.logits(PROMPTS[:1]))
    labels = found.argmax(-1)
    labels[:2] = (labels[:2] + 1) % 3
    accuracy = classifier.accuracy(PROMPTS, labels)
    assert accuracy.mean.item() == pytest.approx(4 / 6) and accuracy.low < 4 / 6 < accuracy.high


@every_world
@pytest.mark.parametrize("wider", [0, 8])
def test_a_twin_needs_no_training(world, wider):
    model, twin, _, _ = twins(world, wider)
    classifier = classifier_of(model)
    plain = classifier.logits(PROMPTS)
    for cut in range(3):
        translated = transfer_head(classifier, twin, cut=cut)
        torch.testing.assert_close(translated.logits(PROMPTS), plain, atol=CLOSE[world], rtol=0)
    kernel = random_kernel(translation(twin, model))
    assert not torch.allclose(transfer_head(classifier, twin, cut=1, kernel=kernel).logits(PROMPTS), plain, atol=1e-2)
    skipping = transfer_head(classifier, twin, cut=1, cut_classifier=2)
    assert not torch.allclose(skipping.logits(PROMPTS), plain, atol=1e-3)
    with pytest.raises(ValueError, match="that was translated; translate the original"):
        transfer_head(skipping, twin, cut=1)
    with pytest.raises(IndexError, match="cut_a"):
        transfer_head(classifier, twin, cut=7)


@every_world
def test_fine_tuning_learns_and_leaves_the_model_alone(world):
    model = build(world, dtype=torch.float32)
    prompts = [f"w{i} w{j}" for i in range(5, 25) for j in (30, 31)]
    labels = torch.tensor([j for _ in range(5, 25) for j in (0, 1)])
    before = state(model)
    tuned = fine_tune(model, prompts, labels, steps=80, batch_size=16, learning_rate=1e-2, show_progress=False)
    assert_same(before, state(model))
    assert tuned.accuracy(prompts, labels).mean == 1.0
    untrained = fine_tune(model, prompts, labels, steps=0, show_progress=False)
    assert torch.equal(untrained.model.W_U, model.W_U) and torch.equal(tuned.model.W_U, model.W_U)
    changed = [
        not torch.equal(p, q)
        for p, q in zip(model.blocks[1].parameters(), tuned.model.blocks[1].parameters(), strict=True)
    ]
    assert any(changed)
    for one, other in ((model.W_E, tuned.model.W_E), (model.ln_final.w, tuned.model.ln_final.w)):
        assert torch.equal(one, other)
    assert all(p.grad is None for p in tuned.model.parameters()) and not tuned.weight.requires_grad
    again = fine_tune(model, prompts, labels, steps=80, batch_size=16, learning_rate=1e-2, show_progress=False)
    assert torch.equal(again.weight, tuned.weight)


@every_world
def test_bad_labels(world):
    model = build(world)
    for labels in (torch.tensor([0]), torch.tensor([0, 0, 0]), torch.tensor([0, 1, -1])):
        with pytest.raises(ValueError, match="Expected a label for each of 3 prompts"):
            fine_tune(model, PROMPTS[:3], labels)


def test_the_task_shares_neither_people_nor_templates():
    train, test = relation_task()
    assert train.names == ("city", "profession") and not set(train.templates.tolist()) & set(test.templates.tolist())
    people = facts.world().people
    named = [{p.name for p in people if any(p.name in prompt for prompt in part.prompts)} for part in (train, test)]
    assert len(named[0]) == len(named[1]) == 90 and not named[0] & named[1]
    for part in (train, test):
        assert part.labels.bincount().tolist() == [270, 270] and len(part.templates.unique()) == 6 and len(part) == 540
        for prompt, label in zip(part.prompts, part.labels.tolist(), strict=True):
            relation = part.names[label]
            assert any(
                e.prompt == prompt
                for e in facts.world().examples(
                    relation=relation, subject=next(p.name for p in people if p.name in prompt)
                )
            )
            break
    assert "540 prompts about city or profession, 6 templates" in repr(train)
    for bad in (("city",), ("city", "city"), ("city", "weather")):
        with pytest.raises(ValueError, match="Expected two or more of"):
            relation_task(bad)


def test_the_tables_of_a_model_and_its_twin_in_another_basis(monkeypatch):
    model, twin, _, _ = twins("bridge")
    matching = study.matching_table(model, twin, weights=["W_out"], n_chance=4, show_progress=False).set_index("space")
    assert matching.score["embedding"] == pytest.approx(1, abs=1e-9) and matching.layers_right["embedding"] == "2/2"
    assert matching.p["embedding"] == pytest.approx(1 / 5) and matching.chance["embedding"] < 0.9
    match = match_parameters(model, twin, "W_out", n_chance=4, show_progress=False)
    others = (match.embedding.score[0, 1] + match.embedding.score[1, 0]) / 2
    assert matching.other_layers["embedding"] == pytest.approx(others.item())

    classifier = classifier_of(model)
    test = LabelledPrompts(
        tuple(PROMPTS), classifier.predict(PROMPTS), torch.tensor([0, 0, 1, 1, 2, 2]), ("a", "b", "c")
    )
    transfer = study.transfer_table(classifier, twin, test, n_random=4, show_progress=False)
    assert transfer.cut.tolist() == [0, 1, 2] and transfer.accuracy.tolist() == [1.0] * 3
    assert (transfer.random_kernel < 1).all() and (transfer.random_low <= transfer.random_kernel).all()
    assert transfer.chance.tolist() == [test.labels.bincount().max().item() / 6] * 3


def test_recall_of_a_model_stitched_to_itself_is_its_own(monkeypatch):
    model = load("facts")
    examples = facts.world().examples(split="held_out")[::70]
    monkeypatch.setattr(study, "_held_out", lambda: examples)
    found = study.stitching_table(model, model, n_random=1, show_progress=False)
    own = recall(model, model.tokenizer, examples)["held_out"]["all"]
    assert found.cut.tolist() == [0, 1, 2, 3, 4] and found.recall.tolist() == pytest.approx([own] * 5) and own > 0.9
    assert (found.random_kernel < 0.2).all()


def test_the_study_prints_what_it_measured(monkeypatch, capsys):
    frame = pandas.DataFrame({"cut": [0], "accuracy": [0.125]})
    for name in ("matching_table", "transfer_table", "stitching_table"):
        monkeypatch.setattr(study, name, lambda *args, **options: frame)
    monkeypatch.setattr(study, "fine_tune", lambda model, prompts, labels: classifier_of(model, 2))
    monkeypatch.setattr(Classifier, "accuracy", lambda *args, **options: bootstrap(torch.ones(4)))
    assert study.main(["--model-b", "facts"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy of the fine-tuned facts: 1.000 [1.000, 1.000]" in printed
    assert printed.count("0.125") == 3 and "(B, d_model 128)" in printed
