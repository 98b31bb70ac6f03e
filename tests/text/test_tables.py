"""Tables of cases and of texts: frames, splits, dictionaries and files stand for lists of edit cases."""

import json

import datasets
import numpy as np
import pandas
import plain
import pytest

import tl_backward as tlb
from tl_backward.text.data import batches_of
from tl_backward.text.files import read_data
from tl_backward.text.tables import cases_of, texts_of

PROMPTS = ["Anna Berg lives in the city of", "The pet of Anna Berg is a"]
COLUMNS = {
    "prompt": PROMPTS,
    "target": [" Oslo", " cat"],
    "subject": ["Anna Berg", None],
    "answer": [" Graz", None],
}
CASES = [
    tlb.EditCase(PROMPTS[0], " Oslo", answer=" Graz", subject="Anna Berg"),
    tlb.EditCase(PROMPTS[1], " cat"),
]


def tables(folder):
    frame = pandas.DataFrame(COLUMNS)
    frame.to_csv(folder / "cases.csv", index=False)
    return {
        "frame": frame,
        "frame with NaN": frame.assign(answer=[" Graz", float("nan")], subject=pandas.array(["Anna Berg", pandas.NA])),
        "split": datasets.Dataset.from_dict(COLUMNS),
        "rows": frame.to_dict("records"),
        "path": folder / "cases.csv",
        "name": str(folder / "cases.csv"),
        "cases": tuple(CASES),
    }


def test_one_meaning(tmp_path):
    for name, table in tables(tmp_path).items():
        assert list(cases_of(table)) == CASES, name


def test_wherever_cases_go(tmp_path):
    model, quiet = tlb.zoo.load("facts"), {"show_progress": False}
    expected = tlb.sweep(model, CASES, control=None, **quiet)
    methods = {"shift": tlb.editing.shift_method(2, 0.75)}
    for name, table in tables(tmp_path).items():
        found = tlb.sweep(model, table, control=None, **quiet)
        assert found.loss.equal(expected.loss) and found.answers.equal(expected.answers), name
        assert tlb.gradient_similarity(model, table, **quiet).names_a[1] == f"{PROMPTS[1]} ->  cat", name
    frame = tables(tmp_path)["frame"]
    assert tlb.compare_edits(model, frame, methods, n_tokens=0, **quiet).best == "shift"
    edit = tlb.shift_edit(model, PROMPTS[0], " Oslo", layer=2, scale=0.75)
    assert tlb.evaluate_edit(model, edit, frame.to_dict("records")[0], n_tokens=0).efficacy == 1


def test_columns_and_arrays_beside_prompts():
    model, quiet = tlb.zoo.load("facts"), {"show_progress": False, "control": None}
    expected = tlb.sweep(model, PROMPTS, [" Oslo", " cat"], **quiet).loss
    frame = pandas.DataFrame(COLUMNS)
    assert tlb.sweep(model, frame["prompt"], frame["target"], **quiet).loss.equal(expected)
    assert tlb.sweep(model, np.array(PROMPTS), np.array([" Oslo", " cat"]), **quiet).loss.equal(expected)


def test_texts_of_a_table():
    frame = pandas.DataFrame(COLUMNS)
    assert texts_of(frame) == PROMPTS and texts_of(frame, "target") == [" Oslo", " cat"]
    assert texts_of(datasets.Dataset.from_dict({"text": PROMPTS, "prompt": ["", ""]})) == PROMPTS
    assert texts_of(PROMPTS) is PROMPTS and texts_of(PROMPTS[0]) is PROMPTS[0]
    with pytest.raises(ValueError, match=r"Expected a table with the column text or prompt, got \['target'\]; rename"):
        texts_of(frame[["target"]])
    with pytest.raises(TypeError, match="Expected a text in subject of row 1, got (None|nan); leave the row out"):
        texts_of(frame, "subject")
    # Not the columns' names.
    pool = tlb.inversion.pool_preimage(tlb.zoo.load("facts"), PROMPTS[0], ("resid_post", 1), 7, frame)
    assert set(pool.texts) <= set(PROMPTS)


def test_what_is_no_table():
    for given, sentence in (
        ([{"prompt": "a"}], "Expected the field target in row 0 of the table, got a record without it; add it."),
        (
            [{"prompt": "a", "target": 3}],
            "Expected some text for target in row 0 of the table, got 3; mend the record.",
        ),
        (pandas.DataFrame({"prompt": ["a"], "goal": ["b"]}), "row 0 of the table, got 'goal' too; rename or drop it."),
    ):
        with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
            cases_of(given)


def test_what_types_alone_would_refuse():
    done = plain.run(
        """
from tl_backward.text.tables import cases_of
for given in (["a", "b"], "a", None, 3, {"prompt": ["a"]}):
    try:
        cases_of(given)
    except TypeError as error:
        print(error)
"""
    )
    lines = done.stdout.splitlines()
    for line, got in zip(lines, ("one with str", "str", "NoneType", "int", "dict"), strict=True):
        assert line.startswith(
            "Expected edit cases as a list, a table with the columns prompt and target, or a path, got"
        )
        assert f" got {got}; see" in line


@pytest.mark.parametrize("names", [("Prompt", "Target", "Subject"), ("PROMPT", " target", "subject ")])
def test_columns_in_any_case(names, tmp_path):
    row = dict(zip(names, ("Anna Berg lives in the city of", " Oslo", "Anna Berg"), strict=True))
    frame = pandas.DataFrame([row])
    frame.to_csv(tmp_path / "cases.CSV", index=False)
    (tmp_path / "cases.JSONL").write_text(json.dumps(row))
    own = [tlb.EditCase("Anna Berg lives in the city of", " Oslo", subject="Anna Berg")]
    for cases in (frame, [row], tmp_path / "cases.CSV", str(tmp_path / "cases.JSONL")):
        assert cases_of(cases) == own
    assert texts_of(frame) == [own[0].prompt] == next(batches_of([row], 4, "prompt"))
    assert next(batches_of(frame, 4)) == [own[0].prompt]
    with pytest.raises(ValueError, match=r"got \['" + names[0]):
        texts_of(frame, "story")
    both = {"Prompt": "a", "prompt": "b", "target": "c"}  # the name itself comes first
    with pytest.raises(ValueError, match="Expected only prompt, .* got 'Prompt' too"):
        cases_of([both])


def test_texts_of_a_table_file(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text('Prompt,target\nAnna Berg lives in, Oslo\n"Carl Berg, too, lives in", Graz\n')
    assert read_data(path, "text") == ["Anna Berg lives in", "Carl Berg, too, lives in"]
    assert read_data(path, "target") == [" Oslo", " Graz"]
    path.write_text("story\nAnna\n")
    assert read_data(path, "story") == ["Anna"]
    with pytest.raises(
        ValueError, match=r"the column 'text' or 'prompt' in 'cases.csv', got \['story'\]; name one with --text-key"
    ):
        read_data(path, "text")
    path.write_text("prompt,story,target\na,b,c\n")
    assert read_data(path, "text") == ["a"] and read_data(path, "Story") == ["b"]
    with pytest.raises(  # no other column stands in for one that was named
        ValueError,
        match=r"the column 'stroy' in 'cases.csv', got \['prompt', 'story', 'target'\]; name one with --text-key",
    ):
        read_data(path, "stroy")
