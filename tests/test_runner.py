"""The runner, on small notebooks that are really executed."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from utils.runner import __main__ as runner
from utils.runner import schedule
from utils.runner.offline.sitecustomize import is_local

ROOT = Path(__file__).parent.parent
PARAMETERS = 'SCALE = "laptop"  # or "gpu"\nSEED = 0\nSTEPS = 1'
OUTSIDE = "192.0.2.1"  # reserved for documentation: nobody answers there
HEALTHY = [
    # A server of our own is not the outside.
    "import socket\nserver = socket.create_server(('127.0.0.1', 0))\n"
    "socket.create_connection(server.getsockname()).close()",
    "import os, sys, tempfile\nfrom pathlib import Path\nfrom tqdm import tqdm\n"
    "from tqdm.auto import tqdm as widget\n"
    "print(sys.executable, Path.home() / 'x', tempfile.mkdtemp(), object())",
    "for i in tqdm(range(3)): print(i)\nfor i in widget(range(3)): pass",
    "print('steps', STEPS, 'seed', SEED, os.environ['OMP_NUM_THREADS'])\nPath.cwd()",
    "import utils\nfrom IPython.display import display\n"
    "card = {'claim': 'Q001', 'verdict': 'holds', 'measured': '1',\n"
    "        'low': None, 'runs': 1, 'over': 'runs'}\n"
    "display({'application/vnd.companion.verdict+json': card,"
    " 'text/plain': 'a card'}, raw=True)",
]
BAD = {
    "error": (["1 / 0"], "cell 2: ZeroDivisionError: division by zero"),
    "silent": (["assert 1 > 2"], "cell 2: AssertionError: assert 1 > 2"),
    "exit": (["import sys; sys.exit(0)", "1"], "cell 2: SystemExit: 0"),
    "died": (["import os; os.kill(os.getpid(), 9)", "1"], "cell 2: the kernel died"),
    "network": (
        [f"import socket; socket.create_connection(('{OUTSIDE}', 80))"],
        f"cell 2: reached for {OUTSIDE}:80, but laptop scale is offline",
    ),
    "swallowed": (
        [
            "import socket",
            "try: socket.getaddrinfo('example.org', 443)\nexcept OSError: 0",
        ],
        "cell 3: reached for example.org:443, but laptop scale is offline",
    ),
    "child": (
        [
            "import subprocess, sys\ncode = 'import socket; s = socket.socket("
            f'socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"x", ("{OUTSIDE}", 9))\'\n'
            "subprocess.run([sys.executable, '-c', code]).returncode"
        ],
        f"cell 2: reached for {OUTSIDE}:9, but laptop scale is offline",
    ),
    "memory": (
        ["import time; text = b'x' * 2**30; time.sleep(600)"],
        "cell 2: over the memory limit of 0.5 GB",
    ),
    "slow": (["import time; time.sleep(600)"], "cell 2: over the time limit of 30 s"),
}


def save(path: Path, cells: Sequence[str], parameters: str = PARAMETERS) -> None:
    """A notebook with a title and a parameters cell before its own cells."""
    first = [
        new_markdown_cell(f"# {path.stem} Title\n\nWhat *it* does."),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[*first, *map(new_code_cell, cells)]), path)


def repository(root: Path) -> Path:
    """A folder in which the runner finds what it needs but notebooks."""
    (root / "notebooks").mkdir()
    address = "https://github.com/someone/something"
    text = f'[project]\nname = "x"\n[project.urls]\nRepository = "{address}"\n'
    (root / "pyproject.toml").write_text(text)
    return root


def call(root: Path, *argv: str) -> tuple[int, str]:
    """Exit code and standard output of the runner on a repository."""
    schedule._shared.cache_clear()
    with redirect_stdout(io.StringIO()) as said:
        code = runner.main([*argv, "--root", str(root)])
    return code, said.getvalue()


def ran(said: str) -> set[str]:
    """The notebooks that were executed, by the runner's lines."""
    return set(re.findall(r"^(\S+)  started$", said, re.MULTILINE))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One run over a healthy notebook and one for each way to fail."""
    root = repository(tmp_path_factory.mktemp("mixed"))
    save(root / "notebooks" / "01.1_healthy.ipynb", HEALTHY)
    for i, (name, (cells, _)) in enumerate(BAD.items(), 2):
        parameters = PARAMETERS.replace("STEPS = 1", "STEPS = 3")  # none to inject
        save(root / "notebooks" / f"01.{i}_{name}.ipynb", cells, parameters)
    unknown = root / "projects" / "p" / "01.20_unknown.ipynb"
    save(unknown, ["1"], "SCALE = 'laptop'\nSEED = 0")
    save(root / "notebooks" / "01.21_bare.ipynb", ["1"], "STEPS = 1")
    save(root / "notebooks" / "02.1_unselected.ipynb", ["1 / 0"])
    # The slow one is known to be slow, so it must begin first.
    (root / "data").mkdir()
    ledger = {f"01.{len(BAD) + 1}_slow": {"cpu_seconds": 10**10}}
    (root / "data" / "ledger.json").write_text(json.dumps(ledger))
    # A user's own kernel of the same name must not be taken.
    kernel = root / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    limits = ("--timeout", "30", "--memory", "0.5", "--jobs", "3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        code, said = call(root, "run", "--only", "01", "--param", "STEPS=3", *limits)
    return root, code, said


def stored(root: Path, name: str) -> dict:
    (path,) = (root / "build" / "results").glob(f"01.*_{name}.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", BAD)
def test_every_failure_has_one_clear_line(mixed, name):
    root, _, said = mixed
    assert stored(root, name)["error"] == BAD[name][1]
    assert len(re.findall(rf"_{name}  FAILED  {re.escape(BAD[name][1])}\n", said)) == 1


def test_parameters_must_be_declared(mixed):
    words = "its parameters cell does not declare"
    assert stored(mixed[0], "unknown")["error"] == f"{words} STEPS"
    assert stored(mixed[0], "bare")["error"] == f"{words} SCALE"


def test_a_failure_stops_nobody_else(mixed):
    root, code, said = mixed
    assert code == 1
    assert f"1 of {len(BAD) + 3} notebooks ran" in said
    assert not list((root / "build" / "results").glob("02*"))
    result = stored(root, "healthy")
    assert result["status"] == "ok" and result["error"] == ""
    assert result["code_cells"] == len(HEALTHY) + 2  # parameters, and the injected one
    assert 10 < result["peak_memory_mb"] < 512
    assert [card["claim"] for card in result["verdicts"]] == ["Q001"]
    executed = (root / "build" / "executed" / "01.1_healthy.ipynb").read_text()
    assert "steps 3 seed 0 1" in executed


def test_longest_first(mixed):
    assert mixed[2].startswith(f"01.{len(BAD) + 1}_slow  started\n")


def test_reports(mixed):
    build = mixed[0] / "build"
    page = (build / "report.html").read_text()
    assert page.count("<tr>") == 1 + len(BAD) + 3
    assert "1 holds" in page and "the kernel died" in page
    assert 'href="html/01.1_healthy.html"' in page
    assert "a card" in (build / "html" / "01.1_healthy.html").read_text()
    assert (build / "coverage.html").exists() and (build / "claims.html").exists()


def test_no_process_is_left(mixed):
    """Kernels work in the folder of their notebook, so that they can be told."""
    homes = []
    for process in psutil.process_iter(["cwd"]):
        homes.append(process.info["cwd"] or "")
    assert not [home for home in homes if home.startswith(str(mixed[0]))]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    root = repository(tmp_path_factory.mktemp("book"))
    save(root / "notebooks" / "01.1_one.ipynb", HEALTHY)
    save(root / "notebooks" / "01.2_two.ipynb", ["1"])
    return root


def test_only_what_changed_runs_again(book):
    one, two = "01.1_one", "01.2_two"
    code, said = call(book, "run")
    assert (code, ran(said)) == (0, {one, two})
    code, said = call(book, "run")
    assert (code, ran(said)) == (0, set()) and said.count("re-used") == 2
    save(book / "notebooks" / f"{two}.ipynb", ["2"])
    assert ran(call(book, "run")[1]) == {two}
    assert ran(call(book, "run", "--seed", "1", "--only", "01.2")[1]) == {two}
    (book / "data").mkdir()
    (book / "data" / "words.txt").write_text("a")
    assert ran(call(book, "run", "--only", "01.2")[1]) == {two}
    save(book / "notebooks" / "01.20_twenty.ipynb", ["1"])
    assert "01.20" not in call(book, "run", "--only", "01.2")[1]


def test_refresh_writes_a_quiet_notebook(book):
    paths = sorted((book / "notebooks").glob("*.ipynb"))
    assert call(book, "refresh")[0] == 0
    first = [path.read_bytes() for path in paths]
    ledger = (book / "data" / "ledger.json").read_bytes()
    code, said = call(book, "refresh")
    assert code == 0 and ran(said) == set()  # the head is no change
    assert [path.read_bytes() for path in paths] == first
    assert (book / "data" / "ledger.json").read_bytes() == ledger
    check_quiet(book, first[0].decode())
    row = json.loads(ledger)["01.1_one"]
    assert row["code_cells"] == len(HEALTHY) + 1 and isinstance(row["cpu_seconds"], int)
    cost = f"about {row['cpu_seconds']} s and {row['peak_memory_mb']} MB on one core"
    assert cost in first[0].decode()


def check_quiet(book: Path, text: str) -> None:
    """No trace of the machine, the moment or the tools is in a notebook's text."""
    homes = [str(book), str(ROOT), str(Path.home()), sys.prefix]
    traces = ["widget-view", "it/s", 'papermill"', "start_time", "0x7", "companion-"]
    for trace in homes + traces:
        assert trace not in text.replace("vnd.companion-", "")
    assert "<home>/x <tmp>/tmp <object object at 0x…>" in text
    assert "PosixPath('<repo>/notebooks')" in text
    assert "github.com/someone/something" not in text
    assert "github/someone/something/blob/main/notebooks/01.1_one.ipynb" in text
    notebook = nbformat.reads(text, as_version=4)
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == [*range(1, len(HEALTHY) + 2)]


