"""The snippets of the README and of the documentation run as they stand."""

import ast
import contextlib
import io
import re
import webbrowser
from pathlib import Path

import pytest
from model.test_masked_models import SMALL, word_pieces
from models import HAS_HOOKED_TRANSFORMER
from transformers import AutoConfig, AutoModelForMaskedLM

import tl_backward as tlb

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("gpt2", "nnsight", "counterfact.json", "load_my")  # needs weights, data or a library that is not here


def snippets(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def names():
    """What a snippet may take for granted: a model, another of its shape, and some texts."""
    texts = [example.prompt for example in tlb.zoo.facts.world().examples(split="held_out")[:40]]
    return {"tlb": tlb, "model": tlb.zoo.load("facts"), "tuned": tlb.zoo.load("facts"), "texts": texts}


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.stem)
def test_snippets_run(page, names, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for snippet in snippets(page):
        if any(word in snippet for word in ELSEWHERE):
            compile(snippet, page.name, "exec")
            continue
        if "HookedTransformer" in re.sub("#.*", "", snippet) and not HAS_HOOKED_TRANSFORMER:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(snippet, page.name, "exec"), names)
    if page.stem == "README":
        calls_of_its_table_run(page, names, monkeypatch)


def calls_of_its_table_run(page, names, monkeypatch):
    """What stands in the table below the snippets, of which a reader pastes one cell: all names are there by then."""
    monkeypatch.setattr(webbrowser, "open", lambda address: True)
    AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL)).save_pretrained("my-bert")
    word_pieces().save_pretrained("my-bert")
    (table,) = re.findall(r"\| more \| call \|\n.*\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"))
    codes = [code for code in re.findall("`([^`]+)`", table) if runs(code)]
    assert len(codes) >= 14
    for code in codes:
        if "expert" in code:  # of a model that does not ship
            asked = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
            assert asked <= set(names), code
        else:
            exec(compile(code, f"{page.name}: {code}", "exec"), names)


def runs(code):
    """Whether it is Python with a name that says where it is from: no command, hook point, keyword or short name."""
    try:
        (statement,) = ast.parse(code).body
    except (SyntaxError, ValueError):
        return False
    return not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_rows_of_tables_have_as_many_cells_as_their_heads(page):
    """A bar that is not escaped, as in |x|, ends a cell: what follows it is not shown."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for head, _, rows in re.findall(r"^(\|.*)\n(\|[-:| ]+)\n((?:\|.*\n?)+)", text, flags=re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in (head, *rows.splitlines())}
        assert len(cells) == 1, rows


def test_examples_are_sections():
    """Google's name of them is Examples; Griffe makes anything else a box, whose >>> become quotes."""
    found = [
        path for path in (ROOT / "tl_backward").rglob("*.py") if re.search(r"^ +Example:$", path.read_text(), re.M)
    ]
    assert not found
