"""The registry of the book: which cell shows a listing, which cell tests a claim.

Two tables in `data/book/` say it, one row per listing and one per claim. A notebook
answers with tags: `listing-2.4` on the cell with our version of a listing, `claim-Q029`
on the cell with its verdict card. `check` compares both; the coverage table and the
claims page are written from them, with links relative to the root of the repository.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from utils.runtime import ROOT, Problem

BOOK = ROOT / "data" / "book"
# What a cell must look like, and the words for whoever misses it.
RULES = {
    "id": (
        r"\d+\.\d+(-[a-z-]+)?|[BC]-[a-z-]+|[QR]\d{3}|C\d{2}",
        "like 2.4, 2.2-bow, Q029, R001 or C01",
    ),
    "notebook": (r"(planned )?(\d{2}\.\d+|[AC])", "like 02.3 or planned 04.2"),
    "title": (r".+", "given"),
    "deviation": (r"((as printed|fixed|replaced).*)?", "as printed, fixed or replaced"),
    "source": (r"book|course", "book or course"),
    "claim": (r".+\.", "a sentence"),
    "testable": (r"yes|no", "yes or no"),
}


@dataclass(frozen=True)
class Row:
    """A listing or a claim; `notebook` is "02.3", or "planned 04.2" until it is there.
    The course's claims have its lessons as `chapter`."""

    id: str
    chapter: str
    notebook: str

    @property
    def tag(self) -> str:
        return f"{type(self).__name__.lower()}-{self.id}"

    @property
    def planned(self) -> bool:
        return self.notebook.startswith("planned ")


@dataclass(frozen=True)
class Listing(Row):
    """The fault of the published listing, if any, and how ours deviates from it."""

    title: str
    fault: str
    deviation: str


@dataclass(frozen=True)
class Claim(Row):
    """A claim in our words; `figure` is what the source states as a number, `why_not`
    why it cannot be tested."""

    source: str
    claim: str
    figure: str
    testable: str
    why_not: str


RowType = TypeVar("RowType", bound=Row)


def listings(book: Path = BOOK) -> list[Listing]:
    """All listings in the order of the book.

    Raises `Problem` with file and line for a table that is missing or malformed.
    """
    return _read(book / "listings.csv", Listing)


def claims(book: Path = BOOK) -> list[Claim]:
    """All claims, the book's by chapter and then the course's; errors as `listings`."""
    return _read(book / "claims.csv", Claim)


def _read(path: Path, row_type: type[RowType]) -> list[RowType]:
    if not path.is_file():
        raise Problem(f"data/book has no {path.name}: restore it from the repository.")
    columns, rows = {field.name for field in fields(row_type)}, []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != columns:
            raise Problem(f"{path.name} line 1: name the columns {sorted(columns)}.")
        for cells in reader:
            where = f"{path.name} line {reader.line_num}"
            if None in cells or None in cells.values():
                raise Problem(f"{where}: a row must have {len(columns)} cells.")
            for column, cell in cells.items():
                pattern, words = RULES.get(column, (".*", ""))
                if not re.fullmatch(pattern, cell):
                    raise Problem(f"{where}: {column} must be {words}, not {cell!r}.")
            rows.append(row_type(**cells))
    return rows


def notebooks() -> list[Path]:
    """All notebooks in reading order: the book's, then those of the capstones."""
    return sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("projects/*/*.ipynb")])


def tags(paths: Iterable[Path]) -> dict[str, set[str]]:
    """The tags of all cells of each of these notebooks, by its number ("02.3")."""
    found: dict[str, set[str]] = {}
    for path, cell in _cells(paths):
        own = found.setdefault(path.stem.split("_")[0], set())
        own.update(cell["metadata"].get("tags", []))
    return found


