"""A second language: other words, another order, endings for the plural and the past.

The verb comes last. Every phrase is turned round, so that adjectives follow their noun
and prepositions become postpositions: "near the old well" goes to "well old the near".
"a" and "an" are one word, verbs do not agree, names and digits stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from utils.closed_world import words
from utils.closed_world.world import Dice, World
from utils.runtime import Problem

PLURAL, PAST = "i", "ath"  # every word without an ending has five letters

VOCABULARY = {
    "determiner": "the a every",
    "number": "two three four five six seven",
    "adverb": "once often sometimes today yesterday",
    "preposition": "near behind beside by in of for from to with",
    "adjective": "tall young wet hungry happy "
    + " ".join(words.COLOURS + words.THING_LOOKS),
    "noun": "age coin pear "
    + " ".join(words.TRADES + words.GOODS + words.MATERIALS + words.THINGS)
    + " "
    + " ".join(words.ADULTS + words.BEASTS + words.PLACES)
    + " "
    + " ".join(words.HEADS + words.LANDMARKS),
}
# Plural present, singular present, past.
ACTIONS = """
bring brings brought, carry carries carried, draw draws drew, find finds found,
follow follows followed, greet greets greeted, know knows knew, like likes liked,
lose loses lost, paint paints painted, see sees saw, wash washes washed"""
STATES = """
dance dances danced, laugh laughs laughed, sing sings sang, sleep sleeps slept,
wait waits waited, walk walks walked"""
OTHERS = """
be is was, live lives lived, work works worked, treasure treasures treasured,
trust trusts trusted, cost costs cost, come comes came, belong belongs belonged,
consist consists consisted, stand stands stood"""

BEING_LOOKS = words.listed("old little happy hungry tall wet young")
THING_LOOKS = words.listed("old little white brown big red wet")


def _verbs(table: str) -> list[list[str]]:
    return [forms.split() for forms in table.split(",")]


@cache
def lexicon() -> dict[str, str]:
    """English dictionary form to the other word: one to one, the same in every town."""
    english = {word for line in VOCABULARY.values() for word in line.split()}
    english |= {forms[0] for forms in _verbs(f"{ACTIONS},{STATES},{OTHERS}")}
    consonants, vowels = "bdfgklmnprstvz", "aeou"
    shapes = [
        a + b + c + d + e
        for a in consonants
        for b in vowels
        for c in consonants
        for d in vowels
        for e in "klmnrs"
    ]
    invented = Dice("second language").shuffled(shapes)
    return dict(zip(sorted(english), invented, strict=False))


@cache
def _forms() -> dict[str, tuple[str, str]]:
    """Every English form to (the other form, word class)."""
    other = lexicon()
    forms = {
        word: (other[word], kind)
        for kind, line in VOCABULARY.items()
        for word in line.split()
    }
    for noun in VOCABULARY["noun"].split():
        forms[words.plural(noun)] = (other[noun] + PLURAL, "noun")
    for base, singular, past in _verbs(f"{ACTIONS},{STATES},{OTHERS}"):
        forms[past] = (other[base] + PAST, "verb")
        forms[base] = forms[singular] = (other[base], "verb")
    return forms | {"an": forms["a"], "are": forms["is"], "were": forms["was"]}


def translate(sentence: str) -> str:
    """A sentence of one verb in the other language: every plain statement of a fact
    (`facts.statement`) and every English side of `parallel`.

    Raises `Problem` for an unknown word, or when there is not exactly one verb.
    """
    tokens = list(_read(sentence))
    verbs = [i for i, (_, kind) in enumerate(tokens) if kind == "verb"]
    if len(verbs) != 1:
        raise Problem(f"translate takes sentences of one verb, not {sentence!r}.")
    before, after = tokens[: verbs[0]], tokens[verbs[0] + 1 :]
    phrases = [*_phrases(before), *_phrases(after), [tokens[verbs[0]][0]]]
    return words.capital(" ".join(w for phrase in phrases for w in phrase)) + "."


def _read(sentence: str) -> Iterator[tuple[str, str]]:
    """(other word, class) of each word; names of several words are one."""
    first, _, rest = sentence.partition(" ")
    if first.lower().strip(",.") in _forms():
        sentence = f"{first.lower()} {rest}"
    for word in re.findall(r"[A-Z]\w+(?: [A-Z]\w+)*|\w+", sentence):
        known = _forms().get(word)
        if known:
            yield known
        elif word[0].isupper():
            yield word, "name"
        elif word.isdigit():
            yield word, "number"
        else:
            raise Problem(f"translate does not know the word {word!r}.")


def _phrases(tokens: list[tuple[str, str]]) -> Iterator[list[str]]:
    """The words of each phrase, turned round. A noun, a name or an adverb ends one."""
    phrase: list[str] = []
    for word, kind in tokens:
        phrase.insert(0, word)
        if kind in ("noun", "name", "adverb"):
            yield phrase
            phrase = []
    if phrase:
        yield phrase


def parallel(world: World, count: int = 1_000, seed: int = 0) -> list[tuple[str, str]]:
    """(English, other language): little scenes, which state no fact of `facts`."""
    dice = Dice(world.seed, "parallel", seed)
    english = [_scene(dice, world) for _ in range(count)]
    return [(sentence, translate(sentence)) for sentence in english]


def _scene(dice: Dice, world: World) -> str:
    """When, who, where, does what, to what."""
    when = dice.pick(VOCABULARY["adverb"].split()) if dice.chance(0.3) else ""
    subject, many = _subject(dice, world)
    action = dice.chance(0.7)
    base, singular, past = dice.pick(_verbs(ACTIONS if action else STATES))
    told = past if when in ("yesterday", "once") or dice.chance(0.5) else ""
    if when == "today":
        told = ""
    thing = _object(dice) if action else ""
    place = _place(dice) if not action or dice.chance(0.4) else ""
    parts = [when, subject, told or (base if many else singular), thing, place]
    return words.capital(" ".join(part for part in parts if part)) + "."


def _subject(dice: Dice, world: World) -> tuple[str, bool]:
    if dice.chance(0.3):
        return dice.pick(world.children).name, False
    phrase, many = _phrase(dice, words.ADULTS + words.BEASTS, BEING_LOOKS)
    return (f"{phrase} {_place(dice)}" if dice.chance(0.2) else phrase), many


def _object(dice: Dice) -> str:
    if dice.chance(0.5):
        return _phrase(dice, words.THINGS, THING_LOOKS)[0]
    return _phrase(dice, words.BEASTS, BEING_LOOKS)[0]


def _phrase(dice: Dice, nouns: Sequence[str], looks: Sequence[str]) -> tuple[str, bool]:
    """A noun with what goes before it, and whether it is plural."""
    noun, many = dice.pick(nouns), dice.chance(0.5)
    look = f"{dice.pick(looks)} " if dice.chance(0.5) else ""
    if not many:
        article = dice.chance(0.5)
        return words.with_article(look + noun) if article else f"the {look}{noun}", many
    number = f"{dice.pick(VOCABULARY['number'].split())} " if dice.chance(0.4) else ""
    the = "" if number and dice.chance(0.5) else "the "
    return the + number + look + words.plural(noun), many


def _place(dice: Dice) -> str:
    return f"{dice.pick(('near', 'behind', 'beside'))} the {dice.pick(words.PLACES)}"
