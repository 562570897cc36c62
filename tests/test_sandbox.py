"""The sandbox: what it gives, and an escape suite that tries to get out of it.

The attacks that read, change or connect are run twice. In a plain interpreter they
have to work (or the suite would prove nothing), in the sandbox they must have no
effect; and the effect is looked for from outside: a listener counts connections, a
folder and a process are watched.
"""
# ruff: noqa: E501 - an attack is easier to judge on one line

import io
import json
import os
import pickle
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from utils import sandbox
from utils.runtime import Problem
from utils.sandbox import Limits, Test, run

if sandbox.refusal():
    pytest.skip(sandbox.refusal(), allow_module_level=True)

SHORT = Limits(cpu_seconds=0.2)
ROOMY = Limits(cpu_seconds=10, memory_mb=128)  # what ends otherwise than by time
INSIDE = Path(sandbox.__file__).with_name("sealed.py")


def value(code):
    """The result of one call of `f` in the sandbox."""
    return run(code, "f", [Test([])]).results[0]


# What it is for


def test_values_errors_and_verdicts():
    code = "def f(a, b):\n    print('hello')\n    return a // b, {1: a}"
    tests = [
        Test([7, 2], returns=(3, {"1": 7})),
        Test([1, 0], raises="ArithmeticError"),
        Test([1, 0], raises="ValueError"),
        Test([7, 2], returns=[4, {"1": 7}]),
        Test([7, 2], raises="ValueError"),
    ]
    outcome = run(code, "f", tests)
    assert outcome.passed == (True, True, False, False, False)
    assert outcome.results[1].error[0] == "ZeroDivisionError"
    assert (outcome.ended, outcome.printed) == ("finished", "hello\n" * 5)
    assert outcome.cpu_seconds > 0 and not outcome.solved
    assert run(code, "f", tests[:1]).solved and not run(code, "f", []).solved


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def f(:", "SyntaxError"),
        ("def g(): pass", "KeyError"),
        ("f = 3", "TypeError"),
        ("raise OSError", "OSError"),
        ("def f(): return {1, 2}", "TypeError"),
        ("def f(): return f()", "RecursionError"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_broken_candidates_fail_their_tests(code, error):
    assert error in value(code).error


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("from collections import Counter\ndef f(): return Counter('aab').most_common(1)", [["a", 2]]),
        ("import datetime\ndef f(): return datetime.datetime.strptime('7', '%M').minute", 7),
        ("import re, heapq, random\ndef f(): return re.findall('a+', 'aab')", ["aa"]),
        ("from functools import lru_cache\n@lru_cache\ndef f(): return 1", 1),
        ("import decimal, fractions, statistics\ndef f(): return statistics.mean([1, 3])", 2),
        ("def f(): return 'ä\\ud800'", "ä\ud800"),
        ("def f(): return sum(range(10**6))", 499999500000),
    ],
)  # fmt: skip
def test_ordinary_code_runs(code, answer):
    assert value(code).value == answer


def test_every_module_of_the_list_can_be_imported():
    from utils import sealed

    for name in [*sealed.MODULES, *sealed.LATER.values()]:
        __import__(name)


def test_same_outcome_twice_and_calls_share_a_process():
    code = "seen = []\ndef f(x):\n    seen.append(x)\n    return seen"
    tests = [Test([1], returns=[1]), Test([2], returns=[1, 2])]
    assert run(code, "f", tests) == run(code, "f", tests)
    assert run(code, "f", tests).solved


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: Limits(cpu_seconds=0), "more than 0"),
        (lambda: Limits(memory_mb=8), "64 MB"),
        (lambda: run("", "f", [Test([{1, 2}])]), "plain JSON"),
    ],
)
def test_mistakes_are_one_sentence(wrong, why):
    with pytest.raises(Problem, match=why):
        wrong()


