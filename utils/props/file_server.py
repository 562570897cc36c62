"""A file server in this process, as slow as you like: real HTTP, with Range requests.

with serve(folder, Line(total=32e6, each=4e6)) as server:
    http.client.HTTPConnection(server.address).request("GET", "/model.safetensors")
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from utils.runtime import Problem

CHUNK = 2**15  # bytes sent at once: small enough for a steady rate


@dataclass(frozen=True)
class Line:
    """What a server gives: `total` bytes per second for all connections together,
    `each` for one of them, after `delay` seconds of silence. The first answers break
    off after `cuts` bytes, one number for each of them."""

    total: float
    each: float
    delay: float = 0.0
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.total, self.each) <= 0 or self.delay < 0:
            raise Problem("A Line needs positive rates and a delay of 0 or more.")


class Pace:
    """Lets bytes pass at `rate` a second, whichever thread sends them."""

    def __init__(self, rate: float) -> None:
        self.rate, self.lock, self.free = rate, threading.Lock(), time.monotonic()

    def wait(self, count: int) -> None:
        """Sleep until `count` more bytes may have passed."""
        with self.lock:
            # what a late thread has missed it may make up, but not what an idle one has
            earliest = max(self.free, time.monotonic() - 0.02)
            self.free = until = earliest + count / self.rate
        time.sleep(max(0.0, until - time.monotonic()))


class FileServer(ThreadingHTTPServer):
    """Serves the files that lie directly in `folder`; `sent` counts their bytes."""

    daemon_threads, block_on_close = True, False
    request_queue_size = 64

    def __init__(self, folder: Path, line: Line, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder, self.line, self.pace = folder, line, Pace(line.total)
        self.cuts, self.sent, self.lock = list(line.cuts), 0, threading.Lock()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers a GET with a whole file (200) or, asked for a Range, its end (206)."""

    server: FileServer

    def do_GET(self) -> None:
        path = self.server.folder / Path(self.path).name
        if not path.is_file():
            self.send_error(404)
            return
        size, asked = path.stat().st_size, self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= size:
            self.send_error(416)
            return
        time.sleep(self.server.line.delay)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(size - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        with suppress(ConnectionError):  # the client has left
            self.send_file(path, start)

    def send_file(self, path: Path, start: int) -> None:
        """The bytes from `start` on, as fast as the line allows."""
        own = Pace(self.server.line.each)
        with self.server.lock:
            left = self.server.cuts.pop(0) if self.server.cuts else path.stat().st_size
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(min(CHUNK, left)):
                own.wait(len(chunk))
                self.server.pace.wait(len(chunk))
                with self.server.lock:  # before the client can have the bytes
                    self.server.sent += len(chunk)
                self.wfile.write(chunk)
                left -= len(chunk)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path, line: Line, port: int = 0) -> Iterator[FileServer]:
    """Serve on this machine while the block runs, and no longer, also if it fails.
    Port 0 is any free one; a taken port raises `Problem`."""
    try:
        server = FileServer(folder, line, port)
    except OSError:
        raise Problem(f"Port {port} is taken: use another, or 0 for any.") from None
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