def _cells(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(paths):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            yield path, cell


def check(notebook_tags: dict[str, set[str]], book: Path = BOOK) -> list[str]:
    """Where notebooks and registry disagree, one sentence each; empty when they agree.

    `notebook_tags` maps a notebook's number to the tags of its cells, as `tags` does.
    """
    rows: list[Row] = [*listings(book), *claims(book)]
    homes = {row.tag: row.notebook for row in rows}
    stated = {(row.notebook, row.tag) for row in rows if not row.planned}
    kinds = ("listing-", "claim-")
    cells = {(n, tag) for n, own in notebook_tags.items() for tag in own}
    found = {(n, tag) for n, tag in cells if tag.startswith(kinds)}
    times = Counter(row.tag for row in rows)
    return [
        *(f"{tag} has {n} rows in the registry." for tag, n in times.items() if n > 1),
        *(f"Notebook {n} has no cell {tag}." for n, tag in sorted(stated - found)),
        *(
            f"Notebook {n} has {tag}; the registry says {homes.get(tag, 'nothing')}."
            for n, tag in sorted(found - stated)
        ),
    ]


def coverage_markdown(book: Path = BOOK) -> str:
    """Which notebook shows each listing and tests each claim; totals by chapter."""
    shown, claimed = listings(book), claims(book)
    chapters = dict.fromkeys(map(_chapter, [*shown, *claimed]))
    totals = [[c, _done(shown, c), _done(claimed, c)] for c in chapters]
    totals.append(["all", _done(shown), _done(claimed)])
    listed = [[x.id, x.title, _link(x), x.fault, x.deviation] for x in shown]
    homes: dict[str, list[str]] = {}
    for row in sorted(claimed, key=lambda row: row.notebook.split()[-1]):
        homes.setdefault(_link(row), []).append(row.id)
    by_home = [[home, str(len(ids)), ", ".join(ids)] for home, ids in homes.items()]
    columns = ("Listing", "What it does", "Notebook", "Published fault", "Ours")
    return _page(
        ("# Coverage", ("Chapter", "Listings shown", "Claims tested"), totals),
        ("## Listings", columns, listed),
        ("## Claims", ("Notebook", "Claims", "Ids"), by_home),
    )


def _chapter(row: Row) -> str:
    return "course" if row.chapter.startswith("L") else row.chapter


def _done(rows: Iterable[Row], chapter: str = "") -> str:
    own = [row for row in rows if chapter in ("", _chapter(row))]
    return f"{sum(not row.planned for row in own)} of {len(own)}" if own else ""


def claims_markdown(executed: Path, book: Path = BOOK) -> str:
    """Every claim with its verdict, as the executed notebooks of a folder found it.

    Raises `Problem` when two cards judge one claim.
    """
    cards = _cards(executed)
    rows = sorted(claims(book), key=lambda row: row.planned)
    lines = [_judged(row, cards.get(row.id)) for row in rows]
    counts = Counter(line[3] for line in lines)
    said = ("Id", "Claim", "Its figure", "Verdict")
    found = ("Measured", "95 % interval", "Runs", "Notebook")
    return _page(
        ("# Claims", ("Verdict", "Claims"), [[v, str(n)] for v, n in counts.items()]),
        ("## One by one", (*said, *found), lines),
    )


def _cards(executed: Path) -> dict[str, dict[str, Any]]:
    """The verdict cards in the outputs of a folder's notebooks, by claim."""
    from utils.verdicts import MIME  # that module imports this one

    cards: dict[str, dict[str, Any]] = {}
    for path, cell in _cells(executed.glob("*.ipynb")):
        for output in cell.get("outputs", []):
            card = output.get("data", {}).get(MIME)
            if card and cards.setdefault(card["claim"], card) is not card:
                raise Problem(f"{path.name} judges {card['claim']} a second time.")
    return cards


def _judged(row: Claim, card: dict[str, Any] | None) -> list[str]:
    """The cells of one claim on the claims page."""
    verdict, measured, interval, runs = "not run", row.why_not, "", ""
    if row.planned or row.why_not:
        verdict = "planned" if row.planned else "cannot be tested here"
    elif card:
        verdict, measured = card["verdict"], card["measured"]
        if card["low"] is not None:  # the interval has a column of its own
            measured = re.sub(r" \[.*?\]", "", measured)
            interval = f"{card['low']:.3g} to {card['high']:.3g}"
        runs = f"{card['runs']} {card['over']}" if card["runs"] else "1 run"
        if verdict == "cannot be tested here":
            measured = card["why"]
    said = [row.id, row.claim, row.figure, verdict]
    return [*said, measured, interval, runs, _link(row)]


def _link(row: Row) -> str:
    """The row's notebook, as a link when the file is there."""
    for file in notebooks():
        if file.name.startswith(f"{row.notebook}_"):
            return f"[{row.notebook}]({file.relative_to(ROOT).as_posix()})"
    return row.notebook


def _page(*parts: tuple[str, Sequence[str], Sequence[Sequence[str]]]) -> str:
    """Markdown of (heading, columns, rows) parts; bars in cells are made harmless."""
    page = []
    for heading, columns, rows in parts:
        lines = [columns, ["---"] * len(columns), *rows]
        clean = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        page.append(f"{heading}\n\n")
        page += [f"| {' | '.join(line)} |\n" for line in clean] + ["\n"]
    return "".join(page).rstrip() + "\n"
