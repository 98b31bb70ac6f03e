"""`tl-backward who`: a store is built from a file, asked again, and says who wrote an answer as the library does."""

import csv
import errno
import html
import json
from pathlib import Path

import tl_backward as tlb
from cli.test_commands import run

FACTS = [(case.prompt, case.target) for case in tlb.zoo.edit_cases("test")[:25]]
PROMPT, TARGET = FACTS[7]
ASK = ["who", "--model", "facts", "--prompt", PROMPT, "--target", TARGET, "--no-open"]


def test_build_and_ask(capsys, tmp_path):
    data, store, page = tmp_path / "facts.csv", tmp_path / "store", tmp_path / "who.html"
    with data.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "target"), *FACTS])
    code, said, complained = run(capsys, *ASK, "--store", store, "--data", data, "--out", page)
    assert (code, complained) == (0, "")
    kept = tlb.training.GradientStore.open(store, tlb.zoo.load("facts"), dataset=FACTS)
    found, exact = kept.query(PROMPT, TARGET), kept.query(PROMPT, TARGET, exact=True)
    assert said.startswith(found.summary()) and "25 examples, 4 weights" in said and f"report: {page.resolve()}" in said
    assert f'"{PROMPT} -> {TARGET}"' in said and f'"{found.written.top_tokens[0][0]}"' in said
    shown = page.read_text(encoding="utf-8")
    shown = shown.replace('<span style="white-space:nowrap">-&gt;</span>', "-&gt;")  # no line ends within an arrow
    assert html.escape(found.summary()) in shown and "scores.csv" in shown
    code, said, _ = run(capsys, *ASK, "--store", store, "--exact", "--n", "3", "--json")
    answer = json.loads(said)
    assert (
        code == 0
        and answer["summary"] == kept.query(PROMPT, TARGET, exact=True, n=3).summary()
        and answer["report"] is None
    )
    assert [row["example"] for row in answer["examples"]] == exact.top.tolist()[:3] and exact.top[0] == 7
    assert abs(answer["examples"][0]["cosine"] - 1) < 1e-6 and answer["examples"][0]["target_rank"] == 0


def test_a_store_that_is_there_is_asked_where_nothing_can_be_written(capsys, tmp_path, monkeypatch):
    """Its --data says again what it is of; another column of a table is read, and one that is not there is refused."""
    data, store = tmp_path / "facts.csv", tmp_path / "store"
    rows = [("prompt", "target", "story"), *((prompt, target, prompt + target) for prompt, target in FACTS)]
    with data.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    ask = [*ASK, "--json", "--data", data, "--text-key"]
    code, first, _ = run(capsys, *ask, "story", "--store", store)
    assert code == 0 and [row["text"] for row in json.loads(first)["examples"] if row["example"] == 7] == [
        PROMPT + TARGET
    ]
    code, said, complained = run(capsys, *ask, "stroy", "--store", tmp_path / "other")
    assert (code, said) == (
        1,
        "",
    ) and "Expected the column 'stroy' in 'facts.csv', got ['prompt', 'target'" in complained

    def full(**how):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tl_backward.cli.options.TemporaryFile", full)
    monkeypatch.setattr("tl_backward._support.storage.replacing", full)
    assert run(capsys, *ask, "story", "--store", store)[:2] == (0, first)
    code, _, complained = run(capsys, *ask, "story", "--store", tmp_path / "other")
    assert code == 1 and "Expected --store in a folder that can be written to" in complained


def test_texts_weights_and_bad_input(capsys, tmp_path):
    data, store = tmp_path / "texts.txt", tmp_path / "store"
    data.write_text("\n".join(prompt + target for prompt, target in FACTS))
    code, said, _ = run(
        capsys, *ASK, "--store", store, "--data", data, "--weights", "W_O,W_out", "--bytes-per-weight", "1024"
    )
    assert code == 0 and "25 examples, 8 weights" in said
    for more, words in (
        (["--data", data], "differs in weights"),
        (["--data", tmp_path / "no.txt"], "which is not there"),
    ):
        code, said, complained = run(capsys, *ASK, "--store", store, *more)
        assert (code, said) == (1, "") and words in complained and complained.count("\n") == 1
    code, _, complained = run(capsys, *ASK, "--store", tmp_path)
    assert code == 1 and "Expected the folder of a gradient store" in complained
    if Path("/proc/self").is_dir():  # where permissions alone would let anyone write who may do all
        code, _, complained = run(capsys, *ASK, "--store", "/proc/self/store/x", "--data", data)
        assert (
            code == 1 and "Expected --store in a folder that can be written to, got '/proc/self/store/x'" in complained
        )
    code, _, complained = run(capsys, *ASK, "--store", tmp_path / "none")
    assert code == 1 and "give --data FILE to build it" in complained
