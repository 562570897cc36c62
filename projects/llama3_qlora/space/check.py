"""Is a Space folder complete, unchanged and free of secrets? Asked before it goes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import yaml

from projects.llama3_qlora.space.modules import reached, unresolved

SUMS = "SHA256SUMS"
SECRET = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|github_pat_\w{30,}|gh[pousr]_[A-Za-z0-9]{30,}"
    rb"|sk-[\w-]{32,}|AKIA[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def files(folder: Path) -> list[Path]:
    """All files of a folder that belong to it, in order: no caches of Python."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in found if "__pycache__" not in p.parts)


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS` of all files; `sha256sum -c` reads it."""
    named = [p for p in files(folder) if p.name != SUMS]
    lines = [f"{_digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in named]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def complaints(folder: Path) -> list[str]:
    """What is wrong with a Space folder, a sentence each; empty when all is well."""
    card = front_matter(folder)
    app = folder / str(card.get("app_file", "app.py"))
    wrong = [
        f"README.md does not say {key}."
        for key in ("sdk", "sdk_version", "app_file")
        if key not in card
    ]
    if app.is_file():
        wrong += _imports(app, folder)
    else:
        wrong.append(f"The program {app.name} is missing.")
    return wrong + _changed(folder) + _secrets(folder)


def front_matter(folder: Path) -> dict[str, object]:
    """What the Hub reads at the head of README.md; empty when there is nothing."""
    path = folder / "README.md"
    parts = path.read_text("utf-8").split("---\n", 2) if path.is_file() else []
    values = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    return values if isinstance(values, dict) else {}


def _imports(app: Path, folder: Path) -> list[str]:
    """Modules of ours must be in the folder, others in requirements.txt."""
    wrong = [
        f"The module {name} is imported, but missing."
        for name in sorted(unresolved(app, folder))
    ]
    path = folder / "requirements.txt"
    text = path.read_text("utf-8").lower() if path.is_file() else ""
    listed = {line.partition("==")[0].replace("-", "_") for line in text.split()}
    _, others = reached(app, folder)
    return wrong + [
        f"{name} is imported, but not in requirements.txt."
        for name in sorted(others)
        if name.lower() not in listed
    ]


def _changed(folder: Path) -> list[str]:
    """Files that SHA256SUMS names must be there, and as they were."""
    path = folder / SUMS
    if not path.is_file():
        return [f"{SUMS} is missing."]
    wrong = []
    for line in path.read_text("utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file():
            wrong.append(f"The file {name} is missing.")
        elif _digest(folder / name) != digest:
            wrong.append(f"The file {name} was changed after the build.")
    return wrong


def _secrets(folder: Path) -> list[str]:
    """The sentence names the file, never what was found in it."""
    return [
        f"{path.relative_to(folder).as_posix()} has what looks like a secret."
        for path in files(folder)
        if SECRET.search(path.read_bytes())
    ]
