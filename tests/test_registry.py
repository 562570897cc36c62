"""The registry: its tables are well formed, and the notebooks keep its promises."""

import csv
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from utils import registry
from utils.runtime import Problem
from utils.verdicts import MIME, VERDICTS

NUMBERED = {"1": 1, "2": 9, "3": 3, "4": 12, "5": 6, "6": 13, "7": 5, "8": 9}
NUMBERED |= {"10": 8, "11": 3, "12": 4}
CLAIMED = {
    "1": (1, 10),
    "2": (11, 56),
    "3": (57, 115),
    "4": (116, 154),
    "5": (501, 550),
}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A copy of the tables that a test may spoil."""
    return Path(shutil.copytree(registry.BOOK, tmp_path / "book"))


def change(path: Path, row_id: str, **cells: str) -> int:
    """Overwrite cells of one row; return its line number."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (place,) = [i for i, row in enumerate(rows) if row["id"] == row_id]
    rows[place] |= cells
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return place + 2


def full_tags() -> dict[str, set[str]]:
    """What the notebooks would carry if all were as the registry says."""
    tags: dict[str, set[str]] = {}
    for row in [*registry.listings(), *registry.claims()]:
        if not row.planned:
            tags.setdefault(row.notebook, {"parameters", "bug-2.4"}).add(row.tag)
    return tags


@pytest.mark.parametrize(("chapter", "count"), NUMBERED.items())
def test_numbered_listings_have_no_gap(chapter: str, count: int) -> None:
    ids = [row.id for row in registry.listings() if row.chapter == chapter]
    numbered = [i for i in ids if re.fullmatch(r"\d+\.\d+", i)]
    assert numbered == [f"{chapter}.{n}" for n in range(1, count + 1)]


def test_pieces_without_a_number_are_there() -> None:
    ids = {row.id for row in registry.listings()}
    assert {"2.2-bow", "4.4-digits", "4.3-instruct", "7.3-dspy", "B-ppo"} <= ids
    assert sum(i.startswith("5.2-openai") for i in ids) == 3
    assert sum(row.chapter == "9" for row in registry.listings()) == 13


@pytest.mark.parametrize(("chapter", "ends"), CLAIMED.items())
def test_claims_of_a_chapter_are_complete(chapter: str, ends: tuple[int, int]) -> None:
    ids = [row.id for row in registry.claims() if row.chapter == chapter]
    assert ids == [f"Q{n:03}" for n in range(ends[0], ends[1] + 1)]


def test_all_46_claims_of_chapter_two_have_a_notebook() -> None:
    rows = [row for row in registry.claims() if row.chapter == "2"]
    assert [row.planned for row in rows] == [False] * 46


def test_the_course_has_thirty_claims() -> None:
    rows = [row for row in registry.claims() if row.source == "course"]
    assert [row.id for row in rows] == [f"C{n:02}" for n in range(1, 31)]
    assert all(re.fullmatch(r"L\d+( L\d+)*", row.chapter) for row in rows)


def test_a_listing_has_its_chapter_and_a_deviation_once_it_is_shown() -> None:
    for row in registry.listings():
        assert re.split(r"[.-]", row.id)[0] == row.chapter, row
        assert bool(row.deviation) != row.planned, row


def test_a_reason_stands_exactly_where_a_claim_cannot_be_tested() -> None:
    for row in registry.claims():
        assert (row.testable == "no") == bool(row.why_not), row
        assert row.why_not in ("", row.why_not.rstrip(".") + "."), row


def test_ids_and_sentences_are_unique() -> None:
    rows = [*registry.listings(), *registry.claims()]
    assert len({row.id for row in rows}) == len(rows)
    assert len({row.claim for row in registry.claims()}) == len(registry.claims())


def test_every_home_is_in_a_chapter_of_the_book() -> None:
    rows = [*registry.listings(), *registry.claims()]
    chapters = {f"{n:02}" for n in range(1, 13)} | {"C"}
    assert {row.notebook.split()[-1][:2] for row in rows} <= chapters


