"""A dump of web pages about the invented town, with planted faults whose truth is kept
(notebook 04.7): copies, boilerplate, other languages, gibberish, personal data, leaks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pandas as pd

from utils import closed_world
from utils.closed_world import Question, World
from utils.props import planted, stages

MENU = (
    "Home | Shop | News | Help\nSign in\nAccept all cookies\n"
    "Share this page\nRead more\n"
)
# kind of document: how many in a hundred
MIX = {
    "clean": 40,
    "copy": 10,
    "near copy": 12,
    "menu": 8,
    "foreign": 8,
    "garbled": 6,
    "salad": 4,
    "personal": 7,
    "leaked": 5,
}
SPOILT = ("menu", "foreign", "garbled", "salad")
PERSONAL = ("email", "phone", "card", "iban")
REPLACED = (0, 0.01, 0.02, 0.04, 0.1)  # shares of the words of a near copy


def dump(seed: int, count: int) -> pd.DataFrame:
    """`count` documents of the town of this seed, the original before its copies.

    Columns `name`, `text`, `kind` (one of MIX, the truth) and `detail`: the share of
    words replaced in a near copy, the kind of personal data and whether it is
    disguised, the form of a leak.
    """
    town, dice = closed_world.build(seed), random.Random(seed)
    scenes = [other for _, other in closed_world.parallel(town, 600, seed)]
    originals: list[str] = []
    rows = []
    for i, page in enumerate(pages(town, count, seed)):
        (kind,) = dice.choices(list(MIX), list(MIX.values()))
        kind = kind if originals else "clean"
        if kind in SPOILT:
            text, detail = spoil(kind, page, scenes, dice), ""
        elif kind in ("copy", "near copy"):
            text, detail = _copied(kind, dice.choice(originals), dice)
        else:
            text, detail = _with_fault(kind, page, town, dice)
        if kind == "clean":
            originals.append(text)
        row = {"name": f"page-{i:04}", "text": text, "kind": kind, "detail": detail}
        rows.append(row)
    return pd.DataFrame(rows)


def pages(town: World, count: int, seed: int) -> Iterator[str]:
    """Clean pages: two stories, or in three of ten cases three reviews."""
    dice = random.Random(seed)
    tales = closed_world.stories(town, 2 * count, seed)
    views = [review.text for review in closed_world.reviews(town, 3 * count, seed)]
    for i in range(count):
        if dice.random() < 0.3:
            yield " ".join(views[3 * i : 3 * i + 3])
        else:
            yield "\n\n".join(tales[2 * i : 2 * i + 2])


def exam(town: World) -> list[str]:
    """The questions that no model may see, with their choices."""
    return [_printed(question) for question in closed_world.questions(town, "test")]


def _printed(question: Question) -> str:
    return f"{question.question} {', '.join(question.choices)}?"


def spoil(kind: str, page: str, scenes: Sequence[str], dice: random.Random) -> str:
    """What one of SPOILT makes of a page: navigation, sentences in the second language
    (`scenes`), the letters of each word shuffled, or the words."""
    words = page.split()
    if kind == "menu":
        return MENU * dice.randrange(3, 7)
    if kind == "foreign":
        return " ".join(dice.sample(scenes, 10))
    if kind == "garbled":
        return " ".join("".join(dice.sample(word, len(word))) for word in words)
    return " ".join(dice.sample(words, len(words)))


def _copied(kind: str, page: str, dice: random.Random) -> tuple[str, str]:
    """A copy has other line breaks; a near copy lacks one word, and a share of the
    others is replaced by words of the same page."""
    if kind == "copy":
        return page.replace(". ", ".\n"), ""
    share, words = dice.choice(REPLACED), page.split(" ")
    changed = [dice.choice(words) if dice.random() < share else w for w in words]
    del changed[dice.randrange(len(changed))]
    return " ".join(changed), str(share)


def _with_fault(
    kind: str, page: str, town: World, dice: random.Random
) -> tuple[str, str]:
    """A page with personal data or a leak in it. One clean page in ten has a parcel
    number that is as long as a card number, but fails its check."""
    if kind == "personal":
        sentence, detail = _personal(dice)
    elif kind == "leaked":
        sentence, detail = _leak(town, dice)
    elif dice.random() < 0.1:
        digits = f"{dice.randrange(10**15):015}"
        last = next(d for d in range(10) if not stages.luhn(f"{digits}{d}"))
        sentence, detail = f"Parcel {digits}{last} has arrived.", ""
    else:
        return page, ""
    return f"{page} {sentence}", detail


def _personal(dice: random.Random) -> tuple[str, str]:
    """A sentence with personal data of nobody, and its kind; numbers that have check
    digits have valid ones."""
    kind = dice.choice(PERSONAL)
    digits = f"{dice.randrange(10**18):018}"
    if kind == "card":
        last = next(d for d in range(10) if stages.luhn(f"{digits[:15]}{d}"))
        return f"Card {digits[:15]}{last} was charged.", kind
    if kind == "iban":
        codes = (f"DE{check:02}{digits}" for check in range(2, 99))
        return f"Pay to {next(filter(stages.iban, codes))}, please.", kind
    hidden = dice.random() < 0.25
    return planted.dirt(kind, dice, hidden), f"{kind} disguised" if hidden else kind


def _leak(town: World, dice: random.Random) -> tuple[str, str]:
    """An exam question, and in which form it leaks."""
    question = dice.choice(closed_world.questions(town, "test"))
    form = dice.choice(("verbatim", "reworded", "answer only"))
    if form == "verbatim":
        return _printed(question), form
    if form == "answer only":
        return closed_world.statement(question.fact), form
    start = f"Quiz: {question.question.rstrip('?').lower()}, do you think?"
    return f"{start} {', '.join(reversed(question.choices))}", form