def test_elsewhere_it_refuses(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    sandbox.refusal.cache_clear()
    try:
        with pytest.raises(Problem, match="Linux"):
            run("def f(): return 1", "f", [Test([], returns=1)])
    finally:
        monkeypatch.undo()
        sandbox.refusal.cache_clear()


def test_without_the_filter_nothing_runs(monkeypatch, tmp_path):
    """Where the kernel refuses seccomp, not a line of the candidate is run."""
    broken = tmp_path / "sealed.py"
    text = INSIDE.read_text().replace("PR_SET_SECCOMP, 2,", "PR_SET_SECCOMP, 99,")
    assert text != INSIDE.read_text()
    broken.write_text(text)
    monkeypatch.setattr(sandbox, "INSIDE", broken)
    sandbox.refusal.cache_clear()
    try:
        with pytest.raises(Problem, match=r"cannot wall .*seccomp"):
            run("def f(): return 1", "f", [Test([], returns=1)])
    finally:
        monkeypatch.undo()
        sandbox.refusal.cache_clear()


def test_without_a_watch_nothing_runs_and_none_is_left(monkeypatch, inside):
    def refuse(pid):
        raise OSError(38, "no such call")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    sandbox.refusal.cache_clear()
    try:
        with pytest.raises(Problem, match="cannot watch"):
            run("def f(): return 1", "f", [Test([], returns=1)])
    finally:
        monkeypatch.undo()
        sandbox.refusal.cache_clear()
    assert sealed_processes(inside) == []


# The escape suite


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """The script under a path of its own, by which its processes can be told."""
    own = tmp_path / "sealed.py"
    own.write_text(INSIDE.read_text())
    monkeypatch.setattr(sandbox, "INSIDE", own)
    return own


def sealed_processes(inside):
    listed = psutil.process_iter(["cmdline"])
    return [p.pid for p in listed if str(inside) in (p.info["cmdline"] or [])]


class World:
    """What an attack would like to reach, and how we see whether it did."""

    def __init__(self, folder):
        self.folder, self.connections = folder, 0
        self.secret = secrets.token_hex(8)
        (folder / "secret.txt").write_text(self.secret)
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.listen, daemon=True).start()
        idle = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
        self.victim = subprocess.Popen(idle, env={"TOKEN": self.secret})

    def listen(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.connections += 1  # before the close, for which `count` waits
            connection.close()

    def count(self):
        """Connections so far, this one left out: ours is the last in the queue."""
        with socket.create_connection(self.server.getsockname()) as ours:
            ours.recv(1)
        self.connections -= 1
        return self.connections

    def fill(self, code):
        port = self.server.getsockname()[1]
        places = {"FOLDER": self.folder, "PORT": port, "VICTIM": self.victim.pid}
        for name, what in places.items():
            code = code.replace(name, str(what))
        return code

    def state(self):
        """Everything an attack must not change."""
        files = sorted(
            (p.name, p.stat().st_mode, p.read_bytes() if p.is_file() else b"")
            for p in self.folder.iterdir()
        )
        return files, self.victim.poll()

    def close(self):
        self.server.close()
        self.victim.kill()
        self.victim.wait()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def plain(code):
    """The same attack without a sandbox: what it returns, as text."""
    script = f"{code}\nimport json\nprint(json.dumps(f()))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60
    )
    return done.stdout


READ = {
    "open": "def f(): return open('FOLDER/secret.txt').read()",
    "os.open": "import os\ndef f(): return os.read(os.open('FOLDER/secret.txt', 0), 99).decode()",
    "pathlib": "import pathlib\ndef f(): return pathlib.Path('FOLDER/secret.txt').read_text()",
    "listing": "import os\ndef f(): return [os.listdir('FOLDER'), open('FOLDER/secret.txt').read()]",
    "through a symlink": """
import os
def f():
    os.symlink('FOLDER/secret.txt', 'FOLDER/link')
    return open('FOLDER/link').read()
""",
    "through a hard link": """
import os
def f():
    os.link('FOLDER/secret.txt', 'FOLDER/link')
    return open('FOLDER/link').read()
""",
    "through /proc/self/root": "def f(): return open('/proc/self/rootFOLDER/secret.txt').read()",
    "environment of another process": "def f(): return open('/proc/VICTIM/environ').read()",
    "mapped file": """
import mmap, os
def f():
    fd = os.open('FOLDER/secret.txt', os.O_RDONLY)
    return mmap.mmap(fd, 0, prot=mmap.PROT_READ).read().decode()
""",
    "C library": """
import ctypes
def f():
    libc = ctypes.CDLL(None)
    fd = libc.open(b'FOLDER/secret.txt', 0)
    text = ctypes.create_string_buffer(99)
    libc.read(fd, text, 99)
    return text.value.decode()
""",
    "a shell": "import subprocess\ndef f(): return subprocess.check_output(['cat', 'FOLDER/secret.txt']).decode()",
    "an import": """
import sys
def f():
    open('FOLDER/leak.py', 'w').write('TEXT = open("FOLDER/secret.txt").read()')
    sys.path.insert(0, 'FOLDER')
    import leak
    return leak.TEXT
""",
}  # fmt: skip