@pytest.mark.parametrize(
    ("table", "row_id", "column", "cell"),
    [
        ("claims", "Q029", "id", "Q29"),
        ("claims", "Q029", "testable", "maybe"),
        ("claims", "Q029", "claim", "no full stop"),
        ("claims", "Q029", "source", "blog"),
        ("claims", "Q057", "notebook", "planed 03.1"),
        ("listings", "2.4", "notebook", "2.3"),
        ("listings", "2.4", "deviation", "changed a little"),
        ("listings", "2.4", "title", ""),
    ],
)
def test_a_bad_cell_is_named_by_file_line_and_column(
    book: Path, table: str, row_id: str, column: str, cell: str
) -> None:
    line = change(book / f"{table}.csv", row_id, **{column: cell})
    with pytest.raises(Problem, match=rf"^{table}\.csv line {line}: {column} must be"):
        getattr(registry, table)(book)


def test_a_row_with_too_few_cells_is_a_problem(book: Path) -> None:
    with (book / "claims.csv").open("a", encoding="utf-8") as file:
        file.write("Q999,book,2\n")
    line = len(registry.claims()) + 2
    with pytest.raises(Problem, match=rf"claims\.csv line {line}: a row must have 8"):
        registry.claims(book)


def test_a_wrong_header_is_a_problem(book: Path) -> None:
    path = book / "listings.csv"
    path.write_text(path.read_text("utf-8").replace("fault", "bug", 1), "utf-8")
    with pytest.raises(Problem, match=r"listings\.csv line 1: name the columns"):
        registry.listings(book)


def test_a_missing_table_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"no claims\.csv"):
        registry.claims(tmp_path)


def test_agreement_has_no_problems() -> None:
    assert registry.check(full_tags()) == []


def test_check_finds_a_row_without_its_cell() -> None:
    tags = full_tags()
    tags["02.3"].remove("listing-2.4")
    assert registry.check(tags) == ["Notebook 02.3 has no cell listing-2.4."]


def test_check_finds_a_missing_notebook() -> None:
    tags = full_tags()
    gone = tags.pop("02.7") - {"parameters", "bug-2.4"}
    assert "claim-C15" in gone
    assert registry.check(tags) == [
        f"Notebook 02.7 has no cell {t}." for t in sorted(gone)
    ]


def test_check_finds_a_tag_without_a_row() -> None:
    tags = full_tags()
    tags["02.3"].add("claim-Q999")
    (problem,) = registry.check(tags)
    assert problem == "Notebook 02.3 has claim-Q999; the registry says nothing."


def test_check_finds_a_tag_in_the_wrong_notebook() -> None:
    tags = full_tags()
    tags["02.4"].add("claim-Q029")
    (problem,) = registry.check(tags)
    assert problem == "Notebook 02.4 has claim-Q029; the registry says 02.3."


def test_check_finds_a_notebook_whose_row_still_says_planned(book: Path) -> None:
    change(book / "claims.csv", "Q029", notebook="planned 02.3")
    (problem,) = registry.check(full_tags(), book)
    assert problem == "Notebook 02.3 has claim-Q029; the registry says planned 02.3."


def test_check_finds_an_id_with_two_rows(book: Path) -> None:
    with (book / "claims.csv").open("a", encoding="utf-8") as file:
        file.write("Q029,book,2,Again.,,yes,,02.3\n")
    assert registry.check(full_tags(), book) == [
        "claim-Q029 has 2 rows in the registry."
    ]


def test_notebooks_and_registry_agree() -> None:
    assert registry.check(registry.tags(registry.notebooks())) == []


def card(claim: str, **more: object) -> nbformat.NotebookNode:
    """A cell with the output that `verdicts.card` leaves in an executed notebook."""
    record = {"claim": claim, "verdict": "fails", "measured": "0.25 [0.2, 0.3] bits"}
    record |= {"low": 0.2, "high": 0.3, "runs": 5, "over": "runs"}
    record |= {"why": "With against without.", "hardware": "CPU"} | more
    output = nbformat.v4.new_output("display_data", {MIME: record})
    cell = nbformat.v4.new_code_cell("verdicts.card(...)", outputs=[output])
    cell.metadata["tags"] = [f"claim-{claim}"]
    return cell


