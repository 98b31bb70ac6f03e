"""The command line: results on stdout, one sentence on stderr, exit codes 0, 1, 2; and the loader behind it."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path

import plain
import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, worlds
from shared import shared
from transformers import AutoConfig, AutoModelForCausalLM

import tl_backward as tlb
from tl_backward.cli import main
from tl_backward.cli.options import default_out

PROMPT, TARGET = "Anna Berg lives in the city of", " Oslo"
# A Bridge's untrained networks, which Hugging Face's own initialisation makes, vary more: the claim is hedged there.
_HEDGED = "" if HAS_HOOKED_TRANSFORMER else ", but they differ so much among themselves that this may be chance"
VERDICT = (
    "One step toward \u2423Oslo would write \u2423Oslo in every layer (all 5 untrained networks do that too) and push "
    f"\u2423Graz down in layers 2 and 3 (none of 5 untrained networks does{_HEDGED})."
)
ASK = ["lens", "--model", "facts", "--prompt", PROMPT, "--target", TARGET]
STORY = ["--prompt", "Once upon a time, there was a little", "--target", " boy"]


@pytest.fixture(autouse=True)
def no_browser(monkeypatch):
    """No test opens a window; what would be opened is recorded."""
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    return opened


def run(capsys, *argv):
    """Exit status, standard output, and what was complained: standard error without progress bars, which a busy machine draws."""
    code = main([str(argument) for argument in argv])
    said = capsys.readouterr()
    complained = "".join(part for part in said.err.split("\r") if part.strip() and "%|" not in part)
    return code, said.out, complained


def test_demo_writes_one_page_and_opens_it(capsys, tmp_path, no_browser):
    out = tmp_path / "report.html"
    code, said, complained = run(capsys, "demo", "--out", out)
    assert (code, complained) == (0, "")
    assert said.splitlines()[0] == VERDICT and VERDICT in out.read_text(encoding="utf-8")
    assert '" Oslo"; the model says " Graz"' in said and str(out) in said
    assert "424 of 424" in said and "0 of 424" in said and "5 untrained networks" in said
    assert no_browser == [out.as_uri()] and [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = out.read_text(encoding="utf-8")
    assert "Backward Lens: facts" in page and "Weights as they were trained, not processed" in page.split("<footer>")[1]


def test_the_page_is_not_opened_where_it_should_not_be(capsys, tmp_path, no_browser, monkeypatch):
    small = [*ASK, "--layers", "3", "--no-control", "--out", tmp_path / "a.html"]
    assert run(capsys, *small, "--no-open")[0] == 0 and no_browser == []
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert run(capsys, *small)[0] == 0 and no_browser == []


def test_default_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *ASK, "--layers=-1", "--no-control", "--no-open")[0] == 0
    assert (tmp_path / "tl-backward-lens-facts.html").is_file()


def test_default_files_are_named_after_the_job():
    job = argparse.Namespace(command="compare", model_a="./runs/a b", model_b="org/model-1.5")
    assert default_out(job) == "tl-backward-compare-a_b-model-1.5.html"
    assert default_out(argparse.Namespace(command="demo")) == "tl-backward-demo.html"
    odd = default_out(argparse.Namespace(command="lens", model="\x1b[31m../<b>"))
    assert odd == "tl-backward-lens-_b_.html"


@pytest.mark.parametrize("kind", worlds())
def test_json(capsys, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    options = ("--json", "--kind", kind, "--layers=-1,0", "--k", "4", "--attention", "--subject", "Anna Berg")
    code, said, complained = run(capsys, *ASK, *options)
    data = json.loads(said)
    assert (code, complained, list(tmp_path.iterdir())) == (0, "", [])
    prompt, target = tlb.zoo.facts.example_edit()
    lens = tlb.backward_lens(tlb.zoo.load("facts", kind=kind), prompt, target, k=4)
    assert data["loss"] == pytest.approx(lens.loss.item(), rel=1e-4)
    assert (data["model"], data["prompt"], data["target"], data["answer"]) == ("facts", PROMPT, TARGET, " Graz")
    assert [entry["layer"] for entry in data["shift"]] == [0, 3] and data["report"] is None
    assert data["shift"][1]["target_rank"][-1] == int(lens.shift[3].target_rank[-1])
    assert data["shift"][1]["top_tokens"][-1] == lens.shift[3].top_tokens[-1]
    assert {"imprint", "shift", "attn_imprint", "attn_shift"} <= set(data) and data["segments"][1] == "subject"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nobody can write to")
@pytest.mark.parametrize("ask", [["demo"], ASK, ["params", "--model", "facts"]])
def test_a_page_where_none_can_be_written_is_refused_first(capsys, monkeypatch, ask):
    monkeypatch.setattr(tlb.zoo, "load", lambda *asked, **how: pytest.fail("loaded"))
    monkeypatch.setattr("tl_backward.model.loading.load", lambda *asked, **how: pytest.fail("loaded"))
    for out, words in (
        ("/proc/self/page.html", "in a folder that can be written to"),
        ("/proc/x/page.html", "that exists"),
    ):
        code, said, complained = run(capsys, *ask, "--out", out)
        assert (code, said) == (1, "") and words in complained and out in complained and complained.count("\n") == 1


def test_a_name_near_a_shipped_one_is_refused_at_once(capsys, monkeypatch):
    monkeypatch.setattr("tl_backward.model.loading.load", lambda *asked, **how: pytest.fail("asked"))
    for name in ("fact", "facts/", "Facts//"):
        code, said, complained = run(capsys, "lens", "--model", name, "--prompt", PROMPT, "--target", TARGET)
        assert (code, said) == (1, "") and complained.endswith(f"got {name!r}; did you mean 'facts'?\n")


def test_json_with_a_page(capsys, tmp_path, no_browser):
    out = tmp_path / "page.html"
    code, said, _ = run(capsys, *ASK, "--json", "--layers", "2-3", "--no-control", "--out", out)
    data = json.loads(said)
    assert code == 0 and data["report"] == str(out) and out.is_file() and no_browser == [out.as_uri()]
    assert [entry["layer"] for entry in data["shift"]] == [2, 3] and "control_norm" not in data["shift"][0]


def test_demo_as_json(capsys, tmp_path, monkeypatch, no_browser):
    monkeypatch.chdir(tmp_path)
    code, said, complained = run(capsys, "demo", "--json")
    data = json.loads(said)
    assert (code, complained, list(tmp_path.iterdir()), no_browser) == (0, "", [], [])
    assert (data["prompt"], data["target"], data["answer"], data["report"]) == (PROMPT, TARGET, " Graz", None)
    assert data["shift"][3]["target_rank"][-1] == 424 and data["summary"] == VERDICT


def test_words_that_the_model_cannot_read_are_noted(capsys):
    code, said, complained = run(capsys, *ASK[:4], "Zoe Berg lives in the city of", *ASK[5:], "--json")
    assert code == 0 and json.loads(said)["model"] == "facts"
    assert complained.startswith("note: A text has words that are not in the model's")
    assert complained.endswith("read as unknown: 'Zoe'.\n")
    assert complained.count("\n") == 1


def test_a_target_that_the_model_says_already_has_no_old_answer(capsys, tmp_path):
    out = tmp_path / "page.html"
    code, said, _ = run(capsys, *ASK[:-1], " Graz", "--layers=2,3", "--no-control", "--no-open", "--out", out)
    assert code == 0 and 'the model says " Graz" already' in said and "old answer" not in said
    page = out.read_text(encoding="utf-8")
    assert "there is no old answer to push down" in page and '"name":"old answer"' not in page


BAD_INPUT = {
    "unknown target word": (
        [*ASK[:-1], " Olso"],
        "Expected a target in the model's vocabulary, got ' Olso', which contains an unknown word; the nearest are ' Oslo'",
    ),
    "empty target": ([*ASK[:-1], ""], "Expected a target that encodes to at least one token"),
    "empty prompt": ([*ASK[:4], "", *ASK[5:]], "Expected texts of at least one character, got an empty one"),
    "long prompt": ([*ASK[:4], "Anna Berg " * 20 + "lives", *ASK[5:]], "Expected at most n_ctx=32 tokens"),
    "layer": ([*ASK, "--layers", "9"], "Expected layers in [-4, 4), got 9"),
    "k": ([*ASK, "--k", "1000"], "Expected 1 <= k <= 425"),
    "subject": ([*ASK, "--subject", "Bob"], "Expected the subject to occur in the prompt, got 'Bob'"),
    "model": (["lens", "--model", "./no-such-folder", *STORY], "there is no such folder"),
    "recipe": (["lens", "--model", "facts-gelu-2l", *STORY], "do not ship"),
    "device": ([*ASK, "--device", "abacus"], "Expected a device that PyTorch can use here, got 'abacus'"),
    "folder": ([*ASK, "--out", "/no/such/folder/x.html"], "Expected --out in a folder that exists"),
    "out": ([*ASK, "--out", "/"], "Expected --out to be a file to write the page to, got the folder '/'"),
    "empty folder": (["lens", "--model", ".", *STORY], "it has no config.json"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_1(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    argv, sentence = BAD_INPUT[name]
    code, said, complained = run(capsys, *argv)
    assert (code, said) == (1, "") and sentence in complained
    assert complained.startswith("tl-backward: ") and complained.count("\n") == 1 and "Traceback" not in complained
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_nothing_can_load(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, said, complained = run(capsys, "lens", "--model", "no-such-model-anywhere", *STORY)
    assert (code, said, complained.count("\n")) == (
        1,
        "",
        1,
    ) and "or a name that TransformerLens can load" in complained


@pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="this TransformerLens has HookedTransformer")
def test_hooked_without_hooked_transformer(capsys):
    code, _, complained = run(capsys, *ASK, "--kind", "hooked")
    assert code == 1 and "use kind 'bridge'" in complained


@pytest.mark.parametrize(
    "argv",
    [[], ["bogus"], ["lens"], ["lens", "--model", "facts"], [*ASK, "--layers", "x"], [*ASK, "--k", "0"],
     [*ASK, "--kind", "other"], [*ASK, "--dtype", "int8"], ["demo", "--bogus"]],
)  # fmt: skip
def test_bad_usage_is_exit_code_2(capsys, argv):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    said = capsys.readouterr()
    assert exit_.value.code == 2 and said.out == "" and "usage: tl-backward" in said.err


@pytest.mark.parametrize("argv", [["--help"], ["demo", "--help"], ["lens", "--help"], ["--version"]])
def test_help(capsys, argv):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    said = capsys.readouterr()
    assert exit_.value.code == 0 and said.err == ""
    if argv != ["--version"]:
        assert "examples:\n" in said.out and "tl-backward " in said.out
        assert max(map(len, said.out.splitlines())) <= 110


def test_as_a_process(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(tlb.__file__).parents[1])}
    argv = [*ASK, "--json", "--layers", "3", "--no-control"]
    done = subprocess.run(
        [sys.executable, "-m", "tl_backward.cli", *argv], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == " Graz" and "Warning" not in done.stderr
    main_ = "import sys; from tl_backward.cli import main; sys.exit(main(sys.argv[1:]))"
    bad = plain.run(main_, *ASK, "--layers", "7", cwd=tmp_path)
    assert bad.returncode == 1 and bad.stdout == "" and bad.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_control_character_does_not_reach_the_terminal(capsys, tmp_path):
    argv = ["lens", "--model", "facts", "--prompt", "Anna Berg \x1b[31mlives in", "--target", TARGET, "--layers", "3"]
    code, said, _ = run(capsys, *argv, "--no-control", "--no-open", "--out", tmp_path / "x.html")
    assert code == 0 and "\x1b" not in said and "\\x1b" in said


@pytest.mark.parametrize("kind", worlds())
def test_a_local_llama(capsys, tmp_path, kind):
    folder = shared("models", "stories260K")
    out = tmp_path / "story.html"
    argv = ["lens", "--model", folder, *STORY, "--kind", kind, "--attention", "--out", out, "--no-open"]
    code, said, complained = run(capsys, *argv)
    assert (code, complained) == (0, "")
    assert 'of which the first token is " b"; the model says " g"' in said
    html = out.read_text(encoding="utf-8")
    assert "Backward Lens: stories260K" in html and str(folder) not in html
    assert "W_gate reads the same inputs" in html and "Shift in attention" in html


@pytest.mark.parametrize("kind", worlds())
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_loaded_models_compute_what_hugging_face_s_do(kind, dtype):
    folder = shared("models", "stories260K")
    model = tlb.load(str(folder), kind=kind, dtype=dtype)
    inner = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    ids = torch.tensor([[1, 403, 407, 261, 378]])
    with torch.no_grad():
        ours, theirs = model(ids), inner(ids).logits
    assert ours.dtype == theirs.dtype
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error <= (1e-5 if dtype == "float64" else 5e-2)


@pytest.mark.parametrize("kind", worlds())
def test_zoo_models_in_another_dtype(kind):
    model = tlb.load("facts", kind=kind, dtype="float64")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    lens = tlb.backward_lens(model, PROMPT, TARGET, layers=3)
    assert lens.loss.dtype == torch.float64


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="HookedTransformer left with TransformerLens 4")
def test_a_folder_is_what_its_files_say_whatever_its_path_does(tmp_path):
    # TransformerLens takes every folder whose path says llama for a Llama.
    folder = tmp_path / "llama" / "not"
    shutil.copytree(tlb.model.shipped.WEIGHTS / "facts", folder)
    hooked, bridge = (tlb.load(str(folder), kind=kind) for kind in ("hooked", "bridge"))
    tokens = bridge.to_tokens("Anna Berg lives in the city of")
    torch.testing.assert_close(hooked(tokens), bridge(tokens), rtol=1e-4, atol=1e-4)


def test_a_folder_that_is_no_language_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="transformers cannot load it"):
        tlb.load(str(tmp_path))
    AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2, vocab_size=10).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="transformers cannot load it"):
        tlb.load(str(tmp_path))
