"""A task to finetune on: questions about a town, answered in SQL and checked by running
it. Towns, people and half of the wordings of the test split are never trained on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from projects.llama3_qlora.generate import generate
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.tokenizer import Tokenizer
from utils.closed_world import World, build, facts, splits
from utils.closed_world.facts import Fact
from utils.closed_world.passages import reworded
from utils.closed_world.words import plural, with_article
from utils.closed_world.world import Dice

TABLES = {
    "people": ("name", "trade", "home", "age", "favourite", "friend", "boss"),
    "goods": ("name", "price", "colour", "material", "shop"),
    "shops": ("name", "owner", "street"),
}
# A person's relation to a person, and how a question says it.
KIN = {
    "friend": ("the friend of {}", "{}'s friend"),
    "boss": ("the boss of {}", "{}'s boss"),
}
COUNTED = {
    "trade": splits.Wordings(
        ("How many people work as {}?", "How many are {} by trade?"),
        ("What is the number of people who are {}?",),
    ),
    "home": splits.Wordings(
        ("How many people live in {}?", "How many homes are there in {}?"),
        ("What is the number of people in {}?",),
    ),
}
FIRST_TOWN = {"train": 1_000, "valid": 5_000, "test": 9_000}  # seeds of the towns
LIMIT = 100_000  # steps of SQLite's machine that a query may take
BATCH = 50  # questions answered at once


@dataclass(frozen=True)
class Example:
    """A question about the town of seed `town`, and a query that answers it. `wording`
    is the question with a star for what it asks about."""

    question: str
    sql: str
    town: int
    wording: str

    @property
    def prompt(self) -> str:
        """What the model reads."""
        return f"Question: {self.question}\nSQL:"


def examples(split: str, count: int, seed: int = 0) -> list[Example]:
    """So many questions of a split; three in five about one thing, one about a thing of
    somebody's friend or boss, one that counts. Raises `Problem` for a wrong split."""
    splits.asked_for(split, count)
    made = _endless(split, seed)
    return [next(made) for _ in range(count)]


def _endless(split: str, seed: int) -> Iterator[Example]:
    dice = Dice("SQL", split, seed)
    while True:
        number = FIRST_TOWN[split] + dice.below(400)
        town = build(number, people=20)
        every, told = facts(town), dict[str, list[Fact]]()
        for fact in every:
            if _may_use(fact, split):
                told.setdefault(fact.relation, []).append(fact)
        for relation in dice.shuffled(tuple(told))[:6]:
            fact = dice.pick(told[relation])
            links = [f.relation for f in every if f.subject == fact.subject]
            question, sql, about = _asked(dice, fact, split, links)
            yield Example(question, sql, number, _starred(question, about))


def _may_use(fact: Fact, split: str) -> bool:
    person = fact.relation in TABLES["people"]
    return not person or splits.split_of(fact.subject) == split


def _asked(
    dice: Dice, fact: Fact, split: str, known: Sequence[str]
) -> tuple[str, str, str]:
    """A question that starts from a fact, its query, and what it asks about; `known`
    are all relations of the fact's subject."""
    kind, relation = dice.below(5), fact.relation
    if kind == 0 and relation in COUNTED:
        words = COUNTED[relation].pick(dice, split)
        rows = f"people WHERE {relation} = {_quoted(fact.value)}"
        about = plural(fact.value) if relation == "trade" else fact.value
        return words.format(about), f"SELECT COUNT(*) FROM {rows};", about
    table = next(name for name, columns in TABLES.items() if relation in columns)
    if kind == 1 and table == "people" and relation not in KIN:
        link = dice.pick([k for k in KIN if k in known])
        who = dice.pick(KIN[link]).format(fact.subject)
        inner = f"SELECT {link} FROM people WHERE name = {_quoted(fact.subject)}"
        where = f"name = ({inner})"
    else:
        who, where = fact.subject, f"name = {_quoted(fact.subject)}"
    question = reworded(dice, replace(fact, subject=who), split)
    return question, f"SELECT {relation} FROM {table} WHERE {where};", who


def _starred(question: str, about: str) -> str:
    """A question with a star in the place of a subject, whatever its form."""
    for form in (with_article(about), plural(about), about):
        question = question.replace(form, "*")
    return question


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@lru_cache(maxsize=64)
def database(seed: int) -> sqlite3.Connection:
    """The town of a seed as tables in memory, which can only be read."""
    town = build(seed, people=20)
    base = sqlite3.connect(":memory:")
    for table, columns in TABLES.items():
        base.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        base.executemany(f"INSERT INTO {table} VALUES ({marks})", _rows(town, table))
    base.commit()
    base.set_authorizer(_only_reading)
    return base


def _rows(town: World, table: str) -> list[tuple[str, ...]]:
    """Each subject of the table with the values of its columns, as text."""
    columns = TABLES[table]
    found: dict[str, dict[str, str]] = {}
    for fact in facts(town):
        if fact.relation in columns:
            found.setdefault(fact.subject, {})[fact.relation] = fact.value
    return [
        (name, *(row.get(c, "") for c in columns[1:])) for name, row in found.items()
    ]


def _only_reading(action: int, *_: str | None) -> int:
    allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY


def run(sql: str, town: int) -> list[tuple[str, ...]] | None:
    """The rows that a query finds in a town, sorted; None when it is no query, asks for
    more than to read, or takes too long."""
    base = database(town)
    base.set_progress_handler(lambda: 1, LIMIT)  # interrupts what goes on for ever
    try:
        return sorted(tuple(map(str, row)) for row in base.execute(sql).fetchmany(100))
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return None


def right(example: Example, written: str) -> bool:
    """Whether a query finds what the right one finds, word for word or not."""
    found = run(written.strip(), example.town)
    return found is not None and found == run(example.sql, example.town)


def as_tokens(
    tokenizer: Tokenizer, made: Iterable[Example]
) -> tuple[list[list[int]], list[list[int]]]:
    """Documents and masks for `data.write_tokens`: only the query and its end are
    learnt."""
    documents, masks = [], []
    for example in made:
        prompt = [tokenizer.bos_id, *tokenizer.encode(example.prompt)]
        answer = [*tokenizer.encode(f" {example.sql}"), tokenizer.eos_id]
        documents.append(prompt + answer)
        masks.append([0] * len(prompt) + [1] * len(answer))
    return documents, masks


def written(
    model: Llama, tokenizer: Tokenizer, asked: Sequence[Example], most: int = 48
) -> list[str]:
    """What the model writes for each question, greedily, up to `most` tokens."""
    texts: list[str] = []
    for first in range(0, len(asked), BATCH):
        prompts = [
            [tokenizer.bos_id, *tokenizer.encode(example.prompt)]
            for example in asked[first : first + BATCH]
        ]
        new = generate(model, prompts, most, stop_ids=tokenizer.stop_ids)
        texts += [tokenizer.decode(ids) for ids in new]
    return texts


def marks(model: Llama, tokenizer: Tokenizer, asked: Sequence[Example]) -> list[float]:
    """1 for each question that the model answers with a right query, else 0."""
    model.eval()
    texts = written(model, tokenizer, asked)
    pairs = zip(asked, texts, strict=True)
    return [float(right(example, text)) for example, text in pairs]