WRITE = {
    "overwrite": "def f(): return open('FOLDER/secret.txt', 'w').write('gone')",
    "append": "def f(): return open('FOLDER/secret.txt', 'a').write('more')",
    "delete": "import os\ndef f(): return os.unlink('FOLDER/secret.txt')",
    "rename": "import os\ndef f(): return os.rename('FOLDER/secret.txt', 'FOLDER/mine')",
    "truncate": "import os\ndef f(): return os.truncate('FOLDER/secret.txt', 0)",
    "chmod": "import os\ndef f(): return os.chmod('FOLDER/secret.txt', 0o777)",
    "new folder": "import os\ndef f(): return os.mkdir('FOLDER/new')",
    "a thousand files": "def f():\n    for i in range(1000): open(f'FOLDER/{i}', 'w').close()",
    "sitecustomize": "def f(): return open('FOLDER/sitecustomize.py', 'w').write('print(1)')",
    "pth file": "def f(): return open('FOLDER/x.pth', 'w').write('import os')",
    "temporary file": "import tempfile\ndef f(): return tempfile.mkstemp(dir='FOLDER')",
    "fifo": "import os\ndef f(): return os.mkfifo('FOLDER/pipe') or os.unlink('FOLDER/secret.txt')",
    "C library": """
import ctypes
def f():
    libc = ctypes.CDLL(None)
    libc.write(libc.open(b'FOLDER/secret.txt', 1), b'XXXX', 4)
""",
    "a shell": "import os\ndef f(): return os.system('rm FOLDER/secret.txt')",
    "execve": "import os\ndef f(): return os.execv('/bin/rm', ['rm', 'FOLDER/secret.txt'])",
    "spawn": """
import os
def f():
    pid = os.posix_spawn('/bin/rm', ['rm', 'FOLDER/secret.txt'], {})
    os.waitpid(pid, 0)
""",
    "fork": """
import os
def f():
    if os.fork() == 0:
        os.unlink('FOLDER/secret.txt')
        os._exit(0)
    os.wait()
""",
    "daemon by double fork": """
import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.unlink('FOLDER/secret.txt')
        os._exit(0)
    os.wait()
    for _ in range(100):
        if not os.path.exists('FOLDER/secret.txt'): break
        time.sleep(0.05)
""",
    "kill another process": "import os\ndef f(): return os.kill(VICTIM, 9)",
    "kill by the C library": "import ctypes\ndef f(): return ctypes.CDLL(None).kill(VICTIM, 9)",
    "kill by pidfd": """
import os, signal
def f(): return signal.pidfd_send_signal(os.pidfd_open(VICTIM), 9)
""",
}  # fmt: skip

