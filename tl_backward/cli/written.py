"""Signatures as they stand in the source: what a command's options are made from, without importing what it runs.

PyTorch takes seconds to import, and help needs none of it. Only what an option's type or default is written with is
understood: literals, names, unions and subscripts.
"""

import ast
import builtins
from collections.abc import Collection
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter
from pathlib import Path
from typing import Any


def signature(source: str, names: Collection[str] = ()) -> dict[str, Parameter]:
    """Parameters of a function or method, or fields of a dataclass, named as "tl_backward.lens.control.RandomInit".

    Args:
        source: module and name, dotted.
        names: which of them; all where none is named.

    Raises:
        ValueError: there is no such thing, or its types are not written plainly.
    """
    found, module = _found(source)
    parts: dict[str, tuple[ast.expr | None, ast.expr | None]] = {}
    if isinstance(found, ast.ClassDef):
        fields = [line for line in found.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]
        parts |= {ast.unparse(line.target): (line.annotation, line.value) for line in fields}
    elif isinstance(found, ast.FunctionDef):
        given = [*found.args.posonlyargs, *found.args.args]
        defaults = [*[None] * (len(given) - len(found.args.defaults)), *found.args.defaults, *found.args.kw_defaults]
        every = zip([*given, *found.args.kwonlyargs], defaults, strict=True)
        parts |= {each.arg: (each.annotation, default) for each, default in every}
    return {
        name: Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if default is None else _value(default, module),
            annotation=Parameter.empty if annotation is None else _value(annotation, module),
        )
        for name, (annotation, default) in parts.items()
        if name in names or not names
    }


def docstring(source: str) -> str:
    """The docstring of a function or class that is named as for `signature`; nothing where it has none."""
    found, _ = _found(source)
    return ast.get_docstring(found) or "" if isinstance(found, ast.FunctionDef | ast.ClassDef) else ""


def value(source: str) -> Any:
    """What a name of a module stands for, such as the choices of a type, where that is written plainly.

    Raises:
        ValueError: there is no such name, or it stands for more than that.
    """
    module, _, name = source.rpartition(".")
    return _named(name, module)


def _found(source: str) -> tuple[ast.AST, str]:
    """The definition (of overloads the last) that a name leads to, and the module that it is in."""
    module, _, name = source.rpartition(".")
    lines = None
    if module.rpartition(".")[2][:1].isupper():  # a method
        owner, module = _found(module)
        lines = owner.body if isinstance(owner, ast.ClassDef) else []
    for line in reversed(_lines(module) if lines is None else lines):
        if isinstance(line, ast.FunctionDef | ast.ClassDef) and line.name == name:
            return line, module
        if isinstance(line, ast.ImportFrom) and (alias := _imported(line, name)):
            return _found(f"{line.module}.{alias}")
    raise ValueError(f"Expected a function or class that is written in {module}, got {name!r}; see its source.")


@cache
def _lines(module: str) -> list[ast.stmt]:
    root, *parts = module.split(".")
    spec = find_spec(root)
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else Path()
    path = folder.joinpath(*parts)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")).body


def _imported(line: ast.ImportFrom, name: str) -> str | None:
    return next((alias.name for alias in line.names if (alias.asname or alias.name) == name), None)


def _named(name: str, module: str) -> Any:
    for line in reversed(_lines(module)):
        if isinstance(line, ast.ImportFrom) and (alias := _imported(line, name)):
            home = line.module or ""
            ours = home.split(".")[0] == module.split(".")[0]
            return _named(alias, home) if ours else getattr(import_module(home), alias)
        if isinstance(line, ast.ClassDef) and line.name == name:
            return type(name, (), {"__module__": module})  # of which only its being another type matters
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            if any(isinstance(each, ast.Name) and each.id == name for each in targets):
                return _value(line.value, module)
    if hasattr(builtins, name):
        return getattr(builtins, name)
    raise ValueError(f"Expected {name!r} to stand for literals and types in {module}, got something else; see there.")


def _value(node: ast.expr, module: str) -> Any:
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.Name(id=name):
            return _named(name, module)
        case ast.Tuple(elts=items):
            return tuple(_value(item, module) for item in items)
        case ast.Subscript(value=generic, slice=items):
            return _value(generic, module)[_value(items, module)]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _value(left, module) | _value(right, module)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, module)
    raise ValueError(f"Expected literals and types alone in {module}, got {ast.unparse(node)!r}; write it plainly.")
