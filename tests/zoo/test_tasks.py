import contextlib
import io
import json
import random
import re
from dataclasses import replace
from itertools import islice

import pytest
import torch
from shared import shared

from tl_backward import zoo
from tl_backward.model.shipped import WEIGHTS
from tl_backward.zoo import addition, counting
from tl_backward.zoo.recipes import RECIPES, Recipe
from tl_backward.zoo.tasks import IGNORED, answer_batch, answered_whole, is_held_out
from tl_backward.zoo.train import main, task_named, train

TASKS = {"counting": counting.TASK, "addition": addition.TASK}
FORMS = {"counting": r"([a-z]{3,27})\|([a-z]):([1-9])", "addition": r"([1-9]\d\d)\+([1-9]\d\d)=(\d{3,4})"}


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


def right_answer(name, text):
    """Independently of the task's own code."""
    left, right, answer = re.fullmatch(FORMS[name], text).groups()
    if name == "addition":
        return int(answer) == int(left) + int(right)
    return len(set(left)) == 3 and sum(letter == right for letter in left) == int(answer)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_questions_have_the_right_answers_and_come_from_their_seed(name, split):
    task = TASKS[name]
    first = [q.text for q in islice(task.questions(seed=3, split=split), 500)]
    assert all(right_answer(name, text) for text in first)
    assert first == [q.text for q in islice(task.questions(seed=3, split=split), 500)]
    assert first != [q.text for q in islice(task.questions(seed=4, split=split), 500)]


def test_no_training_batch_holds_a_held_out_question(name):
    task, recipe = TASKS[name], replace(RECIPES[name], batch_size=200)
    tokenizer = task.tokenizer()
    held_out = {q.text for q in islice(task.questions(seed=0, split="held_out"), 400)}
    trained = [
        tokenizer.decode(row[1:][row[1:] != tokenizer.unk_token_id])
        for batch in islice(task.batches(recipe), 5)
        for row in batch.tokens
    ]
    assert all(right_answer(name, text) for text in trained)
    assert not held_out & set(trained)
    share = sum(is_held_out(task.draw(rng)) for rng in [random.Random(0)] for _ in range(2000)) / 2000
    assert share == pytest.approx(1 / 20, abs=0.015)


def test_the_answer_and_its_end_are_learned_and_the_text_is_read():
    tokenizer = counting.TASK.tokenizer()
    short, long = counting.Count("abca", "a"), counting.Count("xxyzzyx", "z")
    batch = answer_batch(tokenizer, [short, long])
    ids = tokenizer.get_vocab()
    assert batch.tokens.shape == (2, 1 + len(long.text) + 1)
    for row, question in enumerate((short, long)):
        n, given = len(question.text), len(question.prompt)
        expected = [IGNORED] * given + [ids[str(question.count)], ids["<pad>"]]
        assert batch.targets[row, : n + 1].tolist() == expected
        assert (batch.targets[row, n + 1 :] == IGNORED).all()
        assert batch.reading[row, :n].tolist() == [ids[c] for c in question.text]
        assert (batch.reading[row, n:] == IGNORED).all()
        assert batch.tokens[row, : n + 1].tolist() == tokenizer(question.text)["input_ids"]


def test_only_a_wholly_right_answer_counts():
    task = addition.TASK
    tokenizer = task.tokenizer()
    questions = [addition.Sum(500, 500), addition.Sum(123, 456)]
    batch = answer_batch(tokenizer, questions)

    def says(targets):
        return lambda tokens: torch.nn.functional.one_hot(
            torch.nn.functional.pad(targets.clamp(min=0), (0, 1)), len(tokenizer)
        ).float()

    assert answered_whole(says(batch.targets), tokenizer, questions) == [True, True]
    wrong = batch.targets.clone()
    wrong[0, len(questions[0].prompt) + 2] += 1  # one digit of 1000
    assert answered_whole(says(wrong), tokenizer, questions) == [False, True]


