"""The files around the code: one list of dependencies, every pin installable."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = {canonicalize_name(name): v for name, _, v in (x.partition("==") for x in LINES)}


def test_every_dependency_is_pinned_within_its_range():
    groups = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *(d for g in groups.values() for d in g)]
    for requirement in map(Requirement, named):
        if requirement.name != PROJECT["name"]:
            pin = PINS[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin), requirement


def test_all_is_every_extra():
    groups = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, groups["all"])
    assert everything.extras == set(groups) - {"all"}


def test_the_conda_file_adds_nothing():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    *_, last = conda["dependencies"]
    assert last == {"pip": ["-c constraints.txt", "-e .[all]"]}


def test_utils_does_not_import_projects():
    for path in ROOT.glob("utils/**/*.py"):
        assert not re.search(r"^\s*(from|import) projects", path.read_text(), re.M), (
            path
        )


def test_sizes():
    """Small enough to read: files under 300 lines."""
    for path in [*ROOT.glob("utils/**/*.py"), *ROOT.glob("projects/**/*.py")]:
        assert len(path.read_text().splitlines()) < 300, path


def test_nothing_of_a_machine_is_committed():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    names = [n for n in listed.stdout.decode().split("\0") if n]
    machine = re.compile(
        r"/(root|work|home/\w+|Users/\w+)/|\.pkl\b.*load|\bpickle\.load"
    )
    own = Path(__file__).name
    text = {".py", ".md", ".yml", ".toml", ".csv", ".txt", ""}
    for path in (ROOT / name for name in names):
        checks = path.name in (
            own,
            "test_contract.py",
            "test_canonical.py",
            "test_llama_checkpoint.py",
            "test_llama_tokenizer.py",
        )
        if path.is_file() and path.suffix in text and not checks:
            assert not machine.search(path.read_text("utf-8")), path


def test_importing_utils_is_quiet_and_offline():
    script = "import utils.runtime, utils.corpora, utils.training, utils.measure"
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", script],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
