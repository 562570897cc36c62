"""Finds the notebooks, knows which are done, and runs the others side by side."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from utils.runner import canonical
from utils.runner.execute import Job
from utils.runtime import ROOT, Problem

OWN = ROOT / "utils" / "runner"
Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What the command line asks for; `timeout` in seconds, `memory` in GB."""

    command: str
    root: Path
    only: str
    scale: str
    seed: int
    param: list[tuple[str, Any]]
    jobs: int
    force: bool
    timeout: float
    memory: float

    @property
    def parameters(self) -> dict[str, Any]:
        return {"SCALE": self.scale, "SEED": self.seed, **dict(self.param)}

    @property
    def build(self) -> Path:
        return self.root / "build"

    def notebooks(self) -> list[Path]:
        """The notebooks asked for, in reading order. Raises `Problem` for none."""
        found = [*self.root.glob("notebooks/*.ipynb")]
        found += self.root.glob("projects/*/*.ipynb")
        found.sort(key=lambda path: reading_order(path.stem))
        ends = r"(?!\d)" if self.only[-1:].isdigit() else ""  # 04.1 is not 04.10
        chosen = [p for p in found if re.match(re.escape(self.only) + ends, p.name)]
        if not chosen:
            names = ", ".join(path.stem for path in found) or "none at all"
            raise Problem(f"No notebook begins with {self.only!r}; there are {names}.")
        return chosen

    def result(self, path: Path) -> Result | None:
        """The stored result of a notebook, if there is one."""
        file = self.build / "results" / f"{path.stem}.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else None

    def done(self, path: Path, key: str) -> bool:
        """Whether a run with this key succeeded and its files are still there."""
        result = self.result(path) or {}
        copies = (f"executed/{path.stem}.ipynb", f"html/{path.stem}.html")
        there = all((self.build / copy).exists() for copy in copies)
        return there and (result.get("status"), result.get("key")) == ("ok", key)


def reading_order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Sorts 02.9 before 02.10, and names without a number last."""
    parts = re.findall(r"(\d+)|(\D+)", name)
    return not name[:1].isdigit(), [(int(d or 0), s) for d, s in parts]


class Progress:
    """A line for each start and end; on a terminal also what is running now."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.running: dict[str, str] = {}

    def say(self, text: str) -> None:
        if sys.stdout.isatty():
            text = f"\r\x1b[K{text}"
        print(text, flush=True)
        self.draw()

    def start(self, name: str) -> None:
        self.running[name] = "starts"
        if not sys.stdout.isatty():
            self.say(f"{name}  started")

    def cell(self, name: str, count: str) -> None:
        self.running[name] = f"cell {count}"
        self.draw()

    def end(self, name: str, text: str) -> None:
        self.running.pop(name, None)
        self.done += 1
        self.say(f"[{self.done}/{self.total}] {name}  {text}")

    def draw(self) -> None:
        if sys.stdout.isatty() and self.running:
            live = " | ".join(f"{name} {text}" for name, text in self.running.items())
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{live[:width]}", end="", flush=True)


def key(path: Path, plan: Plan) -> str:
    """What the outputs of a notebook depend on, as a hash: what its author wrote, the
    package, data, parameters, Python and libraries; not its outputs or its head."""
    try:
        written = json.dumps(canonical.identity(canonical.read(path)))
    except ValueError:  # no notebook: its own process will say so
        written = path.read_text("utf-8", errors="replace")
    parts = [written, _shared(plan.root), platform.python_version()]
    parts.append(json.dumps(plan.parameters, sort_keys=True))
    if "projects" in written or plan.root / "projects" in path.parents:
        parts.append(_digest(plan.root, tuple(plan.root.glob("projects/**/*.py"))))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _shared(root: Path) -> str:
    """The hash of what every notebook may use."""
    modules = [p for p in ROOT.glob("utils/**/*.py") if OWN not in p.parents]
    data = [p for p in root.glob("data/**/*") if p.is_file()]
    skipped = (root / "data" / "book", root / "data" / "ledger.json")
    data = [p for p in data if not any(p.is_relative_to(s) for s in skipped)]
    locks = [*root.glob("constraints.txt")]
    return _digest(ROOT, tuple(modules)) + _digest(root, (*data, *locks))


def _digest(root: Path, files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def run(plan: Plan) -> list[Path]:
    """Execute what is missing or changed; the notebooks that were executed anew."""
    paths = plan.notebooks()
    keys = {path: key(path, plan) for path in paths}
    todo = [p for p in paths if plan.force or not plan.done(p, keys[p])]
    progress = Progress(len(paths))
    for path in paths:
        if path not in todo:
            progress.end(path.stem, "unchanged, re-used")
    costs = ledger(plan.root)
    # Longest first, so that no long one is left alone at the end; unknown is long.
    todo.sort(key=lambda p: -costs.get(p.stem, {}).get("cpu_seconds", 1e9))
    asyncio.run(_run_all(todo, keys, plan, progress))
    return todo


async def _run_all(
    todo: list[Path], keys: dict[Path, str], plan: Plan, progress: Progress
) -> None:
    free = asyncio.Semaphore(plan.jobs)

    async def one(path: Path) -> None:
        async with free:
            progress.start(path.stem)
            result = await _run_one(path, keys[path], plan, progress)
            cost = f"{result['seconds']:.0f} s, {result['peak_memory_mb']} MB"
            failure = f"FAILED  {result['error']}"
            text = f"ok  {cost}" if result["status"] == "ok" else failure
            progress.end(path.stem, text)

    await asyncio.gather(*map(one, todo))


async def _run_one(path: Path, key: str, plan: Plan, progress: Progress) -> Result:
    """Start the process of one notebook, follow it, and read its result."""
    limits = (plan.timeout, plan.memory, os.getpid())
    job = Job(path.stem, str(path), str(plan.root), plan.parameters, key, *limits)
    stored = plan.build / "results" / f"{path.stem}.json"
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.unlink(missing_ok=True)
    log = stored.with_suffix(".log")
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "utils.runner.execute", json.dumps(asdict(job))),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment(plan.scale),
            start_new_session=True,  # Ctrl-C reaches the runner only
        )
        assert process.stdout
        async for line in process.stdout:
            progress.cell(path.stem, line.decode().strip())
        code = await process.wait()
    if result := plan.result(path):
        return result
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    why = lines[-1] if lines else f"exit code {code}"
    return _lost(job, f"its process ended early: {why}", stored)


def _lost(job: Job, error: str, stored: Path) -> Result:
    """Store a result for a process that left none."""
    nothing: Result = {"seconds": 0, "cpu_seconds": 0, "peak_memory_mb": 0}
    nothing |= {"code_cells": 0, "verdicts": []}
    result = {"name": job.name, "status": "failed", "error": error, "key": job.key}
    canonical.write(stored, json.dumps(result | nothing, indent=1) + "\n")
    return result | nothing


def environment(scale: str) -> dict[str, str]:
    """The environment of a notebook's process: one thread that does not spin."""
    fixed = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
    }
    if scale == "laptop":
        fixed["HF_HUB_OFFLINE"] = "1"
    return {**os.environ, **fixed}


def ledger(root: Path) -> dict[str, dict[str, Any]]:
    """Seconds, memory, cells and versions of each notebook's last refresh, by name."""
    file = root / "data" / "ledger.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}
