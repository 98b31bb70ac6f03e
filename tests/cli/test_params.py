"""`tl-backward params`: what it prints agrees with the library."""

import html
import json

import pytest

import tl_backward as tlb
from cli.test_commands import run
from tl_backward.embedding_space import VectorOptions, parameter_coherence

PARAMS = ["params", "--model", "facts", "--no-open"]


def test_a_weight_as_a_page(capsys, tmp_path):
    out = tmp_path / "values.html"
    code, said, complained = run(capsys, *PARAMS, "--weight", "W_O", "--layer", "2", "--head", "1", "--out", out)
    assert code == 0 and complained == ""
    found = parameter_coherence(tlb.zoo.load("facts"), "W_O", 2, head=1, show_progress=False)
    best = int(found.order[0])
    assert (
        said.startswith(found.summary())
        and html.escape(found.summary()) in out.read_text(encoding="utf-8")
        and f"{float(found.score[best]):.3f}" in said
        and f"head 1, {int(found.projection.index[best])}" in said
    )
    assert f'"{found.projection.top_tokens[best][0]}"' in said
    shown = out.read_text(encoding="utf-8")
    assert "blocks.2.attn.W_O, head 1 in words: facts" in shown and "OV pairs of head 1" in shown


def test_a_weight_as_json(capsys):
    code, said, _ = run(
        capsys, *PARAMS, "--weight", "W_in", "--layer=-1", "--k", "4", "--filter", "not_special", "--json"
    )
    data = json.loads(said)
    found = parameter_coherence(
        tlb.zoo.load("facts"),
        "W_in",
        -1,
        k=4,
        vector_options=VectorOptions(filters=["not_special"]),
        show_progress=False,
    )
    assert code == 0 and data["weight"] == "blocks.3.mlp.W_in" and data["side"] == "read" and data["report"] is None
    assert [row["index"] for row in data["vectors"]] == found.projection.index[found.order].tolist()
    assert data["vectors"][0]["top_tokens"] == found.projection.top_tokens[int(found.order[0])]


def test_the_atlas(capsys, tmp_path):
    out = tmp_path / "atlas.html"
    code, said, complained = run(capsys, *PARAMS, "--layer", "3", "--out", out)
    assert code == 0 and complained == "" and "facts: the atlas of its weights is a page; " in said
    shown = out.read_text(encoding="utf-8")
    assert said.startswith("Of 1,536 vectors in 6 matrices ") and html.escape(said.splitlines()[0]) in shown
    assert "Atlas of facts" in shown and "blocks.3.mlp.W_out" in shown and "blocks.2.mlp.W_out" not in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--head", "1"], "Expected --weight NAME with --head, got --head alone"),
        (["--json"], "Expected --weight NAME with --json, got --json alone"),
        (["--weight", "W_out", "--layer", "0,1"], "Expected one --layer with --weight"),
        (
            ["--weight", "W_out"],
            "Expected --layer N with --weight W_out, which 4 blocks have, got none; add one from --la",
        ),
        (["--weight", "w_out", "--layer", "0"], "got 'w_out'; the nearest is 'W_out'"),
        (["--weight", "W_ou", "--layer", "0"], "Expected the name of a weight"),
        (["--weight", "W_out", "--layer", "9"], "Expected layers in"),
        (["--weight", "W_O", "--layer", "0", "--head", "4"], "Expected head in"),
    ],
)
def test_bad_input_is_one_sentence(capsys, argv, message):
    code, said, complained = run(capsys, *PARAMS, *argv)
    assert code == 1 and said == "" and message in complained and complained.count("\n") == 1