def executed(folder: Path, *cells: nbformat.NotebookNode, name: str = "02.3_x") -> Path:
    """A folder with one executed notebook of these cells."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# A"), *cells]
    )
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


def line_of(page: str, claim: str) -> list[str]:
    """The cells of a claim's line on the page."""
    (line,) = [x for x in page.splitlines() if x.startswith(f"| {claim} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_tags_are_read_from_notebooks(tmp_path: Path) -> None:
    folder = executed(tmp_path, card("Q029"), card("Q032"))
    assert registry.tags(folder.glob("*.ipynb")) == {
        "02.3": {"claim-Q029", "claim-Q032"}
    }


def test_the_claims_page_shows_what_was_measured(tmp_path: Path) -> None:
    exact = card("Q032", verdict="holds", measured="[3, 4] | all", low=None, runs=0)
    page = registry.claims_markdown(executed(tmp_path, card("Q029"), exact))
    cells = line_of(page, "Q029")
    assert cells[2] == "loss 0.0089 after 150 iterations"
    assert cells[3:7] == ["fails", "0.25 bits", "0.2 to 0.3", "5 runs"]
    assert "02.3" in cells[7]
    assert line_of(page, "Q032")[3:7] == ["holds", r"[3, 4] \| all", "", "1 run"]


def test_the_claims_page_counts_verdicts_first_and_lists_plans_last(
    tmp_path: Path,
) -> None:
    page = registry.claims_markdown(executed(tmp_path, card("Q029"), card("Q032")))
    written = [row for row in registry.claims() if not row.planned]
    planned = [row for row in registry.claims() if row.planned]
    assert "| fails | 2 |" in page
    assert f"| planned | {len(planned)} |" in page
    without = [row for row in written if row.testable == "no"]  # no cards
    assert f"| not run | {len(written) - 2 - len(without)} |" in page
    ids = re.findall(r"^\| ([QCR]\d+) \|", page, re.MULTILINE)
    assert ids == [row.id for row in [*written, *planned]]


def test_the_claims_page_says_why_a_claim_cannot_be_tested(
    tmp_path: Path, book: Path
) -> None:
    hub = card("Q054", verdict=VERDICTS[-1], measured="", why="No hub.")
    page = registry.claims_markdown(executed(tmp_path, hub))
    assert line_of(page, "Q054")[3:5] == ["cannot be tested here", "No hub."]
    assert line_of(page, "Q056")[3] == "cannot be tested here"
    assert line_of(page, "Q056")[4].startswith("Nobody has a measure")
    change(book / "claims.csv", "Q056", notebook="planned 02.6")
    page = registry.claims_markdown(tmp_path, book)
    assert line_of(page, "Q056")[3] == "planned"
    assert line_of(page, "Q056")[4].startswith("Nobody has a measure")


def test_two_cards_for_one_claim_are_a_problem(tmp_path: Path) -> None:
    folder = executed(tmp_path, card("Q029"))
    executed(folder, card("Q029"), name="02.6_y")
    with pytest.raises(Problem, match=r"02\.6_y\.ipynb judges Q029 a second time"):
        registry.claims_markdown(folder)


def test_the_coverage_page_has_every_id_and_the_totals() -> None:
    page = registry.coverage_markdown()
    shown, claims = registry.listings(), registry.claims()
    for row in shown:
        assert f"| {row.id} | " in page
    for claim in claims:
        assert re.search(rf"\b{claim.id}\b", page)
    done = sum(not row.planned for row in shown)
    judged = sum(not row.planned for row in claims)
    assert f"| all | {done} of {len(shown)} | {judged} of {len(claims)} |" in page
    assert "| 2 | 10 of 10 | 46 of 46 |" in page


def test_the_data_card_counts_right() -> None:
    text = (registry.BOOK / "README.md").read_text("utf-8")
    assert f"| `listings.csv` | {len(registry.listings())} |" in text
    assert f"| `claims.csv` | {len(registry.claims())} |" in text
