"""Subjects with distractors, and verbs that must agree with them."""

from __future__ import annotations

from typing import NamedTuple

from utils.closed_world.words import HEADS, LANDMARKS, PREDICATES, capital, plural
from utils.closed_world.world import Dice, World

NEAR = ("near", "behind", "beside")


class AgreementItem(NamedTuple):
    """Two sentences that differ in one word, the verb; only `good` is English.

    `distance` counts the words between the head noun and its verb; `distractor` says
    that the noun nearest to the verb has another number than the head.
    """

    good: str
    bad: str
    distance: int
    distractor: bool


def agreement_items(
    world: World, seed: int = 0, count: int = 400
) -> list[AgreementItem]:
    """Pairs with heads and predicates that no story puts together: to get them right a
    model must have learnt the rule, not the pairs."""
    dice = Dice(world.seed, "agreement", seed)
    return [agreement(dice, held_out=True, congruent=0.5) for _ in range(count)]


def agreement(dice: Dice, held_out: bool, congruent: float) -> AgreementItem:
    """One pair; the distractor has the head's number with probability `congruent`."""
    head, predicate = _head_and_predicate(dice, held_out)
    many = dice.chance(0.5)
    clash = not dice.chance(congruent)
    modifier = _modifier(dice, head, many != clash)
    subject = " ".join(["the", plural(head) if many else head, *modifier])
    right, wrong = predicate[many], predicate[not many]
    return AgreementItem(
        good=f"{capital(subject)} {right} {predicate[2]}.",
        bad=f"{capital(subject)} {wrong} {predicate[2]}.",
        distance=len(modifier),
        distractor=clash and bool(modifier),
    )


def _head_and_predicate(dice: Dice, held_out: bool) -> tuple[str, tuple[str, str, str]]:
    """One in five combinations is kept for the test."""
    while True:
        head, predicate = dice.below(len(HEADS)), dice.below(len(PREDICATES))
        if ((head + predicate) % 5 == 0) == held_out:
            return HEADS[head], PREDICATES[predicate]


def _modifier(dice: Dice, head: str, many: bool) -> list[str]:
    """Up to eight words for after the head; the last noun is plural if `many`."""
    kind = dice.below(5)
    if kind == 0:
        return []
    if kind == 1:
        return _clause(dice, head, many)
    look = dice.pick(("", "old"))
    (near, far), (noun, other) = dice.shuffled(NEAR)[:2], dice.shuffled(LANDMARKS)[:2]
    if kind < 4:
        return _place(near, look, noun, many)
    return _place(far, look, other, dice.chance(0.5)) + _place(near, look, noun, many)


def _clause(dice: Dice, head: str, many: bool) -> list[str]:
    """ "that the goats follow", as words."""
    other = dice.pick([h for h in HEADS if h != head])
    verb = dice.pick(("admire", "follow", "greet"))
    if many:
        return ["that", "the", plural(other), verb]
    return ["that", "the", other, verb + "s"]


def _place(preposition: str, look: str, noun: str, many: bool) -> list[str]:
    """ "near the old wells", as words."""
    return [preposition, "the", *look.split(), plural(noun) if many else noun]
