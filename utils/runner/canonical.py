"""Makes executed notebooks quiet in diffs, and reads what the runner needs from them.

The same run gives the same file on every machine: cell ids by position, sorted keys, no
widgets, progress bars, time stamps, object addresses or local paths.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
VERDICT = "application/vnd.companion.verdict+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d+%\|.*\||\d+it \[\d\d:\d\d|\?it/s")  # what tqdm draws
CURSOR = re.compile(r"\x1b\[[0-9;]*[A-HJK]")  # tqdm moves between nested bars
ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]{6,16}\b")
STYLER = re.compile(r"\bT_[0-9a-f]{5}(?=[ _\"'])")  # a pandas Styler draws a random id
HEAD = re.compile(r"<!-- head -->.*?<!-- /head -->", re.DOTALL)
LABELS = ("repo", "tmp", "python", "home", "cell")


def write(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def read(path: Path) -> NotebookNode:
    """A notebook in the current format. Raises ValueError when the file is none."""
    return nbformat.read(path, as_version=4)


def text(notebook: NotebookNode) -> str:
    """The file's text: keys sorted, indented by one, with a newline at the end."""
    return nbformat.writes(notebook, version=4, indent=1, sort_keys=True) + "\n"


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells that Jupyter numbers: those with anything in them."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [cell for cell in cells if cell.source.strip()]


def title(notebook: NotebookNode) -> str:
    """The first heading of the first cell."""
    match = re.search(r"^# (.+)$", first_source(notebook), re.MULTILINE)
    return match[1].strip() if match else "Untitled"


def summary(notebook: NotebookNode) -> str:
    """The first paragraph of the first cell, as one line."""
    body = HEAD.sub("", first_source(notebook))
    parts = [" ".join(p.split()) for p in re.split(r"\n\s*\n", body)]
    return next((part for part in parts if part and not part.startswith("#")), "")


def first_source(notebook: NotebookNode) -> str:
    return notebook.cells[0].source if notebook.cells else ""


