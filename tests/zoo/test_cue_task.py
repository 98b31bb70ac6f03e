"""The task whose rule and shortcut agree and disagree as they should, and classifiers made for it."""

from dataclasses import replace

import pytest
import torch

from tl_backward import zoo
from tl_backward.zoo.classification import ASKED, LABELS, cue_task
from tl_backward.zoo.fine_tuning import BY_SEED, BY_SHARE, FineTuning, fine_tuned
from tl_backward.zoo.tokenizer import facts_tokenizer

QUICK = FineTuning(steps=2, n_train=40)


@pytest.fixture(scope="module")
def task():
    return cue_task()


def people_of(prompts, world):
    subjects = {example.prompt: example.subject for example in world.examples()}
    return {subjects[prompt] for prompt in prompts.prompts}


def test_labels_and_cues_say_what_they_say(task, world):
    told = {example.prompt: example for example in world.examples()}
    for prompts, agree in (
        (task.agreeing, True), (task.in_distribution, True), (task.crossed, False), (task.out_of_distribution, False)
    ):  # fmt: skip
        assert len(set(prompts.prompts)) == len(prompts) > 1000
        assert bool((prompts.labels == prompts.cues).all()) is agree
        assert bool((prompts.labels != prompts.cues).all()) is not agree
        for prompt, label, cue in zip(prompts.prompts, prompts.labels.tolist(), prompts.cues.tolist(), strict=True):
            assert label == (told[prompt].relation in ASKED)
            assert cue == prompt.startswith(told[prompt].subject)


def test_no_person_is_in_both_training_and_test(task, world):
    train, test = people_of(task.agreeing, world), people_of(task.in_distribution, world)
    assert not train & test and train | test == {person.name for person in world.people}
    assert people_of(task.crossed, world) == train and people_of(task.out_of_distribution, world) == test


def test_labels_are_words_of_one_token():
    ids = [facts_tokenizer()(label)["input_ids"] for label in LABELS]
    assert {len(each) for each in ids} == {2} and ids[0][1] != ids[1][1]  # BOS and the word


def test_training_sets(task):
    drawn, again, other = (task.training(60, 7, seed=seed) for seed in (0, 0, 1))
    assert len(drawn) == len(set(drawn.prompts)) == 60 and int((drawn.labels != drawn.cues).sum()) == 7
    assert drawn.prompts == again.prompts != other.prompts
    assert repr(drawn) == "CuedPrompts(60 prompts, 53 of which have cue and rule agree)"
    for n, crossed in ((5, 6), (5, -1), (10_000, 0)):
        with pytest.raises(
            ValueError, match="Expected at most .* agreeing and .* crossed prompts, got n=.*; ask for few"
        ):
            task.training(n, crossed, seed=0)


def test_the_twelve():
    assert [each.n_crossed for each in BY_SHARE] == [0] * 6 + [24] * 6
    assert len({each.seed for each in BY_SEED}) == 12 == len(BY_SHARE) == len(set(BY_SHARE))
    assert {replace(each, seed=0) for each in BY_SEED} == {replace(BY_SEED[0], seed=0)}


def test_a_classifier_is_made_once_and_from_its_seed(task, tmp_path, kind):
    state = torch.get_rng_state()
    one = fine_tuned("facts", task, QUICK, tmp_path / "a", kind=kind, show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = fine_tuned("facts", task, QUICK, tmp_path / "a", kind=kind, show_progress=False)
    assert len(stamps) == 1 and stamps == {path: path.stat().st_mtime_ns for path in stamps}
    twin = fine_tuned("facts", task, QUICK, tmp_path / "b", kind=kind, show_progress=False)
    other = fine_tuned("facts", task, replace(QUICK, seed=1), tmp_path / "b", kind=kind, show_progress=False)
    tokens = one.to_tokens(task.in_distribution.prompts[0])
    assert torch.equal(one(tokens), again(tokens)) and torch.equal(one(tokens), twin(tokens))
    pretrained = zoo.load("facts", kind=kind)
    assert not torch.equal(one(tokens), other(tokens)) and not torch.equal(one(tokens), pretrained(tokens))
    with pytest.raises(
        ValueError, match="Expected the classifier of FineTuning.* got one of another recipe or data; choose"
    ):
        fine_tuned("facts", task, replace(QUICK, steps=1), tmp_path / "a", kind=kind, show_progress=False)


def test_it_learns_the_task(task, tmp_path):
    model = fine_tuned("facts", task, FineTuning(n_crossed=60, steps=25), tmp_path, show_progress=False)
    ids = torch.tensor(facts_tokenizer().convert_tokens_to_ids(list(LABELS)))
    right = []
    for prompt, label in zip(task.in_distribution.prompts[:40], task.in_distribution.labels.tolist(), strict=False):
        with torch.no_grad():
            right.append(int(model(model.to_tokens(prompt))[0, -1, ids].argmax()) == label)
    assert sum(right) / len(right) > 0.9