CONNECT = {
    "socket": "import socket\ndef f(): return socket.create_connection(('127.0.0.1', PORT)).close()",
    "urllib": """
import urllib.request
def f(): return urllib.request.urlopen('http://127.0.0.1:PORT', timeout=5).status
""",
    "C library": """
import ctypes, struct, socket
def f():
    libc = ctypes.CDLL(None)
    fd = libc.socket(2, 1, 0)
    address = struct.pack('=HH4s8x', 2, socket.htons(PORT), bytes([127, 0, 0, 1]))
    return libc.connect(fd, address, 16)
""",
    "a shell": """
import subprocess, sys
def f():
    script = 'import socket; socket.create_connection(("127.0.0.1", PORT))'
    return subprocess.run([sys.executable, '-c', script]).returncode
""",
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_nothing_outside_can_be_read(world, name):
    code = world.fill(READ[name])
    outcome = run(code, "f", [Test([])])
    assert "ModuleNotFoundError" not in outcome.results[0].error  # a wall, not a gap
    assert world.secret not in repr(outcome)
    assert outcome.results[0].error or outcome.results[0].value == ""
    assert world.secret in plain(code), "the attack itself does not work"


@pytest.mark.parametrize("name", WRITE)
def test_nothing_outside_can_be_changed(world, name):
    code, before = world.fill(WRITE[name]), world.state()
    outcome = run(code, "f", [Test([])])
    assert "ModuleNotFoundError" not in outcome.results[0].error
    assert world.state() == before
    plain(code)
    if "kill" in name:
        world.victim.wait(60)
    assert world.state() != before, "the attack itself does not work"


@pytest.mark.parametrize("name", CONNECT)
def test_no_network(world, name):
    code = world.fill(CONNECT[name])
    outcome = run(code, "f", [Test([])])
    assert "ModuleNotFoundError" not in outcome.results[0].error
    assert world.count() == 0
    plain(code)
    assert world.count() == 1, "the attack itself does not work"


@pytest.mark.parametrize(
    "code",
    [
        "import os\ndef f():\n    while True: os.fork()",
        "import threading, time\ndef f():\n    for _ in range(9999): threading.Thread(target=time.sleep, args=(9,)).start()",
        "import os\ndef f(): os.forkpty()",
        "import ctypes\ndef f():\n    if ctypes.CDLL(None).fork() < 0: raise OSError('refused')",
        "import ctypes\ndef f():\n    if ctypes.CDLL(None).vfork() < 0: raise OSError('refused')",
    ],
)  # fmt: skip
def test_no_process_is_made_and_none_is_left(code, inside):
    assert {"OSError", "RuntimeError"} & set(value(code).error)
    assert sealed_processes(inside) == []


def test_it_does_not_outlive_a_judge_that_is_killed(inside):
    """A candidate that waits for ever goes when the process that started it goes."""
    wait = "import threading\nlock = threading.Lock()\nlock.acquire()\nprint(lock.acquire())"
    judge = (
        f"import sys; sys.path.insert(0, {str(INSIDE.parents[1])!r})\n"
        "from pathlib import Path; from utils import sandbox\n"
        f"sandbox.INSIDE = Path({str(inside)!r}); sandbox.refusal = lambda: ''\n"
        f"sandbox.run({wait!r}, 'f', [sandbox.Test([])])"
    )
    with subprocess.Popen([sys.executable, "-c", judge]) as process:
        try:
            assert settles(lambda: walled_in(inside)), "the candidate did not start"
        finally:
            process.kill()
    assert settles(lambda: sealed_processes(inside) == [])


def settles(condition, seconds=30):
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def walled_in(inside):
    """Whether a process of ours has its filter, so that the candidate has begun."""
    return any(
        "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
        for pid in sealed_processes(inside)
    )


def test_a_crash_hands_out_no_core():
    """A kernel that pipes cores to a program does not ask for RLIMIT_CORE."""
    script = (
        f"import sys; sys.path.insert(0, {str(INSIDE.parent)!r}); import sealed\n"
        "before = sealed.libc.prctl(3, 0, 0, 0, 0)\n"
        "sealed.seccomp = lambda machine: None\n"
        "sealed.seal(); print(before, sealed.libc.prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True)
    assert done.stdout.split() == [b"1", b"0"]


@pytest.mark.parametrize(
    ("code", "limits", "ended"),
    [
        ("def f():\n    while True: pass", SHORT, "CPU time"),
        ("def f(): return 10**10**9", SHORT, "CPU time"),
        ("import re\ndef f(): return re.match('(a+)+b', 'a' * 60)", SHORT, "CPU time"),
        ("while True: pass", SHORT, "CPU time"),
        ("held = []\nwhile True: held.append(bytearray(10**6))", ROOMY, "finished"),
        ("x = " + "-" * 200_000 + "1", ROOMY, "finished"),
        ("class Bomb:\n    def __del__(self):\n        while True: pass\ndef f(): Bomb()", SHORT, "CPU time"),
        ("class Bomb(Exception):\n    def __str__(self):\n        while True: pass\ndef f(): raise Bomb", SHORT, "CPU time"),
        ("import threading\nlock = threading.Lock()\ndef f():\n    lock.acquire()\n    lock.acquire()",
         Limits(wall_seconds=1), "wall time"),
        ("import ctypes\ndef f(): ctypes.string_at(0)", ROOMY, "died"),
        ("import os\ndef f(): return os.write(1, b'x' * 10**6) and print('y' * 10**7)", ROOMY, "finished"),
        ("import time\ndef f(): time.sleep(3600)", ROOMY, "finished"),
        ("def f(): return 'x' * 10**7", ROOMY, "died"),
        ("def f(): return bytearray(10**9)", ROOMY, "finished"),
        ("def f():\n    held = []\n    while True: held.append(bytearray(10**7))", ROOMY, "finished"),
    ],
)  # fmt: skip
def test_resources_end(code, limits, ended, inside):
    outcome = run(code, "f", [Test([])], limits)
    assert outcome.ended == ended, outcome
    assert outcome.results[0].error and not outcome.solved
    assert len(outcome.printed) <= limits.output_bytes
    assert sealed_processes(inside) == []


@pytest.mark.parametrize(
    "undo",
    [
        "import signal; signal.signal(signal.SIGPROF, signal.SIG_IGN)",
        "import signal; signal.setitimer(signal.ITIMER_PROF, 0)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])",
        "import ctypes; ctypes.CDLL(None).signal(27, ctypes.c_void_p(1))",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "import ctypes; ctypes.CDLL(None).alarm(0)",
    ],
)
def test_the_cpu_limit_cannot_be_lifted(undo):
    code = f"def f():\n    try: {undo}\n    except (OSError, ValueError): pass\n    while True: pass"
    assert run(code, "f", [Test([])], SHORT).ended == "CPU time"


def test_the_memory_limit_cannot_be_lifted():
    code = """
import resource
def f():
    try: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    except (OSError, ValueError): pass
    return len(bytearray(400 * 2**20))
"""
    assert value(code).error[0] == "MemoryError"
    assert plain(code).strip() == str(400 * 2**20)


# No way to claim what was not done

FAKES = {
    "sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "os._exit": "import os\ndef f(x): os._exit(0)",
    "exit while loading": "import os\nos._exit(0)",
    "printed": "def f(x):\n    print('{\"value\": 1}\\nOK, all tests passed')",
    "patched json": "import json\njson.dumps = lambda value: '{\"value\": true, \"passed\": true}'\ndef f(x): return 0",
    "patched builtins": "import builtins\nbuiltins.all = lambda tests: True\nbuiltins.AssertionError = Exception\ndef f(x): return 0",
    "equal to everything": "class Yes:\n    def __eq__(self, other): return True\ndef f(x): return Yes()",
    "an int equal to everything": "class Yes(int):\n    def __eq__(self, other): return True\ndef f(x): return Yes(0)",
    "patched harness": """
import sys
frame = sys._getframe()
while frame:
    frame.f_globals['answer'] = lambda function, args: '{"value": true}'
    frame = frame.f_back
def f(x): return 0
""",
    "error caught": "def f(x):\n    try: raise AssertionError\n    except BaseException: return None",
}  # fmt: skip


@pytest.mark.parametrize("name", FAKES)
def test_success_cannot_be_faked(name):
    expected = 2 + secrets.randbelow(10**9)
    outcome = run(FAKES[name], "f", [Test([3], returns=expected)] * 3)
    assert outcome.passed == (False,) * 3


@pytest.mark.parametrize(
    "code",
    [
        "",
        "raise ValueError",
        "class All(ValueError, KeyError, IndexError): pass\ndef f(x): raise All",
        'import os\nos.write(3, b\'{"error": ["ValueError", "KeyError"], "message": ""}\\n\' * 9)',
    ],
)
def test_no_error_fits_every_test(code):
    tests = [Test([1], raises=name) for name in ("ValueError", "KeyError")]
    assert run(code, "f", tests).passed == (False, False)
    mine = "class Mine(ValueError): pass\ndef f(x): raise Mine"
    assert run(mine, "f", tests).passed == (True, False)


def test_nothing_runs_after_the_last_answer():
    code = "import atexit\natexit.register(print, 'late')\ndef f(): return 1"
    outcome = run(code, "f", [Test([], returns=1)])
    assert outcome.solved and outcome.printed == ""


HUNT = """
import gc, os, sys
def f(x):
    found = [sys.argv, dict(os.environ), x]
    try: found.append(os.read(0, 10**6).decode())
    except OSError as error: found.append(str(error))
    frame = sys._getframe()
    while frame:
        found += [repr(frame.f_locals), repr(frame.f_globals)]
        frame = frame.f_back
    found += [repr(thing) for thing in gc.get_objects() if type(thing) in (dict, list)]
    return ' '.join(map(str, found))
"""


def test_the_expected_answer_is_nowhere_inside():
    hidden = 10**9 + secrets.randbelow(10**9)
    roomy = Limits(output_bytes=20_000_000)
    (result,) = run(HUNT, "f", [Test([123454321], returns=hidden)], roomy).results
    assert "123454321" in result.value  # it did look everywhere: the input is found
    assert str(hidden) not in result.value
    beside = f"{HUNT}\nEXPECTED = {hidden}\nassert str(EXPECTED) in f(1)"
    done = subprocess.run([sys.executable, "-I", "-c", beside], capture_output=True)
    assert done.returncode == 0, "the hunt would not find what lies beside it"


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"value": ' + "9" * 50_000 + "}",
        "not json",
        '{"error": 3, "message": 4}',
        "null",
        '"value"',
        '{"value": NaN}',
        "\\x00\\xff",
    ],
)
def test_garbage_on_the_result_channel_is_a_failed_test(line):
    code = f"import os\ndef f():\n    for fd in range(9):\n        try: os.write(fd, b'''{line}\\n''')\n        except OSError: pass\n    os._exit(0)"
    outcome = run(code, "f", [Test([], returns=1)])
    assert outcome.passed == (False,)