def test_refresh_leaves_a_failed_notebook_alone(tmp_path):
    root = repository(tmp_path)
    path = root / "notebooks" / "01.1_bad.ipynb"
    save(path, ["1 / 0"])
    before = path.read_bytes()
    broken = root / "notebooks" / "01.2_broken.ipynb"
    broken.write_text("{")
    code, said = call(root, "refresh")
    assert code == 1 and said.count("not refreshed") == 2
    assert "Notebook does not appear to be JSON" in said
    assert path.read_bytes() == before and broken.read_text() == "{"
    assert json.loads((root / "data" / "ledger.json").read_text()) == {}


def test_site(book):
    assert call(book, "site")[0] == 0
    site = book / "build" / "site"
    page = (site / "index.html").read_text()
    assert page.index("01.1_one Title") < page.index("01.2_two Title")
    assert "What <em>it</em> does." in page and 'href="01.1_one.html"' in page
    assert (site / "01.2_two.html").exists() and (site / "claims.html").exists()


def test_a_killed_run_resumes(tmp_path):
    root = repository(tmp_path)
    save(root / "notebooks" / "01.1_quick.ipynb", ["1"])
    wait = (
        "import os, time\nfrom pathlib import Path\nfresh = not Path('pid').exists()\n"
        "Path('pid').write_text(str(os.getpid()))\nif fresh: time.sleep(600)"
    )
    save(root / "notebooks" / "01.2_long.ipynb", [wait])
    command = [sys.executable, "-m", "utils.runner", "run", "--jobs", "1"]
    pid = root / "notebooks" / "pid"
    with subprocess.Popen([*command, "--root", str(root)], cwd=ROOT) as process:
        until(lambda: pid.exists() and pid.read_text(), 120)
        os.kill(process.pid, signal.SIGKILL)
    kernel = int(pid.read_text())
    until(lambda: not psutil.pid_exists(kernel), 20)
    code, said = call(root, "run")
    assert (code, ran(said)) == (0, {"01.2_long"})


