"""Options read from the source are those of the functions and classes themselves; help imports none of them."""

import inspect
import subprocess
import sys
from functools import reduce
from importlib import import_module
from typing import get_args

import pytest

from tl_backward.cli import COMMANDS, main, written
from tl_backward.cli.generated import _argument
from tl_backward.inversion.options import Metric

HERE = "cli.test_written"


def asked(monkeypatch, capsys):
    """(source, names) of all options of all commands that are read from the source."""
    found, original = [], written.signature

    def noted(source, names=()):
        found.append((source, names))
        return original(source, names)

    with monkeypatch.context() as patched:
        patched.setattr(written, "signature", noted)
        for command in COMMANDS:
            with pytest.raises(SystemExit):
                main([command, "--help"])
    capsys.readouterr()
    return found


def test_what_is_read_is_what_is_imported(monkeypatch, capsys):
    found = asked(monkeypatch, capsys)
    assert len(found) >= 12
    for source, names in found:
        module, _, name = source.rpartition(".")
        module, _, owner = module.rpartition(".") if module.rpartition(".")[2][:1].isupper() else (module, "", "")
        thing = reduce(getattr, filter(None, (owner, name)), import_module(module))
        own, read = inspect.signature(inspect.unwrap(thing)).parameters, written.signature(source, names)
        assert written.docstring(source) == inspect.getdoc(thing) and list(read) == [n for n in own if n in names]
        for each in names:
            assert read[each].default == own[each].default, (source, each)
            same = [
                _argument(each, parameters[each].annotation, parameters[each].default) for parameters in (read, own)
            ]
            assert same[0] == same[1], (source, each)


class Asked(dict):
    """Parsers of no command, and the names that were asked for."""

    def __init__(self):
        self.names = []

    def __contains__(self, name):
        self.names.append(name)
        return False


def test_every_command_is_its_module_s_and_none_other():
    for command, (module, line) in COMMANDS.items():
        asked = Asked()
        import_module(f"tl_backward.cli.{module}").add_commands(asked)
        assert sorted(asked.names) == sorted(name for name, (of, _) in COMMANDS.items() if of == module)
        assert command in asked.names and line and not line.endswith(".")


def test_help_imports_nothing_that_takes_seconds():
    script = """
import io, sys
from contextlib import redirect_stdout
from tl_backward.cli import COMMANDS, main
for argv in (["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
    with redirect_stdout(io.StringIO()):
        try:
            main(argv)
        except SystemExit as end:
            assert end.code == 0
heavy = {"torch", "numpy", "pandas", "transformers", "transformer_lens", "beartype", "jaxtyping"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NUMBER = -3
FEW = ("a", "b")


def plainly(a, /, b: int = NUMBER, *, c: tuple[str, ...] | None = FEW, d=None):
    """A function."""


def computed(a: int = len("ab")): ...


def test_a_function_as_it_is_written():
    assert written.signature(f"{HERE}.plainly") == {
        name: each.replace(kind=each.KEYWORD_ONLY) for name, each in inspect.signature(plainly).parameters.items()
    }
    assert written.docstring(f"{HERE}.plainly") == "A function." and written.docstring(f"{HERE}.computed") == ""
    assert written.signature(f"{HERE}.plainly", ["c"])["c"].default == FEW


def test_a_name_that_is_imported_leads_to_where_it_is_written():
    assert get_args(written.value("tl_backward.inversion.options.Metric")) == get_args(Metric)
    assert written.docstring("tl_backward.editing.shift_edit").startswith("The forward-pass shift")


@pytest.mark.parametrize("source, message", [
    ("computed", r"Expected literals and types alone in cli.test_written, got \"len\('ab'\)\"; write it plainly"),
    ("absent", "Expected a function or class that is written in cli.test_written, got 'absent'"),
])  # fmt: skip
def test_what_is_not_written_plainly_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        written.signature(f"{HERE}.{source}")
    with pytest.raises(ValueError, match="Expected 'nothing' to stand for literals and types"):
        written.value(f"{HERE}.nothing")
