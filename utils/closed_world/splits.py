"""Who and what belongs to which split, so that exams ask something new."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

from utils.closed_world import words
from utils.closed_world.facts import SPLITS
from utils.closed_world.world import Dice, World, build
from utils.runtime import Problem

SHARES = ("test", "valid", "train", "train", "train")


class Wordings(NamedTuple):
    """Ways to say one thing; those in `new` are kept for the test split."""

    usual: tuple[str, ...]
    new: tuple[str, ...]

    def pick(self, dice: Dice, split: str) -> str:
        """One of the usual wordings; in the test split every second one is new."""
        if split == "test" and dice.chance(0.5):
            return dice.pick(self.new)
        return dice.pick(self.usual)


def asked_for(split: str, count: int) -> None:
    """Raises `Problem` when split is not one of SPLITS or count is less than 1."""
    if split not in SPLITS:
        raise Problem(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
    if count < 1:
        raise Problem(f"count must be 1 or more, not {count!r}.")


def split_of(key: str) -> str:
    """The split that a text belongs to, decided by the text alone: 3 train : 1 : 1."""
    return SHARES[Dice("split", key).below(len(SHARES))]


@cache
def names(split: str) -> tuple[str, ...]:
    """The names of grown-ups that only texts of this split may use."""
    every = (
        start + middle + end
        for ends in words.ENDS.values()
        for start in words.STARTS
        for middle in words.MIDDLES
        for end in ends
    )
    return tuple(name for name in every if split_of(name) == split)


@cache
def towns(split: str) -> tuple[str, ...]:
    """The names of towns that only texts of this split may use, none of them that of
    the town of seed 0, about which models know facts."""
    every = (start + end for start in words.STARTS for end in words.TOWN_ENDS)
    others = (town for town in every if town != build(0).town)
    return tuple(town for town in others if split_of(town) == split)


@lru_cache(maxsize=8)
def strangers(world: World, split: str) -> tuple[str, ...]:
    """The names of this split that nobody in the town has."""
    here = {person.name for person in world.people}
    return tuple(name for name in names(split) if name not in here)
