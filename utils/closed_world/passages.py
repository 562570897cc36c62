"""Short texts about other towns, with questions that one of their sentences answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from utils.closed_world import words
from utils.closed_world.facts import QUESTIONS, STATEMENTS, Fact, _forms
from utils.closed_world.splits import Wordings, asked_for, names, towns
from utils.closed_world.world import Dice
from utils.runtime import Problem

PEOPLE = ("trade", "home", "age", "favourite", "friend", "boss")
GOODS = ("price", "colour", "material", "shop")
SHOPS = ("owner", "street")
GROUPS = (*[PEOPLE] * 8, GOODS, SHOPS)  # so often is a passage about each

# More ways to ask than the two of `facts.QUESTIONS`.
MORE_QUESTIONS = {
    "trade": Wordings(
        ("As what does {s} work?", "Which trade has {s}?"),
        ("How does {s} earn a living?", "What work does {s} do?"),
    ),
    "home": Wordings(
        ("In which street does {s} live?", "Where is the home of {s}?"),
        ("Where can one find the home of {s}?", "To which street did {s} move?"),
    ),
    "age": Wordings(
        ("How many years old is {s}?", "Which age has {s}?"),
        ("How many years has {s} lived?", "What age did {s} reach this year?"),
    ),
    "favourite": Wordings(
        ("What would please {s} most?", "What is the favourite thing of {s}?"),
        ("Which thing does {s} like most?", "What could one give to please {s}?"),
    ),
    "friend": Wordings(
        ("Whom does {s} trust most?", "Who is the best friend of {s}?"),
        ("To whom does {s} tell secrets?", "Which person does {s} trust?"),
    ),
    "boss": Wordings(
        ("Who pays the wages of {s}?", "Who hired {s}?"),
        ("From whom does {s} take orders?", "Who gives {s} work?"),
    ),
    "price": Wordings(
        ("How much is {as_}?", "How much does {as_} cost?"),
        ("For how much is {as_} sold?", "What must one pay for {as_}?"),
    ),
    "colour": Wordings(
        ("Of which colour is {as_}?", "What is the colour of {ss}?"),
        ("In which colour do {ss} come?", "In what colour are {ss} painted?"),
    ),
    "material": Wordings(
        ("What is {as_} made of?", "Of which material are {ss}?"),
        ("What does one need to make {as_}?", "From what is {as_} made?"),
    ),
    "shop": Wordings(
        ("Who sells {ss}?", "Where does one buy {ss}?"),
        ("Where are {ss} sold?", "To which shop must one go for {as_}?"),
    ),
    "owner": Wordings(
        ("Who is the owner of {s}?", "Who runs {s}?"),
        ("Who keeps the keys of {s}?", "By whom is {s} run?"),
    ),
    "street": Wordings(
        ("Where is {s}?", "In which street does {s} stand?"),
        ("Which street leads to {s}?", "Where can one find {s}?"),
    ),
}
HEADERS = Wordings(
    (
        "Notes on {town}:",
        "In {town}:",
        "What people say in {town}:",
        "From the town book of {town}.",
        "A letter from {town}:",
        "This is known about {town}.",
        "News from {town}:",
        "{town} is a small town by the river.",
    ),
    ("A traveller writes about {town}:", "Seen and heard in {town}."),
)
LAYOUTS = ("text", "text", "lines", "dashes", "numbers")


@dataclass(frozen=True)
class Passage:
    """Some sentences about a town and a question to them. The answer stands word for
    word in `sentences[evidence_index]` (nowhere when it is "" and the index -1).

    `more` holds questions to the other sentences, each with the sentence that answers
    it; `wrong` what the same relation is for other subjects of the passage.
    """

    town: str
    header: str
    layout: str
    sentences: tuple[str, ...]
    question: str
    answer: str
    evidence_index: int
    more: tuple[tuple[str, str], ...]
    wrong: tuple[str, ...]

    @property
    def evidence(self) -> str:
        """The sentence that answers the question; "" when none does."""
        return self.sentences[self.evidence_index] if self.answer else ""

    @property
    def text(self) -> str:
        """The header and the sentences, as running text or one on a line."""
        if self.layout == "text":
            return " ".join([self.header, *self.sentences]).strip()
        marks = {"lines": "", "dashes": "- ", "numbers": "{}. "}
        lines = (
            marks[self.layout].format(i) + sentence
            for i, sentence in enumerate(self.sentences, start=1)
        )
        return "\n".join([self.header, *lines]).strip()


def passages(
    seed: int = 0, count: int = 100, split: str = "train", most: int = 8
) -> list[Passage]:
    """Passages of 2 to `most` sentences about invented towns other than that of seed 0.

    Some sentences tell the same about somebody else, or something else about the same
    subject. No person and no town occurs in two splits.
    Raises `Problem` when split is not one of SPLITS, count is less than 1 or `most`
    less than 2.
    """
    asked_for(split, count)
    if most < 2:
        raise Problem(f"most must be 2 or more, not {most!r}.")
    dice = Dice("passages", split, seed)
    return [passage(dice, split, most) for _ in range(count)]


def as_prompt(passage: Passage) -> str:
    """The passage and its question, up to where the answer should begin."""
    return f"{passage.text}\nQuestion: {passage.question}\nAnswer:"


def as_document(passage: Passage) -> str:
    """The passage with all its questions, to train on. Each answer quotes a sentence:
    that is checked at a glance, and small models learn it long before they can say the
    value alone."""
    pairs = [f"Question: {q}\nAnswer: {a}" for q, a in passage.more]
    return "\n".join([f"{as_prompt(passage)} {passage.evidence}", *pairs])


def without_answer(passage: Passage) -> Passage:
    """The same without the sentence that answers the question."""
    kept = list(passage.sentences)
    del kept[passage.evidence_index]
    return replace(passage, sentences=tuple(kept), answer="", evidence_index=-1)


def passage(dice: Dice, split: str, most: int = 8) -> Passage:
    """One passage of 2 to `most` sentences, drawn with these dice."""
    town = dice.pick(towns(split))
    told = _told(dice, split, most)
    order = dice.shuffled(range(len(told)))  # order.index(0): where the answer stands
    plain = dice.pick((0.0, 0.0, 0.5, 1.0))
    said = {i: _sentence(dice, town, told[i], plain) for i in order}
    others = dice.shuffled(range(1, len(told)))
    return Passage(
        town=town,
        header=HEADERS.pick(dice, split).format(town=town),
        layout=dice.pick(LAYOUTS),
        sentences=tuple(said.values()),
        question=reworded(dice, told[0], split),
        answer=told[0].value,
        evidence_index=order.index(0),
        more=tuple((reworded(dice, told[i], split), said[i]) for i in others),
        wrong=tuple(f.value for f in told[1:] if f.relation == told[0].relation),
    )


def reworded(dice: Dice, fact: Fact, split: str) -> str:
    """A question for the value of a fact; every second one in the test split has
    words that no other split uses."""
    more = MORE_QUESTIONS[fact.relation]
    every = Wordings(QUESTIONS[fact.relation] + more.usual, more.new)
    return every.pick(dice, split).format(**_forms(fact))


def _sentence(dice: Dice, town: str, fact: Fact, plain: float) -> str:
    """A statement of the fact, with probability `plain` the plain one."""
    forms = STATEMENTS[fact.relation]
    form = forms[0] if dice.chance(plain) else dice.pick(forms)
    return words.capital(form.format(town=town, **_forms(fact))) + "."


def _told(dice: Dice, split: str, most: int) -> list[Fact]:
    """Two to `most` facts, the one to ask for first; each relation has a value only
    once, so that no two sentences could answer one question, and never the subject
    that is asked about, so that a reply may name it."""
    told: list[Fact] = []
    for subject, relation in _pairs(dice, split, most):
        taken = {f.value for f in told if f.relation == relation}
        taken |= {subject, *(f.subject for f in told[:1])}
        value = _value(dice, split, relation)
        while value in taken:
            value = _value(dice, split, relation)
        told.append(Fact(subject, relation, value, 1, split))
    return told


def _pairs(dice: Dice, split: str, most: int) -> list[tuple[str, str]]:
    """(subject, relation): what is asked, the same of another, then a mixture."""
    group = dice.pick(GROUPS)
    relation = dice.pick(group)
    subject = _subject(dice, split, group)
    pairs = {(subject, relation): None}  # a dict keeps the order, a set does not
    count = 2 + dice.below(most - 1)
    while len(pairs) < count:
        kind = dice.below(3) if len(pairs) > 1 else 0
        if kind == 0:
            pairs[_subject(dice, split, group), relation] = None
        elif kind == 1:
            pairs[subject, dice.pick(group)] = None
        else:
            other = dice.pick(GROUPS)
            pairs[_subject(dice, split, other), dice.pick(other)] = None
    return list(pairs)


def _subject(dice: Dice, split: str, group: Sequence[str]) -> str:
    if group == PEOPLE:
        return dice.pick(names(split))
    return dice.pick(words.GOODS) if group == GOODS else _shop(dice)


def _shop(dice: Dice) -> str:
    return f"the {dice.pick(words.SHOP_FIRSTS)} {dice.pick(words.SHOP_LASTS)}"


def _value(dice: Dice, split: str, relation: str) -> str:
    """Any value that the relation could have."""
    if relation in ("friend", "boss", "owner"):
        return dice.pick(names(split))
    if relation in ("home", "street"):
        return f"{dice.pick(words.STREETS)} {dice.pick(words.STREET_KINDS)}"
    if relation == "age":
        return str(18 + dice.below(63))
    if relation == "price":
        return f"{2 + dice.below(39)} coins"
    if relation == "shop":
        return _shop(dice)
    return dice.pick(
        {
            "trade": words.TRADES,
            "favourite": words.GOODS,
            "colour": words.COLOURS,
            "material": words.MATERIALS,
        }[relation]
    )
