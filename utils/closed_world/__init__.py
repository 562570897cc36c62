"""A small invented town whose truth is known, so that answers can be scored.

    town = build(seed=0)
    facts(town), fact_sentences(town), questions(town, "test")
    stories(town), agreement_items(town), reviews(town)
    translate("The old baker saw two goats."), parallel(town), tagged(town)

Everything is a pure function of its arguments; see data/closed_world/README.md.
"""

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
from utils.closed_world.reviews import Review, reviews
from utils.closed_world.second_language import lexicon, parallel, translate
from utils.closed_world.stories import stories
from utils.closed_world.tagged import TAGS, tagged
from utils.closed_world.world import Good, Person, Shop, World, build

__all__ = [
    "FREQUENCIES",
    "TAGS",
    "AgreementItem",
    "Fact",
    "Good",
    "Person",
    "Question",
    "Review",
    "Shop",
    "World",
    "agreement_items",
    "build",
    "fact_sentences",
    "facts",
    "lexicon",
    "parallel",
    "questions",
    "reviews",
    "statement",
    "stories",
    "tagged",
    "translate",
]
