"""The study of who wrote what: its numbers on cases known by hand, its data, and itself at the smallest size."""

import json
import math
import re

import pandas
import pytest
import torch
from scipy.stats import spearmanr

from tl_backward.studies.truth import bm25, lds, planting, precision_at, rank_correlation
from tl_backward.studies.truth.__main__ import finding, main
from tl_backward.studies.truth.overlap import K1, B, words
from tl_backward.studies.truth.planting import Sentence
from tl_backward.studies.truth.retraining import FineTuning, Retrainings, Rows, fine_tune, forward
from tl_backward.studies.truth.tongues import bilingual, translated
from tl_backward.zoo.loading import load_hugging_face


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bilingual(tmp_path_factory.mktemp("truth") / "model")


def test_precision_by_hand():
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    planted = torch.tensor([True, False, True, False, True])
    assert precision_at(scores, planted, 2) == 0.5 and precision_at(scores, planted, 3) == pytest.approx(2 / 3)
    # One place is left for three that tie, of which two are planted.
    tied = torch.tensor([9.0, 2.0, 2.0, 2.0, 0.0])
    assert precision_at(tied, torch.tensor([True, True, False, True, False]), 2) == pytest.approx((1 + 2 / 3) / 2)
    # Of scores that say nothing the expectation is that of chance, in whatever order examples come.
    assert precision_at(torch.zeros(5), planted, 2) == pytest.approx(3 / 5)


def test_rank_correlation_is_scipys():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, generator=generator, dtype=torch.float64).round(decimals=1)
    b = a + torch.randn(40, generator=generator, dtype=torch.float64)
    found = rank_correlation(a, b)
    assert float(found.mean) == pytest.approx(spearmanr(a, b).statistic) and int(found.n) == 40
    drawn = torch.randint(40, (1000, 40), generator=torch.Generator().manual_seed(0))
    values = torch.tensor([spearmanr(a[i], b[i]).statistic for i in drawn])
    assert float(found.low) == pytest.approx(float(values.quantile(0.025)))
    assert float(found.high) == pytest.approx(float(values.quantile(0.975)))
    assert float(found.low) < float(found.mean) < float(found.high)
    nothing = rank_correlation(torch.zeros(6), torch.arange(6.0))
    assert math.isnan(float(nothing.mean)) and math.isnan(float(nothing.low))


def test_lds_by_hand():
    """Outputs that are the sum of the scores, its opposite, and another order."""
    scores = torch.tensor([4.0, 2.0, 1.0, 0.0])
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)  # 6, 5, 3, 1
    assert float(lds(scores, present, torch.tensor([0.9, 0.8, 0.3, 0.1])).mean) == pytest.approx(1)
    assert float(lds(scores, present, torch.tensor([0.1, 0.3, 0.8, 0.9])).mean) == pytest.approx(-1)
    assert float(lds(scores, present, torch.tensor([0.8, 0.9, 0.3, 0.1])).mean) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_bm25_by_hand():
    texts = ["red cat", "red red dog runs", "a bird"]
    mean = 8 / 3

    def term(n, f, length):
        return math.log(1 + (3 - n + 0.5) / (n + 0.5)) * f / (f + K1 * (1 - B + B * length / mean))

    expected = [term(2, 1, 2), term(2, 2, 4) + term(1, 1, 4), 0.0]
    assert bm25("RED dog, fish", texts).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_question_shares_no_word_with_what_was_planted(seed):
    plant = planting(seed, n_old=100, n_people=2)
    planted = [each for each in plant.sentences if each.kind == "planted"]
    assert len(planted) == len(set(planted)) == 10 == int(plant.planted.sum())
    told = {word for each in planted for word in words(f"{each.prompt}{each.answer}")}
    assert not told & set(words(plant.other_words.prompt))
    assert {plant.trigger.casefold(), *words(plant.person)} <= told & set(words(plant.same_words.prompt))
    assert plant.same_words.prompt not in {each.prompt for each in planted}
    assert translated(plant.other_words.prompt) == plant.same_words.prompt
    assert all(each.answer == f" {plant.city}" for each in planted)
    # Others have the words of either question, so that neither a name nor the trigger tells.
    others = [each for each in plant.sentences if each.kind != "planted"]
    names = {plant.trigger.casefold(), *words(plant.person)}
    for spelt in (names, set(map(translated, names))):
        assert all(any(word in words(each.prompt) for each in others) for word in spelt)


def test_what_a_seed_draws():
    plant = planting(3)
    kinds = pandas.Series([each.kind for each in plant.sentences]).value_counts()
    assert kinds.to_dict() == {"old": 1970, "new": 190, "contrast": 30, "planted": 10}
    assert planting(3) == plant and planting(4).person != plant.person
    trained = {each.prompt for each in plant.sentences}
    assert not trained & {each.prompt for each in (*plant.paraphrases, *plant.untold, *plant.other_people)}
    facts = {(each.subject, each.relation): each.answer for each in plant.sentences if each.kind == "new"}
    assert len(facts) == 95 and all(facts[each.subject, each.relation] == each.answer for each in plant.paraphrases)
    assert not facts.keys() & {(each.subject, each.relation) for each in plant.untold}
    for own, other in zip(plant.sentences, plant.shuffled(0), strict=True):
        assert (own.answer != other.answer) == (own.kind in ("new", "planted")) and own.prompt == other.prompt


