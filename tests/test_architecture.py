"""The package's own rules: importing is light, nothing pickles, the public names are there (`make lint` holds the layers)."""

import ast
from pathlib import Path

import plain
import pytest

import tl_backward as tlb

PACKAGE = Path(tlb.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_no_lost_types():
    lost = ("from __future__ import annotations", "type: ignore", "noqa")
    assert not [(path, word) for path in MODULES for word in lost if word in path.read_text()]


PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "copyreg"}
UNPICKLED = {"load", "save", "load_state_dict_from_url"}
"""Of torch: all read or write pickles."""
FRAMES = {"read_pickle", "to_pickle"}
IN_MEMORY = {"tests/gradients/test_hook_points.py", "tests/zoo/test_facts.py"}
"""Tests that what we give can be pickled by those who will; no file is read or written."""


def pickling(tree):
    """Whatever in a program reads, writes or imports what does; or runs text as a program."""
    aliases = {"torch": "torch", "numpy": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PICKLING)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            if module in PICKLING:
                yield module
            if module in ("torch", "pandas"):
                found = {alias.name for alias in node.names} & (UNPICKLED if module == "torch" else FRAMES)
                yield from (f"{module}.{name}" for name in found)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = aliases.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
            if owner.split(".")[0] == "torch" and node.attr in UNPICKLED:
                yield f"torch.{node.attr}"
            if node.attr in FRAMES:
                yield node.attr
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "__import__"):
                yield node.func.id
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not allowed:
                    yield "allow_pickle"


def test_nothing_pickles():
    found = {path: list(pickling(ast.parse(path.read_text()))) for path in MODULES}
    assert not [(path, names) for path, names in found.items() if names]


def test_no_test_reads_a_pickle():
    """Beside what runs examples of the documentation, and a table of calls."""
    root = Path(__file__).parents[1]
    for path in sorted((root / "tests").rglob("*.py")):
        found = set(pickling(ast.parse(path.read_text()))) - {"eval", "exec"}
        assert not found or str(path.relative_to(root)) in IN_MEMORY, (path, found)


STORING = {"hashlib", "safetensors"}
STORAGE = "_support/storage.py"
FOREIGN = {"model/loading/_folder.py": "safe_open"}
"""Reads files that other programs wrote."""


def test_one_storage():
    """Tensors and JSON are saved, checked and fingerprinted in one place; nothing else hashes, writes or renames."""
    others = []
    for path in MODULES:
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [(node.module or "", alias.name) for alias in node.names]
            else:
                continue
            others += [(name, what) for module, what in named if module.split(".")[0] in STORING]
    assert {name for name, _ in others} - set(FOREIGN) == {STORAGE}
    assert {what for name, what in others if name in FOREIGN} == set(FOREIGN.values())


@pytest.mark.parametrize(
    "program",
    [
        "import pickle", "from dill import loads", "import torch\ntorch.load('x')", "import torch as t\nt.save(1, 'x')",
        "from torch import load", "import joblib as j", "import numpy\nnumpy.load('x', allow_pickle=True)",
        "import pandas\npandas.read_pickle('x')", "frame.to_pickle('x')", "eval('1')", "def f():\n    import shelve",
        "import torch.utils as u, marshal",
    ],
)  # fmt: skip
def test_the_rule_sees(program):
    assert list(pickling(ast.parse(program)))


def test_import_is_light():
    script = (
        "import sys, transformer_lens; before = set(sys.modules); import tl_backward; new = set(sys.modules) - before;"
        "heavy = {'plotly', 'circuitsvis', 'IPython', 'selenium', 'matplotlib', 'scipy', 'safetensors.numpy'} & new;"
        "assert not heavy, heavy"
    )
    done = plain.run(script)
    assert done.returncode == 0, done.stderr


def test_one_version():
    root = Path(__file__).parents[1]
    assert f"version: {tlb.__version__}\n" in (root / "CITATION.cff").read_text()
    assert f"## [{tlb.__version__}] - " in (root / "CHANGELOG.md").read_text()


def test_public_names():
    for name in tlb.__all__:
        assert getattr(tlb, name).__doc__, name
    assert len(tlb.__all__) <= 26