@pytest.mark.parametrize(
    ("prompt", "well_formed"),
    [
        ("aabbc|a:", True),
        ("aabbc|a", False),
        ("aabbc|d:", False),
        ("aabb|a:", False),
        ("aabbcd|a:", False),
        ("a" * 10 + "bc|a:", False),
        ("a" * 9 + "bc|a:", True),
        ("aab1c|a:", False),
        ("aabbc|a:3", False),
        ("", False),
        ("aabbca:", False),
        ("éabbc|a:", False),
    ],
)
def test_what_is_a_well_formed_count(prompt, well_formed):
    assert (counting.parse(prompt) is not None) == well_formed


@pytest.mark.parametrize(
    ("prompt", "well_formed"),
    [
        ("123+456=", True),
        ("023+456=", False),
        ("123+456=5", False),
        ("123456=", False),
        ("12+3456=", False),
        ("١٢٣+456=", False),
    ],
)
def test_what_is_a_well_formed_sum(prompt, well_formed):
    assert (addition.parse(prompt) is not None) == well_formed


def test_prompts_parse_back(name):
    module = getattr(zoo, name)
    for prompt in module.prompts(200, seed=1):
        assert module.parse(prompt).prompt == prompt
    with pytest.raises(ValueError, match="Expected split among 'train', 'held_out', got 'test'"):
        next(module.prompts(split="test"))


def test_every_sum_is_there_once():
    prompts = list(addition.every_prompt())
    assert len(prompts) == len(set(prompts)) == 810_000
    assert prompts[0] == "100+100=" and prompts[-1] == "999+999="


def test_carries():
    assert [addition.Sum(*pair).carries for pair in ((123, 456), (129, 456), (555, 455), (500, 500), (999, 999))] == [
        0,
        1,
        3,
        1,
        3,
    ]


def test_the_shipped_models_answer_held_out_questions(name, kind):
    model = zoo.load(name, kind=kind)
    shares = replace(TASKS[name], n_evaluated=400).evaluate(model)
    assert shares["held_out"]["all"] >= 0.99
    assert shares["train"]["all"] >= 0.99
    recorded = json.loads((WEIGHTS / name / "metrics.json").read_text())
    assert recorded["recall"]["held_out"]["all"] >= 0.99
    assert recorded["recipe"] == json.loads(json.dumps(recorded["recipe"] | {"task": name}))


def test_questions_that_others_made():
    texts = json.loads(shared("data", "counting-heldout-2000.json").read_text())
    questions = [counting.parse(text[:-1]) for text in texts]
    assert [question.text for question in questions] == texts
    model = zoo.load("counting")
    right = answered_whole(model, counting.TASK.tokenizer(), questions)
    assert sum(right) / len(right) >= 0.99


def test_reading_adds_its_weight_to_the_loss(name):
    plain = Recipe(task=name, n_layers=1, d_model=16, n_heads=2, steps=3, n_ctx=33, batch_size=4)
    weights = [
        torch.cat(
            [
                p.flatten()
                for p in train(replace(plain, reading_weight=w), task_named(name), show_progress=False).parameters()
            ]
        )
        for w in (0.0, 0.0, 0.5)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_command_trains_any_task(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tl_backward.zoo.train.task_named", lambda named: replace(task_named(named), n_evaluated=20))
    command = f"{name} --steps 3 --n-layers 1 --d-model 16 --n-heads 2 --batch-size 4 --out {tmp_path / 'm'}"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command.split()) == 0
    assert {"held_out", "all"} <= set(printed.getvalue().split())
    model = zoo.load(tmp_path / "m")
    (prompt,) = getattr(zoo, name).prompts(1)
    assert model.to_tokens(prompt).shape[1] == len(prompt) + 1


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="Expected task among 'facts', 'counting', 'addition', got 'count'"):
        Recipe(task="count")