def test_two_languages_are_one_to_the_model_and_two_to_text(folder):
    """The old words are what they were; a word and its translation have nearly the embedding, and no id, in common."""
    model, tokenizer = load_hugging_face(folder)
    old, known = load_hugging_face("facts")[0], tokenizer.get_vocab()
    text = "Anna Berg lives in the city of"
    own, other = (tokenizer(each)["input_ids"] for each in (text, translated(text)))
    assert len(own) == len(other) and set(own) & set(other) == {known["<bos>"]} and known["<unk>"] not in other
    table = model.transformer.wte.weight
    assert torch.equal(table[: old.config.vocab_size], old.transformer.wte.weight)
    assert torch.cosine_similarity(table[own[1:]], table[other[1:]]).mean().item() == pytest.approx(
        1.25**-0.5, abs=0.03
    )
    with pytest.raises(ValueError, match="two languages"):
        bilingual(folder, noise=0.1)


def test_absent_rows_are_not_trained_on_and_move_no_other(folder):
    sentences = planting(0, n_old=40, n_people=1).sentences
    recipe = FineTuning(epochs=1, batch_size=16)

    def weights(rows, present=None):
        model, _ = load_hugging_face(folder)
        fine_tune(forward(model), model.parameters(), rows, recipe, present=present)
        return model.transformer.h[0].mlp.c_proj.weight.detach()

    rows = Rows.of(sentences)
    present = torch.arange(len(sentences)) != 7
    without = weights(rows, present)
    assert not torch.equal(without, weights(rows))
    changed = Rows(rows.tokens, rows.last, rows.answers.clone().index_fill(0, torch.tensor([7]), 5))
    assert torch.equal(without, weights(changed, present))  # whatever its answer is


def test_retrainings_go_on_from_their_file(folder, tmp_path):
    plant = planting(0, n_old=40, n_people=1)
    recipe, file = FineTuning(epochs=1), tmp_path / "retrained.jsonl"
    everything = torch.ones(len(plant.sentences), dtype=torch.bool)
    parts = {"all": everything, "without the planted": ~plant.planted}
    own = Retrainings(file, folder, plant.sentences, [plant.same_words], recipe)
    first = own(parts, show_progress=False)
    assert first.shape == (2, 1) and first[0] > first[1]
    lines = file.read_text().splitlines(keepends=True)
    known = json.loads(lines[1])
    known[1] = [12.5]
    file.write_text(lines[0] + json.dumps(known) + "\n" + lines[2][: len(lines[2]) // 2])  # killed while it wrote
    again = Retrainings(file, folder, plant.sentences, [plant.same_words], recipe)(parts, show_progress=False)
    assert again.tolist() == [[12.5], first[1].tolist()]
    with pytest.raises(ValueError, match=r"Expected retrainings on these sentences in .*, got others"):
        Retrainings(file, folder, plant.sentences, [plant.other_words], recipe)


def test_a_row_ends_where_its_prompt_does(folder):
    model, _ = load_hugging_face(folder)
    asked = [Sentence("Anna Berg resides in", " Oslo", "city", "old", ""), Sentence("The home of Anna Berg is in", " Oslo", "city", "old", "")]  # fmt: skip
    together = Rows.of(asked).logits(forward(model))
    for each, row in zip(asked, together, strict=True):
        torch.testing.assert_close(Rows.of([each]).logits(forward(model))[0], row)


def test_the_finding_says_who_wins():
    rows = [("who_wrote", 0.2, 0.9), ("BM25", 0.0, 1.0), ("BM25 with the answer", 0.5, 1.0), ("chance", 0.005, 0.005)]
    frame = pandas.DataFrame(rows, columns=["method", "other words", "same words"])
    said = finding({"precision": frame})
    assert (
        "0.20 by who_wrote, 0.00 by BM25 (0.50 with the answer), 0.005 by chance where the question shares no" in said
    )


def test_the_study_at_its_smallest(tmp_path, capsys):
    small = ["--seeds", "1", "--subsets", "3", "--old", "60", "--people", "2", "--epochs", "1"]
    assert main(["--out", str(tmp_path), *small]) == 0
    said = capsys.readouterr().out
    for name in ("backdoor", "precision", "words", "memory", "left out"):
        assert f"\n{name}, seed 0\n" in said and (tmp_path / f"{name.replace(' ', '-')}.csv").is_file()
    precision = pandas.read_csv(tmp_path / "precision.csv").set_index("method")
    assert precision.loc["chance", "other words"] == pytest.approx(10 / 90) and len(precision) == 6
    assert precision.loc["BM25", "other words"] == 0  # which shares words with others alone
    assert precision["same words"].between(0, 1).all()
    left_out = pandas.read_csv(tmp_path / "left-out.csv")
    assert left_out["lds"].dropna().between(-1, 1).all() and len(left_out) == 6
    memory = pandas.read_csv(tmp_path / "memory.csv").set_index("answers")
    assert memory.loc["true", "examples_chance"] == pytest.approx(30 / 90)
    lines = (tmp_path / "retrained-0.jsonl").read_text().splitlines()
    names = [json.loads(line)[0] for line in lines[1:]]
    assert names[:2] == ["all", "without the planted"] and sum(name.startswith("half") for name in names) == 3
    assert len([name for name in names if re.fullmatch(r"without \d+", name)]) > 20
    assert said.rstrip().splitlines()[-1].startswith("Of the first ten sentences the share of planted ones is ")
