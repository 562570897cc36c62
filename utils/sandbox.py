"""Run code that nobody has read: inputs go in, values come out, the judge sits outside.

    outcome = sandbox.run(code, "solve", [Test([2], returns=4)])
    outcome.passed, outcome.results[0], outcome.cpu_seconds

The code runs in a process of its own, sealed by the kernel (how: `utils/sealed.py`). It
cannot open a file, reach a network, start a process, signal another, or use more
memory, CPU time or output than its `Limits`. The answers that a test expects never
enter that process, so that code can neither read them nor claim to have passed; what
comes out is read as JSON, never unpickled.

It needs Linux on x86_64 or aarch64. Elsewhere nothing runs, and `run` says why.
"""

from __future__ import annotations

import builtins
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from utils.runtime import Problem

INSIDE = Path(__file__).with_name("sealed.py")


@dataclass(frozen=True)
class Limits:
    """What a run may use in all its tests together. CPU time counts from the seal on;
    wall time only ends what waits for ever, so it is generous."""

    cpu_seconds: float = 1.0
    wall_seconds: float = 60.0
    memory_mb: int = 256
    output_bytes: int = 200_000

    def __post_init__(self) -> None:
        if min(asdict(self).values()) <= 0:
            raise Problem("Every limit of a sandbox must be more than 0.")
        if self.memory_mb < 64:
            raise Problem("A sandbox needs at least 64 MB: Python itself takes some.")


@dataclass(frozen=True)
class Test:
    """One call, and what it has to return (compared as JSON, so that a tuple equals a
    list; numbers as in Python, so that True equals 1) or the name of the exception that
    it has to raise (a class of that name, or one derived from it)."""

    args: list[Any]
    returns: Any = None
    raises: str = ""
    __test__ = False  # pytest shall not collect this class


@dataclass(frozen=True)
class Result:
    """What one call gave: a value, or an error, the most special class first. A call
    that was never answered has the error "no answer"; when the code defines no such
    function, "not loaded" stands after the classes."""

    value: Any = None
    error: tuple[str, ...] = ()
    message: str = ""

    def __str__(self) -> str:
        said = ": ".join(filter(None, (*self.error[:1], self.message)))
        return said if self.error else repr(self.value)


NO_ANSWER = Result(error=("no answer",))


@dataclass(frozen=True)
class Outcome:
    """Verdict and answer of each test, in order; what was printed; how the process
    ended ("finished", "CPU time", "wall time" or "died"); its CPU seconds including the
    start of Python, as the kernel counted them."""

    passed: tuple[bool, ...]
    results: tuple[Result, ...]
    printed: str
    ended: str
    cpu_seconds: float = field(compare=False)

    @property
    def solved(self) -> bool:
        """Whether there were tests and every one passed."""
        return bool(self.passed) and all(self.passed)


def run(
    code: str, function: str, tests: Sequence[Test], limits: Limits = Limits()
) -> Outcome:
    """Run the code sealed off, call its `function` for each test, judge outside.

    One process serves all the tests, so a call may see what an earlier one left behind
    and, if it looks for them, the inputs of the later ones; never what they expect.
    Raises `Problem` where the platform cannot wall the code in, or when an argument
    cannot be written as JSON.
    """
    if refusal():
        raise Problem(refusal())
    return _run(code, function, tests, limits)


@cache
def refusal() -> str:
    """Why nothing can be run on this machine, or "" when the walls stand."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return (
            "Generated code is run on Linux (x86_64 or aarch64) only, where the kernel "
            "can wall it in: use such a machine, a container or Colab."
        )
    probe = "def probe(): return 1"
    try:
        outcome = _run(probe, "probe", [Test([], returns=1)], Limits())
        last = (outcome.printed.strip().splitlines() or ["no word"])[-1]
    except OSError as error:  # a kernel without pidfd, or one that starts no process
        return f"This system cannot watch a sealed process, so none is run ({error})."
    if outcome.solved:
        return ""
    return f"This system cannot wall generated code in, so none is run ({last})."


def _run(code: str, function: str, tests: Sequence[Test], limits: Limits) -> Outcome:
    with (
        tempfile.TemporaryFile() as request,
        tempfile.TemporaryFile() as answers,
        tempfile.TemporaryFile() as printed,
    ):
        request.write(_request(code, function, tests, limits))
        request.seek(0)
        ended, cpu = _execute([request, answers, printed], limits.wall_seconds)
        lines, text = _read(answers).split(b"\n")[:-1], _read(printed)
    results = [_result(line) for line in lines[: len(tests)]]
    missing = len(tests) - len(results)
    if ended == "finished" and missing:
        ended = "died"  # politely, but before its work was done
    results += [NO_ANSWER] * missing
    passed = tuple(map(passes, tests, results))
    return Outcome(passed, tuple(results), text.decode(errors="replace"), ended, cpu)


def _request(code: str, function: str, tests: Sequence[Test], limits: Limits) -> bytes:
    """What goes in: the inputs, and never what the tests expect."""
    inputs, caps = [test.args for test in tests], asdict(limits)
    del caps["wall_seconds"]  # is watched from outside
    request = {"code": code, "function": function, "inputs": inputs, "limits": caps}
    try:
        return json.dumps(request).encode()
    except (TypeError, ValueError) as error:
        raise Problem(f"Arguments of a test must be plain JSON ({error}).") from None


def _execute(files: list[IO[bytes]], seconds: float) -> tuple[str, float]:
    """(how it ended, CPU seconds). The process has an empty environment, a session of
    its own and no file but the three: stdin, stdout and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-W", "ignore", str(INSIDE)],
        stdin=files[0], stdout=files[1], stderr=files[2],
        env={}, cwd="/", start_new_session=True,
    )  # fmt: skip
    in_time = False
    try:
        in_time = _ends_within(process.pid, seconds)
    finally:  # also when the reader interrupts the cell
        os.kill(process.pid, signal.SIGKILL)  # not reaped yet: the number is its own
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    ends = {0: "finished", -signal.SIGPROF: "CPU time"}
    ended = ends.get(process.returncode, "died") if in_time else "wall time"
    return ended, used.ru_utime + used.ru_stime


def _ends_within(pid: int, seconds: float) -> bool:
    """Wait for the end of a process and leave it to be counted; False: time is up."""
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _result(line: bytes) -> Result:
    """One line from the sandbox. Whatever stands there was written by a stranger."""
    try:
        found = json.loads(line)
        if "value" in found:
            return Result(found["value"])
        return Result(None, tuple(map(str, found["error"])), str(found["message"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return NO_ANSWER


def passes(test: Test, result: Result) -> bool:
    """Whether the answer is what the test expects: the judge, outside."""
    if test.raises:
        return test.raises in result.error and _one_error(result.error)
    return not result.error and result.value == json.loads(json.dumps(test.returns))


def _one_error(names: Sequence[str]) -> bool:
    """Whether a call raised one error, not a class derived from many at once that would
    please every test, nor what went wrong before the function stood."""
    kinds = [getattr(builtins, name, None) for name in names]
    errors = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseException)]
    return "not loaded" not in names and all(map(issubclass, errors, errors[1:]))
