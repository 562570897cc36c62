"""Home-made items in the shape of MMLU (Hendrycks and others 2020) and of HellaSwag
(Zellers and others 2019); SuperGLUE's shape is in `superglue`.

The card is data/benchmarks/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from utils import closed_world, corpora
from utils.closed_world import plots, words
from utils.closed_world.facts import SPLITS, statement
from utils.closed_world.world import Dice
from utils.runtime import Problem

TOWN = closed_world.build(0)  # the town that the shipped models have read about


@dataclass(frozen=True)
class Item:
    """A question to a text (which may be empty), its choices and the place of the right
    one.

    `candidate` is the answer to be judged, where a task has one; items with the same
    `group` belong to one question. `stem` begins a statement that each choice would
    end. `leaked` says that the base model was trained on this very question.
    """

    task: str
    text: str
    question: str
    choices: tuple[str, ...]
    gold: int
    candidate: str = ""
    group: int = 0
    stem: str = ""
    leaked: bool = False

    @property
    def answer(self) -> str:
        """The right choice."""
        return self.choices[self.gold]


def real_mmlu(subject: str, count: int = 200) -> list[Item]:
    """The first test questions of a subject of the real MMLU, from a model hub."""
    from datasets import load_dataset

    rows = load_dataset("cais/mmlu", subject, split="test")
    return [from_mmlu(row) for row in rows.select(range(min(count, len(rows))))]


def from_mmlu(row: Mapping[str, Any]) -> Item:
    """An item from a row of the real MMLU (fields of cais/mmlu)."""
    return Item(
        row["subject"], "", row["question"], tuple(row["choices"]), row["answer"]
    )


def real_hellaswag(count: int = 1_000) -> list[Item]:
    """The first validation questions of the real HellaSwag, from a model hub."""
    from datasets import load_dataset

    rows = load_dataset("Rowan/hellaswag", split="validation")
    return [from_hellaswag(row) for row in rows.select(range(min(count, len(rows))))]


def from_hellaswag(row: Mapping[str, Any]) -> Item:
    """An item from a row of the real HellaSwag (fields of Rowan/hellaswag)."""
    return Item("hellaswag", row["ctx"], "", tuple(row["endings"]), int(row["label"]))


SUBJECTS = {
    "people": ("trade", "home", "age", "favourite"),
    "ties": ("friend", "boss"),
    "goods": ("price", "colour", "material", "shop"),
}


def mmlu(seed: int = 0, each: int = 60) -> list[Item]:
    """Five subjects of `each` questions with four options, one right, in random order.

    Raises `Problem` when `each` is not from 2 to 100.
    """
    if not 2 <= each <= 100:
        raise Problem(f"each must be from 2 to 100, not {each!r}.")
    dice = Dice("mmlu", seed)
    asked = [q for split in SPLITS for q in closed_world.questions(TOWN, split)]
    items: list[Item] = []
    for subject, relations in SUBJECTS.items():
        own = [q for q in asked if q.fact.relation in relations]
        items += [_known(dice, subject, q) for q in dice.shuffled(own)[:each]]
    items += [_grammar(dice) for _ in range(each)]
    return [*items, *_lexicon(dice, each)]


def _known(dice: Dice, subject: str, asked: closed_world.Question) -> Item:
    choices = tuple(dice.shuffled(asked.choices))
    stem = statement(asked.fact).removesuffix(f" {asked.answer}.")
    leaked, gold = asked.fact.split == "train", choices.index(asked.answer)
    return Item(subject, "", asked.question, choices, gold, stem=stem, leaked=leaked)


def _grammar(dice: Dice) -> Item:
    """Four predicates, of which one agrees with the subject."""
    pair = closed_world.agreement_items(TOWN, dice.below(1_000_000), 1)[0]
    same = zip(pair.good.split(), pair.bad.split(), strict=True)
    stem = " ".join(good for good, bad in same if good == bad)
    good = next(p for p in words.PREDICATES if stem.endswith(p[2] + "."))
    stem = stem.removesuffix(f" {good[2]}.")
    many = pair.good == f"{stem} {good[1]} {good[2]}."
    others = dice.shuffled([p for p in words.PREDICATES if p != good])[:3]
    right = f"{good[many]} {good[2]}"
    choices = tuple(dice.shuffled([right, *(f"{p[not many]} {p[2]}" for p in others)]))
    question = f'What goes on after "{stem}"?'
    return Item("grammar", "", question, choices, choices.index(right), stem=stem)


def _lexicon(dice: Dice, each: int) -> Iterator[Item]:
    lexicon = closed_world.lexicon()
    for word in dice.shuffled(sorted(lexicon))[:each]:
        wrong = dice.shuffled([v for k, v in lexicon.items() if k != word])[:3]
        choices = tuple(dice.shuffled([lexicon[word], *wrong]))
        question = f'What is the word for "{word}" beyond the river?'
        stem = f'The word for "{word}" beyond the river is'
        gold = choices.index(lexicon[word])
        yield Item("lexicon", "", question, choices, gold, stem=stem)


def documentation(seed: int = 0, count: int = 250) -> list[Item]:
    """Sentences of Python's own documentation, from modules that the shipped models
    have not read, each with the sentence that follows it and three from elsewhere.

    The text is that of the running interpreter: `corpora` says what that means.
    """
    dice, pairs = Dice("documentation", seed), _neighbours()
    items, every = [], [after for _, after in pairs]
    for before, after in dice.shuffled(pairs)[:count]:
        wrong = dice.shuffled([end for end in every if end != after])[:3]
        choices = tuple(dice.shuffled([after, *wrong]))
        items.append(Item("documentation", before, "", choices, choices.index(after)))
    return items


def _neighbours() -> list[tuple[str, str]]:
    """Neighbouring sentences of the held-out prose, of middling length."""
    found = {}
    for document in corpora.prose():
        if document.split == "train":
            continue
        for paragraph in document.text.split("\n\n"):
            sentences = re.split(
                r"(?<=[a-z)]\.) (?=[A-Z])", " ".join(paragraph.split())
            )
            for before, after in pairwise(sentences):
                fits = 40 <= len(before) <= 300 and 30 <= len(after) <= 160
                if fits and after.endswith(".") and ">>>" not in before:
                    found[after] = before
    return [(before, after) for after, before in found.items()]


CAST = (
    tuple(child.name for child in TOWN.children),
    words.THINGS,
    words.BEASTS,
    words.ADULTS,
    words.PLACES,
)
_HOLE = re.compile(r"\\\{\w+\\\}")


def hellaswag(seed: int = 0, count: int = 250) -> list[Item]:
    """Stories without their last sentence; the wrong endings belong to other plots or
    to the other outcome of this one. Raises `Problem` when `count` is less than 1."""
    if count < 1:
        raise Problem(f"count must be 1 or more, not {count!r}.")
    dice = Dice("hellaswag", seed)
    told = closed_world.stories(TOWN, 4 * count + 200, seed=100_000 + seed)
    parts = [story.rpartition(". ") for story in told]
    endings = [(f"{a}.", b, _outcome(b)) for a, _, b in parts if _outcome(b) >= 0]
    made = (_ending(dice, text, end, kind, endings) for text, end, kind in endings)
    return list(islice((item for item in made if item), count))


def _outcome(sentence: str) -> int:
    """The number of the outcome, over all plots, that ends in such a sentence; -1 when
    it is none or not the only one."""
    ends = [end for plot in plots.PLOTS for end in plot.ends]
    found = [i for i, end in enumerate(ends) if _matches(sentence, end[-1])]
    return found[0] if len(found) == 1 else -1


def _matches(sentence: str, forms: tuple[str, ...]) -> bool:
    patterns = (_HOLE.sub(r"[\\w ]+", re.escape(form)) for form in forms)
    return any(re.fullmatch(pattern, sentence) for pattern in patterns)


def _ending(
    dice: Dice, text: str, end: str, kind: int, endings: list[tuple[str, str, int]]
) -> Item | None:
    """An item of a story and its end; None when the story lacks what others need, or
    its own end names somebody new, which no other end would."""
    if not _recast(end, text, text):
        return None
    choices, kinds = [end], {kind}
    for _ in range(50):
        other_text, other, other_kind = dice.pick(endings)
        recast = _recast(other, other_text, text)
        if other_kind not in kinds and recast and recast not in choices:
            choices.append(recast)
            kinds.add(other_kind)
        if len(choices) == 4:
            order = dice.shuffled(choices)
            return Item("endings", text, "", tuple(order), order.index(end))
    return None


def _recast(sentence: str, source: str, target: str) -> str:
    """A sentence of one story with the names, things and places of another; "" when
    that one has too few of them, or its hero is the other pronoun's."""
    if _pronoun(source) != _pronoun(target):
        return ""
    for group in CAST:
        ours, theirs = _cast(target, group), _cast(source, group)
        swap = dict(zip(theirs, ours, strict=False))
        if not swap.keys() >= set(_cast(sentence, group)):
            return ""
        parts = re.split(rf"\b({'|'.join(group)})\b", sentence)
        sentence = "".join(swap.get(part, part) for part in parts)
    return sentence


def _pronoun(text: str) -> bool:
    """Whether a story is about a she."""
    return bool(re.search(r"\b([Ss]he|[Hh]er)\b", text))


def _cast(text: str, group: tuple[str, ...]) -> list[str]:
    """Which words of a group occur in a text, in order."""
    return list(dict.fromkeys(re.findall(rf"\b({'|'.join(group)})\b", text)))
