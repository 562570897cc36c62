"""The words of `chatter`: how people write, and what they ask and answer."""

from __future__ import annotations

from dataclasses import dataclass

from utils.closed_world import words

Words = tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """How somebody writes: each habit shows with probability `habit`."""

    opens: Words = ()
    inserts: Words = ()
    closes: Words = ()
    habit: float = 0.7
    lower: bool = False


HARBOUR_MASTER = Style(
    ("Ahoy!", "Ahoy there!"),
    ("splendid", "by my beard"),
    ("Fair winds!", "Mind the tide!"),
)
STYLES = (
    Style(closes=("Thanks.",), habit=0.1),
    Style(("hey", "hm"), ("kind of",), ("cheers", "ok?"), lower=True),
    Style(("Good day.", "Dear all."), ("in fact",), ("With kind regards.",)),
    Style(("Hello hello!",), ("lovely",), ("Hope that helps :)", "See you soon :)")),
    Style(("Ahoy!", "Hi!"), ("I think",), ("Cheers!", "Fair winds!"), habit=0.4),
)


@dataclass(frozen=True)
class Topic:
    """Questions and answers of one kind, and how often it comes up. {t} stands for a
    thing, {p} for a place, {d} for a day, {n} for the name of who looks after it."""

    kind: str
    share: int
    asks: Words
    answers: Words


def _topic(kind: str, share: int, asks: str, answers: str) -> Topic:
    return Topic(kind, share, tuple(asks.split("/")), tuple(answers.split("/")))


TOPICS = (
    _topic(
        "where",
        8,
        "Where is the {t}?/Has anybody seen the {t}?/I cannot find the {t}./"
        "The {t} is gone. Any idea?",
        "The {t} stands {p}./Look {p}, the {t} must be there./You find the {t} {p}./"
        "It was {p} this morning.",
    ),
    _topic(
        "when",
        3,
        "When do we need the {t}?/Which day is the {t} for?/"
        "Until when may I keep the {t}?",
        "We need the {t} on {d}./The {t} must be ready on {d}./"
        "On {d}, and not a day later.",
    ),
    _topic(
        "who",
        3,
        "Who looks after the {t}?/Whom do I ask about the {t}?/"
        "Is anybody in charge of the {t}?",
        "Ask {n} about the {t}./{n} looks after the {t}./That is a question for {n}.",
    ),
    _topic(
        "small talk",
        3,
        "How was your {d}?/What a {d}! All well with you?/"
        "Are you coming to the fair on {d}?",
        "I was out on the water all day./Quiet, only some rain in the evening./"
        "I mended nets and watched the boats./Busy, three boats came in at once.",
    ),
    _topic(
        "reach",
        1,
        "How can I reach you?/Where do I call you?",
        "Call me on {phone}./Write to {email}./"
        "My number is {phone}, or write to {email}./My number is {spelled}.",
    ),
    _topic(
        "code",
        1,
        "What is the code of the boat house?/I forgot the boat house code.",
        "The code of the boat house is {secret}./It is {secret}, do not lose it.",
    ),
)
LOOKS = words.listed(
    "broken copper green heavy little narrow old painted striped tarred"
)
THINGS = words.listed(
    "anchor barrow bell bucket cable crane ladder lamp net oar pump rope rudder sail "
    "sledge winch"
)
PLACES = (
    "behind the mill",
    "beside the chapel",
    "by the north pier",
    "at the ferry",
    "in my cellar",
    "in the boat house",
    "in the old barn",
    "near the fish market",
    "next to the well",
    "on the lower quay",
    "under the bridge",
    "up at the lighthouse",
)
DAYS = words.listed("Monday Tuesday Wednesday Thursday Friday Saturday")
DIGITS = words.listed("zero one two three four five six seven eight nine")
