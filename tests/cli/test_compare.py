"""`tl-backward compare`: what it prints agrees with the library, and bad input is one sentence."""

import json
import re

import pytest
from shared import shared

import tl_backward as tlb
from cli.test_commands import run
from tl_backward.cli.compare import read_data
from tl_backward.dissimilarity import RunOptions, SampleOptions, compare
from tl_backward.text.options import TextOptions

TEXTS = [f"{name} lives in the city of" for name in ("Anna Berg", "Ben Koch", "Clara Diaz", "Dora Weiss", "Emil Novak")]
FACTS = ["compare", "--model-a", "facts", "--model-b", "facts", "--no-open"]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(TEXTS))
    return path


def test_a_page_and_a_small_table(capsys, tmp_path, texts):
    out = tmp_path / "found.html"
    options = [
        "--layers-a",
        "0,3",
        "--layers-b=-1",
        "--measures",
        "cka,procrustes",
        "--batch-size",
        "2",
        "--permutations",
        "3",
    ]
    code, said, complained = run(capsys, *FACTS, "--data", texts, "--out", out, *options, "--stitch", "orthogonal")
    assert code == 0 and complained == ""
    model = tlb.zoo.load("facts")
    found = compare(
        model, model, TEXTS, layers_a=[0, 3], layers_b=-1, measures=("cka", "procrustes"), text_options=TextOptions(batch_size=2), run_options=RunOptions(permutations=3), show_progress=False
    )  # fmt: skip
    assert repr(found) in said and f"report: {out}" in said
    for measure in found.measures:
        for label, (value,) in zip(found.layers_a, found[measure].tolist(), strict=True):
            assert re.search(rf"^{label}\s+{value:.3f}$", said, re.MULTILINE)
    html = out.read_text(encoding="utf-8")
    assert "Two models compared: facts and facts" in html and "Stitches: orthogonal maps" in html


def test_json(capsys, texts):
    options = [
        "--sample",
        "last",
        "--exclude-first",
        "--hook",
        "mlp_out",
        "--max-texts",
        "4",
        "--permutations",
        "0",
        "--seed",
        "3",
    ]
    code, said, _ = run(capsys, *FACTS, "--data", texts, "--json", *options)
    data = json.loads(said)
    model = tlb.zoo.load("facts")
    found = compare(
        model, model, TEXTS[:4], hook="mlp_out", sample_options=SampleOptions(sample="last"), text_options=TextOptions(exclude_first=True), run_options=RunOptions(permutations=0), show_progress=False
    )  # fmt: skip
    assert code == 0 and data["report"] is None and data["n_samples"] == 4 and data["aligned"] == "tokens"
    assert [row["value"] for row in data["values"]] == pytest.approx(found["cka"].flatten().tolist())
    assert data["values"][0]["permutation_mean"] is None


def test_untrained_networks(capsys, tmp_path, texts):
    out = tmp_path / "found.html"
    options = ["--layers-a", "2,3", "--layers-b", "2,3", "--permutations", "0", "--control"]
    code, said, _ = run(capsys, *FACTS, "--data", texts, "--out", out, *options)
    assert code == 0 and "; 5 pairs of untrained networks reach " in said.splitlines()[0]
    assert re.search(r"^untrained networks: 0\.\d+, from 0\.\d+ to 0\.\d+$", said, re.MULTILINE)
    html = out.read_text(encoding="utf-8")
    assert "Untrained networks: 5 pairs of the same configurations" in html and ">untrained networks<" in html


def test_another_tokenizer(capsys, tmp_path):
    path = tmp_path / "found.html"
    code, said, _ = run(
        capsys, "compare", "--model-a", shared("models", "stories260K"), "--model-b", "facts", "--no-open", "--out", path,
        "--data", shared("data", "tinystories-1000.json"), "--max-texts", "12", "--max-tokens", "40", "--permutations", "2",
    )  # fmt: skip
    assert code == 0 and "5 x 4 layers" in said and "aligned by characters" in said
    assert "unknown token" in said and "characters: places where both models end a token" in path.read_text("utf-8")


def test_kinds_of_files(tmp_path):
    lines, listed, rows, objects = (tmp_path / name for name in ("a.txt", "b.json", "c.jsonl", "d.jsonl"))
    lines.write_text("one\n\n two \u2028three\n", encoding="utf-8")
    listed.write_text('["one", "two\\nlines"]')
    rows.write_text('"one"\n"two"\n')
    objects.write_text('{"story": "one"}\n{"story": "two"}\n')
    assert read_data(lines, "text") == ["one", " two \u2028three"]
    assert read_data(listed, "text") == ["one", "two\nlines"]
    table = tmp_path / "e.csv"
    table.write_text("prompt,target\none,1\ntwo,2\n")
    assert read_data(rows, "text") == read_data(table, "text") == ["one", "two"] and read_data(objects, "story") == [
        "one",
        "two",
    ]


BAD = {
    "absent.txt": (None, "Expected a file of texts, got"),
    "a.xlsx": ("x", "Expected --data to end in .txt, .json, .jsonl or .csv, got 'a.xlsx'"),
    "a.csv": ("story\nAnna", "Expected the column 'text' or 'prompt' in 'a.csv', got ['story']; name one"),
    "a.json": ("[1", "Expected JSON in a.json, got"),
    "b.json": ('{"a": 1}', "to hold a list of records, got dict"),
    "c.json": ("[]", "got nothing"),
    "d.txt": ("\n\n", "got nothing"),
    "e.jsonl": ('{"text": "a"}\n{"other": "b"}', "Expected texts, or objects with 'text', in"),
    "f.json": ('["a", 3]', "got int as item 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_sentence(capsys, tmp_path, name):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    code, said, complained = run(capsys, *FACTS, "--data", tmp_path / name)
    assert code == 1 and said == "" and message in complained and complained.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--measures", "ckaa"], "the nearest are 'cka"),
        (["--hook", "resid_pots"], "resid_post"),
        (["--layers-a", "9"], "Expected layers in"),
        (["--out", "/nowhere/there.html"], "Expected --out in a folder that exists"),
    ],
)
def test_bad_options_are_one_sentence(capsys, texts, argv, message):
    code, said, complained = run(capsys, *FACTS, "--data", texts, *argv)
    assert code == 1 and said == "" and message in complained and complained.count("\n") == 1


def test_bad_usage(capsys, texts):
    for argv in (["--data", texts, "--sample", "word"], [], ["--data", texts, "--stitch", "cubic"]):
        with pytest.raises(SystemExit) as stopped:
            run(capsys, *FACTS, *argv)
        assert stopped.value.code == 2
