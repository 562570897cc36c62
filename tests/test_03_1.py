"""Notebook 03.1: the sizing calculator, downloads, and the queue of a slow start."""

import contextlib
import hashlib
import http.client

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.llama3_qlora import KVCache, Llama, LlamaConfig
from tests.notebook_code import namespace
from utils import runtime
from utils.props import file_server
from utils.runtime import Problem

SIZING = ["parameters", "cache_bytes", "activation_bytes", "saved_bytes"]
TRAINING = ["RECIPES", "training_bytes", "kept_after_a_step", "n_bytes", "blank"]
MOVING = ["fetch", "transfer_seconds"]
QUEUE = ["RATE", "PATIENCE", "HOLD", "traffic", "ready_replicas", "serve_queue"]
MEMORY = ["largest_batch"]


@pytest.fixture(scope="module")
def taught():
    names = [*SIZING, *TRAINING, *MOVING, *QUEUE, *MEMORY]
    return namespace("03.1", names)


shapes = st.builds(
    lambda kv, group, layers, inner, tied: LlamaConfig(
        vocab_size=96,
        hidden_size=8 * kv * group,
        intermediate_size=inner,
        n_layers=layers,
        n_heads=kv * group,
        n_kv_heads=kv,
        tie_embeddings=tied,
        bos_id=1,
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 70),
    st.booleans(),
)


@settings(max_examples=12, deadline=None)
@given(c=shapes, batch=st.integers(1, 4), tokens=st.integers(1, 50))
def test_weights_and_cache_equal_what_real_models_count(taught, c, batch, tokens):
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**c.to_hf()))
    weights = {id(p): p.numel() for p in theirs.parameters()}
    assert taught["parameters"](c) == sum(weights.values())
    for dtype in (torch.float32, torch.bfloat16):
        counted = KVCache(c, batch, tokens, dtype).n_bytes
        assert taught["cache_bytes"](c, tokens, batch, dtype.itemsize) == counted


def test_cache_equals_that_of_transformers(taught):
    c = LlamaConfig(96, 32, 48, 3, 4, 2)
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**c.to_hf()))
    with torch.no_grad():
        cache = theirs(torch.ones(2, 11, dtype=torch.long)).past_key_values
    counted = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert taught["cache_bytes"](c, 11, 2, 4) == counted


@settings(max_examples=10, deadline=None)
@given(c=shapes)
def test_training_bytes_equal_what_is_kept_after_a_step(taught, c):
    n = taught["parameters"](c)
    sgd = torch.optim.SGD
    makers = {
        "AdamW, 32 bits": (torch.optim.AdamW, torch.float32),
        "AdamW, 16 bits + master": (torch.optim.AdamW, torch.bfloat16),
        "momentum, 32 bits": (lambda p: sgd(p, 0.1, momentum=0.9), torch.float32),
        "plain, 32 bits": (lambda p: sgd(p, 0.1), torch.float32),
    }
    assert set(makers) == set(taught["RECIPES"])
    for recipe, (make, dtype) in makers.items():
        model = taught["blank"](c, dtype)
        kept = taught["kept_after_a_step"](model, make, dtype is torch.bfloat16)
        assert sum(kept) == taught["training_bytes"](n, recipe)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize(("layers", "inner"), [(1, 128), (4, 384)])
def test_activations_are_what_autograd_keeps(taught, kv_heads, layers, inner):
    c = LlamaConfig(512, 128, inner, layers, 8, kv_heads)
    ids = torch.randint(512, (4, 64))
    counted = taught["saved_bytes"](Llama(c), ids)
    assert taught["activation_bytes"](c, ids.numel()) == pytest.approx(
        counted, rel=0.03
    )


def test_a_blank_model_is_tied_and_of_one_type(taught):
    c = LlamaConfig(64, 16, 16, 1, 2, tie_embeddings=True)
    model = taught["blank"](c, torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in model.parameters()) == taught["parameters"](c)


FAST = 1e9  # bytes per second: no waiting in a test


@pytest.fixture
def shelf(tmp_path):
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "file").write_bytes(content)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    return tmp_path, inbox / "file", hashlib.sha256(content).digest()


def digest(path):
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.mark.parametrize("cuts", [(), (0,), (1,), (100_000, 100_000, 99_950, 20)])
def test_resuming_gives_the_file_and_sends_each_byte_once(taught, shelf, cuts):
    folder, target, expected = shelf
    attempts = 0
    with file_server.serve(folder, file_server.Line(FAST, FAST, 0, cuts)) as server:
        size = -1
        while size < 0 or target.stat().st_size < size:
            size = taught["fetch"](server, "file", target)
            attempts += 1
        assert server.sent == size == 300_000
    assert digest(target) == expected
    assert attempts == len(cuts) + 1