def test_forged_lines_are_only_more_values():
    code = """
import os
def f(x):
    for fd in range(3, 9):
        try: os.write(fd, b'{"value": 1}\\n{"value": 1}\\n')
        except OSError: pass
    return 0
"""
    tests = [Test([0], returns=secrets.randbelow(10**9) + 2) for _ in range(2)]
    assert run(code, "f", tests).passed == (False, False)


def test_nothing_is_unpickled(world):
    code = world.fill("""
import os, pickle
class Bomb:
    def __reduce__(self): return (os.mkdir, ('FOLDER/exploded',))
def f(): return pickle.dumps(Bomb(), 0).decode()
""")
    before, result = world.state(), value(code)
    assert world.state() == before
    armed = result.value.encode().replace(b"__main__", b"posix")
    pickle.Unpickler(io.BytesIO(armed)).load()
    assert world.state() != before, "the bomb itself does not work"


def test_no_descriptor_is_inherited(world):
    code = "import os\ndef f():\n    found = ''\n    for fd in range(3, 1024):\n        try: found += os.read(fd, 99).decode()\n        except OSError: pass\n    return found"
    with (world.folder / "secret.txt").open() as file:
        os.set_inheritable(file.fileno(), True)
        assert world.secret not in repr(value(code))
        script = f"{code}\nprint(f())"
        done = subprocess.run(
            [sys.executable, "-I", "-c", script],
            capture_output=True, text=True, close_fds=False,
        )  # fmt: skip
    assert world.secret in done.stdout, "the attack itself does not work"


