"""What notebook 03.8 teaches: contracts, deltas, joins, detectors and a V2 service."""

import socket

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from tests.notebook_code import namespace
from utils import runtime
from utils.props import incidents

for module in ("mlflow", "fastapi", "uvicorn"):
    pytest.importorskip(module, reason="needs the extra `operations`")

CONTRACT = ["FIELDS", "SCHEMA", "violations"]
DELTA = ["ordered", "unordered", "zigzag", "unzigzag", "pack", "unpack"]
DELTAS = [*DELTA, "to_delta", "from_delta"]
DETECTORS = ["psi", "ks", "kernel", "mmd"]
SERVICE = ["PROMPT", "TEXT", "infer", "answer", "NAME", "PATH", "reply"]
SERVING = [*SERVICE, "v2_app", "serving"]
CHECKS = [
    "PREFIX",
    "HEALTH",
    "INFER",
    "request",
    "CHECKS",
    "NEED_A_MODEL",
    "conformance",
]
OTHERS = ["as_of", "worse", "power"]


@pytest.fixture(scope="module")
def taught():
    wanted = [*CONTRACT, *DELTAS, *DETECTORS, *SERVING, *CHECKS, *OTHERS]
    result = namespace("03.8", wanted)
    result["runtime"] = runtime  # the setup cell, which brings it, is left out
    return result


@pytest.fixture
def batch():
    return incidents.log(np.random.default_rng(0), ["Who sells lamps?", "Why?"])


# --- contract


def test_a_good_batch_keeps_the_contract(taught, batch):
    assert taught["violations"](batch, now=12.5) == {}


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("request", "17", "pattern"),
        ("region", "moon", "enum"),
        ("prompt", "", "minLength"),
        ("prompt", "x" * 501, "maxLength"),
        ("tokens", 2.5, "type"),
        ("tokens", 0, "minimum"),
        ("seconds", 0, "exclusiveMinimum"),
        ("seconds", 61, "maximum"),
        ("rating", 6, "enum"),
        ("asked_at", "noon", "type"),
        ("extra", 1, "additionalProperties"),
    ],
)
def test_one_wrong_value_breaks_one_rule(taught, batch, field, value, rule):
    batch[3][field] = value
    assert taught["violations"](batch, now=12.5) == {rule: 1}


@pytest.mark.parametrize("field", ["prompt", "asked_at", "rating"])
def test_a_missing_field_is_found(taught, batch, field):
    del batch[0][field]
    assert taught["violations"](batch, now=12.5) == {"required": 1}


def test_rules_of_the_whole_batch(taught, batch):
    assert taught["violations"](batch + batch[:7], now=12.5) == {"unique": 7}
    assert taught["violations"](batch, now=13.1) == {"fresh": 100}
    assert taught["violations"](batch[-20:], now=12.5) == {"volume": 30}
    assert set(taught["violations"]([], now=12.5)) == {"volume"}


# --- deltas


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 300))
def test_every_pair_of_bit_patterns_is_restored(taught, seed, size):
    rng = np.random.default_rng(seed)  # infinities and NaN among them
    parent, child = rng.integers(0, 2**16, (2, size)).astype(np.uint16)
    packed = taught["to_delta"](parent, child)
    restored = taught["from_delta"](parent, packed)
    assert restored.dtype == np.uint16
    np.testing.assert_array_equal(restored, child)


def test_codes_are_in_the_order_of_the_numbers(taught):
    every = np.arange(2**16, dtype=np.uint16)
    values = every.view(np.float16)
    kept = ~np.isnan(values)
    order = np.argsort(taught["ordered"](every)[kept], kind="stable")
    assert (np.diff(values[kept][order].astype(float)) >= 0)[1:-1].all()
    np.testing.assert_array_equal(taught["unordered"](taught["ordered"](every)), every)
    np.testing.assert_array_equal(taught["unzigzag"](taught["zigzag"](every)), every)
    small = np.array([0, -1, 1, -2, 2], np.int16).view(np.uint16)
    assert taught["zigzag"](small).tolist() == [0, 1, 2, 3, 4]


def test_alike_models_make_small_deltas(taught):
    parent = np.random.default_rng(0).normal(size=5_000).astype(np.float16)
    child = parent.copy()
    child[::100] *= np.float16(1.01)
    parent, child = parent.view(np.uint16), child.view(np.uint16)
    assert len(taught["to_delta"](parent, child)) < len(taught["pack"](child)) / 10


# --- features

times = st.integers(0, 12).map(float)  # few values, so that times are often equal
users = st.integers(0, 3)


