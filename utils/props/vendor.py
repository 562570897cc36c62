"""A vendor in this process: OpenAI's chat API over real HTTP, with planted faults.

    with serve(Vendor(answer, Faults({"cut": 0.1}))) as url:
        OpenAI(base_url=url, api_key="none").chat.completions.create(...)

Only time is pretended: a response says in headers how long it would have taken, and
`SimulatedTime` charges that to a `Clock`, up to the timeout of the request.
"""

from __future__ import annotations

import json
import math
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import FastAPI, Header, Response
from fastapi.responses import JSONResponse, StreamingResponse

from utils.runtime import Problem

# Seconds: of a refusal, to the first byte, for each token; SLOW replaces the second.
ROUND_TRIP, FIRST_BYTE, PER_TOKEN, SLOW = 0.1, 0.4, 0.05, 90.0


@dataclass(frozen=True)
class Faults:
    """What goes wrong. `shares` of the requests are "slow" (to the first byte), "cut"
    (the connection breaks half-way), "short" (the answer ends half-way, without an
    error) or "garbled" (not JSON). There is an outage (status 503) of `outage_seconds`
    in every `outage_every`, and more than `per_minute` requests, refused ones counted,
    are refused with status 429 and Retry-After; 0 for never."""

    shares: Mapping[str, float] = field(default_factory=dict)
    outage_every: float = 0.0
    outage_seconds: float = 0.0
    per_minute: int = 0
    seed: int = 0

    def of(self, prompt: str, attempt: int) -> str:
        """The fault of the n-th attempt at a prompt, whoever makes it; "" for none."""
        kinds, shares = ["", *self.shares], list(self.shares.values())
        dice = random.Random(f"{self.seed} {attempt} {prompt}")
        return dice.choices(kinds, [1 - sum(shares), *shares])[0]

    def down(self, now: float) -> bool:
        """Whether there is an outage at `now`, in seconds."""
        if not self.outage_every:
            return False
        period, second = divmod(now, self.outage_every)
        u = random.Random(f"{self.seed} {int(period)}").random()
        begin = u * (self.outage_every - self.outage_seconds)
        return begin <= second < begin + self.outage_seconds


@dataclass
class Vendor:
    """`answer` turns a request's JSON into the tokens of the reply, `count` counts
    those of a text. `bill` has (prompt, completion) tokens of each request that got as
    far as the model."""

    answer: Callable[[dict[str, Any]], Iterable[str]]
    faults: Faults = Faults()
    count: Callable[[str], int] = lambda text: len(text.split())
    bill: list[tuple[int, int]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)

    def respond(self, body: dict[str, Any], now: float) -> Response:
        """The response to a request that comes at `now`, in seconds."""
        self.arrivals.append(now)
        limit = self.faults.per_minute
        if limit and sum(then > now - 60 for then in self.arrivals) > limit:
            wait = math.ceil(self.arrivals[-limit] + 60 - now)
            return _refusal(429, "Rate limit reached.", {"retry-after": str(wait)})
        if self.faults.down(now):
            return _refusal(503, "The service is overloaded.", {})
        prompt = [m["content"] for m in body["messages"] if m["role"] == "user"][-1]
        self.attempts[prompt] += 1
        fault = self.faults.of(prompt, self.attempts[prompt])
        tokens = list(self.answer(body))
        if fault in ("cut", "short"):
            tokens = tokens[: len(tokens) // 2]
        self.bill.append(
            (sum(self.count(m["content"]) for m in body["messages"]), len(tokens))
        )
        first = SLOW if fault == "slow" else FIRST_BYTE
        took = {"x-first": f"{first}", "x-rest": f"{PER_TOKEN * len(tokens)}"}
        parts = _parts(body, tokens, self.bill[-1], fault)
        kind = "text/event-stream" if body.get("stream") else "application/json"
        return StreamingResponse(parts, 200, took, kind)


def _refusal(status: int, message: str, headers: dict[str, str]) -> Response:
    error = {"message": message, "type": "server_error", "code": str(status)}
    took = {"x-first": str(ROUND_TRIP)}
    return JSONResponse({"error": error}, status, headers | took)


def _parts(
    body: dict[str, Any], tokens: list[str], bill: tuple[int, int], fault: str
) -> Iterator[str]:
    """The response's text: a document, or server-sent events."""
    streamed = bool(body.get("stream"))
    usage = dict(zip(("prompt_tokens", "completion_tokens"), bill, strict=True))
    usage["total_tokens"] = sum(bill)

    def record(choices: list[dict[str, Any]], **more: Any) -> str:
        kind = "chat.completion" + (".chunk" if streamed else "")
        head = {"id": "stub", "object": kind, "created": 0, "model": body["model"]}
        return json.dumps(head | {"choices": choices} | more)

    def choice(key: str, text: str, reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": 0, key: message, "finish_reason": reason}

    if not streamed:
        reason = "length" if fault == "short" else "stop"
        text = record([choice("message", "".join(tokens), reason)], usage=usage)
        yield text[: len(text) // 2] if fault in ("cut", "garbled") else text
    else:
        for token in tokens:
            yield f"data: {record([choice('delta', token, None)])}\n\n"
        if fault == "garbled":
            yield 'data: {"id": "stub", "choi\n\n'
        elif fault in ("", "slow"):
            yield f"data: {record([choice('delta', '', 'stop')])}\n\n"
            yield f"data: {record([], usage=usage)}\n\ndata: [DONE]\n\n"
    if fault == "cut":
        raise ConnectionError  # without the last chunk, which the client waits for


@dataclass
class Clock:
    """Simulated time in seconds."""

    now: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SimulatedTime(httpx.HTTPTransport):
    """HTTP as always, but what the vendor would have taken is charged to a clock; more
    than the read timeout to the first byte raises httpx.ReadTimeout."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["x-now"] = str(self.clock.now)
        response = super().handle_request(request)
        first = float(response.headers.get("x-first", 0))
        limit = request.extensions["timeout"]["read"] or math.inf
        if first > limit:
            self.clock.sleep(limit)
            response.close()
            raise httpx.ReadTimeout("No byte in time.", request=request)
        self.clock.sleep(first + float(response.headers.get("x-rest", 0)))
        return response


@contextmanager
def serve(vendor: Vendor, port: int = 0) -> Iterator[str]:
    """Serve on this machine while the block runs, and no longer, also if it fails;
    gives the base URL. Port 0 is any free one; a taken port raises `Problem`."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def completions(
        body: dict[str, Any], x_now: Annotated[float | None, Header()] = None
    ) -> Response:
        return vendor.respond(body, time.monotonic() if x_now is None else x_now)

    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", port))
        except OSError:
            raise Problem(f"Port {port} is taken: use another, or 0 for any.") from None
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        sockets = {"sockets": [listening]}
        thread = threading.Thread(target=server.run, kwargs=sockets, daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
