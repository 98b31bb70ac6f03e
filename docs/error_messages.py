"""A mkdocs hook: the page of errors lists every message the package raises, read from its source."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tl_backward"
MARK = "<!-- messages -->"


def on_page_markdown(markdown, page, **_):
    """Fill the page of errors."""
    return markdown.replace(MARK, listing(PACKAGE)) if MARK in markdown else markdown


def listing(package):
    """Every message as markdown, a section a module that raises."""
    parts = []
    for path in sorted(package.rglob("*.py")):
        found = dict.fromkeys(messages(ast.parse(path.read_text(encoding="utf-8"))))
        if found:
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
            rows = [f"- **{error}**: {shown(text)}" for error, text in found]
            parts.append(f"### `{name}`\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def messages(tree):
    """(error, message) of each `raise Error("...")`, what is filled in at run time as {name}."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = template(node.exc.args[0])
            if text and len(text) > 20:
                yield ast.unparse(node.exc.func), text


def template(node):
    """The text of a string expression; "" where there is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "{" + name_of(part.value) + "}" for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return ""


def name_of(node):
    """What stands for a value: its name where it has one, else dots."""
    text = ast.unparse(node)
    return text if len(text) <= 24 and text.isidentifier() else "…"


def shown(text):
    """A message as inline markdown that is shown as it is."""
    for char in "\\`*_[]<>|":
        text = text.replace(char, {"<": "&lt;", ">": "&gt;"}.get(char, "\\" + char))
    return " ".join(text.split())