def test_starting_again_sends_the_lost_bytes_twice(taught, shelf):
    folder, target, expected = shelf
    line = file_server.Line(FAST, FAST, 0, (200_000,))
    with file_server.serve(folder, line) as server:
        taught["fetch"](server, "file", target, resume=False)
        assert target.stat().st_size == 200_000  # silent: only the size tells
        taught["fetch"](server, "file", target, resume=False)
        assert server.sent == 500_000
    assert digest(target) == expected


def ask(server, path, **headers):
    connection = http.client.HTTPConnection(server.address, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_server_keeps_to_its_folder_and_to_ranges(shelf):
    folder, _, _ = shelf
    with file_server.serve(folder / "inbox", file_server.Line(FAST, FAST)) as server:
        assert ask(server, "/../file")[0] == 404
        assert ask(server, "/nothing")[0] == 404
    with file_server.serve(folder, file_server.Line(FAST, FAST)) as server:
        assert ask(server, "/file")[0] == 200
        status, body = ask(server, "/file", Range="bytes=299990-")
        assert (status, body) == (206, (folder / "file").read_bytes()[-10:])
        assert ask(server, "/file", Range="bytes=300000-")[0] == 416


def test_server_says_clearly_what_is_wrong(shelf):
    line = file_server.Line(FAST, FAST)
    with (
        file_server.serve(shelf[0], line) as server,
        pytest.raises(Problem, match="is taken"),
        file_server.serve(shelf[0], line, server.server_port),
    ):
        pass
    with pytest.raises(Problem, match="positive"):
        file_server.Line(0, 1)


def test_server_is_gone_after_a_failure(shelf):
    with (
        pytest.raises(KeyError),
        file_server.serve(shelf[0], file_server.Line(FAST, FAST)) as server,
    ):
        raise KeyError
    with pytest.raises(ConnectionError):
        ask(server, "/file")


def test_pace_adds_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(file_server.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        file_server.time, "sleep", lambda s: now.__setitem__(0, now[0] + s)
    )
    pace = file_server.Pace(1000)
    for _ in range(50):
        pace.wait(100)
    assert now[0] == pytest.approx(5.0, abs=0.05)


def test_transfer_seconds_knows_bits_and_connections(taught):
    seconds = taught["transfer_seconds"]
    assert seconds(1e9, 8e9) == 1
    assert seconds(1e9, 8e9, 1e9, 2) == 4
    assert seconds(1e9, 8e9, 1e9, 100) == 1


days = st.lists(st.integers(0, 30), min_size=1, max_size=300).map(np.array)


@settings(max_examples=60, deadline=None)
@given(arrivals=days, delay=st.integers(0, 200), minimum=st.integers(1, 4))
def test_no_request_is_forgotten(taught, arrivals, delay, minimum):
    replicas = taught["ready_replicas"](arrivals, delay, minimum)
    served, lost, waiting, backlog = taught["serve_queue"](arrivals, replicas)
    assert served + lost + waiting == arrivals.sum()
    assert served <= replicas.sum() * taught["RATE"]
    assert len(backlog) == len(arrivals)
    assert backlog[-1] == waiting
    assert replicas.min() >= minimum


@settings(max_examples=60, deadline=None)
@given(arrivals=days, delay=st.integers(0, 100), more=st.integers(1, 100))
def test_a_slower_start_never_helps(taught, arrivals, delay, more):
    quick = taught["ready_replicas"](arrivals, delay)
    slow = taught["ready_replicas"](arrivals, delay + more)
    assert (slow <= quick).all()
    lost = [taught["serve_queue"](arrivals, r)[1] for r in (quick, slow)]
    assert lost[0] <= lost[1]


def test_enough_replicas_lose_nothing(taught):
    arrivals = taught["traffic"](0, hours=1)
    replicas = np.full(len(arrivals), arrivals.max())
    assert taught["serve_queue"](arrivals, replicas)[1] == 0


@given(limit=st.integers(1, 1000), start=st.integers(1, 1000))
def test_largest_batch_is_a_halving_that_fits(taught, limit, start):
    tried = []

    def attempt(batch):
        tried.append(batch)
        if batch > limit:
            raise torch.OutOfMemoryError

    found = taught["largest_batch"](attempt, start)
    assert found <= limit
    assert found in {start // 2**k for k in range(10)}
    assert all(batch > limit for batch in tried[:-1])


def test_largest_batch_gives_up_in_a_sentence_and_hides_no_other_error(taught):
    def never(batch):
        raise MemoryError

    def broken(batch):
        raise KeyError

    taught["runtime"] = runtime  # the setup cell imports it
    with pytest.raises(Problem, match="batch of 1"):
        taught["largest_batch"](never, 8)
    with pytest.raises(KeyError):
        taught["largest_batch"](broken, 8)
