"""`tl-backward edit` and `edits`: what they print agrees with the library, in words and as JSON."""

import argparse
import errno
import json
import os

import pytest
from shared import shared

import tl_backward as tlb
from cli.test_commands import PROMPT, TARGET, run
from tl_backward.cli.options import check_page
from tl_backward.editing import edit_effect, shift_edit
from tl_backward.zoo import edit_cases

EDIT = ["edit", "--model", "facts", "--prompt", PROMPT, "--target", TARGET, "--no-open"]


def test_edit_shows_and_saves(capsys, tmp_path):
    out, kept = tmp_path / "edit.html", tmp_path / "edit.safetensors"
    code, said, complained = run(capsys, *EDIT, "--layer", "2", "--scale", "0.75", "--out", out, "--save", kept)
    assert code == 0 and complained == ""
    model = tlb.zoo.load("facts")
    edit = shift_edit(model, PROMPT, TARGET, 2, 0.75)
    after = float(edit_effect(model, edit, PROMPT).after.max())
    assert f'" Oslo"                   0.003 -> {after:.3f}' in said and "layer 2, scale 0.75" in said
    assert "Which layer, how strongly" in out.read_text(encoding="utf-8")
    loaded = tlb.load_edit(model, kept)
    assert loaded.how["layer"] == 2 and kept.stat().st_size < 10_000
    with loaded:
        assert model.tokenizer.decode([int(model(PROMPT)[0, -1].argmax())]) == TARGET


def test_a_file_that_cannot_be_written_is_refused_before_the_model_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tl_backward.cli.edit.load_asked", lambda arguments: pytest.fail("loaded"))
    for path, said in {
        tmp_path: "tl-backward: Expected --save to be a file to write the edit to, got the folder",
        tmp_path / "none" / "edit.safetensors": "tl-backward: Expected --save in a folder that exists, got",
    }.items():
        code, _, complained = run(capsys, *EDIT, "--layer", "2", "--json", "--save", path)
        assert code == 1 and complained.startswith(said) and complained.count("\n") == 1

    def full(**how):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tl_backward.cli.options.TemporaryFile", full)
    code, _, complained = run(capsys, *EDIT, "--layer", "2", "--json", "--save", tmp_path / "edit.safetensors")
    assert code == 1 and "Expected --save in a folder that can be written to" in complained


