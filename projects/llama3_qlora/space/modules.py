"""What a program imports: read from its source, not listed by hand."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports when it is itself imported: `from a import b`
    gives `a` and `a.b`, which may be a module. Imports inside functions do not count:
    in `utils` they are for notebooks."""
    for node in _at_the_top(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _at_the_top(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _at_the_top(child)


def file_of(name: str, root: Path) -> Path | None:
    """The file of a dotted module name below `root`, or None."""
    path = root.joinpath(*name.split("."))
    found = [p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()]
    return found[0] if found else None


def reached(start: Path, root: Path) -> tuple[set[Path], set[str]]:
    """Everything behind the imports of the file `start`: the files below `root`, and
    the top-level names that are neither there nor in Python's library."""
    files: set[Path] = set()
    names: set[str] = set()
    waiting = list(imported(start))
    while waiting:
        name = waiting.pop()
        top, *rest = name.split(".")
        if not (root / top).exists() and not file_of(top, root):
            names |= {top} - sys.stdlib_module_names
            continue
        # importing a.b.c runs a and a.b first
        parents = [".".join([top, *rest[:n]]) for n in range(len(rest) + 1)]
        for path in filter(None, (file_of(parent, root) for parent in parents)):
            if path not in files:
                files.add(path)
                waiting += imported(path)
    return files, names


def unresolved(start: Path, root: Path) -> set[str]:
    """What a program below `root` imports from packages that are there, and does not
    find: modules, and names that a package does not define."""
    files, _ = reached(start, root)
    missing = set()
    for path in {start, *files}:
        for name in imported(path):
            package, _, last = name.rpartition(".")
            if not (root / name.split(".")[0]).is_dir() or file_of(name, root):
                continue
            holder = file_of(package, root) if package else None
            if holder is None or last not in defined(holder):
                missing.add(name)
    return missing


def defined(path: Path) -> set[str]:
    """Names that a file gives to whoever imports it."""
    found = set()
    for node in _at_the_top(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
    tree = ast.parse(path.read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return found | {node.name for node in tree.body if isinstance(node, functions)}


def pins(names: set[str], constraints: Path) -> list[str]:
    """`name==version` for the distributions that hold these top-level names and for all
    that they need in turn, as `constraints` has it."""
    lines = constraints.read_text("utf-8").split()
    versions = {canonicalize_name(line.partition("==")[0]): line for line in lines}
    holders = metadata.packages_distributions()
    waiting = [holder for name in names for holder in holders.get(name, [name])]
    found: dict[str, str] = {}
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in versions and name not in found:
            found[name] = versions[name]
            needs = map(Requirement, metadata.requires(name) or [])
            waiting += [r.name for r in needs if not r.marker or _holds(r)]
    return sorted(found.values(), key=str.lower)


def _holds(requirement: Requirement) -> bool:
    return bool(requirement.marker and requirement.marker.evaluate({"extra": ""}))
