"""`tl-backward invert`: what it prints and writes agrees with the library."""

import json

import pytest

from cli.test_commands import run
from tl_backward import inversion
from tl_backward.cli import main

INVERT = ["invert", "--no-open", "--model", "counting", "--prompt", "vvzccvczvvvzvcvc|v:"]
SMALL = ["--n", "20", "--pool", "60"]


def test_a_decoder_at_two_positions_as_a_page(capsys, tmp_path):
    out = tmp_path / "page.html"
    code, said, complained = run(
        capsys, *INVERT, *SMALL, "--site", "resid_mid,1", "--position", "-1", "--position=-2", "--out", out
    )
    assert (code, complained) == (0, "")
    found = inversion.load("counting").preimage(
        INVERT[-1], site=("resid_mid", 1), position=-1, n=20, show_progress=False
    )
    line = next(line for line in said.splitlines() if line.startswith("blocks.1.hook_resid_mid") and " 19 " in line)
    assert f"{int(found.inside.sum())} of 20" in line and "decoder" in line
    html = out.read_text(encoding="utf-8")
    assert "What an activation knows: counting" in html and html.count("<details open") == 2
    assert "blocks.1.hook_resid_mid, position 18" in html and f"{int(found.inside.sum())} of 20 texts inside" in html


def test_a_search_as_json(capsys):
    code, said, _ = run(capsys, *INVERT, *SMALL, "--method", "search", "--site", "result,1,0", "--seed", "3", "--json")
    data = json.loads(said)
    (one,) = data["readings"]
    assert (
        code == 0
        and data["report"] is None
        and one["method"] == "search"
        and one["site"] == "blocks.1.attn.hook_result[0]"
    )
    assert one["n"] == 20 and one["well_formed"] == 1 and 0 < one["acceptance"] < 1
    assert {row["feature"] for row in one["features"]} == set(inversion.task_of("counting").features)
    assert all(text["inside"] == (text["distance"] <= 0.1) for text in one["texts"])


def test_the_exact_preimage_of_a_small_domain(capsys):
    prompt = "Anna Berg lives in the city of"
    argv = ["invert", "--no-open", "--model", "facts", "--prompt", prompt, "--site", "resid_post,3", "--epsilon", "0.4"]
    code, said, _ = run(capsys, *argv, "--method", "enumerate", "--metric", "cosine", "--json", "--pool", "50")
    (one,) = json.loads(said)["readings"]
    task = inversion.task_of("facts")
    model = inversion.load("facts").model
    exact = inversion.enumerate_preimage(
        model,
        prompt,
        ("resid_post", 3),
        -1,
        task.domain(),
        epsilon=inversion.Closeness(0.4, metric="cosine"),
        show_progress=False,
    )
    assert code == 0 and one["method"] == "enumeration" and one["n_inside"] == int(exact.inside.sum()) > 1
    rates = {row.feature: row.rate.value for row in inversion.common_features(exact, task.features).rows}
    assert {row["feature"]: row["rate"] for row in one["features"]} == pytest.approx(rates)


def test_texts_of_a_file(capsys, tmp_path):
    file, out = tmp_path / "texts.txt", tmp_path / "page.html"
    people = ["Anna Berg", "Liam Rahman", "Xavier Ivanov"]
    file.write_text(
        "\n".join(f"{name} {said}" for name in people for said in ("works for", "became a", "lives in the city of"))
    )
    argv = ["invert", "--no-open", "--model", "facts", "--prompt", "Anna Berg works for", "--site", "resid_post,1"]
    code, said, complained = run(capsys, *argv, "--data", file, "--max-tokens", "3", "--out", out)
    assert (code, complained) == (0, "") and " pool " in said and "of 9" in said
    assert "lives in" not in out.read_text(encoding="utf-8")  # cut after BOS and two words


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--site", "blocks.9.hook_resid_mid"], "Expected a hook point of the model"),
        (["--site", "resid_mid,9"], "Expected layers in"),
        (["--site", "resid_mid,x"], "Expected a hook point of the model, got 'resid_mid,x'"),
        (["--site", "result,1,2,3"], "Expected a hook point of the model, got 'result,1,2,3'"),
        (["--site", "resid_mid,1", "--position", "70"], "Expected a position in the query's"),
        (["--site", "resid_mid,1", "--position", "q"], "Expected a position in the query's"),
        (["--epsilon", "0"], "Expected epsilon > 0"),
        (["--site", "resid_post,1", "--method", "decoder"], "Expected a site that the decoder was trained on"),
        (["--method", "enumerate"], "Expected a task of finitely many inputs"),
        (["--data", "nowhere.txt"], "Expected a file of texts"),
        (["--decoder", "nowhere"], "Expected a decoder that ships"),
    ],
)
def test_bad_input_is_one_sentence(capsys, argv, message):
    code, said, complained = run(capsys, *INVERT, *SMALL, *argv)
    assert code == 1 and said == "" and message in complained and complained.count("\n") == 1


def test_a_model_without_a_task_or_decoder(capsys, tmp_path):
    from models import tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, words = tmp_path / "mine", tokenizer()
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=len(words))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    capsys.readouterr()  # the bars of saving
    argv = ["invert", "--no-open", "--model", folder, "--prompt", "w5 w6"]
    code, _, complained = run(capsys, *argv)
    assert code == 1 and "Expected --data with a model that has no task of its own" in complained
    (tmp_path / "texts.txt").write_text("w5 w6\nw7 w6\nw5 w9\n")
    code = main([str(each) for each in (*argv, "--data", tmp_path / "texts.txt", "--method", "decoder")])
    assert code == 1 and "Expected a model whose decoder ships" in capsys.readouterr().err  # below the bar of loading
    code, said, _ = run(capsys, *argv, "--data", tmp_path / "texts.txt", "--method", "enumerate", "--json")
    assert code == 0 and [one["method"] for one in json.loads(said)["readings"]] == ["enumeration"] * 2
