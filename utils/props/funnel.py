"""A cleaning funnel for more text than fits in memory (notebook 04.7).

The stages that look at one document alone (`stages.Judge`) run in batches on several
processes; duplicates are found afterwards, in order, against an index on disk. A run
that is killed goes on after its last finished batch. What it costs on this machine, by
megabytes of text:

    python -m utils.props.funnel 6 12 25 50 100
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from functools import partial
from hashlib import sha1
from itertools import islice
from pathlib import Path

import numpy as np
import psutil

from utils.props.stages import (
    ALIKE,
    BANDS,
    SHARED,
    Judge,
    Judged,
    band_keys,
    grams,
    log_odds,
    read,
    score,
)

Load = Callable[[str], tuple[str, str]]  # name to (text, why it cannot be used)
Job = Callable[[Sequence[str]], list[Judged]]


TABLES = """
CREATE TABLE IF NOT EXISTS kept(digest INTEGER PRIMARY KEY, signature);
CREATE TABLE IF NOT EXISTS band(key, digest, PRIMARY KEY(key, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS document(name, reason, bytes);
CREATE TABLE IF NOT EXISTS batch(number INTEGER PRIMARY KEY, last)"""


class Index:
    """What has been kept so far and how far the run has come, in one SQLite file;
    memory does not grow with it."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path)
        try:
            self.db.executescript(TABLES)
        except sqlite3.DatabaseError:
            raise _problem(f"{path.name} is damaged: delete its folder") from None

    def done(self) -> tuple[int, str]:
        """Finished batches, and the name of the last document in them."""
        last = "SELECT number, last FROM batch ORDER BY number DESC LIMIT 1"
        number, name = self.db.execute(last).fetchone() or (-1, "")
        return number + 1, name

    def reason(self, found: Judged) -> str:
        """Why a document is rejected, or "": then later ones are compared with it."""
        if found.reason:
            return found.reason
        seen = "SELECT 1 FROM kept WHERE digest = ?"
        if self.db.execute(seen, (found.digest,)).fetchone():
            return "exact duplicate"
        numbers = np.frombuffer(found.signature, np.uint32)
        keys = band_keys(numbers)
        others = self.db.execute(
            "SELECT signature FROM kept WHERE digest IN (SELECT digest FROM band"
            f" WHERE key IN ({','.join('?' * BANDS)}))",
            keys,
        )
        for (other,) in others:
            if np.mean(np.frombuffer(other, np.uint32) == numbers) >= ALIKE:
                return "near duplicate"
        values = (found.digest, found.signature)
        self.db.execute("INSERT INTO kept VALUES (?, ?)", values)
        rows = [(key, found.digest) for key in keys]
        self.db.executemany("INSERT INTO band VALUES (?, ?)", rows)
        return ""


def run(
    names: Iterable[str],
    load: Load,
    judge: Judge,
    folder: Path,
    *,
    workers: int = 0,
    limit: float = float("inf"),
    batch: int = 100,
) -> Iterator[int]:
    """Clean the documents into JSON lines below `folder`, `kept` and `rejected`, and
    yield the number of each finished batch.

    Stop after `limit` bytes of text. Whoever stops earlier, or is killed, calls it
    again with the same arguments and gets the same files. Raises `Problem` when the
    names have changed in between, there are none, or a worker dies.
    """
    for kind in ("kept", "rejected"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    index = Index(folder / "index.sqlite")
    with closing(index.db):
        number, last = index.done()
        batches = iter(partial(_take, iter(names), batch), [])
        skipped = list(islice(batches, number))
        if number and (len(skipped) < number or skipped[-1][-1] != last):
            raise _problem("The documents are not those of the run to go on with")
        total = "SELECT coalesce(sum(bytes), 0) FROM document"
        for judged in _judged(partial(_judge, load, judge), batches, workers):
            if index.db.execute(total).fetchone()[0] >= limit:
                break
            with index.db:  # the files first: a batch that is not in here is redone
                _write(folder, number, judged, index)
            yield number
            number += 1
    if not number:
        raise _problem("There are no documents to clean")


def _take(names: Iterator[str], count: int) -> list[str]:
    return list(islice(names, count))


def _judge(load: Load, judge: Judge, names: Sequence[str]) -> list[Judged]:
    return [judge(name, *load(name)) for name in names]


def _write(folder: Path, number: int, judged: list[Judged], index: Index) -> None:
    """One file of what is kept and one of what is not, and their rows in the index."""
    lines: dict[str, list[str]] = {"kept": [], "rejected": []}
    for one in judged:
        reason = index.reason(one)
        row: dict[str, object] = {"name": one.name, "text": one.text, "reason": reason}
        row["personal"] = sum(one.personal.values())
        lines["rejected" if reason else "kept"].append(json.dumps(row) + "\n")
        values = (one.name, reason, len(one.text.encode()))
        index.db.execute("INSERT INTO document VALUES (?, ?, ?)", values)
    index.db.execute("INSERT INTO batch VALUES (?, ?)", (number, judged[-1].name))
    for kind, rows in lines.items():
        draft = folder / kind / f"{number:05}.partial"
        draft.write_text("".join(rows), "utf-8")
        draft.replace(draft.with_suffix(".jsonl"))


def _judged(
    job: Job, batches: Iterable[Sequence[str]], workers: int
) -> Iterator[list[Judged]]:
    """The job's result for every batch, in order. Two batches a worker are on their
    way at most, so that nothing piles up in memory."""
    if not workers:
        yield from map(job, batches)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _remember, (job,))
    waiting: deque = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_do, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise _problem("A worker has died; run again to go on") from None
    finally:
        pool.shutdown(cancel_futures=True)


_own: dict[str, Job] = {}  # of a worker: sent once, it has all the weights


def _remember(job: Job) -> None:
    _own["job"] = job


def _do(batch: Sequence[str]) -> list[Judged]:
    return _own["job"](batch)


def _problem(sentence: str) -> Exception:
    from utils.runtime import Problem  # loads PyTorch

    return Problem(f"{sentence}.")


TEXTS = {".py", ".md", ".rst", ".txt", ".html"}


def files(root: Path) -> list[str]:
    """Names below `root` of files with prose in them, in an order that is fixed and
    mixes them: any beginning is a fair sample. Raises `Problem` if there are none."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            kind = Path(name).suffix.lower() in TEXTS or name == "METADATA"
            if kind or name.upper().startswith(("LICENSE", "NOTICE", "COPYING")):
                found.append(Path(folder, name).relative_to(root).as_posix())
    if not found:
        raise _problem(f"There are no text files below the folder {root.name!r}")
    return sorted(found, key=lambda name: sha1(name.encode()).digest())


def site_packages() -> Path:
    """The folder of the reader's installed packages."""
    return Path(sysconfig.get_path("purelib"))


def environment_judge(names: Sequence[str], root: Path) -> Judge:
    """A judge for the environment's own text. Its classifier has Python's reference
    as the good example, and asks for more than the worst tenth of `names` has; what
    it protects is the reference's held-out part."""
    from utils import corpora  # loads PyTorch

    found = [text for name in names for text, no in [read(root, name)] if not no]
    sample = [text for text in found if not Judge().reason(text)]
    good = [d.text for d in corpora.prose() if d.split == "train"]
    weights = log_odds(good, sample[::2]).astype(np.float32)
    floor = float(np.quantile([score(weights, text) for text in sample[1::2]], 0.1))
    exam = [d.text for d in corpora.prose() if d.split == "test" and len(d.text) > 300]
    protected = frozenset(gram for text in exam for gram in grams(text, SHARED))
    return Judge(weights, floor, protected)


def resident() -> float:
    """Memory of this process and its children in MB, shared parts counted in each."""
    total, me = 0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            total += process.memory_info().rss
    return total / 1e6


def benchmark(megabytes: float, folder: Path, workers: int = 2) -> dict[str, float]:
    """Clean that much of the environment's own text; what it took and what was kept."""
    root = site_packages()
    names = files(root)
    load, judge = partial(read, root), environment_judge(names[:300], root)
    begun, before, limit = time.monotonic(), os.times(), megabytes * 1e6
    batches = run(names, load, judge, folder, workers=workers, limit=limit)
    peak = max(resident() for _ in batches)
    after, index = os.times(), folder / "index.sqlite"
    with closing(sqlite3.connect(index)) as db:
        rows = db.execute(COUNTS).fetchall()
    return {
        "MB": sum(size for *_, size in rows) / 1e6,
        "seconds": time.monotonic() - begun,
        "CPU seconds": sum(after[:4]) - sum(before[:4]),  # with the workers'
        "peak MB": peak,
        "index MB": index.stat().st_size / 1e6,
        "documents": sum(count for _, count, _ in rows),
        **{reason or "kept": count for reason, count, _ in rows},
    }


COUNTS = "SELECT reason, count(*), sum(bytes) FROM document GROUP BY reason"


def main(arguments: Sequence[str]) -> None:
    """Print the costs of cleaning each of these sizes, one JSON object a line."""
    from utils.runtime import scratch

    for size in arguments or ["6", "12", "25", "50", "100"]:
        folder = scratch(f"funnel-{os.getpid()}")
        print(json.dumps(benchmark(float(size), folder)), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
