"""Dialogues with an assistant of the town, to train on and to be examined with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from utils.closed_world import words
from utils.closed_world.checks import Dialogue, said
from utils.closed_world.facts import Question, questions, statement
from utils.closed_world.manners import refusal, unknown
from utils.closed_world.passages import passage, reworded, without_answer
from utils.closed_world.smalltalk import smalltalk
from utils.closed_world.splits import Wordings, asked_for, split_of
from utils.closed_world.stories import stories
from utils.closed_world.tasks import instruction
from utils.closed_world.tools import tool
from utils.closed_world.world import Dice, World
from utils.runtime import Problem

NOT_SAID = "The text does not say."
ASKED = Wordings(
    (
        "{q}",
        "{q}",
        "{q}",
        "Please tell me: {q}",
        "I have a question. {q}",
        "Can you help me? {q}",
        "I am new in town. {q}",
        "Do you know this? {q}",
    ),
    ("I would like to know: {q}", "A friend asks: {q}"),
)
BRIEFLY = Wordings(
    (
        "{q} Only the answer, please.",
        "{q} Give only the name or word.",
        "Answer without a sentence: {q}",
    ),
    ("{q} No sentence, only the answer.",),
)
READ_FIRST = Wordings(
    (
        "{t}\n\n{q}",
        "Read this.\n{t}\n\n{q}",
        "{t}\nQuestion: {q}",
        "Here is a text.\n{t}\n\nAnswer from it: {q}",
        "{q}\n\n{t}",
        "Use this text to answer.\n{t}\n\n{q}",
    ),
    ("Look into these notes.\n{t}\n\n{q}", "{t}\n\nNow tell me: {q}"),
)
FROM_SYSTEM = Wordings(
    (
        "Answer from this text.\n{t}",
        "You know only this:\n{t}",
        "Use this text:\n{t}",
        "Context:\n{t}",
    ),
    ("Everything that you know stands here:\n{t}",),
)
TELL = Wordings(
    (
        "Tell me a story about {x}.",
        "I would like to hear a story about {x}.",
        "Write a little story about {x}.",
        "Do you know a story about {x}?",
        "Please make up a story about {x}.",
        "A story about {x}, please!",
        "Can you tell a story about {x}?",
        "The children want a story about {x}.",
    ),
    ("Let me hear a tale about {x}.", "Think of a story about {x} and tell it."),
)


def recall(dice: Dice, world: World, split: str) -> Dialogue:
    """A question about a fact of the town, sometimes after one or two others."""
    turns = [_asked(dice, world, split) for _ in range(dice.pick((1, 1, 1, 1, 2, 3)))]
    asked = turns[-1]
    texts: list[str] = []
    for turn in turns:
        user = reworded(dice, turn.fact, split)
        briefly = dice.chance(0.25)
        form = (BRIEFLY if briefly else ASKED).pick(dice, split)
        reply = turn.answer if briefly else statement(turn.fact)
        texts += [form.format(q=user), reply]
    expected = {
        "rule": "value",
        "value": asked.answer,
        "wrong": [c for c in asked.choices if c not in statement(asked.fact)],
        "frequency": asked.fact.frequency,
    }
    hello = f"You are a small assistant of the town of {world.town}."
    messages = said(*texts, system=hello if dice.chance(0.25) else "")
    about = f"{asked.fact.subject} {asked.fact.relation}"
    return Dialogue("recall", messages, expected, about)


def _asked(dice: Dice, world: World, split: str) -> Question:
    return dice.pick(_questions(world, split))


@lru_cache(maxsize=8)
def _questions(world: World, split: str) -> list[Question]:
    return questions(world, split)


def context(dice: Dice, world: World, split: str) -> Dialogue:
    """A passage and a question: the reply quotes the sentence that answers it, or (one
    in five) says that there is none."""
    read = passage(dice, split)
    if dice.chance(0.2):
        read = without_answer(read)
    if dice.chance(0.3):
        read = replace(read, header="")
    turns = [
        *read.more[: dice.pick((0, 0, 0, 1, 2))],
        (read.question, read.evidence or NOT_SAID),
    ]
    texts = [text for turn in turns for text in turn]
    system = ""
    if dice.chance(0.5):
        system = FROM_SYSTEM.pick(dice, split).format(t=read.text)
    else:
        texts[0] = READ_FIRST.pick(dice, split).format(t=read.text, q=texts[0])
    expected = {"rule": "value", "value": read.answer, "wrong": [*read.wrong]}
    if not read.answer:
        expected = {"rule": "not said"}
    about = f"{read.town} {read.sentences} {read.question}"
    return Dialogue("context", said(*texts, system=system), expected, about)


def story(dice: Dice, world: World, split: str) -> Dialogue:
    """A wish for a story about a thing or an animal, half with a child in it too."""
    while True:
        text = stories(world, 1, dice.below(10**9))[0]
        tokens = words.listed(
            text.replace(".", " ").replace(",", " ").replace('"', " ")
        )
        nouns = [n for n in words.THINGS + words.BEASTS if tokens.count(n) > 1]
        heroes = [c.name for c in world.children if c.name in tokens]
        if not nouns:
            continue
        wanted = [dice.pick(nouns), *(heroes[:1] if dice.chance(0.5) else [])]
        if split_of(" ".join(wanted)) == split:
            break
    x = " and ".join([words.with_article(wanted[0]), *wanted[1:]])
    messages = said(TELL.pick(dice, split).format(x=x), text)
    return Dialogue(
        "story", messages, {"rule": "story", "all": wanted}, " ".join(wanted)
    )


KINDS: dict[str, Callable[[Dice, World, str], Dialogue]] = {
    "recall": recall,
    "context": context,
    "instruction": instruction,
    "refusal": refusal,
    "unknown": unknown,
    "tool": tool,
    "story": story,
    "smalltalk": smalltalk,
}


def dialogues(
    world: World, kind: str, split: str = "train", count: int = 100, seed: int = 0
) -> list[Dialogue]:
    """Dialogues of one of KINDS, each ending with the reference reply.

    No two splits share what is asked about (`Dialogue.about`), and every second
    wording of the test split is one that the others do not use. A larger count has
    the smaller one as its beginning.
    Raises `Problem` when kind is not one of KINDS, split not one of SPLITS, or count
    less than 1.
    """
    if kind not in KINDS:
        raise Problem(f"kind must be one of {', '.join(KINDS)}, not {kind!r}.")
    asked_for(split, count)
    dice = Dice(world.seed, "dialogues", kind, split, seed)
    return [KINDS[kind](dice, world, split) for _ in range(count)]
