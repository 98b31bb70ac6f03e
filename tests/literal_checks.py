"""What pytest checks the package's types with: `tl_backward._support.literals`, loaded from outside the package.

jaxtyping's import hook has every module of the package import its checker, this one too.
"""

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[1] / "tl_backward" / "_support" / "literals.py"
_SPEC = importlib.util.spec_from_file_location("literals_of_the_package", _PATH)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
check_types = _MODULE.check_types
