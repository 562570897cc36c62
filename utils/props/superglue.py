"""Home-made items in the shape of SuperGLUE's eight tasks (Wang and others 2019).

The card is data/benchmarks/README.md.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace

from utils import closed_world
from utils.closed_world import words
from utils.closed_world.facts import STATEMENTS, Fact, statement
from utils.closed_world.splits import strangers
from utils.closed_world.world import Dice
from utils.props.benchmarks import TOWN, Item
from utils.runtime import ROOT, Problem

FOLDER = ROOT / "data" / "benchmarks"
YES_NO = ("yes", "no")
PEOPLE = strangers(TOWN, "test")  # people that the shipped models have never heard of


def tasks(seed: int = 0, each: int = 50) -> dict[str, list[Item]]:
    """Eight tasks of `each` questions (MultiRC: four items to a question).

    Raises `Problem` when `each` is not from 2 to 60: the hand-written tasks are small.
    """
    if not 2 <= each <= 60:
        raise Problem(f"each must be from 2 to 60, not {each!r}.")
    makers = (_boolq, _cb, _copa, _multirc, _record, _rte, _wic, _wsc)
    found = {}
    for maker in makers:
        items = list(maker(Dice("superglue", maker.__name__, seed), each))
        found[items[0].task] = items
    return found


def _facts(dice: Dice, count: int) -> list[Fact]:
    """One fact each about so many different strangers; no value occurs twice."""
    found: dict[str, Fact] = {}
    people = dice.shuffled(PEOPLE)
    for name in people[:count]:
        value, relation = "", dice.pick(("home", "trade", "friend", "favourite"))
        while not value or value in found:
            value = _value(dice, relation, people[count:])
        found[value] = Fact(name, relation, value, 1, "test")
    return list(found.values())


def _value(dice: Dice, relation: str, others: list[str]) -> str:
    values = {
        "home": TOWN.streets,
        "trade": words.TRADES,
        "friend": others,
        "favourite": words.GOODS,
    }
    return dice.pick(values[relation])


def _told(facts: list[Fact]) -> str:
    return " ".join(statement(fact) for fact in facts)


def _reworded(fact: Fact) -> str:
    """What a fact says, in the second wording of its relation."""
    form, value = STATEMENTS[fact.relation][1], fact.value
    said = form.format(s=fact.subject, v=value, av=words.with_article(value))
    return words.capital(said) + "."


def _false(dice: Dice, fact: Fact) -> Fact:
    """The same with another value."""
    value = fact.value
    while value == fact.value:
        value = _value(dice, fact.relation, list(PEOPLE))
    return replace(fact, value=value)


ASKED = {
    "home": "Does {s} live in {v}?",
    "trade": "Is {s} {av}?",
    "friend": "Does {s} trust {v}?",
    "favourite": "Does {s} treasure {av}?",
}


def _boolq(dice: Dice, each: int) -> Iterator[Item]:
    for i in range(each):
        facts, no = _facts(dice, 4), int(i % 5 > 2)
        fact = _false(dice, facts[i % 4]) if no else facts[i % 4]
        question = ASKED[fact.relation].format(
            s=fact.subject, v=fact.value, av=words.with_article(fact.value)
        )
        yield Item("BoolQ", _told(facts), question, YES_NO, no)


FRAMES = (  # what follows about x when somebody says this: yes, no, maybe
    ("{w} found out that {x}.", "Everybody knows that {x}.", "{w} is glad that {x}."),
    ("{w} was wrong to think that {x}.", "It is not true that {x}."),
    ("{w} hopes that {x}.", "{w} asked whether {x}.", "Perhaps {x}."),
)


def _cb(dice: Dice, each: int) -> Iterator[Item]:
    for i in range(each):
        gold = (0, 0, 1, 2, 0, 1, 0, 1, 2, 0)[i % 10]
        fact, other = _facts(dice, 2)
        claim = statement(fact)
        text = dice.pick(FRAMES[gold]).format(w=other.subject, x=claim[:-1])
        yield Item("CB", text, f"{claim} Is that so?", (*YES_NO, "maybe"), gold)


def _rows(name: str) -> list[dict[str, str]]:
    path = FOLDER / name
    if not path.is_file():
        raise Problem(f"data/benchmarks has no {name}: restore it from the repository.")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _copa(dice: Dice, each: int) -> Iterator[Item]:
    pairs = _rows("copa.csv")
    asked = [(pair, kind) for pair in pairs for kind in ("cause", "effect")]
    for pair, kind in dice.shuffled(asked)[:each]:
        given = pair["effect" if kind == "cause" else "cause"]
        other = dice.pick([row for row in pairs if row != pair])
        choices = dice.shuffled((pair[kind], other[kind]))
        gold = choices.index(pair[kind])
        ends = tuple(choice[0].lower() + choice[1:] for choice in choices)
        stem = f"{given[:-1]} {'because' if kind == 'cause' else 'and so'}"
        question = f"What was the {kind} of this?"
        yield Item("COPA", given, question, ends, gold, stem=stem)


def _multirc(dice: Dice, each: int) -> Iterator[Item]:
    for group in range(each):
        names, streets = dice.shuffled(PEOPLE)[:5], dice.shuffled(TOWN.streets)[:2]
        homes = {name: dice.pick(streets) for name in names}
        homes[names[0]] = streets[0]  # at least one lives there
        facts = [Fact(n, "home", home, 1, "test") for n, home in homes.items()]
        text, question = _told(dice.shuffled(facts)), f"Who lives in {streets[0]}?"
        for name in names[:4]:
            no = int(homes[name] != streets[0])
            yield Item("MultiRC", text, question, YES_NO, no, name, group)


GAP = "@placeholder"


def _record(dice: Dice, each: int) -> Iterator[Item]:
    for i in range(each):
        name, other, friend, third = dice.shuffled(PEOPLE)[:4]
        home, street = dice.shuffled(TOWN.streets)[:2]
        facts = [
            Fact(name, "home", home, 1, "test"),
            Fact(other, "home", street, 1, "test"),
            Fact(name, "friend", friend, 1, "test"),
            Fact(third, "friend", other, 1, "test"),
        ]
        asked = facts[i % 4]
        answer = asked.value if dice.chance(0.5) else asked.subject
        query = _reworded(asked).replace(answer, GAP)
        choices = tuple(dice.shuffled((name, other, friend, third, home, street)))
        gold = choices.index(answer)
        yield Item("ReCoRD", _told(dice.shuffled(facts)), query, choices, gold)


def _rte(dice: Dice, each: int) -> Iterator[Item]:
    for i in range(each):
        facts, no = _facts(dice, 3), i % 2
        fact = _false(dice, facts[i % 3]) if no else facts[i % 3]
        question = f"{_reworded(fact)} Does this follow?"
        yield Item("RTE", _told(facts), question, YES_NO, no)


def _wic(dice: Dice, each: int) -> Iterator[Item]:
    """Pairs of sentences in which one word is noun and noun, verb and verb, or both."""
    uses: dict[str, dict[str, list[str]]] = {}
    seed = dice.below(1_000_000)
    for tagged in closed_world.tagged(TOWN, 800, seed):
        text = " ".join(word for word, _ in tagged).replace(" .", ".")
        for word, tag in tagged[1:]:
            if tag in ("NOUN", "VERB"):
                uses.setdefault(word, {}).setdefault(tag, []).append(text)
    both = [word for word in sorted(uses) if min(map(len, uses[word].values())) > 9]
    both = [word for word in both if len(uses[word]) == 2]
    for i in range(each):
        word, no = dice.pick(both), i % 2
        noun, verb = dice.shuffled(("NOUN", "VERB"))
        first, *rest = dice.shuffled(uses[word][noun])
        second = dice.pick(uses[word][verb] if no else rest)
        question = f'Does "{word}" mean the same in both?'
        yield Item("WiC", f"{first} {second}", question, YES_NO, no)


def _wsc(dice: Dice, each: int) -> Iterator[Item]:
    asked = [
        (row, kind, who)
        for row in _rows("winograd.csv")
        for kind in ("first", "second")
        for who in ("first", "second")
    ]
    for row, kind, who in dice.shuffled(asked)[:each]:
        text = row["text"].format(row[f"word_{kind}"])
        pronoun = "he" if " he " in text else "it"
        question = f'Does "{pronoun}" mean {row[who]}?'
        yield Item("WSC", text, question, YES_NO, int(kind != who))
