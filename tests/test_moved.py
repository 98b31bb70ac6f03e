"""Names of the release before still lead where they led, and say where that is now."""

import importlib
import sys
import warnings
from pathlib import Path

import plain
import pytest

import tl_backward as tlb
from tl_backward._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_every_old_module_gives_what_the_new_one_holds_and_names_it(old):
    new = importlib.import_module(f"tl_backward.{MOVED[old]}")
    name = next(name for name in vars(new) if not name.startswith("_") and hasattr(vars(new)[name], "__doc__"))
    with pytest.warns(DeprecationWarning, match=rf"is now tl_backward\.{MOVED[old]}\.{name}"):
        found = getattr(sys.modules[f"tl_backward.{old}"], name)
    assert found is getattr(new, name)


def test_an_import_of_the_old_kind_works_and_leaves_the_functions_of_the_same_name():
    program = (
        "import warnings; warnings.simplefilter('ignore'); import tl_backward as tlb;"
        "from tl_backward.readout import Readout; import tl_backward.top_pairs;"
        "from tl_backward.dissimilarity.findings import heuristics; from tl_backward.losses import target_loss;"
        "assert Readout is tlb.Readout and target_loss is tlb.target_loss and callable(tlb.readout)"
    )
    done = plain.run(program)
    assert done.returncode == 0, done.stderr
    assert callable(tlb.readout) and callable(tlb.top_pairs) and callable(tlb.backward_lens)


def test_a_name_that_never_was_is_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AttributeError, match="no_such_name"):
            importlib.import_module("tl_backward.losses").__getattr__("no_such_name")


def test_the_table_in_the_docs_is_the_one_that_holds():
    page = (Path(__file__).parents[1] / "docs" / "moved.md").read_text(encoding="utf-8")
    rows = [row for row in page.split("## Modules")[1].split("\n## ")[0].splitlines() if row.startswith("| `")]
    assert rows == [f"| `tl_backward.{old}` | `tl_backward.{new}` |" for old, new in MOVED.items()]
