"""`import tl_backward` loads nothing: names come from their modules when they are first used, all by one table."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import plain
import pytest

import tl_backward as tlb

PACKAGE = Path(tlb.__file__).parent
HEAVY = {"torch", "numpy", "pandas", "beartype", "jaxtyping", "transformers", "transformer_lens"}


def imports(lines):
    """(module, name, name here) of each `from module import name`."""
    found = [line for line in lines if isinstance(line, ast.ImportFrom)]
    return [(line.module, alias.name, alias.asname or alias.name) for line in found for alias in line.names]


@pytest.mark.parametrize("package", [tlb, tlb.render], ids=lambda package: package.__name__)
def test_what_type_checkers_see_is_the_table(package):
    (block,) = (
        line
        for line in ast.parse(Path(package.__file__).read_text()).body
        if isinstance(line, ast.If) and ast.unparse(line.test) == "TYPE_CHECKING"
    )
    rooms = {("tl_backward", room, room) for room in getattr(package, "_ROOMS", ())}
    names = {(f"tl_backward.{module}", name, name) for name, module in package._FROM.items()}
    seen = imports(block.body)
    assert len(seen) == len(block.body) and set(seen) == rooms | names


def test_what_is_listed_is_in_the_table():
    assert set(tlb.__all__) <= {*tlb._FROM, *tlb._ROOMS} == {*dir(tlb), *tlb._FROM} - {"__version__"}
    assert all(name in dir(tlb) for name in tlb.__all__)
    assert all((PACKAGE / room / "__init__.py").is_file() for room in tlb._ROOMS)


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in (tlb, tlb.render) for name in package._FROM]
)
def test_every_name_is_its_module_s(package, name):
    assert getattr(package, name) is getattr(import_module(f"tl_backward.{package._FROM[name]}"), name)


def test_no_module_of_render_has_the_name_of_what_is_taken_from_it():
    """Python would put it in that name's place when it is imported."""
    assert not set(tlb.render._FROM) & {path.stem for path in (PACKAGE / "render").glob("*.py")}


def test_a_page_of_one_kind_loads_nothing_of_the_others():
    script = (
        "import sys; import tl_backward as tlb; assert callable(tlb.render.lens_report);"
        "rooms = ('training', 'inversion', 'dissimilarity', 'alignment');"
        "assert not (found := [name for name in sys.modules if name.startswith(tuple('tl_backward.' + r for r in rooms))"
        " and not isinstance(sys.modules[name], tlb._moved._Moved)]), found;"
        "assert sorted(tlb.render.__all__) == dir(tlb.render); from tl_backward.render import *; assert callable(atlas)"
    )
    done = plain.run(script)
    assert done.returncode == 0, done.stderr


def test_a_star_takes_what_is_listed():
    assert set(imports(ast.parse("from tl_backward import *").body)) == {("tl_backward", "*", "*")}
    taken = {}
    exec("from tl_backward import *", taken)
    assert taken.keys() - {"__builtins__"} == set(tlb.__all__)


def test_importing_loads_nothing_and_a_name_what_it_needs():
    script = f"""
import sys
import tl_backward as tlb
heavy = {HEAVY}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "backward_lens" in dir(tlb) and not heavy & set(sys.modules)
for none in ("asked", "nonsense", "_ipython_display_", "__wrapped__"):  # a module of the release before, and nothing
    assert not hasattr(tlb, none), none
assert not heavy & set(sys.modules)
assert tlb.text.options.TextOptions.batch_size == 8  # a module of a room that was not imported
assert not hasattr(tlb.text, "nonsense") and "torch" not in sys.modules
import tl_backward.lens
assert callable(tlb.backward_lens) and callable(tlb.lens.backward_lens) and tl_backward.lens is tlb.lens
import tl_backward.readout
assert callable(tlb.readout)  # no module of the release before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_that_use_names_first_at_once_all_get_them():
    """Without a lock Python's own import fails in one of a dozen such runs."""
    script = """
import random, sys, threading
sys.setswitchinterval(1e-6)
import tl_backward as tlb
names = random.Random(int(sys.argv[1])).sample([*tlb._FROM, *tlb._ROOMS], 6) * 2
ready, found = threading.Barrier(len(names)), []
def use(name):
    ready.wait()
    found.append((name, getattr(tlb, name)))
threads = [threading.Thread(target=use, args=(name,)) for name in names]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert len(found) == len(names) and all(value is getattr(tlb, name) for name, value in found)
"""
    for seed in (9, 13):
        done = plain.run(script, seed)
        assert done.returncode == 0, done.stderr


def test_no_module_takes_names_from_the_package_while_it_is_imported():
    """Which would take the lock that another thread may hold while it waits for this very module."""
    taking = [
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
        and any(module == "tl_backward" for module, _, _ in imports(ast.parse(path.read_text()).body))
    ]
    assert not taking


def test_an_extended_model_has_its_methods_whatever_was_imported():
    script = (
        "from tl_backward.zoo import load; from tl_backward.gradients.hook_points import extend, unextend;"
        "model = extend(load('facts')); assert model.backward_lens('Anna Berg lives in the city of', ' Oslo').loss > 0;"
        "assert not hasattr(unextend(model), 'backward_lens')"
    )
    done = plain.run(script)
    assert done.returncode == 0, done.stderr
