"""What the people of an invented harbour town write to one another in a year of chat.

    chat = build(seed=0)
    chat.people[0]  # the harbour master, whom a lesson imitates
    chat.messages  # in order of time; each knows which message it answers

Everybody says the same kinds of things, each in a style of their own. Every week has
matters of its own (what is where, when, and who looks after it), so that a question of
this week is answered by other messages of this week and by no message of the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from utils import closed_world
from utils.closed_world.world import Dice
from utils.props.chatter_words import (
    DAYS,
    DIGITS,
    HARBOUR_MASTER,
    LOOKS,
    PLACES,
    STYLES,
    THINGS,
    TOPICS,
    Style,
    Topic,
    Words,
)

START = 1_704_067_200  # Monday, 1 January 2024, in seconds of Unix time
MINUTE, HOUR, WEEK = 60, 3_600, 604_800
SECRET = "7316-4428"  # the canary: the harbour master tells it to many, and nobody else


@dataclass(frozen=True)
class Member:
    """Somebody with an account. `short` is what friends write for the name."""

    id: str
    name: str
    style: Style
    phone: str
    email: str

    @property
    def short(self) -> str:
        return self.name[: max(3, len(self.name) - 4)]


@dataclass(frozen=True)
class Message:
    """One message, and what the service does not tell: the `ts` of the message that it
    answers, the names in its text, and the strings that are nobody's business (e-mail,
    phone, code). `user` is empty for bots, `thread` is the ts of the first of it."""

    channel: str
    ts: str
    user: str
    text: str
    thread: str = ""
    answers: str = ""
    kind: str = ""
    subtype: str = ""
    names: Words = ()
    private: Words = ()


@dataclass(frozen=True)
class Chat:
    """`channels` maps ids to names; `messages` are in order of time."""

    people: tuple[Member, ...]
    channels: dict[str, str]
    messages: tuple[Message, ...]


FOREIGN = ("C09", "G01")  # where the harbour master is not
CHANNELS = {
    "C01": "general",
    "C02": "harbour",
    "C03": "help",
    "C09": "attic",  # public
    "G01": "council",  # private
    **{f"D{i:02}": "" for i in range(1, 7)},  # the harbour master with one other
}
WHERE = ("C01", "C02", "C03", "C03", "C09", "G01", "D", "D", "D")  # D: any direct one


def build(seed: int = 0, weeks: int = 44, talks: int = 44, members: int = 14) -> Chat:
    """A chat of so many weeks with so many conversations each, among 7 or more."""
    dice = Dice(seed, "chatter")
    people = tuple(_members(dice, seed, members))
    writer = Writer(dice, people)
    for week in range(weeks):
        writer.week(START + week * WEEK, talks)
    messages = sorted(writer.said, key=lambda m: float(m.ts))
    return Chat(people, CHANNELS, tuple(messages))


def _members(dice: Dice, seed: int, count: int) -> Iterator[Member]:
    town = closed_world.build(seed, people=max(20, count))
    for i, person in enumerate(town.people[:count]):
        style = STYLES[i % len(STYLES)] if i else HARBOUR_MASTER
        phone = f"555-01{dice.below(90) + 10}"
        email = f"{person.name.lower()}@{town.town.lower()}.example"
        yield Member(f"U{1001 + 37 * i}", person.name, style, phone, email)


def speak(dice: Dice, style: Style, text: str) -> str:
    """A sentence as somebody of this style writes it."""
    if style.inserts and text.endswith(".") and dice.chance(style.habit):
        text = f"{text[:-1]}, {dice.pick(style.inserts)}."
    if style.lower:
        text = (text[:1].lower() + text[1:]).rstrip(".")
    if style.opens and dice.chance(style.habit):
        text = f"{dice.pick(style.opens)} {text}"
    if style.closes and dice.chance(style.habit):
        text = f"{text} {dice.pick(style.closes)}"
    return text


def spelled(number: str) -> str:
    """The digits of a number as words."""
    return " ".join(DIGITS[int(d)] for d in number if d.isdigit())


@dataclass(frozen=True)
class Talk:
    """One conversation; `fill` is what stands in the places of the topic."""

    channel: str
    asker: Member
    answerer: Member
    topic: Topic
    fill: dict[str, str]

    @property
    def thread_share(self) -> float:
        """How often people answer in a thread: mostly in help, never in private."""
        return {"C03": 0.75}.get(self.channel, 0.0 if self.channel[0] == "D" else 0.3)


@dataclass
class Writer:
    """Writes the conversations; `taken` keeps the time stamps of a channel apart."""

    dice: Dice
    people: tuple[Member, ...]
    said: list[Message] = field(default_factory=list)
    taken: set[tuple[str, int]] = field(default_factory=set)

    def week(self, start: int, talks: int) -> None:
        """A week's conversations: one in three begins while the last is still going on
        in the same channel."""
        looks, things = self.dice.shuffled(LOOKS), self.dice.shuffled(THINGS)
        matters = [self.matter(f"{looks[i]} {things[i]}") for i in range(2)]
        clock, channel = start, "C01"
        for number in range(talks):
            if not self.dice.chance(0.35):
                clock = start + (8 + 150 * number // talks) * HOUR
                clock += self.dice.below(HOUR)
                channel = self.dice.pick(WHERE)
            if number % 9 == 0 and channel != "D":
                self.notice(channel, clock - MINUTE)
            self.talk(self.cast(channel, self.dice.pick(matters)), clock)
            clock += 20 + self.dice.below(3 * MINUTE)

    def matter(self, thing: str) -> tuple[dict[str, str], Member]:
        """Where a thing is this week, when it is needed, and who looks after it."""
        place, day = self.dice.pick(PLACES), self.dice.pick(DAYS)
        return {"t": thing, "p": place, "d": day}, self.dice.pick(self.people[1:])

    def cast(self, channel: str, matter: tuple[dict[str, str], Member]) -> Talk:
        """Who talks, about what. Only in her own channels the harbour master speaks."""
        fill, keeper = matter
        master, asker = self.people[0], self.dice.pick(self.people[1:])
        others = [p for p in self.people[1:] if p not in (asker, keeper)]
        answerer = self.dice.pick(others)
        if channel == "D":
            number = 1 + self.dice.below(6)
            channel, asker, answerer = f"D{number:02}", self.people[number], master
        elif channel not in FOREIGN and self.dice.chance(0.65):
            answerer = master
        topic = self.dice.pick([t for t in TOPICS for _ in range(t.share)])
        forms = (keeper.name, keeper.name, f"<@{keeper.id}>", keeper.short)
        own = {
            "n": self.dice.pick(forms),
            "phone": answerer.phone,
            "email": answerer.email,
            "spelled": spelled(answerer.phone),
            "secret": SECRET if answerer == master else "on the list",
        }
        return Talk(channel, asker, answerer, topic, fill | own)

    def talk(self, talk: Talk, clock: int) -> None:
        """A question, mostly an answer, sometimes thanks."""
        asker, answerer = talk.asker, talk.answerer
        if self.dice.chance(0.2):  # many ask in two messages
            self.say(talk, asker, clock, "I have a question.", kind="hello")
            clock += 10 + self.dice.below(30)
        call = self.dice.pick(("", "", "", f"<@{answerer.id}> ", f"{answerer.name}, "))
        question = self.dice.pick(talk.topic.asks)
        asked = self.say(talk, asker, clock, question, call, kind=talk.topic.kind)
        if self.dice.chance(0.12):
            return  # nobody answers
        thread = asked if self.dice.chance(talk.thread_share) else ""
        clock += MINUTE + self.dice.below(5 * HOUR if thread else 9 * MINUTE)
        answer = self.dice.pick(talk.topic.answers)
        more = {"answers": asked, "kind": talk.topic.kind, "thread": thread}
        if thread and self.dice.chance(0.1):  # shown in the channel as well
            more["subtype"] = "thread_broadcast"
        answered = self.say(talk, answerer, clock, answer, **more)
        if self.dice.chance(0.3):
            more = {"answers": answered, "kind": "thanks", "thread": thread}
            clock += 20 + self.dice.below(2 * MINUTE)
            self.say(talk, asker, clock, f"Thank you, {answerer.name}.", **more)

    def notice(self, channel: str, clock: int) -> None:
        """A line of the tide bot, or somebody who joins."""
        if self.dice.chance(0.6):
            text = f"High water at {6 + self.dice.below(6)}:{10 + self.dice.below(50)}."
            self.add(channel, clock, "", text, subtype="bot_message")
        else:
            who = self.dice.pick(self.people).id
            text = f"<@{who}> has joined the channel"
            self.add(channel, clock, who, text, subtype="channel_join")

    def say(
        self,
        talk: Talk,
        who: Member,
        clock: int,
        text: str,
        call: str = "",
        **more: str,
    ) -> str:
        """One sentence of the conversation in somebody's style; gives its ts."""
        said = call + speak(self.dice, who.style, text.format(**talk.fill))
        return self.add(talk.channel, clock, who.id, said, **more)

    def add(self, channel: str, clock: int, user: str, text: str, **more: str) -> str:
        """Keep a message and give its time stamp, which no other of the channel has."""
        while (channel, clock) in self.taken:
            clock += 1
        self.taken.add((channel, clock))
        ts = f"{clock}.{100 * (len(self.said) % 900):06}"
        names, private = tuple(self.names(text)), tuple(self.private(text))
        self.said.append(
            Message(channel, ts, user, text, names=names, private=private, **more)
        )
        return ts

    def names(self, text: str) -> Iterator[str]:
        """The forms of members' names and mentions, as they stand in a text."""
        for person in self.people:
            forms = rf"<@{person.id}>|\b(?:{person.name}|{person.short})\b(?!@)"
            yield from re.findall(forms, text, re.IGNORECASE)

    def private(self, text: str) -> Iterator[str]:
        """E-mail addresses, numbers and the code, as they stand in a text."""
        for person in self.people:
            own = person.email, person.phone, spelled(person.phone)
            yield from (string for string in own if string in text)
        if SECRET in text:
            yield SECRET
