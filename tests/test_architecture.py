"""The package's own rules: imports go only downwards, importing is light, nothing pickles, the public names are there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tl_backward as tlb

PACKAGE = Path(tlb.__file__).parent
FLOORS = [
    {"_typing", "_checks", "_html", "_storage", "_csv", "_torch_hooks"},
    {"factors", "losses", "vocabulary", "readout", "segments", "sites", "zoo", "prompts", "loading", "cases", "bootstrap", "top_pairs",
     "text_files"},
    {"activations", "answers", "capture", "gradient_cache", "controls"},
    {"examples", "backward_lens", "editing", "sweeps", "sweep_result", "similarity", "embedding_space", "alignment", "dissimilarity",
     "inversion"},
    {"hook_points"},
    {"render", "cli"},
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def floor_of(name):
    return next((floor for floor, members in enumerate(FLOORS) if name in members), None)


def imported(path):
    """Top-level parts of tl_backward that a file imports, and whether at module level outside TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tl_backward":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tl_backward.")]
        yield from names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_only_downwards(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    assert floor_of(own) is not None, f"{own} has no floor: add it to FLOORS"
    for name in imported(path):
        assert name == own or floor_of(name) <= floor_of(own), f"{own} imports {name}, which lies above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_and_no_lost_types(path):
    text = path.read_text()
    assert "import pickle" not in text and "torch.load(" not in text and "eval(" not in text.replace(".eval(", "")
    assert "from __future__ import annotations" not in text and "type: ignore" not in text and "noqa" not in text


def test_import_is_light():
    script = (
        "import sys, transformer_lens; before = set(sys.modules); import tl_backward; new = set(sys.modules) - before;"
        "heavy = {'plotly', 'circuitsvis', 'IPython', 'selenium', 'matplotlib', 'scipy', 'safetensors.numpy'} & new;"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_public_names():
    for name in tlb.__all__:
        assert getattr(tlb, name).__doc__, name
    assert len(tlb.__all__) <= 25
