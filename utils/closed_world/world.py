"""The town itself: people, shops, goods and streets, drawn from one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from utils.closed_world import words
from utils.runtime import Problem

T = TypeVar("T")
FEWEST, MOST = 20, 500


class Dice:
    """Draws that come out the same in every process and every Python from 3.11 on.

    Only `random()` is used, whose sequence Python guarantees; the key (a seed and a
    purpose) is hashed by SHA-512 inside `random.Random`, never by `hash`.
    """

    def __init__(self, *key: object) -> None:
        self._uniform = random.Random("/".join(map(str, key))).random

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._uniform() * n)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._uniform() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order (Fisher-Yates)."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result


@dataclass(frozen=True)
class Person:
    """A grown-up. `boss` is empty for those who own a shop; `friend` is whom the person
    trusts most, and everybody is trusted by exactly one other."""

    name: str
    pronoun: str  # "she" or "he"
    trade: str
    street: str
    age: int
    favourite: str
    friend: str
    boss: str


@dataclass(frozen=True)
class Shop:
    """A shop, its owner's name, its street and the names of the goods it sells."""

    name: str
    owner: str
    street: str
    goods: tuple[str, ...]


@dataclass(frozen=True)
class Good:
    """A kind of goods: one price in coins, one colour, one material, one shop."""

    name: str
    price: int
    colour: str
    material: str
    shop: str


@dataclass(frozen=True)
class Child:
    """Somebody for the stories; no fact is about a child."""

    name: str
    pronoun: str


@dataclass(frozen=True)
class World:
    """The whole truth about one town. The same seed gives the same town."""

    seed: int
    town: str
    streets: tuple[str, ...]
    people: tuple[Person, ...]
    shops: tuple[Shop, ...]
    goods: tuple[Good, ...]
    children: tuple[Child, ...]


def build(seed: int = 0, people: int = 60) -> World:
    """A town with so many people, a shop for every five of them (4 to 16) and 32 goods.

    Raises `Problem` when `people` is not from 20 to 500.
    """
    if not FEWEST <= people <= MOST:
        raise Problem(f"people must be from {FEWEST} to {MOST}, not {people!r}.")
    dice = Dice(seed, "world", people)
    town = dice.pick(words.STARTS) + dice.pick(words.TOWN_ENDS)
    streets = tuple(f"{s} {dice.pick(words.STREET_KINDS)}" for s in words.STREETS)
    names = _names(dice)[:people]
    owners = [name for name, _ in names[: min(16, max(4, people // 5))]]
    shops = _shops(dice, owners, streets)
    return World(
        seed=seed,
        town=town,
        streets=streets,
        people=tuple(_people(dice, names, owners, streets)),
        shops=tuple(shops),
        goods=tuple(_good(dice, good, s.name) for s in shops for good in s.goods),
        children=tuple(_children(dice)),
    )


def _names(dice: Dice) -> list[tuple[str, str]]:
    """(name, pronoun) of everybody who could live here, in random order."""
    return dice.shuffled(
        [
            (start + middle + end, pronoun)
            for pronoun, ends in words.ENDS.items()
            for start in words.STARTS
            for middle in words.MIDDLES
            for end in ends
        ]
    )


def _people(
    dice: Dice, names: list[tuple[str, str]], owners: list[str], streets: Sequence[str]
) -> list[Person]:
    """Each person trusts the next one in a random round through the whole town."""
    circle = dice.shuffled([name for name, _ in names])
    friend = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    workers = [name for name, _ in names if name not in owners]
    boss = {name: owners[i % len(owners)] for i, name in enumerate(workers)}
    return [
        Person(
            name=name,
            pronoun=pronoun,
            trade=dice.pick(words.TRADES),
            street=dice.pick(streets),
            age=18 + dice.below(63),
            favourite=dice.pick(words.GOODS),
            friend=friend[name],
            boss=boss.get(name, ""),
        )
        for name, pronoun in names
    ]


def _shops(dice: Dice, owners: list[str], streets: Sequence[str]) -> list[Shop]:
    signs = dice.shuffled([(a, b) for a in words.SHOP_FIRSTS for b in words.SHOP_LASTS])
    places = dice.shuffled(streets)  # no two shops in one street
    stock = dice.shuffled(words.GOODS)
    return [
        Shop(f"the {a} {b}", owner, place, tuple(stock[i :: len(owners)]))
        for i, ((a, b), owner, place) in enumerate(
            zip(signs, owners, places, strict=False)
        )
    ]


def _good(dice: Dice, name: str, shop: str) -> Good:
    return Good(
        name=name,
        price=2 + dice.below(39),
        colour=dice.pick(words.COLOURS),
        material=dice.pick(words.MATERIALS),
        shop=shop,
    )


def _children(dice: Dice) -> list[Child]:
    every = [
        Child(start + end, pronoun)
        for pronoun, ends in words.CHILD_ENDS.items()
        for start in words.STARTS
        for end in ends
    ]
    return dice.shuffled(every)[:40]
