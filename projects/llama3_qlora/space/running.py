"""Run a built folder in a process that sees nothing of the rest of this project."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from utils.runtime import Problem

ADDRESS = re.compile(r"answers at (http://[\d.]+:\d+)")


@dataclass(frozen=True)
class Served:
    """A running Space: where it answers, its process, and the file of its output."""

    url: str
    pid: int
    log: Path

    def health(self) -> dict[str, Any]:
        """What `/health` says. Raises `Problem` when it is not ready."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Problem(f"The health check says {error.code}.") from None

    def memory_mb(self) -> float:
        """What the process holds of the memory of the machine now, in MB."""
        return psutil.Process(self.pid).memory_info().rss / 1e6


@contextmanager
def running(
    folder: Path,
    arguments: Sequence[str] = ("app.py",),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """The program of a Space folder, ended when the block ends, however it ends.

    `-S` keeps Python from reading what `pip install -e` left behind, so that a module
    that is missing in the folder is missing. Raises `Problem` with the last line that
    the program wrote when it does not come up.
    """
    own = ("GRADIO_", "SPACE_", "HF_", "PYTHON")
    given = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    given |= {"PYTHONPATH": os.pathsep.join(site.getsitepackages())}
    given |= {"PYTHONDONTWRITEBYTECODE": "1", "GRADIO_SERVER_PORT": "0"}
    command = [sys.executable, "-S", *arguments]
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=given | dict(environment or {}),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Served(_address(process, log), process.pid, log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the line that says where it answers, or for the end of the process."""
    while True:
        ended = process.poll() is not None  # asked first: its last words come before
        text = log.read_text("utf-8", errors="replace")
        if found := ADDRESS.search(text):
            return found[1]
        if ended:
            last = ["nothing", *text.splitlines()][-1]
            raise Problem(f"The Space did not start. It said: {last}")
        time.sleep(0.05)