def test_the_environment_is_empty_and_nothing_stays_behind(monkeypatch):
    monkeypatch.setenv("API_KEY", "sk-secret")
    before = set(Path(tempfile.gettempdir()).iterdir())
    code = "import os\ndef f(): return [dict(os.environ), os.environ.get('API_KEY')]"
    found = value(code).value
    assert found[1] is None and set(found[0]) <= {"LC_CTYPE"}
    assert set(Path(tempfile.gettempdir()).iterdir()) <= before


NUMBERS = {
    "open": 2, "stat": 4, "mprotect": 10, "shmget": 29, "socket": 41, "clone": 56,
    "fork": 57, "execve": 59, "kill": 62, "fcntl": 72, "chdir": 80, "chmod": 90,
    "ptrace": 101, "mount": 165, "setrlimit": 160, "chroot": 161, "tgkill": 234,
    "keyctl": 250, "openat": 257, "unshare": 272, "perf_event_open": 298,
    "name_to_handle_at": 303, "process_vm_readv": 310, "seccomp": 317,
    "memfd_create": 319, "bpf": 321, "execveat": 322, "userfaultfd": 323,
    "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435, "openat2": 437,
    "pidfd_getfd": 438, "landlock_restrict_self": 446, "x32 open": 0x40000002,
    "madvise": 28, "prctl": 157, "prlimit64": 302, "sendto": 44, "rt_sigaction": 13,
}  # fmt: skip


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
def test_raw_system_calls_are_refused():
    code = """
import ctypes
def f(number):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return [libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno()]
"""
    outcome = run(code, "f", [Test([n]) for n in NUMBERS.values()])
    found = {k: r.value for k, r in zip(NUMBERS, outcome.results, strict=True)}
    refused = [-1, 1]  # EPERM: the wall, not a bad argument
    assert {name for name, got in found.items() if got != refused} == set()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86_64")
