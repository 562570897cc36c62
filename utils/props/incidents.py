"""Traffic of a service whose faults and changes are known, because we made them.

log(rng, prompts)          a day's requests, as a batch that keeps its contract
visits(rng), nightly(...)  users, their complaints, and a feature made each midnight
traffic(seed, pool)        real sentences as requests, by kind of change
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from utils import corpora

REGIONS = ("north", "south", "harbour")
NEW_TOPIC = ("tkinter", "turtle")  # modules that usual traffic never asks about
USERS, DAYS = 200, 28


def log(
    rng: np.random.Generator, prompts: Sequence[str], rows: int = 100
) -> list[dict[str, Any]]:
    """Requests of the twelve hours from 0 to 12, in order."""
    return [
        {
            "request": f"r{i}",
            "asked_at": 12 * (i + 1) / rows,
            "region": str(rng.choice(REGIONS)),
            "prompt": str(rng.choice(prompts)),
            "tokens": int(rng.integers(5, 200)),
            "seconds": round(float(rng.lognormal(0, 0.4)), 3),
            "rating": None if rng.random() < 0.8 else int(rng.integers(1, 6)),
        }
        for i in range(rows)
    ]


def visits(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers (user, asked_at, unhappy), one per user and day, and complaints (user,
    at). Times are in days. Users differ in mood; a complaint follows a bad answer
    within hours."""
    user = np.repeat(np.arange(USERS), DAYS)
    asked_at = np.tile(np.arange(DAYS), USERS) + rng.uniform(0.3, 0.7, len(user))
    mood = rng.normal(0, 1.2, USERS)[user]
    unhappy = rng.random(len(user)) < 1 / (1 + np.exp(1.4 - mood))
    angry = unhappy & (rng.random(len(user)) < 0.6)
    delay = rng.uniform(0.02, 0.3, angry.sum())
    answers = {"user": user, "asked_at": asked_at, "unhappy": unhappy}
    complaints = {"user": user[angry], "at": asked_at[angry] + delay}
    return pd.DataFrame(answers), pd.DataFrame(complaints)


def nightly(complaints: pd.DataFrame) -> pd.DataFrame:
    """Each user's complaints of the last 7 days, as known at each midnight."""
    counts = np.zeros((USERS, DAYS + 7))  # (user, day), seven empty days before
    np.add.at(counts, (complaints["user"], complaints["at"].astype(int) + 7), 1)
    total = counts.cumsum(1)
    week = total[:, 7:] - total[:, :-7]  # (user, day)
    user, day = np.indices(week.shape).reshape(2, -1)
    columns = {"user": user, "known_at": day + 1.0, "complaints": week.ravel()}
    return pd.DataFrame(columns)


def words(text: str) -> list[str]:
    """Words in lower case."""
    return re.findall(r"[a-z'-]+", text.lower())


def sentences() -> dict[str, str]:
    """Sentences of Python's documentation, each with its module."""
    found = {}
    for document in corpora.prose():
        text = " ".join(document.text.split())
        for one in re.split(r"(?<=\.) (?=[A-Z])", text):
            if re.fullmatch(r"[A-Z][A-Za-z ,'-]{30,120}\.", one):
                found[one] = document.module.split(".")[0]
    return found


def reworded(text: str, table: Mapping[str, str], rng: np.random.Generator) -> str:
    """Half of the uses of the table's words, chosen by `rng`, replaced."""

    def other(match: re.Match[str]) -> str:
        word = match[0].lower()
        return table[word] if word in table and rng.random() < 0.5 else match[0]

    return re.sub(r"[A-Za-z'-]+", other, text)


def traffic(seed: int, pool: int = 1_200) -> tuple[list[str], dict[str, list[str]]]:
    """Requests of the past, and today's by kind of change.

    "slang" and "new meaning" replace the very same uses of eighty common words: by
    words that never were, or by one another.
    """
    rng, every = np.random.default_rng(seed), sentences()
    usual = [text for text, module in every.items() if module not in NEW_TOPIC]
    usual = [usual[i] for i in rng.permutation(len(usual))]
    past, today, half = usual[:pool], usual[pool : 2 * pool], pool // 2
    counts = Counter(word for text in past for word in words(text))
    common = [word for word, _ in counts.most_common(300) if len(word) > 4][:80]
    slang = dict(zip(common, rng.permutation(_coined()).tolist(), strict=False))
    meaning = dict(zip(common, common[1:] + common[:1], strict=True))
    dice = [np.random.default_rng(seed) for _ in range(2)]
    return past, {
        "quiet": today,
        "slang": [reworded(text, slang, dice[0]) for text in today],
        "new meaning": [reworded(text, meaning, dice[1]) for text in today],
        "topic": [text for text, module in every.items() if module in NEW_TOPIC],
        "length": [f"{a} {b}" for a, b in zip(today[:half], today[half:], strict=True)],
        "lower case": [text.lower().rstrip(".") for text in today],
        "hello": [f"Hello. {text}" for text in today],
    }


def _coined() -> list[str]:
    """A hundred and twenty words that no text has."""
    starts = [a + b for a in "zvkjw" for b in "aiou"]
    return [a + b + c for a in starts for b in ("rp", "mf", "lk") for c in ("o", "ie")]
