"""A group of processes for `torch.distributed` that ends when the notebook does, and
two gauges to read in them: bytes sent, and bytes kept for the backward pass.

The group starts once and then runs functions that are defined in the notebook's cells.
On a real cluster `torchrun` starts the processes, and the functions stay as they are.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import cloudpickle  # pickles what a notebook defines
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from utils.runtime import ROOT, Problem

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
TCP_INFO = 11  # of Linux: what the system knows of a connection,
BYTES_ACKED = 120  # and where in it (struct tcp_info) is what the other side has got


class Group:
    """`count` processes joined by gloo, the backend for CPUs.

    Use it in a `with`, or call `close`. They also end when this process does, however
    it ends. Raises `Problem` when they cannot be started.
    """

    def __init__(self, count: int) -> None:
        if not 1 <= count <= 8:
            raise Problem(f"A group here has 1 to 8 processes, not {count}.")
        context = multiprocessing.get_context("spawn")
        build = ROOT / "build"
        build.mkdir(exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(dir=build, prefix="group-"))
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
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
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


def _end_with_parent(folder: Path) -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def bytes_sent() -> float:
    """Bytes that this process's TCP connections have delivered; nan if not on Linux."""
    if not sys.platform.startswith("linux"):
        return math.nan
    total = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed by now, or not of TCP
            if not str(path.readlink()).startswith("socket"):
                continue
            connection = socket.socket(fileno=os.dup(int(path.name)))
            with connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    info = connection.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, BYTES_ACKED)[0]
    return total


class Saved:
    """Counts the bytes that autograd keeps for the backward pass, inside
    `with saved.hooks()`: `now`, and at most (`peak`). Weights do not count, and a piece
    of memory counts once, as long as somebody holds it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = {_memory(p)[0] for p in model.parameters()}
        self.holders: Counter[tuple[int, int]] = Counter()
        self.now, self.peak = 0, 0

    def hooks(self) -> saved_tensors_hooks:
        """The context in which autograd gets a ticket for each tensor it saves."""
        return saved_tensors_hooks(lambda t: _Ticket(self, t), lambda t: t.tensor)

    def hold(self, memory: tuple[int, int], change: int) -> None:
        """One holder more (+1) or less (-1) of a memory (address, bytes)."""
        before = self.holders[memory]
        self.holders[memory] += change
        if memory[0] not in self.weights and 0 in (before, before + change):
            self.now += change * memory[1]
            self.peak = max(self.peak, self.now)


class _Ticket:
    """Stands for a saved tensor; when autograd drops it, the tensor counts no more."""

    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.saved, self.tensor, self.memory = saved, tensor, _memory(tensor)
        saved.hold(self.memory, 1)

    def __del__(self) -> None:
        self.saved.hold(self.memory, -1)


def _memory(tensor: Tensor) -> tuple[int, int]:
    """(address, bytes) of the memory behind a tensor, or behind this rank's part."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    storage = local.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
