"""Every notebook runs, offline, and the cells marked as exact repeat what is committed.

The run is the reader's own `make run`: what has not changed since then is not executed
again.
"""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
PATHS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("projects/*/*.ipynb")])


@pytest.fixture(scope="session")
def run() -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "utils.runner", "run"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )


def result(path: Path) -> dict:
    return json.loads((ROOT / "build/results" / f"{path.stem}.json").read_text())


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs(run, path):
    assert result(path)["status"] == "ok", result(path).get("error")


def test_report(run):
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert (ROOT / "build/report.html").exists()
    assert "Q022" in (ROOT / "build/claims.html").read_text()


def exact(path: Path) -> list[tuple[str, list[str]]]:
    """(source, texts) of the cells that are marked for comparison."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if "nbval-check-output" in cell.metadata.get("tags", []):
            texts = [
                str(out.get("text") or out.get("data", {}).get("text/plain", ""))
                for out in cell.outputs
                if "image/png" not in out.get("data", {})
            ]
            found.append((cell.source, texts))
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_marked_cells_repeat(run, path):
    ledger = json.loads((ROOT / "data/ledger.json").read_text())
    committed = ledger[path.stem]["python"]
    if committed != platform.python_version():
        pytest.skip(f"the text is that of Python {committed}: numbers differ here")
    again = ROOT / "build/executed" / path.name
    assert exact(path) == exact(again)


def test_some_cells_are_marked():
    marked = sum(len(exact(path)) for path in PATHS)
    assert marked >= 10


def test_documentation_names_only_targets_that_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"make (\w+)", text))
    assert named and named <= targets