def until(ready, seconds: float) -> None:
    """Wait for something; fail when it does not come in time."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scale", "huge"], "SCALE must be laptop or gpu, not 'huge'."),
        (["--scale", ""], "SCALE must be laptop or gpu, not ''."),
        (["--seed", "-1"], "SEED must be a whole number from 0 up, not '-1'."),
        (["--seed", "1.5"], "SEED must be a whole number from 0 up, not '1.5'."),
        (["--only", "99"], "No notebook begins with '99'; there are 01.1_x."),
        (["--param", "STEPS"], "A parameter is given as NAME=VALUE, not 'STEPS'."),
        (["--param", "a-b=1"], "A parameter is given as NAME=VALUE, not 'a-b=1'."),
        (["--param", "SEED=1"], "SEED has its own option: --seed 1."),
        (["--jobs", "0"], "A number above 0 is needed, not '0'."),
        (["--timeout", "soon"], "A number above 0 is needed, not 'soon'."),
        (["--fast"], "Unrecognized arguments: --fast."),
    ],
)
def test_a_wrong_command_is_refused_in_one_sentence(tmp_path, capsys, argv, words):
    save(tmp_path / "notebooks" / "01.1_x.ipynb", ["1"])
    assert runner.main(["run", *argv, "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err == words + "\n"


def test_refresh_takes_no_parameters(tmp_path, capsys):
    assert runner.main(["refresh", "--seed", "7", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("A refresh has no parameters")


def test_numbers_sort_as_numbers():
    names = ["copilot", "10.1_a", "02.10_b", "02.9_c"]
    assert sorted(names, key=schedule.reading_order) == names[::-1]


@pytest.mark.parametrize("host", ["127.0.0.9", "::1", "localhost", "", None, "0.0.0.0"])
def test_this_machine_is_local(host):
    assert is_local(host)


@pytest.mark.parametrize("host", ["192.168.0.1", "8.8.8.8", b"example.org", "fe80::1"])
def test_everything_else_is_outside(host):
    assert not is_local(host)
