"""Executes one notebook through papermill, in a process of its own.

The runner starts `python -m utils.runner.execute JOB` with the job as JSON, reads a
line for each cell from its output, and finds the result in `build/`.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from utils.runner import canonical, report

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One notebook to run. `parameters` maps names to values; `key` says what the run
    depends on; `timeout` is in seconds, `memory` in GB (2**30 bytes), `runner` is the
    process that waits for the result."""

    name: str
    path: str
    root: str
    parameters: dict[str, Any]
    key: str
    timeout: float
    memory: float
    runner: int

    @property
    def offline(self) -> bool:
        return self.parameters["SCALE"] == "laptop"


class OwnKernel(AsyncKernelManager):
    """Starts this very interpreter, whatever kernels the user has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


class Watch(threading.Thread):
    """Measures the kernel and what it starts, and ends them at a limit."""

    def __init__(self, job: Job, scratch: Path) -> None:
        super().__init__(daemon=True)
        self.job, self.scratch = job, scratch
        self.begun = time.monotonic()
        self.peak = 0  # bytes
        self.broken = ""  # the limit that was hit
        self.cpu: dict[psutil.Process, float] = {}  # seconds of each process seen

    def run(self) -> None:
        while True:
            self.measure()
            if os.getppid() != self.job.runner:  # killed: nobody waits for us
                self.end(1)
            if self.seconds > self.job.timeout + 60:  # the kernel is gone, we hang
                self.end(1)
            if not self.broken and (limit := self.limit()):
                self.broken = limit
                self.kill()
            time.sleep(0.25)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def measure(self) -> None:
        total = 0
        for process in psutil.Process().children(recursive=True):
            self.cpu.setdefault(process, 0.0)
            with suppress(psutil.Error):
                total += process.memory_info().rss
                self.cpu[process] = sum(process.cpu_times()[:2])  # user and system
        self.peak = max(self.peak, total)

    def limit(self) -> str:
        if self.seconds > self.job.timeout:
            return f"over the time limit of {self.job.timeout:g} s"
        if self.peak > self.job.memory * 2**30:
            return f"over the memory limit of {self.job.memory:g} GB"
        return ""

    def kill(self) -> None:
        """End the kernel and all it ever started, also what outlived its parent."""
        for process in self.cpu:
            with suppress(psutil.Error):
                process.kill()

    def end(self, code: int) -> None:
        self.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)
        os._exit(code)


class Cells:
    """Counts the code cells as they start, and tells the runner."""

    def __init__(self, log: Path) -> None:
        self.number, self.total, self.reached = 0, 0, 0
        self.log = log
        # Only the runner's pipe gets these lines; the kernel writes to our stderr.
        self.pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def start(self, cell: NotebookNode, cell_index: int) -> None:
        if cell.cell_type == "code" and cell.source.strip():
            self.number += 1
            print(f"{self.number}/{self.total}", file=self.pipe, flush=True)

    def executed(self, **_: Any) -> None:
        if not self.reached and self.log.exists():
            self.reached = self.number  # the cell that reached for the network

    def network(self) -> str:
        """What is wrong when anything tried to leave the machine."""
        if not self.log.exists():
            return ""
        place = self.log.read_text(encoding="utf-8").splitlines()[0]
        where = f"cell {self.reached or self.number}"
        return f"{where}: reached for {place}, but laptop scale is offline"


def injected(notebook: NotebookNode, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that papermill must inject: those that differ from the default.

    With all at their defaults the executed copy has exactly the cells of its source.
    Raises ValueError for a parameter that the notebook does not declare.
    """
    declared = papermill.inspect_notebook(notebook)
    for name in parameters:
        if name not in declared:
            raise ValueError(f"its parameters cell does not declare {name}")
    return {k: v for k, v in parameters.items() if _value(declared[k]["default"]) != v}


def _value(source: str) -> Any:
    """The value that a default spells, or the text when it is an expression."""
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return source


