"""Inside the sandbox: this script seals its own process, then runs the candidate.

`utils.sandbox` starts it as `python -I -S sealed.py` and writes one JSON request to its
input. The seal is laid before a line of the candidate is even compiled, and nothing
can lift it again. Afterwards the process can compute in its memory and write to the two
files that it was started with; every other request to the kernel is refused:

1. seccomp: a list of the system calls that are allowed; the wall that all rests on;
2. resource limits: memory, CPU time, size of the two files;
3. where the kernel has them, two more walls that stand by themselves: Landlock (no
   file, no TCP) and namespaces (no network device, no rights of the host).

It imports nothing of ours, so that the start costs milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

# What the seal leaves: read, write, close, fstat; memory (mmap, munmap, brk, mremap);
# futex, sched_yield, clock_gettime, getpid, getrandom; exit, exit_group.
# Not here: opening any file, sockets, new processes or threads, signals, limits.
ALLOWED = {
    "x86_64": (0, 1, 3, 5, 9, 11, 12, 25, 202, 24, 228, 39, 318, 60, 231),
    "aarch64": (
        63,
        64,
        57,
        80,
        222,
        215,
        214,
        216,
        98,
        124,
        113,
        172,
        278,
        93,
        94,
    ),
}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the kernel's filter
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: error EPERM
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
NAMESPACES = 0x10000000 | 0x40000000 | 0x20000000 | 0x08000000  # user net pid ipc
LANDLOCK_CREATE, LANDLOCK_RESTRICT = 444, 446
# After the seal no file opens, so what the candidate names is imported before it.
# These do nothing when imported; what some could do is refused when it is tried.
MODULES = """
    __future__ abc array ast base64 bisect calendar cmath collections
    contextlib copy cProfile ctypes dataclasses datetime decimal enum fractions
    functools hashlib heapq inspect io itertools json keyword math mmap numbers operator
    os pathlib pickle random re resource secrets shutil signal socket statistics
    string struct subprocess sys tempfile textwrap threading time tokenize types
    typing unicodedata urllib.request uuid
""".split()  # noqa: SIM905
# A few functions import something only when they are called: word, module.
LATER = {"Counter": "heapq", "strptime": "_strptime", "singledispatch": "typing"}

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
libc.syscall.restype = ctypes.c_long


def preload(code: str) -> None:
    """Import the modules of the list whose names occur as words in the code."""
    words = set("".join(c if c.isalnum() or c == "_" else " " for c in code).split())
    for name in MODULES:
        if set(name.split(".")) <= words:
            __import__(name)
    for word in words & set(LATER):
        __import__(LATER[word])


def limit(memory_mb: int, cpu_seconds: float, output_bytes: int) -> None:
    """Lay the resource limits, hard ones that not even root can raise once sealed.

    The CPU timer ends the process by a signal that it can no longer catch; the limit
    in whole seconds stands behind it.
    """
    for kind, most in (
        (resource.RLIMIT_AS, memory_mb * 2**20),
        (resource.RLIMIT_CPU, int(cpu_seconds) + 2),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def landlock() -> bool:
    """Refuse every file and TCP port: a Landlock ruleset without a rule.

    Returns whether the kernel (5.13 or newer) did so.
    """
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = struct.pack("QQQ", files, 3, 3)[:size]  # files, TCP, signals to others
    ruleset = libc.syscall(LANDLOCK_CREATE, rules, ctypes.c_size_t(size), 0)
    done = libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return done


def seccomp(machine: str) -> None:
    """Allow the system calls of the list and refuse all others, for good."""
    calls = ALLOWED[machine]
    program = [
        (LOAD, 0, 0, 4),  # the architecture: another one numbers the calls otherwise
        (JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),  # the number of the call
        *((JUMP_IF_EQUAL, len(calls) - i, 0, n) for i, n in enumerate(calls)),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    filters = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HP", len(program), ctypes.addressof(filters))
    address = ctypes.cast(ctypes.c_char_p(header), ctypes.c_void_p).value
    if libc.prctl(PR_SET_SECCOMP, 2, address, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refused the filter (seccomp)")


def seal() -> None:
    """Raise the walls. Raises OSError when the one that all rests on does not stand."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # do not outlive the parent
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.unshare(NAMESPACES)  # containers often refuse this: seccomp does not need it
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # a crash hands no core to a program
    landlock()
    seccomp(platform.machine())


def load(code: str, function: str) -> Callable[[list[Any]], str]:
    """What answers a call, as a line of JSON: the function that the code defines, or,
    when there is none, the same failure for every call."""
    namespace: dict[str, Any] = {"__name__": "candidate"}
    try:
        exec(compile(code, "candidate", "exec"), namespace)
        found = namespace[function]
    except BaseException as error:  # no test may take it for an error that it wants
        line = failure(error, "not loaded")
        return lambda args: line
    return lambda args: answer(found, args)


def answer(function: Callable[..., Any], args: list[Any]) -> str:
    """What one call gives, as a line of JSON."""
    try:
        return json.dumps({"value": function(*args)})
    except BaseException as error:  # also SystemExit: leaving early is no success
        return failure(error)


def failure(error: BaseException, *marks: str) -> str:
    """The names of an error's classes, marks after them, and its message."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return json.dumps({"error": [*names, *marks], "message": str(error)[:200]})


def main() -> None:
    """Read the request, seal, run the candidate on each input, write the answers."""
    request = json.load(sys.stdin)
    results = os.dup(1)
    os.dup2(2, 1)  # what the candidate prints goes to the other file
    preload(request["code"])
    limit(**request["limits"])
    seal()
    call = load(request["code"], request["function"])
    for args in request["inputs"]:
        os.write(results, call(args).encode() + b"\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
