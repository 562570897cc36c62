"""Greetings, thanks, questions about the assistant itself."""

from __future__ import annotations

from utils.closed_world.checks import Dialogue, said
from utils.closed_world.manners import cast
from utils.closed_world.splits import Wordings, split_of
from utils.closed_world.world import Dice, World

# What is said, what may be replied, and words of which a reply needs one. The last way
# to say each is kept for the test split.
TALK = (
    (
        (
            "Hello, I am {name}.",
            "Good morning! My name is {name}.",
            "Hi, {name} here.",
            "Good day, they call me {name}.",
            "Nice to meet you, I am {name}.",
            "Hello there! {name} is my name.",
            "Good evening from {name}.",
            "Greetings! You may call me {name}.",
        ),
        (
            "Hello, {name}! How can I help you?",
            "Good day, {name}! What can I do for you?",
        ),
        ("{name}",),
    ),
    (
        (
            "Thank you for the {good}!",
            "Thanks a lot, the {good} is fine.",
            "That was kind of you. I like the {good}.",
            "Many thanks! The {good} is what I needed.",
            "Thanks, {name} is happy about the {good}.",
            "You found the {good} of {name}. Thank you!",
            "I am so glad about the {good}. Thank you!",
        ),
        ("You are welcome!", "You are welcome. I am glad to help."),
        ("welcome", "glad", "pleasure"),
    ),
    (
        (
            "Who are you? I am {name}.",
            "I am {name}. And what are you?",
            "{name} would like to know who you are.",
            "Tell {name} who you are.",
            "Are you a person like {name}?",
            "I thought that you were {name}. Who are you?",
            "My name is {name}. With whom do I speak?",
        ),
        ("I am a small assistant of the town of {town}.",),
        ("assistant",),
    ),
    (
        (
            "What can you do for {name}?",
            "How could you help {name}?",
            "I am {name}. What are you good at?",
            "What may {name} ask you?",
            "For what can {name} use you?",
            "{name} wants to know what you are able to do.",
        ),
        ("I can answer questions about {town}, tell stories and do little tasks.",),
        ("questions", "stories", "tasks"),
    ),
    (
        (
            "How are you? I was at the {place} with {name}.",
            "How do you do? {name} sent me from the {place}.",
            "Are you well? I come from the {place} with {name}.",
            "{name} at the {place} asks how you are.",
            "We talked about you at the {place}, {name} and I. How are you?",
            "I saw {name} at the {place}. And how is your day?",
        ),
        ("I am well, thank you. And how are you?",),
        ("well", "fine", "thank"),
    ),
    (
        (
            "Goodbye, I must go to the {place} with {name}.",
            "See you later, I go to the {place} with {name}.",
            "Good night. {name} is waiting at the {place}.",
            "I have to leave now, {name} needs me at the {place}.",
            "Until tomorrow! I meet {name} at the {place}.",
            "That was all. I am off to the {place} with {name}.",
        ),
        ("Goodbye! Have a nice day.", "Goodbye! See you soon."),
        ("goodbye", "see you", "farewell"),
    ),
)


def smalltalk(dice: Dice, world: World, split: str) -> Dialogue:
    """A greeting, thanks, a question about the assistant; one in three has two
    turns."""
    turns = [_talk(dice, world, split) for _ in range(2 if dice.chance(1 / 3) else 1)]
    messages = said(*(text for user, reply, _ in turns for text in (user, reply)))
    _, _, wanted = turns[-1]
    expected = {"rule": "any", "any": [*wanted]}
    return Dialogue("smalltalk", messages, expected, " ".join(u for u, _, _ in turns))


def _talk(dice: Dice, world: World, split: str) -> tuple[str, str, tuple[str, ...]]:
    """What the user says, the reply, and words of which a reply needs one."""
    while True:
        asks, replies, wanted = dice.pick(TALK)
        fill = cast(dice, world, split)
        user = Wordings(asks[:-1], asks[-1:]).pick(dice, split).format(**fill)
        if split_of(user) == split:
            break
    named = tuple(word.format(**fill) for word in wanted)
    return user, dice.pick(replies).format(**fill), named
