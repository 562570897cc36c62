"""The form that every committed notebook keeps (CONTRIBUTING.md says why)."""

import ast
import base64
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
PATHS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("projects/*/*.ipynb")])
SETUP = (ROOT / "tests" / "setup_cell.txt").read_text().strip()
MACHINE = re.compile(r"/(root|home|tmp|work|Users)/|file://|\.venv|0x[0-9a-f]{9,}")
PLACEHOLDER = re.compile(r"\b(TODO|FIXME|XXX|lorem ipsum)\b", re.IGNORECASE)


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [out for cell in code(notebook) for out in cell.outputs]


def test_there_are_notebooks():
    assert len(PATHS) >= 9


def test_valid_and_quiet(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "jupyter"}
    assert [cell.id for cell in notebook.cells] == sorted(
        {c.id for c in notebook.cells}
    )


def test_head(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \d\d(\.\d+)? \S", first.source)
    assert "colab.research.google.com" in first.source
    assert re.search(r"about \d+ s", first.source), "no measured run time in the head"


def test_parameters_and_setup(notebook):
    assert tags(notebook.cells[1]) == ["parameters"]
    assert re.search(r'^SCALE = "laptop"  # ', notebook.cells[1].source, re.M)
    assert re.search(r"^SEED = 0  # ", notebook.cells[1].source, re.M)
    assert tags(notebook.cells[2]) == ["setup"]
    assert notebook.cells[2].source == SETUP


def test_prose_before_code(notebook):
    for before, cell in zip(notebook.cells[2:], notebook.cells[3:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", (
                f"no prose before: {cell.source[:60]}"
            )
    words = sum(
        len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown"
    )
    assert words >= 400


def test_cells_fit_a_screen(notebook):
    sources = [cell.source for cell in code(notebook)]
    lengths = sorted(len(source.splitlines()) for source in sources)
    assert lengths[-1] <= 40
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 25
    long = [line for s in sources for line in s.splitlines() if len(line) > 88]
    assert not long, long[0]


def test_exercises_and_ending(notebook):
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert "## Try it" in text
    assert sum("solution" in tags(cell) for cell in code(notebook)) >= 3
    assert "## What we saw" in notebook.cells[-1].source
    assert not PLACEHOLDER.search(text)


def test_executed_in_one_pass(notebook):
    counts = [cell.execution_count for cell in code(notebook) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1))
    assert not [out for out in outputs(notebook) if out.output_type == "error"]


def test_outputs_say_nothing_of_the_machine(notebook):
    for out in outputs(notebook):
        text = str(out.get("text", "")) + str(
            {k: v for k, v in out.get("data", {}).items() if not k.startswith("image")}
        )
        assert not MACHINE.search(text), MACHINE.search(text)
        assert "widget" not in text
        assert out.get("name") != "stderr", text[:200]


def test_pictures_are_small_and_have_captions(notebook):
    pictures = 0
    for cell in code(notebook):
        images = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        pictures += len(images)
        for image in images:
            size = len(base64.b64decode(image.data["image/png"]))
            assert size < 150_000, f"{size} bytes in {cell.id}"
        captions = [o for o in cell.outputs if "text/markdown" in o.get("data", {})]
        assert len(captions) >= len(images), f"a figure without caption in {cell.id}"
    assert pictures >= 1


def test_no_assertion_on_the_clock(notebook):
    clock = re.compile(
        r"assert.*\b(perf_counter|process_time|time\.time|cpu_seconds)\b"
    )
    assert not [c.source for c in code(notebook) if clock.search(c.source)]


def definitions(source: str):
    """(name, body) of the functions and classes of some length in a source."""
    source = re.sub(r"^\s*[!%].*$", "pass", source, flags=re.M)
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and len(node.body) > 1:
            yield node.name, ast.dump(ast.Module(node.body[-2:], []))


def test_no_definition_stands_twice():
    found: Counter = Counter()
    for path in PATHS:
        for cell in code(nbformat.read(path, as_version=4)):
            if "setup" not in tags(cell):
                found.update(definitions(cell.source))
    for path in [*ROOT.glob("utils/**/*.py"), *ROOT.glob("projects/**/*.py")]:
        found.update(definitions(path.read_text()))
    assert [name for (name, _), count in found.items() if count > 1] == []


def test_readme_links_every_notebook():
    readme = (ROOT / "README.md").read_text()
    for path in PATHS:
        assert str(path.relative_to(ROOT)) in readme
