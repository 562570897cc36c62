"""Ending a process with all that it started."""

import subprocess

import psutil


def kill(process: subprocess.Popen) -> None:
    """End a process and its children at once. torchrun's processes are in sessions of
    their own: a signal to the group of the first would leave them running."""
    if process.poll() is not None:
        return
    family = [*psutil.Process(process.pid).children(recursive=True), process]
    for one in family:
        one.kill()
    psutil.wait_procs(family[:-1], timeout=30)
    process.wait()
