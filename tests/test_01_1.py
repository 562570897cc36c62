"""The vendor of notebook 01.1, and the client that survives it, as they are taught."""

import json
import random
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebook_code import namespace
from utils.runtime import Problem

httpx = pytest.importorskip("httpx", reason="needs the extra operations")
openai = pytest.importorskip("openai", reason="needs the extra operations")
pytest.importorskip("uvicorn", reason="needs the extra operations")
vendor = pytest.importorskip("utils.props.vendor", reason="needs the extra operations")

CLIENT = ["pause", "BudgetError", "dollars", "Ledger", "CutError", "FAILURES"]
CLIENT += ["receive", "GaveUpError", "request", "ask", "used", "stub"]
MONEY = ["PRICE_IN", "PRICE_OUT", "MODEL", "BASE_URL", "Deal", "buy", "build"]
WORDS = ["The", " mayor", " of", " the", " town", " is", " Ada."]
QUESTION = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def taught():
    return namespace("01.1", [*CLIENT, *MONEY])


def resumable(request):
    """The words, or those that the last message leaves."""
    if request.get("continue_final_message"):
        text = request["messages"][-1]["content"]
        return WORDS[len(text.split()) :]
    return WORDS


def asked(taught, faults, **options):
    """What `ask` returns for one question, the vendor, the clock and the ledger."""
    service, clock = vendor.Vendor(resumable, faults), vendor.Clock()
    ledger = taught["Ledger"](budget=options.pop("budget", 1.0))
    with taught["stub"](service, clock, max_retries=0, timeout=8) as client:
        dice = random.Random(0)
        text = taught["ask"](client, QUESTION, ledger, clock, dice, **options)
    return text, service, clock, ledger


def called(taught, faults, **options):
    """What the official client makes of a request, and the clock."""
    service, clock = vendor.Vendor(resumable, faults), vendor.Clock()
    with taught["stub"](service, clock, max_retries=0) as client:
        make = client.chat.completions.create
        reply = make(model="m", messages=QUESTION, **options)
        return (list(reply) if options.get("stream") else reply), clock


def test_answers_as_openai_does(taught):
    reply, clock = called(taught, vendor.Faults())
    assert reply.choices[0].message.content == "".join(WORDS)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 1,
        "completion_tokens": 7,
        "total_tokens": 8,
    }
    assert clock.now == pytest.approx(0.4 + 7 * 0.05)
    events, _ = called(taught, vendor.Faults(), stream=True)
    pieces = [e.choices[0].delta.content for e in events if e.choices]
    assert pieces[:-1] == WORDS and events[-2].choices[0].finish_reason == "stop"
    assert events[-1].usage.total_tokens == 8


@pytest.mark.parametrize(
    ("kind", "streamed", "error"),
    [
        ("cut", False, openai.APIConnectionError),
        ("cut", True, httpx.RemoteProtocolError),
        ("garbled", False, json.JSONDecodeError),
        ("garbled", True, json.JSONDecodeError),
    ],
)
def test_faults_raise_what_the_notebook_says(taught, kind, streamed, error):
    with pytest.raises(error):
        called(taught, vendor.Faults({kind: 1}), stream=streamed)


def test_short_raises_nothing(taught):
    reply, _ = called(taught, vendor.Faults({"short": 1}))
    assert reply.choices[0].message.content == "The mayor of"
    assert reply.choices[0].finish_reason == "length"
    events, _ = called(taught, vendor.Faults({"short": 1}), stream=True)
    assert all(e.choices[0].finish_reason is None for e in events)


def test_outage_and_rate_limit_have_their_status(taught):
    outage = vendor.Faults(outage_every=60, outage_seconds=60)
    with pytest.raises(openai.InternalServerError) as found:
        called(taught, outage)
    assert found.value.status_code == 503
    service = vendor.Vendor(resumable, vendor.Faults(per_minute=2))
    bodies = {"model": "m", "messages": QUESTION}
    replies = [service.respond(bodies, now) for now in (0, 1, 2, 61.5)]
    assert [r.status_code for r in replies] == [200, 200, 429, 200]
    assert replies[2].headers["retry-after"] == "59"  # then the first two are over


def test_a_wait_beyond_the_timeout_costs_the_timeout(taught):
    clock = vendor.Clock()
    service = vendor.Vendor(resumable, vendor.Faults({"slow": 1}))
    with (
        taught["stub"](service, clock, max_retries=0, timeout=8) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.chat.completions.create(model="m", messages=QUESTION)
    assert clock.now == 8


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1e5))
def test_the_schedule_depends_on_nothing_else(seed, now):
    shares = {"slow": 0.2, "cut": 0.3}
    one, two = (vendor.Faults(shares, 60, 10, seed=seed) for _ in "ab")
    assert one.down(now) == two.down(now)
    assert [one.of("q", n) for n in range(9)] == [two.of("q", n) for n in range(9)]