@pytest.mark.parametrize("argv", [
    ["watch", "--model", "facts"],
    ["who", "--model", "facts", "--store", "store", "--prompt", PROMPT, "--target", TARGET],
    ["compare", "--model-a", "facts", "--model-b", "counting"],
    ["invert", "--model", "facts", "--prompt", PROMPT],
    EDIT,
    ["edits", "--model", "facts"],
])  # fmt: skip
def test_no_file_that_is_read_is_written_over(capsys, tmp_path, monkeypatch, argv):
    """Nor one with a name that promises no page; whatever leads to it, and before the work."""
    monkeypatch.chdir(tmp_path)
    rows, source = "prompt,target\nAnna Berg works as a, baker\n", "--cases" if argv[0].startswith("edit") else "--data"
    paths = ["in.csv", tmp_path / "in.csv", "link.csv", "in.html", "other.csv", "none"]
    (tmp_path / "in.csv").write_text(rows)
    (tmp_path / "other.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to("in.csv")
    (tmp_path / "in.html").hardlink_to(tmp_path / "in.csv")
    before = sorted(tmp_path.iterdir())
    for path in paths:
        lost = f"Expected --out to be another file than those of {source}, got {str(path)!r}, which would be lost"
        said = f"Expected --out to end in .html or .htm, got {path!r}" if path in ("other.csv", "none") else lost
        code, out, complained = run(capsys, *argv, source, "in.csv", "--out", path)
        assert (code, out) == (1, "") and said in complained and complained.count("\n") == 1, complained
    assert (tmp_path / "in.csv").read_text() == rows and (tmp_path / "other.csv").read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == before


def test_no_model_is_written_over(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tl_backward.cli.edit.load_asked", lambda arguments: pytest.fail("loaded"))
    kept = tmp_path / "model.safetensors"
    kept.write_text("weights")
    (tmp_path / "page.html").write_text("an older page")
    argv = ["edit", "--model", tmp_path, "--prompt", PROMPT, "--target", TARGET, "--layer", "1", "--json"]
    code, _, complained = run(capsys, *argv, "--save", kept)
    assert code == 1 and f"Expected --save to be another file than those of --model, got {str(kept)!r}" in complained
    assert check_page(str(tmp_path / "page.html"), argparse.Namespace(model=str(tmp_path))).name == "page.html"


def test_edit_as_json_with_gradient_steps(capsys, tmp_path):
    case = edit_cases("test")[0]
    cases = tmp_path / "cases.jsonl"
    fields = ("prompt", "target", "answer", "subject", "paraphrases", "neighbours", "relations", "portability")
    cases.write_text(json.dumps({name: getattr(case, name) for name in fields}))
    argv = ["edit", "--model", "facts", "--prompt", case.prompt, "--target", case.target, "--json", "--cases", cases]
    code, said, _ = run(capsys, *argv, "--method", "gradient", "--lr", "0.002", "--steps", "2")
    data = json.loads(said)
    assert code == 0 and data["edit"]["method"] == "gradient" and data["edit"]["steps"] == 2 and data["report"] is None
    model = tlb.zoo.load("facts")
    scores = tlb.evaluate_edit(model, tlb.gradient_edit(model, case.prompt, case.target, lr=0.002, steps=2), case)
    assert data["scores"]["paraphrase"] == scores.paraphrase and data["scores"]["portability"] == scores.portability


def test_edit_chooses_its_layer_on_other_edits(capsys, tmp_path):
    cases = tmp_path / "cases.csv"
    rows = [f'"{each.prompt}","{each.target}","{each.answer}"' for each in edit_cases("validation")[:3]]
    rows.append(f'"{PROMPT}"," Rome",')  # the edit's own prompt has no say
    cases.write_text("\n".join(["prompt,target,answer", *rows]))
    code, said, _ = run(capsys, *EDIT, "--cases", cases, "--json")
    assert code == 0 and json.loads(said)["edit"]["method"] == "shift"
    grid = tlb.find_layer(
        tlb.zoo.load("facts"), PROMPT, TARGET, validation=tlb.load_cases(cases)[:3], show_progress=False
    )
    edit = json.loads(said)["edit"]
    assert (edit["layer"], edit["scale"]) == grid.best


def test_edits_prints_one_table(capsys, tmp_path):
    few = [
        "--n-validation",
        "2",
        "--n-test",
        "3",
        "--layers",
        "2",
        "--scales",
        "0.7,0.8",
        "--lrs",
        "0.005",
        "--steps",
        "2",
        "--no-open",
    ]
    code, said, _ = run(capsys, "edits", "--model", "facts", *few, "--out", tmp_path / "t.html")
    assert code == 0
    assert "3 edits, settings chosen on 2 others" in said and "neighbourhood" in said and "no edit" in said
    assert "2 gradient steps (lr 0.005)" in said and (tmp_path / "t.html").is_file()
    code, said, _ = run(capsys, "edits", "--model", "facts", *few, "--json")
    rows = json.loads(said)["scores"]
    none = {row["metric"]: row["mean"] for row in rows if row["method"] == "no edit"}
    assert none["efficacy"] == 0 and none["relations"] == 1 and len(rows) == 4 * 13


def test_what_the_probabilities_do_not_say(capsys):
    code, said, _ = run(capsys, *EDIT, "--layer", "2", "--scale", "0.05", "--out", os.devnull)
    assert code == 0 and "note: the target is still not the most likely" in said
    folder = shared("models", "stories260K")
    ask = [
        "edit",
        "--model",
        folder,
        "--prompt",
        "Once upon a time, there was a little",
        "--target",
        " Bob",
        "--no-open",
    ]
    code, said, _ = run(capsys, *ask, "--layer", "3", "--scale", "20", "--json")
    code, said, _ = run(capsys, *ask, "--layer", "3", "--scale", "20", "--out", os.devnull)
    assert code == 0 and "is the first token: probabilities are its own" in said


def test_what_else_it_changes_is_said_first(capsys, tmp_path):
    also = ["Anna Berg works as a", "Carl Berg lives in the city of"]
    argv = [
        *EDIT,
        "--layer",
        "2",
        "--scale",
        "3",
        "--also",
        also[0],
        "--also",
        also[1],
        "--out",
        tmp_path / "edit.html",
    ]
    code, said, _ = run(capsys, *argv)
    model = tlb.zoo.load("facts")
    edit = shift_edit(model, PROMPT, TARGET, 2, 3.0)
    before = [int(model(prompt)[0, -1].argmax()) for prompt in also]
    with edit:
        changed = sum(int(model(prompt)[0, -1].argmax()) != old for prompt, old in zip(also, before, strict=True))
    words = f"; {changed} of 2 other prompts {'has' if changed == 1 else 'have'} another answer now."
    first = said.splitlines()[0]
    assert code == 0 and changed and first.endswith(words) and "says nothing of other" not in said
    assert (
        words in (tmp_path / "edit.html").read_text(encoding="utf-8")
        and json.loads(run(capsys, *argv[:-2], "--json")[1])["summary"] == first
    )


def test_one_edit_alone_cannot_choose_its_layer(capsys, tmp_path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps({"prompt": PROMPT, "target": TARGET}))
    code, _, complained = run(capsys, *EDIT, "--cases", cases)
    assert (
        code == 1
        and "Expected an edit of another prompt in" in complained
        and "got none; it chooses the layer" in complained
    )
    code, _, complained = run(capsys, "edits", "--model", "facts", "--cases", cases)
    assert code == 1 and "Expected two or more edits in" in complained and "got 1; some choose settings" in complained


def test_a_gradient_edits_page_speaks_of_gradient_steps(capsys, tmp_path):
    out = tmp_path / "edit.html"
    code, *_ = run(capsys, *EDIT, "--method", "gradient", "--lr", "0.01", "--out", out)
    page = out.read_text(encoding="utf-8")
    assert code == 0 and "The edit: one gradient step on every W_out, learning rate 0.01." in page
    assert "forward pass: W_out +=" not in page


@pytest.mark.parametrize(
    "argv, message",
    [
        ([*EDIT, "--layer", "9"], "Expected layers in [-4, 4)"),
        ([*EDIT, "--target", " Graz", "--layer", "2"], "Expected a target other than the model's answer"),
        ([*EDIT, "--cases", "missing.csv"], "Expected a file of edit cases, got 'missing.csv'; there is no such file."),
        (
            [*EDIT, "--method", "gradient", "--layer", "2"],
            "Expected --layer with --method shift alone, got --method gradient",
        ),
        ([*EDIT, "--layer", "1", "--lr", "0.1"], "Expected --lr with --method gradient alone, got --method shift"),
        (["edits", "--model", "facts", "--cases", "cases.txt"], "Expected a file of edit cases as .json, .jsonl, .csv"),
    ],
)
def test_bad_input(capsys, tmp_path, argv, message):
    code, said, complained = run(capsys, *argv)
    assert (code, said) == (1, "") and message in complained


def test_a_model_of_ones_own_needs_cases_to_choose_on(capsys, tmp_path):
    folder = shared("models", "stories260K")
    ask = [
        "edit",
        "--model",
        folder,
        "--prompt",
        "Once upon a time, there was a little",
        "--target",
        " cat",
        "--no-open",
    ]
    code, _, complained = run(capsys, *ask)
    assert code == 1 and "Expected --cases FILE for a model of your own" in complained
    out = tmp_path / "a.html"
    code, said, _ = run(capsys, *ask, "--layer", "3", "--scale", "20", "--out", out)
    assert code == 0 and out.is_file() and "layer 3, scale 20" in said


def test_a_scale_is_taken_as_it_is_given_and_raw_factors_need_one(capsys):
    code, said, _ = run(capsys, *EDIT, "--layer", "2", "--scale", "0", "--json")
    assert code == 0 and json.loads(said)["edit"]["scale"] == 0
    code, _, problem = run(capsys, *EDIT, "--layer", "2", "--scaling", "raw")
    assert code == 1 and "Expected --scale with raw factors" in problem


def test_what_can_be_known_is_refused_before_the_model_is_loaded(capsys, tmp_path, monkeypatch):
    """Commands that would choose a layer on edits that there are none of, or read what is not there."""
    for command in ("edit", "who", "compare"):
        monkeypatch.setattr(f"tl_backward.cli.{command}.load_asked", lambda *asked: pytest.fail("loaded"))
    texts = tmp_path / "texts.txt"
    texts.write_text(PROMPT)
    asked = ("--prompt", "ab", "--target", "c", "--no-open")
    cases = ("--cases", tmp_path / "none.jsonl")
    for argv, said in (
        (("edit", "--model", "counting", *asked), "Expected --cases FILE for this model, got none for 'counting'; only 'facts'"),
        (("edits", "--model", "addition"), "Expected --cases FILE for this model, got none for 'addition'; only 'facts'"),
        (("edit", "--model", "facts", *asked, "--method", "gradient", *cases), "none.jsonl"),
        (("edit", "--model", "counting", *asked, "--layer", "1", *cases), "none.jsonl"),
        (("who", "--model", "facts", "--store", tmp_path / "none", *asked), "Expected the folder of a store, got"),
        (("who", "--model", "facts", "--store", tmp_path / "none", *asked, *("--data", tmp_path / "none.txt")), "none.txt"),
        (("compare", "--model-a", "facts", "--model-b", "facts", "--data", texts, "--measures", "ckaa"), "Expected the name of a measure, got 'ckaa'"),
    ):  # fmt: skip
        code, _, complained = run(capsys, *argv)
        assert code == 1 and said in complained and complained.count("\n") == 1, complained
