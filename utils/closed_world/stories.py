"""Little stories: somebody wants something, something is in the way, and it ends."""

from __future__ import annotations

from utils.closed_world import words
from utils.closed_world.grammar import agreement
from utils.closed_world.plots import PLOTS
from utils.closed_world.world import Child, Dice, World

CHORES = (
    "carried flour",
    "fed the hens",
    "painted the fence",
    "picked pears",
    "stacked wood",
    "swept the floor",
    "washed the pots",
    "watered the plants",
)
WEATHERS = words.listed("cold foggy hot rainy snowy sunny windy")
BEAST_LOOKS = words.listed("brown fat grey hungry little old white wild")
NUMBERS = words.listed("three four five six seven eight nine ten")
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}


def stories(world: World, count: int = 1_000, seed: int = 0) -> list[str]:
    """Stories of 5 to 8 sentences about the children of the town.

    They use fewer than 700 word types and state no fact of `facts`. Three in four open
    with a sentence on agreement, where two distractors in three have the subject's
    number; see `grammar.agreement_items` for the matching test.
    """
    dice = Dice(world.seed, "stories", seed)
    return [_story(dice, world) for _ in range(count)]


def _story(dice: Dice, world: World) -> str:
    plot = dice.pick(PLOTS)
    slots = plot.way + dice.pick(plot.ends)
    words_for = _cast(dice, world)
    told = [dice.pick(slot).format_map(words_for) for slot in slots]
    if dice.chance(0.75):
        told.insert(0, agreement(dice, held_out=False, congruent=2 / 3).good)
    return " ".join(words.capital(sentence) for sentence in told if sentence)


def _cast(dice: Dice, world: World) -> dict[str, str]:
    """Who and what the placeholders of one story stand for, from first to last."""
    a = dice.pick(world.children)
    b = dice.pick([child for child in world.children if child != a])
    thing, look = dice.pick(words.THINGS), dice.pick(words.THING_LOOKS)
    beast, beast_look = dice.pick(words.BEASTS), dice.pick(BEAST_LOOKS)
    weather = dice.pick(WEATHERS)
    return {
        **_pronouns(a),
        "A": a.name,
        "B": b.name,
        "thing": thing,
        "look": look,
        "a_thing": words.with_article(dice.pick((thing, f"{look} {thing}"))),
        "a_look_thing": words.with_article(f"{look} {thing}"),
        "beast": beast,
        "a_beast": words.with_article(beast),
        "a_look_beast": words.with_article(f"{beast_look} {beast}"),
        "weather": weather,
        "a_weather": words.with_article(weather),
        "adult": dice.pick(words.ADULTS),
        "place": dice.pick(words.PLACES),
        "chore": dice.pick(CHORES),
        "n": dice.pick(NUMBERS),
    }


def _pronouns(child: Child) -> dict[str, str]:
    he, him, his = PRONOUNS[child.pronoun]
    return {"he": he, "him": him, "his": his, "He": he, "His": his}