def test_shares_are_kept():
    faults = vendor.Faults({"slow": 0.2, "cut": 0.3}, outage_every=60, outage_seconds=6)
    kinds = [faults.of(f"question {i}", 1) for i in range(4_000)]
    assert kinds.count("slow") / 4_000 == pytest.approx(0.2, abs=0.03)
    assert kinds.count("cut") / 4_000 == pytest.approx(0.3, abs=0.03)
    down = [faults.down(t / 10) for t in range(60_000)]
    assert sum(down) / 60_000 == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("kind", ["", "slow", "cut", "short", "garbled"])
@pytest.mark.parametrize("seed", range(3))
def test_ask_gets_the_whole_answer(taught, kind, seed):
    faults = vendor.Faults({kind: 0.7} if kind else {}, seed=seed)
    text, service, _, ledger = asked(taught, faults, attempts=40)
    assert text == "".join(WORDS)
    read, written = map(sum, zip(*service.bill, strict=True))
    assert (ledger.written == written) or kind == "slow"  # a timeout tells nothing
    if not kind:
        assert (ledger.read, ledger.written) == (read, written) == (1, 7)


def test_resuming_pays_for_each_word_once(taught):
    schedules = (vendor.Faults({"cut": 0.7}, seed=seed) for seed in range(99))
    faults = next(f for f in schedules if f.of("Who?", 1) == "cut")
    _, service, _, _ = asked(taught, faults, attempts=40)
    assert len(service.bill) > 1
    assert sum(written for _, written in service.bill) == len(WORDS)


def test_ask_outlasts_an_outage_and_gives_up_in_one_that_lasts(taught):
    faults = vendor.Faults(outage_every=200, outage_seconds=10)
    service, clock = vendor.Vendor(resumable, faults), vendor.Clock()
    clock.now = next(t for t in range(200) if faults.down(t))
    ledger, dice = taught["Ledger"](1.0), random.Random(0)
    with taught["stub"](service, clock, max_retries=0) as client:
        text = taught["ask"](client, QUESTION, ledger, clock, dice, attempts=20)
    assert text == "".join(WORDS) and len(service.arrivals) > 1
    with pytest.raises(taught["GaveUpError"]):
        asked(taught, vendor.Faults(outage_every=60, outage_seconds=60))


def test_the_budget_is_never_passed(taught):
    with pytest.raises(taught["BudgetError"], match="spent"):
        asked(taught, vendor.Faults(), budget=1e-6)
    ledger = taught["Ledger"](budget=1e-4)
    with pytest.raises(Problem):
        while True:
            ledger.note(ledger.reserve(QUESTION), ledger.limit)
    assert 0 < taught["dollars"](ledger.read, ledger.written) <= 1e-4


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 100), st.integers(0, 50))
def test_a_pause_is_bounded_and_obeys_the_vendor(attempt, seed, seconds):
    pause = namespace("01.1", ["pause"])["pause"]
    wait = pause(None, attempt, random.Random(seed))
    assert 0 <= wait <= min(20, 0.5 * 2**attempt)
    response = httpx.Response(429, headers={"retry-after": str(seconds)})
    request = httpx.Request("POST", "http://127.0.0.1")
    response.request = request
    error = openai.RateLimitError("slow down", response=response, body=None)
    assert pause(error, attempt, random.Random(seed)) == pytest.approx(wait + seconds)


def test_a_taken_port_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = vendor.serve(vendor.Vendor(resumable), port)
        with pytest.raises(Problem, match=f"Port {port} is taken"), service:
            pass


def test_nothing_runs_after_a_failure():
    before = threading.active_count()
    with (
        pytest.raises(ZeroDivisionError),
        vendor.serve(vendor.Vendor(resumable)) as url,
    ):
        assert httpx.post(f"{url}/nowhere", trust_env=False).status_code == 404
        raise ZeroDivisionError
    assert threading.active_count() == before
    with pytest.raises(httpx.ConnectError):
        httpx.post(url, trust_env=False)


def test_the_sums_of_build_and_buy(taught):
    deal = taught["Deal"](people=1_000, busy=0.5)
    assert taught["buy"](deal, 1_000) == pytest.approx(30 * (2.5 + 3.0))
    one = 24 * 30 * 2.5 + 1_000
    assert taught["build"](deal, 1) == taught["build"](deal, 360_000) == one
    assert taught["build"](deal, 360_001) == pytest.approx(2 * one - 1_000)
