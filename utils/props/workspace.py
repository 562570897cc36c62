"""A chat workspace in this process: the shape of Slack's Web API over real HTTP.

    with serve(Workspace(chatter.build(0), token="...")) as url:
        httpx.get(f"{url}/users.list", headers={"Authorization": "Bearer ..."})

Five methods: auth.test, users.list, conversations.list, conversations.history and
conversations.replies, with cursors, threads, rate limits and refusals. While it is read
it changes: messages are edited, deleted and new.
"""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from utils.closed_world.world import Dice
from utils.props.chatter import FOREIGN, Chat
from utils.props.workspace_posts import FOREVER, Posts, Wire
from utils.runtime import Problem

ROUND_TRIP = 0.1  # seconds that a request takes


@dataclass(frozen=True)
class Faults:
    """What goes wrong: more than `per_minute` requests to a method in a minute (0: any
    number) are refused with 429 and Retry-After, a share `errors` with 503; no page has
    more than `page` objects, and a share `overlaps` of the pages begins with what the
    one before ended with. `changes` messages each are edited, deleted and new while
    requests come in, one after every `pace` requests."""

    per_minute: int = 50
    errors: float = 0.02
    page: int = 40
    overlaps: float = 0.2
    changes: int = 15
    pace: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.page < 2 or self.pace < 1:
            raise Problem("Faults need a page of 2 or more and a pace of 1 or more.")


class Response(NamedTuple):
    """Status, JSON and, after a refusal, for how many seconds to stay away."""

    status: int
    body: Wire
    retry_after: int = 0


class RefusalError(Exception):
    """A request that gets `ok: false`; the text is Slack's name for the reason."""


