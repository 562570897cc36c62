"""Real text without a download: the prose and the code of the reader's own Python.

The prose is the language reference (`pydoc_data.topics`) and the docstrings of the
standard library; the code is its source. All of it is read from the running
interpreter, so it differs a little from one Python version to the next: compare
`fingerprint` before you compare numbers.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from utils.runtime import ROOT, Problem

SKIP = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "turtledemo",
    "ensurepip",
}
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Document:
    """A text and the module that it comes from; the module decides its split."""

    module: str
    text: str

    @property
    def split(self) -> str:
        """One of "train" (80 %), "valid" and "test" (10 % each), by a hash of the
        module's name. `_pydecimal` and `_decimal` go where `decimal` goes, because
        they say the same things."""
        name = self.module.split(".")[0].lstrip("_").removeprefix("py")
        bucket = hashlib.sha256(name.encode()).digest()[0] % 10
        return {0: "valid", 1: "test"}.get(bucket, "train")


@cache
def prose() -> tuple[Document, ...]:
    """Reference topics, then docstrings, no paragraph twice (about 2 MB).

    Parsing the library takes seconds: the result is kept in `build/`, under a name that
    changes with Python and with this module.
    """
    version = fingerprint(sys.version + Path(__file__).read_text("utf-8"))
    store = ROOT / "build" / f"prose-{version}.json"
    if not store.exists():
        found = _distinct([*_topics(), *_docstrings(), *_builtin_docstrings()])
        store.parent.mkdir(exist_ok=True)
        draft = store.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps([(d.module, d.text) for d in found]), "utf-8")
        draft.replace(store)
    return tuple(Document(*row) for row in json.loads(store.read_text("utf-8")))


@cache
def code() -> tuple[Document, ...]:
    """The source files of the standard library without its tests (about 10 MB)."""
    return tuple(Document(m, p.read_text("utf-8")) for m, p in _sources())


def text(kind: str = "prose", split: str = "train", limit: int | None = None) -> str:
    """All documents of a split, joined by blank lines and cut at `limit` characters.

    Raises `Problem` when kind is not "prose" or "code" or split not one of SPLITS.
    """
    if kind not in ("prose", "code"):
        raise Problem(f'kind must be "prose" or "code", not {kind!r}.')
    if split not in SPLITS:
        raise Problem(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
    documents = prose() if kind == "prose" else code()
    return "\n\n".join(d.text for d in documents if d.split == split)[:limit]


@cache
def tokenizer(vocab_size: int = 1024) -> Tokenizer:
    """A byte-level BPE tokenizer trained on the prose's train split: any text can be
    encoded, and decoding gives it back exactly."""
    if vocab_size < 256:
        raise Problem(f"A byte-level vocabulary has at least 256, not {vocab_size}.")
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet
    )
    result.train_from_iterator([text("prose", "train")], trainer)
    return result


def fingerprint(content: str) -> str:
    """Eight hex digits by which two readers see whether they read the same text."""
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _distinct(documents: Iterable[Document]) -> Iterator[Document]:
    """Each paragraph once, in the first document that has it, whatever its line breaks.

    Topics of the reference contain one another, and modules share docstrings: without
    this, much of the held-out text would also be training text.
    """
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in document.text.split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in seen:
                kept.append(paragraph)
            if len(words) >= 20:
                seen.add(words)
        text = "\n\n".join(kept).strip()
        if len(text) >= 20:
            yield Document(document.module, text)


def _topics() -> Iterator[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise Problem(
            "This Python comes without pydoc_data.topics, our main text: use the "
            "installer of python.org or conda, or install the full Debian python3."
        ) from error
    for name in sorted(topics):
        yield Document(f"topic-{name}", topics[name].strip())


def _sources() -> list[tuple[str, Path]]:
    """(module name, file) of the standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [(path.relative_to(root), path) for path in root.rglob("*.py")]
    kept = [(r, p) for r, p in files if not SKIP & set(r.parts) and _is_text(p)]
    return sorted((".".join(r.with_suffix("").parts), p) for r, p in kept)


def _is_text(path: Path) -> bool:
    """Whether a file is UTF-8 and not the settings of one machine's build."""
    if path.name.startswith("_sysconfigdata"):
        return False
    try:
        path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return False
    return True


def _docstrings() -> Iterator[Document]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module, path in _sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            doc = ast.get_docstring(node) if isinstance(node, kinds) else None
            if doc:
                yield Document(module, doc)


def _builtin_docstrings() -> Iterator[Document]:
    """Docstrings of what is written in C: it has no source file to parse.

    A fresh interpreter reads them, because a notebook replaces some builtins, such as
    `input`, by its own.
    """
    command = [sys.executable, "-I", "-S", "-c", READ_BUILTINS]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    for module, doc in json.loads(printed):
        yield Document(module, doc)


READ_BUILTINS = """
import importlib, inspect, json, sys

docs = []
for name in sorted(sys.builtin_module_names):
    for _, thing in sorted(vars(importlib.import_module(name)).items()):
        members = sorted(vars(thing).items()) if isinstance(thing, type) else []
        for one in (thing, *(member for _, member in members)):
            if callable(one) and (doc := inspect.getdoc(one)):
                docs.append((name, doc))
print(json.dumps(docs))
"""
