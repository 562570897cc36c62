"""Tagged sentences in which many words are noun here and verb there."""

from __future__ import annotations

from collections.abc import Sequence

from utils.closed_world.words import capital, listed, plural
from utils.closed_world.world import Dice, World

TAGS = ("ADJ", "ADV", "DET", "NOUN", "PREP", "PRON", "PUNCT", "VERB")

Tagged = list[tuple[str, str]]

# verb: things to do it to; most of these words are nouns too, and some adjectives.
OBJECTS = {
    "watch": "duck bank light walk fish play",
    "light": "lamp candle fire oven",
    "paint": "watch saw can bank hammer plant duck",
    "plant": "plant rose tree seed",
    "water": "plant rose tree garden",
    "hammer": "can nail saw bell",
    "comb": "pony goat duck cat",
    "visit": "bank baker miller play",
    "walk": "duck dog pony goat",
    "fish": "pond river",
    "can": "fish plum pear",
}
SAW = listed(
    "watch light saw bank can hammer duck plant walk fish visit comb play water"
)
PEOPLE = listed("baker farmer miller painter potter smith sailor tailor")
BEASTS = listed("duck goat cat dog goose hen")
PLACES = listed("bank water light plant tree gate river mill")
BEING_LOOKS = listed("old little fast loud cold light")
LOOKS = listed("old light little wet cold round")
COMPOUNDS = ("paint can", "water plant", "duck pond", "light switch", "play house")
MANNERS = listed("fast well often today early loud")
PREPOSITIONS = listed("near behind by under")


def tagged(world: World, count: int = 1_000, seed: int = 0) -> list[Tagged]:
    """Sentences of (word, tag) pairs, tags from TAGS; the full stop is a word.

    "watch", "light", "saw", "can" and a dozen more stand for different classes in about
    equal parts, and "her" is DET or PRON: the tag of a word depends on its neighbours.
    """
    dice = Dice(world.seed, "tagged", seed)
    return [_sentence(dice, world) for _ in range(count)]


def _sentence(dice: Dice, world: World) -> Tagged:
    kind = dice.pick((_plain, _plain, _plain, _modal, _order, _looks, _seen))
    sentence = kind(dice, world)
    if dice.chance(0.3):
        sentence += _where(dice)
    (first, tag), *rest = sentence
    return [(capital(first), tag), *rest, (".", "PUNCT")]


def _plain(dice: Dice, world: World) -> Tagged:
    """The baker near the bank watches the old duck."""
    subject, many = _subject(dice, world)
    if dice.chance(0.3):
        return [*subject, ("saw", "VERB"), *_thing(dice, SAW)]
    verb, objects = dice.pick(list(OBJECTS.items()))
    form = verb if many else _add_s(verb)
    return [*subject, (form, "VERB"), *_thing(dice, objects.split()), *_manner(dice)]


def _modal(dice: Dice, world: World) -> Tagged:
    """She can water the plants."""
    subject, _ = _subject(dice, world)
    verb, objects = dice.pick(list(OBJECTS.items()))
    return [*subject, ("can", "VERB"), (verb, "VERB"), *_thing(dice, objects.split())]


def _order(dice: Dice, world: World) -> Tagged:
    """Light the lamp."""
    verb, objects = dice.pick(list(OBJECTS.items()))
    return [(verb, "VERB"), *_thing(dice, objects.split()), *_manner(dice)]


def _looks(dice: Dice, world: World) -> Tagged:
    """The light was old. Her watch is light."""
    thing = _thing(dice, SAW, many=False)
    return [*thing, (dice.pick(("is", "was")), "VERB"), (dice.pick(LOOKS), "ADJ")]


def _seen(dice: Dice, world: World) -> Tagged:
    """They saw her duck under the bridge; we watch them walk."""
    subject, many = _subject(dice, world)
    verb = "saw" if dice.chance(0.5) else ("watch" if many else "watches")
    whom = dice.pick(("her", "her", "them", "him"))
    what = dice.pick(("duck", "fish", "walk", "play", "paint"))
    return [*subject, (verb, "VERB"), (whom, "PRON"), (what, "VERB"), *_where(dice)]


def _subject(dice: Dice, world: World) -> tuple[Tagged, bool]:
    """Who does it, and whether the verb is plural."""
    kind = dice.below(5)
    if kind == 0:
        return [(dice.pick(world.children).name, "NOUN")], False
    if kind == 1:
        pronoun = dice.pick(("she", "he", "they", "we"))
        return [(pronoun, "PRON")], pronoun in ("they", "we")
    many = dice.chance(0.5)
    noun = dice.pick(PEOPLE + BEASTS)
    if kind == 2 and many:  # "Ducks watch the bank."
        return [(plural(noun), "NOUN")], True
    look = [(dice.pick(BEING_LOOKS), "ADJ")] if dice.chance(0.3) else []
    where = _where(dice) if dice.chance(0.3) else []
    head = (plural(noun) if many else noun, "NOUN")
    return [(_determiner(dice), "DET"), *look, head, *where], many


def _thing(dice: Dice, nouns: Sequence[str], many: bool | None = None) -> Tagged:
    if many is None and dice.chance(0.1):
        first, second = dice.pick(COMPOUNDS).split()
        return [(_determiner(dice), "DET"), (first, "NOUN"), (second, "NOUN")]
    noun = dice.pick(nouns)
    several = dice.chance(0.35) if many is None else many
    look = [(dice.pick(LOOKS), "ADJ")] if dice.chance(0.3) else []
    if several and dice.chance(0.4):
        return [*look, (plural(noun), "NOUN")]
    return [
        (_determiner(dice), "DET"),
        *look,
        (plural(noun) if several else noun, "NOUN"),
    ]


def _determiner(dice: Dice) -> str:
    return dice.pick(("the", "the", "the", "her", "his"))


def _manner(dice: Dice) -> Tagged:
    return [(dice.pick(MANNERS), "ADV")] if dice.chance(0.25) else []


def _where(dice: Dice) -> Tagged:
    place = dice.pick(PLACES)
    return [(dice.pick(PREPOSITIONS), "PREP"), ("the", "DET"), (place, "NOUN")]


def _add_s(word: str) -> str:
    return word + ("es" if word.endswith(("ch", "sh")) else "s")