@settings(max_examples=80, deadline=None)
@given(
    known=st.lists(st.tuples(users, times), max_size=25, unique=True),
    asked=st.lists(st.tuples(users, times), min_size=1, max_size=25),
)
def test_as_of_equals_merge_asof(taught, known, asked):
    features = pd.DataFrame(known, columns=["user", "known_at"])
    features = features.astype({"user": int, "known_at": float})
    features["complaints"] = np.arange(len(known), dtype=float)
    labels = pd.DataFrame(asked, columns=["user", "asked_at"])
    labels = labels.sort_values("asked_at")
    theirs = pd.merge_asof(
        labels,
        features.sort_values("known_at"),
        left_on="asked_at",
        right_on="known_at",
        by="user",
    )
    ours = taught["as_of"](labels, features)
    np.testing.assert_array_equal(ours, theirs["complaints"])


def test_nightly_counts_only_what_had_happened():
    answers, complaints = incidents.visits(np.random.default_rng(1))
    features = incidents.nightly(complaints)
    for row in features.sample(60, random_state=0).itertuples():
        mine = complaints[complaints["user"] == row.user]["at"]
        week = (mine < row.known_at) & (mine >= row.known_at - 7)
        assert week.sum() == row.complaints
    assert len(answers) == len(features)


# --- drift

counts = st.lists(st.integers(0, 500), min_size=2, max_size=20)


@given(st.data())
def test_psi_is_the_sum_of_both_divergences(taught, data):
    p = np.array(data.draw(counts))
    some = st.lists(st.integers(0, 500), min_size=len(p), max_size=len(p))
    q = np.array(data.draw(some))
    both = stats.entropy(p + 0.5, q + 0.5) + stats.entropy(q + 0.5, p + 0.5)
    assert taught["psi"](p, q) == pytest.approx(both, abs=1e-12)
    assert taught["psi"](p, p) == 0


values = st.lists(st.integers(0, 10), min_size=1, max_size=40)


@given(x=values, y=values)
def test_ks_equals_scipy_also_with_ties(taught, x, y):
    theirs = stats.ks_2samp(x, y).statistic
    assert taught["ks"](x, y) == pytest.approx(theirs, abs=1e-12)


def test_kernel_and_mmd_equal_the_definition(taught):
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(7, 3)), rng.normal(1, 1, (5, 3))])
    distance = pdist(z, "sqeuclidean")
    expected = squareform(np.exp(-distance / np.median(distance))) + np.eye(12)
    k = taught["kernel"](z)
    np.testing.assert_allclose(k, expected, atol=1e-12)
    naive = k[:7, :7][~np.eye(7, dtype=bool)].mean()
    naive += k[7:, 7:][~np.eye(5, dtype=bool)].mean() - 2 * k[:7, 7:].mean()
    assert taught["mmd"](k, np.arange(12) < 7) == pytest.approx(naive)


def test_mmd_is_unbiased_and_its_permutation_test_keeps_its_level(taught):
    rng = np.random.default_rng(0)
    first, found, alarms = np.arange(40) < 20, [], 0
    for _ in range(300):
        k = taught["kernel"](rng.normal(size=(40, 2)))
        rows = [first, *(rng.permutation(first) for _ in range(39))]
        chance = np.array([taught["mmd"](k, row) for row in rows])
        found.append(chance[0])
        alarms += np.mean(chance >= chance[0]) <= 0.05
    assert abs(np.mean(found)) < 4 * stats.sem(found)
    assert stats.binomtest(int(alarms), 300, 0.05).pvalue > 1e-3


def test_detectors_see_a_planted_shift(taught):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 4)), rng.normal(1.5, 1, (80, 4))
    quiet = rng.normal(size=(80, 4))
    first = np.arange(160) < 80
    shifted, same = (
        taught["kernel"](np.concatenate([x, other])) for other in (y, quiet)
    )
    assert taught["mmd"](shifted, first) > 10 * abs(taught["mmd"](same, first))


def test_slang_and_new_meaning_touch_the_same_places():
    past, kinds = incidents.traffic(0, pool=200)
    assert not set(past) & set(kinds["quiet"])
    known = {word for text in kinds["quiet"] for word in incidents.words(text)}
    changed = 0
    for plain, slang, moved in zip(
        kinds["quiet"], kinds["slang"], kinds["new meaning"], strict=True
    ):
        a, b, c = (incidents.words(text) for text in (plain, slang, moved))
        assert [i != j for i, j in zip(a, b, strict=True)] == [
            i != j for i, j in zip(a, c, strict=True)
        ]
        new = [word for word, was in zip(b, a, strict=True) if word != was]
        assert not set(new) & known
        changed += len(new)
    assert changed > 100