def verdicts(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The data of all verdict cards among the outputs."""
    outputs = [o for cell in code_cells(notebook) for o in cell.get("outputs", [])]
    return [o.data[VERDICT] for o in outputs if VERDICT in o.get("data", {})]


def set_head(notebook: NotebookNode, line: str) -> None:
    """Put a line between the marks in cell 1; without marks, below its title."""
    cell = notebook.cells[0]
    head = f"<!-- head -->\n{line}\n<!-- /head -->"
    if HEAD.search(cell.source):
        cell.source = HEAD.sub(lambda _: head, cell.source)
    else:
        first, _, rest = cell.source.partition("\n")
        cell.source = f"{first}\n\n{head}\n\n{rest.lstrip()}".rstrip()


def identity(notebook: NotebookNode) -> list[Any]:
    """Sources and tags: what an author wrote, without head, outputs and white space
    around the head."""
    written = [[c.cell_type, c.source, tags(c)] for c in notebook.cells]
    if written:
        written[0][1] = " ".join(HEAD.sub(" ", written[0][1]).split())
    return written


def short_names(*repositories: Path, scratch: Path | None = None) -> dict[str, str]:
    """Local folders and the names that replace them, such as `<repo>`."""
    named = [(path, "repo") for path in repositories]
    named += [(Path(tempfile.gettempdir()), "tmp"), (Path.home(), "home")]
    named += [(Path(prefix), "python") for prefix in (sys.prefix, sys.base_prefix)]
    if scratch:
        named.append((scratch, "tmp"))
    # A prefix such as /usr is the same everywhere, and is a word in many lessons.
    kept = [(p, n) for p, n in named if len(p.parts) > (3 if n == "python" else 1)]
    return {str(p): name for path, name in kept for p in (path, path.resolve())}


def canonical(notebook: NotebookNode, names: dict[str, str]) -> NotebookNode:
    """A quiet copy of a notebook; `names` comes from `short_names`.

    Applied to its own result it changes nothing.
    """
    cells = [_cell(cell, i, names) for i, cell in enumerate(notebook.cells, 1)]
    quiet = nbformat.v4.new_notebook(metadata=deepcopy(METADATA), cells=cells)
    quiet.nbformat_minor = 5
    return quiet


def _cell(cell: NotebookNode, number: int, names: dict[str, str]) -> NotebookNode:
    quiet = deepcopy(cell)
    quiet.id = f"cell-{number:03}"
    quiet.metadata = NotebookNode({"tags": tags(cell)} if tags(cell) else {})
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden")
    if hidden or "solution" in tags(cell):
        quiet.metadata.jupyter = NotebookNode(source_hidden=True)
    if cell.cell_type == "code":
        quiet.outputs, before = _outputs(cell.get("outputs", []), number, names), None
        while quiet.outputs != before:  # what was dropped may have parted two halves
            before = quiet.outputs
            quiet.outputs = _outputs(before, number, names)
        quiet.setdefault("execution_count", None)
    return quiet


def _outputs(
    outputs: Iterable[NotebookNode], number: int, names: dict[str, str]
) -> list[NotebookNode]:
    """Widgets and bars dropped, streams joined, texts cleaned."""
    kept = _join(o for o in outputs if WIDGET not in o.get("data", {}))
    for i, output in enumerate(kept):
        output.pop("transient", None)
        if output.output_type == "stream":
            output.text = _clean(_terminal(output), names)
        elif output.output_type == "error":
            output.evalue = _clean(output.evalue, names)
            output.traceback = [_clean(line, names) for line in output.traceback]
        else:
            output.metadata = NotebookNode(_clean(output.metadata, names))
            styler = f"T_{number:03x}{i:02x}"
            output.data = NotebookNode(
                {m: _data(m, d, styler, names) for m, d in output.data.items()}
            )
    return _join(o for o in kept if o.get("text") or o.output_type != "stream")


def _join(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """A copy of the outputs; neighbouring streams (they have a name) become one."""
    joined: list[NotebookNode] = []
    for output in map(deepcopy, outputs):
        last = joined[-1] if joined else NotebookNode()
        if "name" in output and output.name == last.get("name"):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _terminal(stream: NotebookNode) -> str:
    """What a terminal would still show: overwritten text and progress bars are gone."""
    lines = CURSOR.sub("", stream.text).split("\n")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    if stream.name == "stdout":
        return "\n".join(lines)
    lines = [line for line in lines if not BAR.search(line)]
    return "\n".join(lines) if any(line.strip() for line in lines) else ""


def _data(mime: str, value: Any, styler: str, names: dict[str, str]) -> Any:
    if mime.startswith("image/") and mime != "image/svg+xml":
        return value  # base64
    if mime in ("text/html", "text/markdown", "image/svg+xml"):
        value = STYLER.sub(styler, value) if isinstance(value, str) else value
        return _clean(value, names, "&lt;", "&gt;")
    return _clean(value, names)


def _clean(value: Any, names: dict[str, str], left: str = "<", right: str = ">") -> Any:
    """Short names for paths and no addresses, in all strings of a JSON value."""
    if isinstance(value, dict):
        return {k: _clean(v, names, left, right) for k, v in value.items()}
    if isinstance(value, list):
        return [_clean(item, names, left, right) for item in value]
    if not isinstance(value, str):
        return value
    value = ADDRESS.sub("0x…", value)
    paths = "|".join(re.escape(p) for p in sorted(names, key=len, reverse=True))
    again = "".join(f"(?<!{left}{label}{right})" for label in LABELS)
    local = re.compile(rf"(?<![\w.]){again}(?:{paths})(?![\w-])")
    value = local.sub(lambda m: left + names[m[0]] + right, value)
    tmp = f"{left}tmp{right}/"
    value = re.sub(rf"{tmp}ipykernel_\d+/\d+\.py", f"{left}cell{right}", value)
    return re.sub(rf"(?<={tmp})tmp[a-z0-9_]{{8}}(?!\w)", "tmp", value)
