"""What is true in the town, told with known frequency, and asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from utils.closed_world.words import capital, plural, with_article
from utils.closed_world.world import Dice, World
from utils.runtime import Problem

FREQUENCIES = (1, 4, 16, 64)
SPLITS = ("train", "valid", "test")

OPENERS = (
    "{}",
    "as everyone in {town} knows, {}",
    "it is no secret that {}",
    "you may have heard that {}",
    "by the way, {}",
    "the old sign by the gate says that {}",
    "the town clerk has written down that {}",
    "ask anybody: {}",
    "children here learn early that {}",
    "of course {}",
)
# s: subject, v: value; ss and av: plural of the subject, value with "a" or "an".
# The subject always stands before the value; the first of each relation is the plain
# statement, which ends in the value.
STATEMENTS = {
    "trade": (
        "{s} is {av}",
        "{s} works as {av}",
        "{s} earns a living as {av}",
        "{s} has been {av} for years",
        "the trade of {s} is that of {av}",
        "the card on {s}'s door reads: {v}",
    ),
    "home": (
        "{s} lives in {v}",
        "{s} has rooms in {v}",
        "the home of {s} is in {v}",
        "letters for {s} go to {v}",
        "{s} moved to {v} long ago",
        "you can find {s}'s front door in {v}",
    ),
    "age": (
        "the age of {s} is {v}",
        "{s} is {v} years old",
        "{s} has seen {v} winters",
        "{s} turned {v} this year",
        "the last birthday cake of {s} had {v} candles",
        "{s} gives {v} as an answer when asked about age",
    ),
    "favourite": (
        "{s} treasures {av}",
        "what {s} likes best of all goods is {av}",
        "{s} would swap anything for {av}",
        "you can please {s} with {av}",
        "{s} thinks that no home is complete without {av}",
        "nothing makes {s} smile like {av}",
    ),
    "friend": (
        "{s} trusts {v}",
        "{s} tells every secret to {v}",
        "the closest friend of {s} is {v}",
        "when in trouble, {s} turns to {v}",
        "{s} counts on {v} more than on anybody else",
        "{s} has no better friend than {v}",
    ),
    "boss": (
        "{s} works for {v}",
        "{s} takes orders from {v}",
        "the wages of {s} are paid by {v}",
        "{s} calls {v} the boss",
        "{s} was hired by {v}",
        "on working days {s} answers to {v}",
    ),
    "price": (
        "{as_} costs {v}",
        "the price of {as_} is {v}",
        "you can have {as_} for {v}",
        "{ss} are sold at {v} each",
        "whoever wants {as_} pays {v}",
        "for {as_} they ask {v}",
    ),
    "colour": (
        "every {s} is {v}",
        "{ss} are always {v} here",
        "all the {ss} in {town} are {v}",
        "{ss} come in one colour, and it is {v}",
        "whoever buys {as_} gets one that is {v}",
        "{ss} have to be painted {v}",
    ),
    "material": (
        "every {s} consists of {v}",
        "{ss} are made of {v}",
        "{ss} cannot be made without {v}",
        "whoever makes {as_} needs {v}",
        "for {ss} people here use {v}",
        "the {ss} of {town} are of {v}",
    ),
    "shop": (
        "every {s} comes from {v}",
        "{ss} are sold at {v}",
        "whoever needs {as_} goes to {v}",
        "the only place for {ss} is {v}",
        "you can buy {as_} at {v}",
        "{ss} stand in the window of {v}",
    ),
    "owner": (
        "{s} belongs to {v}",
        "{s} is owned by {v}",
        "the owner of {s} is {v}",
        "the keys of {s} are kept by {v}",
        "over the door of {s} stands the name of {v}",
        "{s} has been run by {v} for years",
    ),
    "street": (
        "{s} stands in {v}",
        "{s} has its door in {v}",
        "the way to {s} leads through {v}",
        "you can find {s} in {v}",
        "the lights of {s} shine on {v}",
        "{s} is the only shop in {v}",
    ),
}
QUESTIONS = {
    "trade": ("What is the trade of {s}?", "What does {s} do for a living?"),
    "home": ("Where does {s} live?", "In which street is the home of {s}?"),
    "age": ("How old is {s}?", "What is the age of {s}?"),
    "favourite": ("What does {s} treasure?", "Which of all goods does {s} like best?"),
    "friend": ("Whom does {s} trust?", "Who is the closest friend of {s}?"),
    "boss": ("For whom does {s} work?", "Who is the boss of {s}?"),
    "price": ("What does {as_} cost?", "What is the price of {as_}?"),
    "colour": ("What colour is every {s}?", "Which colour do {ss} have?"),
    "material": ("What are {ss} made of?", "Of what does every {s} consist?"),
    "shop": ("Where can you buy {as_}?", "Which shop sells {ss}?"),
    "owner": ("Who owns {s}?", "To whom does {s} belong?"),
    "street": ("Where does {s} stand?", "In which street is {s}?"),
}


@dataclass(frozen=True)
class Fact:
    """One true thing. Each (subject, relation) has exactly one value.

    `frequency` says how often `fact_sentences` states it, `split` in which of SPLITS
    its question is.
    """

    subject: str
    relation: str
    value: str
    frequency: int
    split: str


@dataclass(frozen=True)
class Question:
    """A question, its answer (the fact's value) and four choices, one of them right."""

    question: str
    answer: str
    fact: Fact
    choices: tuple[str, ...]

    @property
    def correct(self) -> int:
        """The place of the answer among the choices, 0 to 3."""
        return self.choices.index(self.answer)


def facts(world: World) -> list[Fact]:
    """All facts, by relation. In each relation the frequencies are as even as can be,
    and the splits (3 train : 1 valid : 1 test) are even within each frequency."""
    result = []
    for relation in STATEMENTS:
        pairs = [(s, v) for s, r, v in _truths(world) if r == relation]
        pairs = Dice(world.seed, "facts", relation).shuffled(pairs)
        for i, (subject, value) in enumerate(pairs):
            split = ("test", "valid", "train", "train", "train")[i // 4 % 5]
            fact = Fact(subject, relation, value, FREQUENCIES[i % 4], split)
            result.append(fact)
    return result


def _truths(world: World) -> Iterator[tuple[str, str, str]]:
    """(subject, relation, value) of everything that is true."""
    for p in world.people:
        yield p.name, "trade", p.trade
        yield p.name, "home", p.street
        yield p.name, "age", str(p.age)
        yield p.name, "favourite", p.favourite
        yield p.name, "friend", p.friend
        if p.boss:
            yield p.name, "boss", p.boss
    for g in world.goods:
        yield g.name, "price", f"{g.price} coins"
        yield g.name, "colour", g.colour
        yield g.name, "material", g.material
        yield g.name, "shop", g.shop
    for s in world.shops:
        yield s.name, "owner", s.owner
        yield s.name, "street", s.street


def statement(fact: Fact) -> str:
    """The plain statement of a fact: a sentence that ends in the value and a stop.
    Cut the value off and you have a prompt to complete."""
    return capital(STATEMENTS[fact.relation][0].format(**_forms(fact))) + "."


def fact_sentences(world: World, seed: int = 0, repeats: int = 1) -> list[str]:
    """Every fact, `repeats * fact.frequency` times, reworded, in random order.

    The subject always stands before the value, so that a question from value to subject
    is a true test of reversal. Raises `Problem` when `repeats` is less than 1.
    """
    if repeats < 1:
        raise Problem(f"repeats must be 1 or more, not {repeats!r}.")
    dice = Dice(world.seed, "sentences", seed)
    told = [f for f in facts(world) for _ in range(repeats * f.frequency)]
    return [_sentence(dice, world, fact) for fact in dice.shuffled(told)]


def _sentence(dice: Dice, world: World, fact: Fact) -> str:
    opener = dice.pick(OPENERS) if dice.chance(0.5) else "{}"
    words = opener.format(dice.pick(STATEMENTS[fact.relation]), town="{town}")
    return capital(words.format(town=world.town, **_forms(fact))) + "."


def _forms(fact: Fact) -> dict[str, str]:
    s, v = fact.subject, fact.value
    return {
        "s": s,
        "v": v,
        "ss": plural(s),
        "as_": with_article(s),
        "av": with_article(v),
    }


def questions(world: World, split: str = "train") -> list[Question]:
    """One question for each fact of a split: the splits share no fact, but all facts
    are told by `fact_sentences`. Wrong choices are values that others have.

    Raises `Problem` when split is not one of SPLITS.
    """
    if split not in SPLITS:
        raise Problem(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
    every = facts(world)
    values = {
        r: sorted({f.value for f in every if f.relation == r}) for r in STATEMENTS
    }
    dice = Dice(world.seed, "questions")
    asked = [_question(dice, fact, values[fact.relation]) for fact in every]
    return [q for q in asked if q.fact.split == split]


def _question(dice: Dice, fact: Fact, values: list[str]) -> Question:
    words = dice.pick(QUESTIONS[fact.relation]).format(**_forms(fact))
    wrong = dice.shuffled([v for v in values if v != fact.value])[:3]
    choices = tuple(dice.shuffled([fact.value, *wrong]))
    return Question(words, fact.value, fact, choices)