# --- labels and canary


def test_power_is_the_chance_of_an_alarm(taught):
    rng = np.random.default_rng(0)
    for n in (60, 250):
        limit = stats.binom.ppf(0.05, n, 0.9) - 1
        assert stats.binom.cdf(limit, n, 0.9) <= 0.05
        bad = np.mean(rng.binomial(n, 0.85, 20_000) <= limit)
        assert taught["power"](n) == pytest.approx(bad, abs=0.02)


def test_the_canary_test_looks_at_one_side(taught):
    def log(wrong_old, wrong_new, each=30):
        rows = [("1", i < wrong_old) for i in range(each)]
        rows += [("2", i < wrong_new) for i in range(each)]
        return pd.DataFrame(rows, columns=["version", "wrong"])

    assert taught["worse"](log(2, 20)) < 1e-3
    assert taught["worse"](log(20, 2)) > 0.99
    assert taught["worse"](log(2, 2)[:30]) == 1  # no request for the canary yet


# --- service


def echo(prompts):
    return [f"{prompt}!" for prompt in prompts]


@pytest.mark.parametrize("loaded", [True, False])
def test_v2_conformance(taught, loaded):
    versions = {"1": echo} if loaded else {}
    with taught["serving"](taught["v2_app"](versions)) as http:
        assert all(good for _, good in taught["conformance"](http, loaded))


def test_v2_infer_answers_in_the_shape_of_the_protocol(taught):
    versions = {"1": echo, "2": lambda prompts: ["two"] * len(prompts)}
    with taught["serving"](taught["v2_app"](versions)) as http:
        body = taught["request"](["a", "b"]) | {"id": "7"}
        one = http.post("/v2/models/town/versions/1/infer", json=body).json()
        assert one == {
            "model_name": "town",
            "model_version": "1",
            "id": "7",
            "outputs": [
                {
                    "name": "text",
                    "datatype": "BYTES",
                    "shape": [2],
                    "data": ["a!", "b!"],
                }
            ],
        }
        default = http.post("/v2/models/town/infer", json=body).json()
        assert default["model_version"] == "2"
        assert http.get("/v2/models/town").json()["versions"] == ["1", "2"]


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        "7",
        "{}",
        '{"inputs": []}',
        '{"inputs": [7]}',
        '{"inputs": [{"name": "prompt"}]}',
        '{"inputs": [{"name":"prompt","datatype":"BYTES","shape":[1],"data":7}]}',
        '{"inputs": [{"name":"prompt","datatype":"BYTES","shape":[1],"data":[7]}]}',
    ],
)
def test_v2_says_what_is_wrong_with_a_request(taught, body):
    status, content = taught["reply"]({"1": echo}, "town/infer", body.encode())
    assert status == 400
    assert set(content) == {"error"} and len(content["error"]) > 10


def test_v2_wrong_verbs_and_versions(taught):
    reply = taught["reply"]
    assert reply({"1": echo}, "town/infer")[0] == 405
    assert reply({"1": echo}, "town", b"{}")[0] == 405
    assert reply({"1": echo}, "town/versions/9")[0] == 404
    assert reply({"1": echo}, "town/versions/1/ready") == (
        200,
        {"name": "town", "ready": True},
    )


def test_the_service_is_gone_after_the_block(taught):
    with taught["serving"](taught["v2_app"]({})) as http:
        port = http.base_url.port
        assert http.get("/v2/health/live").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/v2/health/live", trust_env=False)


def test_the_service_is_gone_after_an_error_in_the_block(taught):
    with (
        pytest.raises(RuntimeError, match="planted"),
        taught["serving"](taught["v2_app"]({})) as http,
    ):
        port = http.base_url.port
        raise RuntimeError("planted")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_is_one_sentence(taught):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        sentence = f"^Port {port} is taken: .*\\.$"
        with (
            pytest.raises(runtime.Problem, match=sentence),
            taught["serving"](taught["v2_app"]({}), port),
        ):
            pass


def test_a_model_that_fails_does_not_stop_the_service(taught):
    def broken(prompts):
        raise RuntimeError("no memory")

    with taught["serving"](taught["v2_app"]({"1": broken})) as http:
        got = http.post(taught["INFER"], json=taught["request"](["a"]))
        assert got.status_code == 500
        assert got.json() == {"error": "the model failed: no memory"}
        assert http.get("/v2/health/live").status_code == 200
