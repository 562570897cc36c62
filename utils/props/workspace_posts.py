"""What stands in a workspace, and how it changes while somebody reads it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from utils.closed_world.world import Dice
from utils.props.chatter import FOREIGN, Chat, Message

Wire = dict[str, Any]  # a message as the service sends it
Key = tuple[str, str]  # channel and ts: a ts alone may occur in two channels
FOREVER = "9999999999.000000"


@dataclass
class Clock:
    """Pretended time in seconds, so that nobody waits for a rate limit."""

    now: float

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def as_wire(message: Message) -> Wire:
    """A message as JSON, without what the service does not know."""
    wire: Wire = {"type": "message", "ts": message.ts, "text": message.text}
    wire |= {"user": message.user} if message.user else {"bot_id": "B01"}
    if message.subtype:
        wire["subtype"] = message.subtype
    if message.thread:
        wire["thread_ts"] = message.thread
    return wire


class Posts:
    """The messages that can be seen now: `all[channel, ts]`.

    `count` messages each are edited and deleted from the start, and as many more are
    edited, deleted and new in the course of `3 * count` calls of `change`.
    """

    def __init__(self, chat: Chat, count: int, seed: int) -> None:
        past, coming = chat.messages, list[Message]()
        if count:
            past, coming = past[:-count], list(past[-count:])
        self.all: dict[Key, Wire] = {(m.channel, m.ts): as_wire(m) for m in past}
        self.ordered: dict[str, list[Wire]] = {}  # by channel, until something changes
        self.clock = Clock(float(past[-1].ts) + 1)
        planned = [*self._planned(past, count, Dice(seed, "changes"))]
        self.coming = [*planned, *(("new", m) for m in coming)]

    def _planned(
        self, past: Sequence[Message], count: int, dice: Dice
    ) -> Iterator[tuple[str, Message]]:
        """Make the changes of the past, and give those to come. Who has still to edit a
        message has so far sent the first half of it."""
        said = [m for m in past if m.user and m.subtype != "channel_join"]
        for i, message in enumerate(dice.shuffled(said)[: 4 * count]):
            kind = ("edit", "delete")[i % 2]
            if i < 2 * count:
                self.apply(kind, message)
                continue
            if kind == "edit":
                half = message.text[: len(message.text) // 2].strip()
                self.all[message.channel, message.ts]["text"] = half
            yield kind, message

    def change(self) -> None:
        """Let the next change happen, if there is one to come."""
        if self.coming:
            self.apply(*self.coming.pop(0))

    def apply(self, kind: str, message: Message) -> None:
        """Let a message be "new", or be edited or deleted by its author."""
        key = message.channel, message.ts
        self.ordered.pop(message.channel, None)
        if kind == "new":
            self.all[key] = as_wire(message)
            self.clock.now = max(self.clock.now, float(message.ts))
        elif kind == "edit":
            edited = {"user": message.user, "ts": f"{self.clock.now:.6f}"}
            self.all[key] |= {"text": message.text, "edited": edited}
        elif any(m.get("thread_ts") == key[1] for m in self.all.values()):
            text = "This message was deleted."  # but its thread keeps its place
            gone = {"subtype": "tombstone", "user": "USLACKBOT", "text": text}
            self.all[key] |= gone
        else:
            del self.all[key]

    def channel(self, channel: str) -> list[Wire]:
        """All messages of a channel, first to last; of the first message of a thread
        also how many replies it has."""
        if channel not in self.ordered:
            keys = sorted(key for key in self.all if key[0] == channel)
            replies = defaultdict[str, list[str]](list)
            for key in keys:
                replies[self.all[key].get("thread_ts", "")].append(key[1])
            self.ordered[channel] = [
                self.all[key] | _about(key[1], replies[key[1]]) for key in keys
            ]
        return self.ordered[channel]

    def truth(self, latest: str = FOREVER) -> dict[Key, Wire]:
        """What the token's owner may read now, of messages up to the time `latest`."""
        return {
            key: wire
            for key, wire in self.all.items()
            if key[0] not in FOREIGN and key[1] <= latest
        }


def _about(ts: str, replies: list[str]) -> Wire:
    if not replies:
        return {}
    return {"thread_ts": ts, "reply_count": len(replies), "latest_reply": replies[-1]}
