"""A group of processes for `torch.distributed` that ends when the notebook does.

It starts once and then runs functions that are defined in the notebook's cells. On
a real cluster `torchrun` starts the processes, and the functions stay as they are.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import cloudpickle  # pickles what a notebook defines
import torch
import torch.distributed as dist

from utils.runtime import Problem

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class Group:
    """`count` processes joined by gloo, the backend for CPUs.

    Use it in a `with`, or call `close`. They also end when this process does, however
    it ends. Raises `Problem` when they cannot be started.
    """

    def __init__(self, count: int) -> None:
        if not 1 <= count <= 8:
            raise Problem(f"A group here has 1 to 8 processes, not {count}.")
        context = multiprocessing.get_context("spawn")
        self.folder = Path(tempfile.mkdtemp())
        pipes = [context.Pipe() for _ in range(count)]
        self.pipes: list[Connection] = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_work, args=(rank, count, self.folder, end))
            for rank, (_, end) in enumerate(pipes)
        ]
        for process, (_, end) in zip(self.processes, pipes, strict=True):
            process.daemon = True  # ended by multiprocessing when Python exits
            process.start()
            end.close()  # so that a dead process closes the pipe
        self.run(_nothing)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(*args)` in every process at once; the results by rank.

        Raises `Problem` with the first error of any process; the group is then closed,
        because the others may wait for a partner for ever.
        """
        if not self.pipes:
            raise Problem("The processes have ended: start a new Group.")
        work = cloudpickle.dumps((function, args))
        try:
            for pipe in self.pipes:
                pipe.send_bytes(work)
            return self._results()
        except BaseException:
            self.close()
            raise

    def _results(self) -> list[Any]:
        results: dict[int, Any] = {}
        while len(results) < len(self.pipes):
            waiting = [p for r, p in enumerate(self.pipes) if r not in results]
            for pipe in wait_for(waiting):
                rank = self.pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    error, results[rank] = cloudpickle.loads(
                        self.pipes[rank].recv_bytes()
                    )
                except (EOFError, ConnectionError):
                    error = "it was ended from outside"
                if error:
                    raise Problem(f"Process {rank} of the group failed: {error}.")
        return [results[rank] for rank in sorted(results)]

    def close(self) -> None:
        """End the processes; a second call does nothing."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join()
        self.pipes, self.processes = [], []
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nothing() -> None:
    """The first job of a group: it is done when all have started."""


def _work(rank: int, count: int, folder: Path, pipe: Connection) -> None:
    """The life of a process of a group: join the others, then run what comes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # advice for real clusters, four times over
    store = f"file://{folder}/meeting"  # a file needs no port
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    with suppress(EOFError, BrokenPipeError):  # the group was closed
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes()))


def _answer(work: bytes) -> bytes:
    """(error, result) of a pickled function and its arguments, pickled."""
    try:
        function, args = cloudpickle.loads(work)
        return cloudpickle.dumps(("", function(*args)))
    except Exception as error:
        return cloudpickle.dumps((f"{type(error).__name__}: {error}", None))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)
