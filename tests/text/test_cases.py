"""Edit cases from files: CounterFact's format, JSONL and CSV; what is malformed is named by line and field."""

import json

import pytest

from tl_backward.text.cases import EditCase, load_cases

RECORD = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native", "Danielle Darrieux spoke the language"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is"],
    "attribute_prompts": ["J.R.R. Tolkien's mother tongue is"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
CASE = EditCase(
    prompt="The mother tongue of Danielle Darrieux is",
    target=" English",
    answer=" French",
    subject="Danielle Darrieux",
    paraphrases=("Danielle Darrieux, a native", "Danielle Darrieux spoke the language"),
    neighbours=(("The mother tongue of Léon Blum is", " French"),),
    generation=("Danielle Darrieux's mother tongue is",),
)


def without(path, record=RECORD):
    """The record less the field at a dotted path."""
    copy = json.loads(json.dumps(record))
    *parents, last = path.split(".")
    at = copy
    for key in parents:
        at = at[key]
    del at[last]
    return copy


def test_counterfact_and_its_like(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([RECORD, without("generation_prompts")]), encoding="utf-8")
    cases = load_cases(tmp_path / "a.json")
    assert cases[0] == CASE and cases[1].generation == () and cases[1].prompt == CASE.prompt
    plain = {"prompt": "a b", "target": " c", "neighbours": [["d", " e"]], "paraphrases": ["f"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(RECORD) + "\n\n" + json.dumps(plain) + "\n", encoding="utf-8")
    assert load_cases(str(tmp_path / "a.jsonl")) == [
        CASE,
        EditCase("a b", " c", paraphrases=("f",), neighbours=(("d", " e"),)),
    ]
    (tmp_path / "a.csv").write_text('prompt,target,subject\n"x, y", z,x\nu, v,\n')
    assert load_cases(tmp_path / "a.csv") == [EditCase("x, y", " z", subject="x"), EditCase("u", " v")]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", "", "Expected at least one edit case in 'a.json', got none"),
        ("a.json", "[]", "got none"),
        ("a.json", "{", "Expected JSON in a.json"),
        ("a.json", '{"a": 1}', "to hold a list of records, got dict"),
        ("a.json", "[1]", "Expected an object in 'a.json', record 0, got int"),
        ("a.json", json.dumps([RECORD, without("requested_rewrite.subject")]), "field requested_rewrite.subject in 'a.json', record 1"),
        ("a.json", json.dumps([without("requested_rewrite.target_new.str")]), "field target_new.str in 'a.json', record 0"),
        ("a.json", json.dumps([{**RECORD, "paraphrase_prompts": "text"}]), "a list of texts for paraphrase_prompts in 'a.json', record 0"),
        ("a.json", json.dumps([{**RECORD, "requested_rewrite": {**RECORD["requested_rewrite"], "prompt": "no place"}}]), "with {} for the subject"),
        ("a.jsonl", '{"prompt": "a", "target": " b"}\n{"prompt": "a"}', "field target in 'a.jsonl', line 2"),
        ("a.jsonl", '{"prompt": "a", "target": " b"}\n{"prompt"', "Expected JSON in 'a.jsonl', line 2"),
        ("a.jsonl", '{"prompt": "a", "target": " b", "tagret": 1}', "got 'tagret' too"),
        ("a.jsonl", '{"prompt": "a", "target": " b", "neighbours": [["x"]]}', "pairs for neighbours in 'a.jsonl', line 1"),
        ("a.jsonl", '{"prompt": "a", "target": " b", "answer": " b"}', "line 1: Expected a target other than the true answer"),
        ("a.jsonl", '{"prompt": "a", "target": " b", "subject": "q"}', "line 1: Expected the subject within the prompt"),
        ("a.csv", "", "got none"),
        ("a.csv", "prompt,answer\na,b\n", "Expected the columns prompt and target in 'a.csv', line 1"),
        ("a.csv", "prompt,target\na,b\nc,\n", "field target in 'a.csv', line 3"),
        ("a.txt", "a", "Expected a file of edit cases as .json, .jsonl, .csv"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_cases(tmp_path / name)
    assert message in str(error.value)


def test_other_bytes_than_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,target\n\xff\xfe,b\n")
    with pytest.raises(ValueError, match="Expected UTF-8 text"):
        load_cases(tmp_path / "a.csv")


def test_a_case_needs_something_to_change():
    for fields, message in (
        (("", " b"), "with a prompt and a target"),
        (("a", ""), "with a prompt and a target"),
        (("a", " b", " b"), "other than the true answer"),
        (("a", " b", "", "c"), "subject within the prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            EditCase(*fields)


def test_a_case_is_shown_in_one_line():
    case = EditCase("Anna lives in", " Oslo", answer=" Graz", paraphrases=("Anna resides in", "The home of Anna is"))
    assert repr(case) == "EditCase('Anna lives in': ' Graz' -> ' Oslo', 2 paraphrases)"
    assert repr(EditCase("Anna lives in", " Oslo")) == "EditCase('Anna lives in': '?' -> ' Oslo')"
