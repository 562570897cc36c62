"""The workspace of notebook 04.11, and the exporter and pairs that it teaches."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial

import pytest

from tests.notebook_code import namespace
from utils import runtime
from utils.props import chatter
from utils.props.workspace import Faults, Workspace, serve
from utils.runtime import ROOT, Problem

httpx = pytest.importorskip("httpx", reason="needs the extra operations")
pytest.importorskip("datasets", reason="needs the extra evaluation")

EXPORTER = ["TOKEN", "ATTEMPTS", "visiting", "bare", "RefusedError", "call", "TABLES"]
EXPORTER += ["note", "start", "new_round", "take", "store", "ROUNDS", "settled"]
EXPORTER += ["export", "Killed", "mortal", "lost", "export_in_a_hurry", "readable"]
LIKE = {"weeks": 2, "talks": 30}


@pytest.fixture(scope="module")
def taught():
    names = namespace("04.11", EXPORTER)
    names["runtime"] = runtime  # from the setup cell
    return names


@pytest.fixture(scope="module")
def chat():
    return chatter.build(0, **LIKE)


def held(rows):
    return Counter((m["channel"], m["ts"], m["text"]) for m in rows)


def exported(taught, workspace, path):
    """What `export` gives, and the truth up to the moment of its beginning."""
    now = f"{workspace.clock.now:.6f}"
    with taught["visiting"](workspace, taught["call"]) as ask:
        rows = taught["export"](path, ask, now)
    return held(rows), Counter(taught["readable"](workspace, now))


def get(url, method, token, **asked):
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{url}/{method}", params=asked, headers=headers, trust_env=False)


def test_the_chat_is_a_function_of_its_seed(chat):
    assert chatter.build(0, **LIKE) == chat != chatter.build(1, **LIKE)
    keys = [(m.channel, m.ts) for m in chat.messages]
    assert len(set(keys)) == len(keys)
    known = set(keys)
    assert all((m.channel, m.answers) in known for m in chat.messages if m.answers)
    assert all((m.channel, m.thread) in known for m in chat.messages if m.thread)
    for message in chat.messages:
        assert all(s in message.text for s in (*message.names, *message.private))


def test_only_the_harbour_master_tells_the_code(chat):
    told = {m.user for m in chat.messages if chatter.SECRET in m.text}
    assert told <= {chat.people[0].id}
    assert not [
        m
        for m in chat.messages
        if m.user == chat.people[0].id
        and m.channel in chatter.FOREIGN
        and m.subtype != "channel_join"
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("page", [2, 7, 40])
def test_export_is_complete_while_everything_changes(taught, tmp_path, seed, page):
    chat = chatter.build(seed, **LIKE)
    faults = Faults(page=page, changes=9, pace=1, seed=seed)
    workspace = Workspace(chat, taught["TOKEN"], faults)
    rows, truth = exported(taught, workspace, tmp_path / "e.db")
    assert rows == truth and max(rows.values()) == 1


def test_export_survives_a_kill_after_every_request(taught, tmp_path, chat):
    workspace = Workspace(chat, taught["TOKEN"], Faults(changes=0))
    now = f"{workspace.clock.now:.6f}"
    with taught["visiting"](workspace, taught["call"]) as ask:
        for _ in range(2_000):
            try:  # one request is granted, the next one kills
                one = taught["mortal"](ask, 1)
                rows = taught["export"](tmp_path / "e.db", one, now)
                break
            except taught["Killed"]:
                continue
        else:
            pytest.fail("The export never ends.")
    assert held(rows) == Counter(taught["readable"](workspace))


CHILD = """
import sys, time
from tests.notebook_code import namespace
taught = namespace("04.11", %r)
import httpx
from functools import partial
url, path, now, token = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"}
client = httpx.Client(base_url=url, headers=headers, trust_env=False)
ask = partial(taught["call"], client, time.sleep)
rows = taught["export"](path, ask, now)
print(len(rows))
"""


def test_export_survives_a_real_kill(taught, tmp_path, chat):
    workspace = Workspace(chat, taught["TOKEN"], Faults(0, errors=0, page=3, changes=0))
    path, now = tmp_path / "e.db", f"{workspace.clock.now:.6f}"
    answer, at_work = workspace.respond, threading.Event()

    def slowly(*request):
        if workspace.requests.total() > 20:
            at_work.set()
            time.sleep(0.02)  # so that the kill comes in the middle
        return answer(*request)

    workspace.respond = slowly
    with serve(workspace) as url:
        command = [sys.executable, "-c", CHILD % EXPORTER, url, str(path), now]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        child = subprocess.Popen([*command, workspace.token], env=environment)
        try:
            assert at_work.wait(60)
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            assert child.wait(10) == -signal.SIGKILL
    workspace.respond = answer
    before = workspace.requests.total()
    rows, truth = exported(taught, workspace, path)
    assert rows == truth and before > 20


def test_cursors_that_expire_cost_time_only(taught, tmp_path, chat):
    workspace = Workspace(chat, taught["TOKEN"], Faults(page=5, changes=0))
    now = f"{workspace.clock.now:.6f}"
    with taught["visiting"](workspace, taught["call"]) as ask:
        with pytest.raises(taught["Killed"]):
            taught["export"](tmp_path / "e.db", taught["mortal"](ask, 9), now)
        workspace.epoch += 1
        rows = taught["export"](tmp_path / "e.db", ask, now)
    assert held(rows) == Counter(taught["readable"](workspace))


def test_the_check_catches_the_export_in_a_hurry(taught, chat):
    workspace, me = Workspace(chat, taught["TOKEN"], Faults(changes=0)), chat.people[0]
    with taught["visiting"](workspace, taught["call"]) as ask:
        found = taught["export_in_a_hurry"](ask, me.id)
    own = [
        m["text"] for m in workspace.posts.truth().values() if m.get("user") == me.id
    ]
    assert taught["lost"](found, own) > 0 == taught["lost"](own, own)


def test_a_pause_obeys_retry_after(taught, chat):
    workspace = Workspace(chat, taught["TOKEN"], Faults(per_minute=2, errors=0))
    began = workspace.clock.now
    with taught["visiting"](workspace, taught["bare"]) as ask:
        replies = [ask("auth.test") for _ in range(3)]
    assert [r.status_code for r in replies] == [200, 200, 429]
    wait = int(replies[2].headers["Retry-After"])
    assert 0 < wait <= 60 and replies[2].json()["error"] == "ratelimited"
    with taught["visiting"](workspace, taught["call"]) as ask:
        assert ask("auth.test")["ok"]
    assert workspace.clock.now - began >= wait


def test_a_service_that_stays_down_is_one_sentence(taught, chat):
    workspace = Workspace(chat, taught["TOKEN"], Faults(errors=1.0))
    with (
        taught["visiting"](workspace, taught["call"]) as ask,
        pytest.raises(Problem, match=r"auth\.test failed"),
    ):
        ask("auth.test")


@pytest.mark.parametrize(
    ("method", "asked", "reason"),
    [
        ("conversations.history", {"channel": "C09"}, "not_in_channel"),
        ("conversations.history", {"channel": "G01"}, "channel_not_found"),
        ("conversations.replies", {"channel": "C01", "ts": "1"}, "thread_not_found"),
        ("conversations.history", {"channel": "C01", "cursor": "?"}, "invalid_cursor"),
        ("no.method", {}, "unknown_method"),
    ],
)
def test_refusals_come_with_status_200(chat, method, asked, reason):
    with serve(Workspace(chat, "secret", Faults(errors=0))) as url:
        response = get(url, method, "secret", **asked)
    assert response.status_code == 200
    assert response.json() == {"ok": False, "error": reason}


def test_the_token_is_asked_for_and_never_told(chat):
    with serve(Workspace(chat, "secret", Faults(errors=0))) as url:
        assert get(url, "auth.test", "wrong").json()["error"] == "invalid_auth"
        texts = [get(url, m, "secret").text for m in ("auth.test", "users.list")]
    assert not any("secret" in text for text in texts)
    source = json.dumps([path.read_text() for path in ROOT.glob("notebooks/04.11*")])
    assert "xoxb-" not in source and "xoxp-" not in source


def test_pages_have_all_items_and_may_overlap(chat):
    workspace = Workspace(chat, "t", Faults(0, errors=0, page=5, changes=0))
    with serve(workspace) as url:
        seen, cursor = [], ""
        while True:
            asked = {"channel": "C03", "cursor": cursor, "limit": 999}
            page = get(url, "conversations.history", "t", **asked).json()
            assert len(page["messages"]) <= 5
            seen += [m["ts"] for m in page["messages"]]
            cursor = page["response_metadata"]["next_cursor"]
            assert page["has_more"] == bool(cursor)
            if not cursor:
                break
    assert seen == sorted(seen, reverse=True) and len(seen) > len(set(seen))


def test_a_taken_port_is_one_sentence(chat):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = serve(Workspace(chat, "t"), port)
        with pytest.raises(Problem, match=f"Port {port} is taken"), service:
            pass


def test_nothing_runs_after_a_failure(chat):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), serve(Workspace(chat, "t")) as url:
        raise ZeroDivisionError
    assert threading.active_count() == before
    with pytest.raises(httpx.ConnectError):
        get(url, "auth.test", "t")


def said(channel, ts, user, thread=""):
    message = {"channel": channel, "ts": f"{ts}.000000", "user": user, "text": f"{ts}"}
    return message | ({"thread_ts": f"{thread}.000000"} if thread else {})


def test_pairs_follow_threads_windows_and_bursts():
    pairs = namespace("04.11", ["burst", "pairs"])["pairs"]
    messages = [
        said("C", 1000, "a"),
        said("C", 1030, "a"),  # one burst with the line before
        said("C", 1100, "me"),
        said("C", 2000, "b", thread=2000),
        said("C", 2010, "c"),
        said("C", 2020, "me"),
        said("C", 9000, "me", thread=2000),  # late, but in the thread
        said("D", 1000, "a"),
        said("D", 9000, "me"),  # too late
        said("D", 9010, "me"),  # nobody asked
    ]
    found = pairs(messages, "me")
    texts = [([m["text"] for m in asked], reply["text"]) for asked, reply in found]
    assert sorted(texts) == [
        (["1000", "1030"], "1100"),
        (["2000"], "9000"),
        (["2010"], "2020"),
    ]
    assert len(pairs(messages, "me", minutes=1_000)) == 4
    assert partial(pairs, threads=False)(messages, "me")[-1][1]["text"] != "9000"
