"""The words of the town, and the three rules of English that they need."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


STARTS = listed(
    "Brin Dov Fenn Gol Hesk Jolv Kesk Lum Morv Nib Orl Pim Quil Rusk Sorv Tiv Ulm Vosk "
    "Wim Yarv Zeb"
)
MIDDLES = listed("a e i o")
ENDS = {
    "she": listed("bela dia lisk lune mina nelle rith shara thea vena wyn zara"),
    "he": listed("bald dan dor gorn kar mond nuk rek sten thorn var zim"),
}
CHILD_ENDS = {"she": ("a", "ie"), "he": ("o", "un")}
TOWN_ENDS = listed("wick haven moor ford stead mouth")
STREETS = listed(
    "Anchor Barley Candle Chapel Cobbler Feather Heron Ivy Lantern Mill Orchard Pepper "
    "River Saddle Thistle Willow"
)
STREET_KINDS = listed("Lane Street Row Yard")
SHOP_FIRSTS = listed("Amber Brave Clever Gentle Golden Merry Quiet Silver")
SHOP_LASTS = listed("Badger Cricket Goose Hedgehog Otter Owl Rabbit Stork")

TRADES = listed(
    "baker barber beekeeper brewer carpenter cooper dyer farrier gardener glazier "
    "innkeeper locksmith mason miller potter roofer saddler sailor shepherd tailor "
    "thatcher tinker weaver wheelwright"
)
GOODS = listed(
    "basket bell bottle bowl box broom bucket button candlestick comb cradle cup "
    "eggcup flute fork funnel inkwell jug kettle ladle lamp mirror mug necklace oven "
    "pipe plate purse ring spoon tray umbrella"
)
COLOURS = listed(
    "amber black blue brown green grey orange pink purple red white yellow"
)
MATERIALS = listed("bone clay copper felt glass iron leather oak silver straw tin wax")

# The stories have things and places of their own, so that they never state a fact.
THINGS = listed(
    "apron ball boat cap doll drum feather flag hat hoop kite puppet ribbon scarf "
    "shell sled top whistle"
)
THING_LOOKS = listed("big blue fine green little old orange red round striped white")
ADULTS = listed(
    "baker farmer fisher gardener innkeeper mason miller painter potter shepherd smith "
    "tailor"
)
BEASTS = listed("cat donkey duck goat goose hen lamb pony puppy squirrel")
PLACES = listed(
    "barn bridge church garden gate harbour hill mill orchard pond stable well"
)

# Subjects and distractors of the agreement sentences: (singular, plural) by `plural`.
HEADS = listed(
    "baker farmer fisher miller painter potter smith tailor cat donkey duck goat goose "
    "hen pony"
)
LANDMARKS = listed("barn barrel bench boat bridge cart gate oak pond tower wall well")

# (singular verb, plural verb, rest of the sentence)
PREDICATES = (
    ("is", "are", "always awake before the birds"),
    ("is", "are", "fond of music"),
    ("was", "were", "very quiet that week"),
    ("was", "were", "happy about the sun"),
    ("has", "have", "no fear of thunder"),
    ("has", "have", "a place by the fire"),
    ("sleeps", "sleep", "until noon on Sundays"),
    ("knows", "know", "every stone in the town"),
    ("likes", "like", "the smell of rain"),
    ("waits", "wait", "for the evening stars"),
    ("walks", "walk", "to the river and back"),
    ("dreams", "dream", "of the sea"),
    ("eats", "eat", "pears in the autumn"),
    ("looks", "look", "at the clouds"),
    ("needs", "need", "a little more time"),
)

IRREGULAR = {"goose": "geese", "fish": "fish"}


def plural(noun: str) -> str:
    """The plural of a noun of this module: box, boxes; pony, ponies; goose, geese."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"; no word of this module breaks the vowel rule."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def capital(sentence: str) -> str:
    """The sentence with its first letter in upper case, the rest as it was."""
    return sentence[:1].upper() + sentence[1:]
