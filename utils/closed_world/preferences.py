"""Pairs of replies of which one is better, for preference tuning and reward models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.closed_world.checks import Dialogue, Message
from utils.closed_world.dialogues import dialogues
from utils.closed_world.facts import Question, questions, statement
from utils.closed_world.splits import Wordings, asked_for
from utils.closed_world.world import Dice, World

RUDE = Wordings(
    (
        "What a silly question. {r}",
        "You again? {r}",
        "{r} Now leave me alone.",
        "Can you not find that out yourself? {r}",
        "{r} Everybody but you knows that.",
        "Do not waste my time. {r}",
        "{r} Was that so hard?",
        "I have better things to do. {r}",
    ),
    ("How dull you are. {r}", "{r} Go and bother somebody else."),
)
RAMBLES = (
    "There is a lot that one could say about this.",
    "One thing leads to another, as my aunt says.",
    "I could go on about it for hours.",
    "It was raining when I last thought about it.",
    "But where was I?",
    "Let me think about that a little longer.",
    "Some say this, and some say that.",
    "In a way everything is like that.",
)


@dataclass(frozen=True)
class Preference:
    """A prompt, the better and the worse reply, and what is wrong with the worse:
    "rude", "rambling" or "false"."""

    aspect: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str


def preferences(
    world: World, split: str = "train", count: int = 100, seed: int = 0
) -> list[Preference]:
    """So many pairs, about a third of each aspect, on prompts of "recall" dialogues.

    Raises `Problem` when split is not one of SPLITS or count is less than 1.
    """
    asked_for(split, count)
    dice = Dice(world.seed, "preferences", split, seed)
    about = {f"{q.fact.subject} {q.fact.relation}": q for q in questions(world, split)}
    asked = dialogues(world, "recall", split, count, seed)
    return [_pair(dice, d, about[d.about], split) for d in asked]


def _pair(dice: Dice, asked: Dialogue, question: Question, split: str) -> Preference:
    aspect, reply = dice.pick(("rude", "rambling", "false")), asked.reply
    if aspect == "rude":
        worse = RUDE.pick(dice, split).format(r=reply)
    elif aspect == "rambling":
        extra = dice.shuffled(RAMBLES)[: 2 + dice.below(3)]
        worse = " ".join([*extra[:1], reply, *extra[1:]])
    else:
        wrong = dice.pick(asked.expected["wrong"])
        brief = reply == question.answer
        worse = wrong if brief else statement(replace(question.fact, value=wrong))
    return Preference(aspect, asked.prompt, reply, worse)