def environment(job: Job, scratch: Path, log: Path) -> None:
    """Set what the kernel inherits; this process has imported all it needs."""
    paths = [str(HERE.parent.parent)]
    if job.offline:
        paths.insert(0, str(HERE / "offline"))
        os.environ["COMPANION_NETWORK_LOG"] = str(log)
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    # No profile of the user, and temporary files that vanish with the run.
    os.environ["IPYTHONDIR"] = str(scratch / "ipython")
    os.environ["TMPDIR"] = str(scratch)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a warning about debuggers


def attempt(job: Job, copy: Path, cells: Cells) -> str:
    """Execute into `copy`, saved after each cell; what went wrong outside of it."""
    notebook = canonical.read(Path(job.path))
    notebook.metadata.update(canonical.METADATA)
    cells.total = len(canonical.code_cells(notebook))
    try:
        parameters = injected(notebook, job.parameters)
        papermill.execute_notebook(
            notebook,
            str(copy).replace("{", "{{").replace("}", "}}"),  # papermill formats it
            parameters,
            kernel_name="python3",
            language="python",
            kernel_manager_class=OwnKernel,
            on_cell_start=cells.start,
            on_cell_executed=cells.executed,
            progress_bar=False,
            cwd=Path(job.path).parent,
        )
    except ValueError as error:
        return str(error)
    except DeadKernelError:
        return f"cell {cells.number}: the kernel died"
    except PapermillExecutionError:
        pass  # `unfinished` reads the error from the copy
    return ""


def unfinished(notebook: NotebookNode) -> str:
    """Why a run does not count: an error, or a cell out of the order 1..n.

    Papermill calls it success when `sys.exit(0)` leaves out the rest.
    """
    for number, cell in enumerate(canonical.code_cells(notebook), 1):
        for output in cell.outputs:
            if output.output_type == "error":
                return f"cell {number}: {output.ename}: {_message(output)}"
        if cell.execution_count != number:
            return f"cell {number}: did not run in order"
    return ""


def _message(error: NotebookNode) -> str:
    """The first line of an error, or of the code that raised one without words."""
    if error.evalue.strip():
        return error.evalue.strip().split("\n")[0]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    arrow = re.search(r"^-+> *\d+ (.+)$", plain, re.MULTILINE)
    return arrow[1].strip() if arrow else "no message"


def execute(job: Job, scratch: Path) -> tuple[dict[str, Any], NotebookNode]:
    """Run a job; the result for the report and the executed notebook, canonical."""
    copy, log = scratch / "copy.ipynb", scratch / "network.log"
    environment(job, scratch, log)
    watch, cells = Watch(job, scratch), Cells(log)
    watch.start()
    outside = attempt(job, copy, cells)
    seconds = watch.seconds
    watch.measure()
    watch.kill()
    executed = canonical.read(copy if copy.exists() else Path(job.path))
    limit = watch.broken and f"cell {cells.number}: {watch.broken}"
    error = limit or cells.network() or outside or unfinished(executed)
    names = canonical.short_names(Path(job.root), HERE.parent.parent, scratch=scratch)
    return {
        "name": job.name,
        "status": "failed" if error else "ok",
        "error": error,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(watch.cpu.values()), 1),
        "peak_memory_mb": round(watch.peak / 2**20),
        "code_cells": cells.number,
        "key": job.key,
        "python": platform.python_version(),
        "torch": version("torch"),
        "verdicts": canonical.verdicts(executed),
    }, canonical.canonical(executed, names)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    scratch = Path(tempfile.mkdtemp(prefix="companion-"))
    result, notebook = execute(job, scratch)
    build = Path(job.root) / "build"
    page = report.notebook_page(notebook, Path(job.path).parent)
    canonical.write(build / "executed" / f"{job.name}.ipynb", canonical.text(notebook))
    canonical.write(build / "html" / f"{job.name}.html", page)
    # Last, so that a result vouches for the other two.
    text = json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False)
    canonical.write(build / "results" / f"{job.name}.json", text + "\n")
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