class Workspace:
    """The service. `token` belongs to the first of `chat.people`; `requests` counts the
    requests to each method; `posts.truth()` is what an export should hold."""

    def __init__(self, chat: Chat, token: str, faults: Faults = Faults()) -> None:
        self.chat, self.token, self.faults = chat, token, faults
        self.posts = Posts(chat, faults.changes, faults.seed)
        self.clock = self.posts.clock
        self.dice, self.lock = Dice(faults.seed, "workspace"), threading.Lock()
        self.requests, self.recent = Counter[str](), dict[str, list[float]]()
        self.epoch = 0  # cursors of an earlier one are invalid
        self.methods = {
            "auth.test": self.who,
            "users.list": self.users,
            "conversations.list": self.channels,
            "conversations.history": self.history,
            "conversations.replies": self.replies,
        }

    def respond(self, method: str, asked: dict[str, str], token: str) -> Response:
        """The response to a request, in whatever thread it comes."""
        with self.lock:
            self.requests[method] += 1
            self.clock.sleep(ROUND_TRIP)
            if self.requests.total() % self.faults.pace == 0:
                self.posts.change()
            if wait := self.wait(method):
                return Response(429, {"ok": False, "error": "ratelimited"}, wait)
            if self.dice.chance(self.faults.errors):
                return Response(503, {"ok": False, "error": "service_unavailable"})
            try:
                return Response(200, {"ok": True, **self.answer(method, asked, token)})
            except RefusalError as refusal:
                return Response(200, {"ok": False, "error": str(refusal)})

    def wait(self, method: str) -> int:
        """Seconds until the method may be called again, 0 for now."""
        recent = [t for t in self.recent.get(method, []) if t > self.clock.now - 60]
        if 0 < self.faults.per_minute <= len(recent):
            return int(recent[0] + 60 - self.clock.now) + 1
        self.recent[method] = [*recent, self.clock.now]
        return 0

    def answer(self, method: str, asked: dict[str, str], token: str) -> Wire:
        """The JSON of a good response, without its `ok`; raises `RefusalError`."""
        if token != self.token:
            raise RefusalError("invalid_auth" if token else "not_authed")
        if method not in self.methods:
            raise RefusalError("unknown_method")
        return self.methods[method](asked)

    def who(self, asked: dict[str, str]) -> Wire:
        me = self.chat.people[0]
        return {"user": me.name.lower(), "user_id": me.id, "team": "harbour"}

    def users(self, asked: dict[str, str]) -> Wire:
        people = [
            {
                "id": p.id,
                "name": p.name.lower(),
                "real_name": p.name,
                "profile": {"email": p.email, "phone": p.phone},
            }
            for p in self.chat.people
        ]
        return self.paged("members", people, asked)

    def channels(self, asked: dict[str, str]) -> Wire:
        """Public channels, unless `types` asks for others; the private ones and the
        direct messages only if they are the token owner's."""
        kinds = {"C": "public_channel", "G": "private_channel", "D": "im"}
        wanted = asked.get("types", "public_channel").split(",")
        found: list[Wire] = []
        for channel, name in self.chat.channels.items():
            letter, mine = channel[0], channel not in FOREIGN
            if kinds[letter] not in wanted or (letter == "G" and not mine):
                continue
            about = {"name": name, "is_member": mine}
            if letter == "D":
                about = {"user": self.chat.people[int(channel[1:])].id}
            found.append({"id": channel, "is_im": letter == "D", **about})
        return self.paged("channels", found, asked)

    def history(self, asked: dict[str, str]) -> Wire:
        """A channel, newest message first, without what was said in threads only."""
        top = [
            m
            for m in self.posts.channel(self.readable(asked))
            if m.get("thread_ts") in (None, m["ts"])
            or m.get("subtype") == "thread_broadcast"
        ]
        return self.paged("messages", within(top[::-1], asked), asked)

    def replies(self, asked: dict[str, str]) -> Wire:
        """A thread, its oldest message first; its head stands on every page."""
        channel, ts = self.posts.channel(self.readable(asked)), asked.get("ts")
        head = [m for m in channel if m["ts"] == ts]
        if not head:
            raise RefusalError("thread_not_found")
        rest = [m for m in channel if m.get("thread_ts") == ts != m["ts"]]
        page = self.paged("messages", within(rest, asked), asked)
        return page | {"messages": head + page["messages"]}

    def readable(self, asked: dict[str, str]) -> str:
        channel = asked.get("channel", "")
        if channel in FOREIGN and channel[0] == "C":
            raise RefusalError("not_in_channel")
        if channel in FOREIGN or channel not in self.chat.channels:
            raise RefusalError("channel_not_found")
        return channel

    def paged(self, name: str, items: Sequence[Wire], asked: dict[str, str]) -> Wire:
        """One page and the cursor to the next. A cursor names the item with which the
        page begins, so that what is new or gone elsewhere moves nothing."""
        names = [str(item.get("ts", item.get("id"))) for item in items]
        first = 0
        if "cursor" in asked:
            place, falling = self.place(asked["cursor"]), names[0:1] > names[-1:]
            first = sum(n > place if falling else n < place for n in names)
        size = min(int(asked.get("limit", 100)), self.faults.page)
        end, cursor = first + size, ""
        if end < len(items):
            back = int(size > 1 and self.dice.chance(self.faults.overlaps))
            text = f"{self.epoch}:{names[end - back]}"
            cursor = base64.b64encode(text.encode()).decode()
        return {
            name: list(items[first:end]),
            "has_more": bool(cursor),
            "response_metadata": {"next_cursor": cursor},
        }

    def place(self, cursor: str) -> str:
        try:
            epoch, place = base64.b64decode(cursor).decode().split(":")
        except ValueError:
            raise RefusalError("invalid_cursor") from None
        if epoch != str(self.epoch):
            raise RefusalError("invalid_cursor")
        return place


def within(messages: Sequence[Wire], asked: dict[str, str]) -> list[Wire]:
    """Those between `oldest` and `latest`, which themselves do not belong to it."""
    oldest, latest = asked.get("oldest", "0"), asked.get("latest", FOREVER)
    return [m for m in messages if oldest < m["ts"] < latest]


class Server(ThreadingHTTPServer):
    """Passes requests on to `workspace`."""

    daemon_threads, block_on_close = True, False
    workspace: Workspace


class Handler(BaseHTTPRequestHandler):
    """GET /api/<method>?..., with the token in the header Authorization."""

    server: Server
    protocol_version = "HTTP/1.1"  # a client may keep its connection

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        method, asked = url.path.removeprefix("/api/"), dict(parse_qsl(url.query))
        response = self.server.workspace.respond(method, asked, token)
        body = json.dumps(response.body).encode()
        self.send_response(response.status)
        if response.retry_after:
            self.send_header("Retry-After", str(response.retry_after))
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve(workspace: Workspace, port: int = 0) -> Iterator[str]:
    """Serve on this machine while the block runs, and no longer, also if it fails;
    gives the base URL. Port 0 is any free one; a taken port raises `Problem`."""
    try:
        server = Server(("127.0.0.1", port), Handler)
    except OSError:
        raise Problem(f"Port {port} is taken: use another, or 0 for any.") from None
    server.workspace = workspace
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
