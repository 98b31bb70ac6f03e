"""Hostile folders, files and prompts at the command line: the terminal gets no command, JSON is whole, the page is safe."""

import json
import os
import webbrowser

import pytest
from hostile import TOKENS
from models import BRIDGED, build, tokenizer, worlds
from transformers import AutoModelForCausalLM

import tl_backward as tlb
from tl_backward.cli import main
from tl_backward.text.encoded import encode

FOLDERS = ["<img src=x onerror=pwned()>", "\x1b[31m\x1b]0;pwned\x07", "=1+1 \u202e"]
BYTES = os.fsdecode(b"m\xff\xfe")


@pytest.fixture(autouse=True)
def no_browser(monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda url: True)
    monkeypatch.setenv("DISPLAY", ":0")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model's folder; named anew by each test."""
    folder = tmp_path_factory.mktemp("models") / "model"
    AutoModelForCausalLM.from_config(BRIDGED["gpt2"][1]).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def named(saved, tmp_path):
    def link(name):
        (tmp_path / name).symlink_to(saved)
        return str(tmp_path / name)

    return link


def ran(capsys, *argv):
    code = main([str(argument) for argument in argv])
    said = capsys.readouterr()
    for line in (said.out + said.err.split("%|")[0]).splitlines():
        assert line.isprintable(), line
        line.encode("utf-8", "strict")
    return code, said.out, said.err


def asked(folder, prompt="w5 w6", target="w7"):
    return ["--model", folder, f"--prompt={prompt}", f"--target={target}", "--no-open"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_and_file(capsys, named, tmp_path, name):
    page = tmp_path / f"{name}.html"
    code, said, complained = ran(capsys, "lens", *asked(named(name)), "--no-control", "--layers", "0", "--out", page)
    assert code == 0, complained
    html = page.read_bytes().decode("utf-8")
    assert "<img src=x" not in html and "\x1b" not in html and page.stat().st_size > 1e5
    code, said, complained = ran(capsys, "lens", *asked(named(name + "2")), "--no-control", "--json")
    assert code == 0 and json.loads(said)["model"] == str(tmp_path / (name + "2")) and said.isascii()


def test_names_that_are_not_utf8(capsys, named, tmp_path):
    """transformers cannot read such a folder, and that is said; a page can be called so."""
    code, said, complained = ran(capsys, "lens", *asked(named(BYTES)), "--json")
    assert (
        (code, said) == (1, "")
        and complained.startswith("tl-backward: Expected a language model")
        and "\\udcff" in complained
    )
    page = tmp_path / f"{BYTES}.html"
    assert (
        ran(capsys, "lens", *asked(named("m")), "--no-control", "--layers", "0", "--out", page)[0] == 0
        and page.is_file()
    )


def test_other_commands_in_a_hostile_folder(capsys, named, tmp_path):
    folder = named(FOLDERS[1])
    edit = tmp_path / "\x1b[2J.safetensors"
    assert ran(capsys, "edit", *asked(folder), "--layer", "1", "--save", edit, "--out", tmp_path / "\x07.html")[0] == 0
    assert edit.is_file()
    texts = tmp_path / "\x1b[0m.txt"
    texts.write_text("w5 w6 w7\nw8 w9 w10 w11\nw12 w13\nw5 w5\n")
    both = ["--model-a", folder, "--model-b", folder, "--data", texts, "--permutations", "0"]
    assert ran(capsys, "compare", *both, "--out", tmp_path / "\x9b.html", "--no-open")[0] == 0
    assert (
        ran(
            capsys,
            "params",
            "--model",
            folder,
            "--weight",
            "W_out",
            "--layer",
            "0",
            "--out",
            tmp_path / "p.html",
            "--no-open",
        )[0]
        == 0
    )
    about = ["--prompt", "w5 w6", "--data", texts, "--site", "resid_mid,1", "--out", tmp_path / "i.html", "--no-open"]
    assert ran(capsys, "invert", "--model", folder, *about)[0] == 0


PROMPTS = [
    t
    for t in TOKENS
    if t.strip() and len(t) < 60 and ("\x1b" in t or "\x9b" in t or "\ud800" <= max(t) <= "\udfff" or "<script" in t)
]


@pytest.mark.parametrize("prompt", PROMPTS[::6])
def test_a_hostile_prompt_is_read_or_refused_in_one_sentence(capsys, named, prompt):
    for prompt_, target in ((f"w5 {prompt}", "w7"), ("w5", prompt)):
        code, said, complained = ran(
            capsys, "lens", *asked(named(f"m{target == 'w7'}"), prompt_, target), "--no-control", "--json"
        )
        assert code in (0, 1) and "Traceback" not in complained
        if code == 0:
            assert json.loads(said)["prompt"] == prompt_ and json.loads(said)["target"] == target
        else:
            assert said == "" and complained.splitlines()[-1].startswith("tl-backward: Expected")


def test_half_a_surrogate_pair_is_refused_wherever_text_is_read():
    model = build(worlds()[-1])
    match = "Expected text that UTF-8 can write, got 'w5 .udcff', half of a surrogate pair in it; mend its encoding."
    for read in (
        lambda: tlb.backward_lens(model, "w5 \udcff", "w7"),
        lambda: tlb.backward_lens(model, "w5", "w5 \udcff"),
        lambda: tlb.dissimilarity.compare(model, model, ["w5 \udcff", "w3 w4"], show_progress=False),
        lambda: encode(model, ["w5 \udcff"]),
    ):
        with pytest.raises(ValueError, match=match):
            read()


def test_what_argparse_says_has_no_controls(capsys):
    for argv in (["lens", "\x1b[2J"], ["\x1b[2J"], ["demo", "--\x1b[2J\udcff"], ["lens", "--layers", "\x1b[2J"]):
        with pytest.raises(SystemExit):
            main(argv)
        said = capsys.readouterr()
        assert all(line.isprintable() for line in (said.out + said.err).splitlines())
