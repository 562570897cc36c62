"""Takes definitions out of a notebook: a test checks the very code that is taught."""

import ast
from functools import cache
from typing import Any

import nbformat

from utils import registry

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@cache
def statements(number: str) -> tuple[ast.stmt, ...]:
    """All top-level statements of the notebook `02.3`, IPython magics left out."""
    (path,) = [p for p in registry.notebooks() if p.name.startswith(f"{number}_")]
    found: list[ast.stmt] = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            found += ast.parse(cell.source).body
    return tuple(found)


def names(statement: ast.stmt) -> set[str]:
    """What a top-level statement defines."""
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    if isinstance(statement, ast.Assign):
        return {t.id for t in statement.targets if isinstance(t, ast.Name)}
    return set()


def namespace(number: str, wanted: list[str]) -> dict[str, Any]:
    """Run the imports and the wanted definitions of a notebook; return its names.

    `wanted` lists functions, classes and constants by name, in any order; the first
    definition of each counts. Raises KeyError for a name that the notebook lacks.
    """
    result: dict[str, Any] = {"__name__": f"notebook_{number}"}
    missing = set(wanted)
    for statement in statements(number):
        is_import = isinstance(statement, ast.Import | ast.ImportFrom)
        if is_import or names(statement) & missing:
            missing -= names(statement)
            exec(compile(ast.Module([statement], []), f"<{number}>", "exec"), result)
    if missing:
        raise KeyError(f"{number} does not define {sorted(missing)}")
    return result
