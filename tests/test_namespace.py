"""Python started from the folder above the clone, which has the package's name, imports the package."""

import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported(python, folder):
    """What `import tl_backward` finds from a folder, without importing it: its file, or None for a namespace."""
    code = "import importlib.util as u; print(u.find_spec('tl_backward').origin)"
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True, env={})
    return done.stdout.strip()


def test_from_the_folder_above_a_clone(tmp_path):
    """As a compat install leaves it: the clone's own path in a .pth file."""
    venv.create(tmp_path / "env", with_pip=False)
    (tmp_path / "tl_backward").mkdir()  # a clone, seen from above
    python = tmp_path / "env/bin/python"
    (site,) = (tmp_path / "env/lib").glob("python3*/site-packages")
    (site / "__editable__.pth").write_text(f"{ROOT}\n")
    assert imported(python, tmp_path) == str(ROOT / "tl_backward/__init__.py")
    # By a finder of names, which setuptools writes otherwise, the folder comes first.
    finder = "import sys, importlib.util as u\nclass F:\n    def find_spec(name, path=None, target=None):\n"
    finder += f"        return u.spec_from_file_location(name, r'{ROOT}/tl_backward/__init__.py') if name == 'tl_backward' else None\n"
    (site / "_finder.py").write_text(finder + "sys.meta_path.append(F)\n")
    (site / "__editable__.pth").write_text("import _finder\n")
    assert imported(python, tmp_path) in ("None", "")


def test_every_editable_install_is_compat():
    recipes = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line and " -e " in line
    ]
    assert len(recipes) == 4 and all("$(COMPAT)" in line for line in recipes)
    assert "--config-settings editable_mode=compat" in (ROOT / "CONTRIBUTING.md").read_text()
