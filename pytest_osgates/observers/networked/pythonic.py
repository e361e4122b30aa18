"""What Python's own parser says that a text imports. The text is not run."""

from __future__ import annotations

import ast
import re
import warnings

MAX_PARSED = 1 << 20
# Statements that stand alone on lines, as expressions find them; the parser takes ten times as long.
_NAME = r"\w[\w.]*(?:[ \t]+as[ \t]+\w+)?[ \t]*"
_PLAIN = re.compile(
    rf"^[ \t]*(?:import[ \t]+{_NAME}(?:,[ \t]*{_NAME})*"
    r"|from[ \t]+[\w.]+[ \t]+import[ \t]+(?:\([\w., \t\n]*\)|[\w., \t*]+))(?:#(?:(?!\bimport\b)[^\n])*)?$",
    re.M,
)
_WORD = re.compile(r"\bimport\b")


def is_plain(text: str) -> bool:
    """Whether each ``import`` in a text is a statement of the usual form."""
    return len(_WORD.findall(text)) == len(_PLAIN.findall(text))


def parsed_imports(text: str) -> tuple[str, ...] | None:
    """The modules that a text imports, and what it takes from them, which may be modules as well; leading dots stay.
    None: it cannot be parsed, which is so for Python 2, too."""
    if len(text) > MAX_PARSED:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(text.encode("utf-8", "surrogateescape")).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: dict[str, None] = {}
    pending: list[ast.AST] = [*reversed(body)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            prefix = module if module.endswith(".") else f"{module}."
            names.update(dict.fromkeys((module, *(f"{prefix}{alias.name}" for alias in node.names))))
        else:
            # Statements are in statements, never in expressions.
            for part in ("finalbody", "orelse", "handlers", "cases", "body"):
                inner = getattr(node, part, None)
                pending += reversed(inner) if isinstance(inner, list) else ()
    return tuple(name for name in names if not name.endswith(".*"))
