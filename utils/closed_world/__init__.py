"""A small invented town whose truth is known, so that answers can be scored.

    town = build(seed=0)
    facts(town), fact_sentences(town), questions(town, "test")
    stories(town), agreement_items(town), reviews(town)
    translate("The old baker saw two goats."), parallel(town), tagged(town)
    passages(count=10, split="train"), dialogues(town, "recall", "test")

Everything is a pure function of its arguments; see data/closed_world/README.md.
"""

from utils.closed_world.checks import Dialogue, check
from utils.closed_world.dialogues import KINDS, dialogues
from utils.closed_world.facts import (
    FREQUENCIES,
    Fact,
    Question,
    fact_sentences,
    facts,
    questions,
    statement,
)
from utils.closed_world.grammar import AgreementItem, agreement_items
from utils.closed_world.passages import Passage, as_document, as_prompt, passages
from utils.closed_world.preferences import Preference, preferences
from utils.closed_world.reviews import Review, reviews
from utils.closed_world.second_language import lexicon, parallel, translate
from utils.closed_world.stories import stories
from utils.closed_world.tagged import TAGS, tagged
from utils.closed_world.world import Good, Person, Shop, World, build

__all__ = [
    "FREQUENCIES",
    "KINDS",
    "TAGS",
    "AgreementItem",
    "Dialogue",
    "Fact",
    "Good",
    "Passage",
    "Person",
    "Preference",
    "Question",
    "Review",
    "Shop",
    "World",
    "agreement_items",
    "as_document",
    "as_prompt",
    "build",
    "check",
    "dialogues",
    "fact_sentences",
    "facts",
    "lexicon",
    "parallel",
    "passages",
    "preferences",
    "questions",
    "reviews",
    "statement",
    "stories",
    "tagged",
    "translate",
]