def test_the_door_of_32_bit_code_kills():
    code = """
import ctypes, mmap
def f(machine_code):
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex(machine_code))
    place = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(place)()
"""
    getpid, getpid_32 = "b8270000000f05c3", "b814000000cd80c3"  # syscall, int 0x80
    outcome = run(code, "f", [Test([getpid]), Test([getpid_32])])
    assert outcome.results[0].value > 1, "the machine code itself does not run"
    assert (outcome.results[1], outcome.ended) == (sandbox.NO_ANSWER, "died")


# Each wall for itself


def alone(wall, attack):
    """Standard output of an attack behind one wall only."""
    script = (
        f"import sys; sys.path.insert(0, {str(INSIDE.parent)!r}); import sealed\n"
        f"import os, socket\nif not ({wall}): print('no wall'); sys.exit()\n"
        f"try:\n    {attack}\n    print('out')\nexcept OSError: print('held')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    ("wall", "attack"),
    [
        ("sealed.landlock() or True", "open('/etc/passwd')"),
        ("sealed.landlock() or True", "open('FOLDER/new', 'w')"),
        ("sealed.libc.unshare(sealed.NAMESPACES) == 0", "socket.create_connection(('127.0.0.1', PORT))"),
        ("sealed.limit(512, 1, 0) is None", "os.write(os.open('FOLDER/new', os.O_CREAT | os.O_WRONLY), b'x')"),
        ("sealed.seccomp(sealed.platform.machine()) is None", "open('/etc/passwd')"),
        ("sealed.seccomp(sealed.platform.machine()) is None", "socket.socket()"),
    ],
)  # fmt: skip
def test_every_wall_stands_alone(world, wall, attack):
    attack = world.fill(attack)
    if wall.startswith("sealed.landlock"):
        wall = "sealed.libc.prctl(38, 1, 0, 0, 0) == 0 and sealed.landlock()"
    if "seccomp" in wall:
        wall = f"sealed.libc.prctl(38, 1, 0, 0, 0) == 0 and {wall}"
    said = alone(wall, attack)
    if said == "no wall":
        pytest.skip("this kernel does not have the second wall; seccomp stands")
    assert said == "held"
    assert alone("True", attack) == "out"


def test_requests_hold_no_answer():
    tests = [Test([1], returns="the answer"), Test([2], raises="SecretError")]
    request = json.loads(sandbox._request("code", "f", tests, Limits()))
    assert request["inputs"] == [[1], [2]]
    assert "answer" not in str(request) and "Secret" not in str(request)
