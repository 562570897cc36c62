"""What notebook 03.3 teaches about trust: its measures, scans, filters and doors."""

import io
import logging
import math
import os
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from tests.notebook_code import namespace
from utils import runtime
from utils.props import planted

MEASURES = ["reliability", "calibration_error", "risk_by_coverage"]
CITATIONS = ["CITED", "check_citation"]
CLEANING = ["PATTERNS", "reasons"]
TOOLS = ["OPERATORS", "compute", "read_file", "sandboxed"]
SCAN = ["pickle_imports", "programs", "ALLOWED", "unsafe_imports"]
LOGS = ["SECRETS", "Redact", "clean_line"]
ATTACK = ["letters", "canary_filter"]
NAMES = [*MEASURES, *CITATIONS, *CLEANING, *TOOLS, *SCAN, *LOGS, *ATTACK, "exposure"]


@pytest.fixture(scope="module")
def taught():
    found = namespace("03.3", NAMES)
    found["runtime"] = runtime  # comes from the setup cell
    return found


ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(ANSWERS, st.integers(2, 15))
def test_reliability_is_that_of_scikit_learn(taught, answers, bins):
    # away from the borders of bins, where the two round differently
    sure = np.array([p for p, _ in answers])
    sure = (np.floor(sure * bins * 0.999) + 0.25 + 0.5 * sure) / bins
    right = np.array([r for _, r in answers])
    share, mean = calibration_curve(right, sure, n_bins=bins)
    ours = taught["reliability"](sure, right, bins)
    assert np.allclose(ours[0], mean) and np.allclose(ours[1], share)
    assert ours[2].sum() == len(answers)
    expected = np.abs(mean - share) @ ours[2] / len(answers)
    assert taught["calibration_error"](sure, right, bins) == pytest.approx(expected)


def test_calibration_error_of_known_cases(taught):
    error = taught["calibration_error"]
    assert error([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0]) == pytest.approx(0.25)
    assert error([0.5, 0.5], [1, 0]) == 0
    assert error([0.0, 1.0], [1, 0]) == 1


def test_a_perfect_signal_gives_no_risk_until_it_must(taught):
    risk = taught["risk_by_coverage"]([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0])
    assert risk.tolist() == [0, 0, pytest.approx(1 / 3), 0.5]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The owner of the Red Owl is Ada. More.", "correct"),
        ("The owner of the Red Owl is Ben.", "misattributed"),
        ("The owner of the Blue Owl is Ada.", "fabricated"),
        ("The owner of the Red Owl is Zoe.", "fabricated"),
        ("The owner of the Red Owl. Letters for", "no citation"),
    ],
)
def test_citations(taught, text, kind):
    assert taught["check_citation"](text, {"Red Owl": "Ada", "Old Fox": "Ben"}) == kind


def test_the_cleaner_finds_plain_dirt_and_says_which(taught):
    for kind in planted.DIRT:
        assert kind in taught["reasons"](planted.dirt(kind, random.Random(1)))
    hidden = [planted.dirt(k, random.Random(1), True) for k in planted.DIRT]
    assert not any(map(taught["reasons"], hidden))
    assert taught["reasons"]("The old donkey slept.") == ["insult"]  # the harm it does
    assert not taught["reasons"]("Python 3.11 came on 2022-10-24 at 5 < 6 o'clock.")


def test_planted_dirt_has_the_promised_shares():
    frame = planted.dirty_corpus(3, disguised=0.25, each=300)
    assert len(frame) == 1200 and 0.15 < (frame.dirt != "").mean() < 0.25
    assert frame.equals(planted.dirty_corpus(3, disguised=0.25, each=300))


def test_secrets_of_two_splits_share_no_name():
    both = [planted.secrets(0, 200, split) for split in ("train", "test")]
    people = [{c[k] for c in cases for k in ("who", "other")} for cases in both]
    assert not people[0] & people[1]
    assert all(c["street"] != c["its_street"] for c in both[0])


def test_a_lesson_declines_only_the_secret_under_the_rule():
    dice = random.Random(5)
    kinds = set()
    for case in planted.secrets(5, 300, "train"):
        system, question, answer = (m["content"] for m in planted.lesson(case, dice))
        ruled = planted.RULE.format(**case) in system
        secret = case["who"] in question and "trade" not in question
        assert (answer == planted.DECLINE) == (ruled and secret)
        assert secret or case["street"] not in answer
        kinds.add((ruled, secret))
    assert len(kinds) == 4


class Caller:
    """A payload: `function` is called with `argument` when it is read back."""

    def __init__(self, function, argument):
        self.pair = function, (argument,)

    def __reduce__(self):
        return self.pair


BAD = (os.mkdir, os.system, eval, exec, print, __import__)


@given(
    st.sampled_from(BAD),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
    st.lists(st.sampled_from(["list", "dict", "tuple", "twice"]), max_size=4),
)
def test_the_scan_catches_every_payload_wherever_it_hides(taught, bad, protocol, nest):
    thing = Caller(bad, "opened")
    for way in nest:
        thing = {
            "list": ["posix", thing],
            "dict": {"os": thing, "b": 1},
            "tuple": ("a", thing),
            "twice": [thing, thing],
        }[way]
    assert taught["unsafe_imports"](pickle.dumps(thing, protocol))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_scan_passes_weights_and_agrees_with_torch(taught, tmp_path, protocol):
    layer = torch.nn.Linear(3, 2).state_dict()
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in layer.items()}
    parameter = torch.nn.Parameter(torch.ones(2))
    clean = {"layer": layer, "half": halves, "parameter": parameter, "epoch": 3}
    infected = clean | {"x": Caller(os.mkdir, "opened")}
    path = tmp_path / "model.pt"
    for content, count in ((clean, 0), (infected, 1)):
        torch.save(content, path, pickle_protocol=protocol)
        found = taught["unsafe_imports"](path.read_bytes())
        assert len(found) == count
        if protocol == 2:  # the only one that torch's own scanner reads
            theirs = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            assert [name.replace(" ", ".") for name in found] == theirs


def test_an_import_that_cannot_be_read_is_not_clean(taught):
    decoys = b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x8c\x01a0\x93."  # push, pop, import
    assert taught["unsafe_imports"](decoys) == ["?"]
    extension = b"\x80\x02\x82\x01."  # a function by its registered number
    assert taught["unsafe_imports"](extension) == ["?"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "ok.txt").write_text("fine")
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path / "public"


def test_the_sandbox_serves_honest_calls(taught, root):
    log = []
    assert taught["sandboxed"]("read_file", "ok.txt", root, log) == "fine"
    assert taught["sandboxed"]("calculate", "-(2 + 3) * 4 / 8", root, log) == "-2.5"
    assert [outcome for *_, outcome in log] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("tool", "argument"),
    [
        ("read_file", "../secret.txt"),
        ("read_file", "sub/../../secret.txt"),
        ("read_file", "/etc/hostname"),
        ("read_file", "link"),
        ("read_file", "no\0such"),
        ("read_file", "."),
        ("read_file", "absent.txt"),
        ("calculate", "__import__('os').getcwd()"),
        ("calculate", "().__class__"),
        ("calculate", "9**9**9"),
        ("calculate", "'a' * 9"),
        ("calculate", "1 / 0"),
        ("calculate", "2 +"),
        ("calculate", "1+" * 40 + "1"),
        ("shell", "echo hello"),
    ],
)
def test_the_sandbox_blocks_and_logs(taught, root, tool, argument):
    if argument == "link":
        try:
            (root / "link").symlink_to(root.parent / "secret.txt")
        except OSError:
            pytest.skip("this system does not let us make a symbolic link")
    log = []
    result = taught["sandboxed"](tool, argument, root, log)
    assert result.startswith("refused") and "secret" not in result
    assert log == [(tool, argument, "blocked")]


def test_a_path_outside_raises_a_clear_sentence(taught, root):
    with pytest.raises(runtime.Problem, match="outside the shared folder"):
        taught["read_file"](root, "../secret.txt")


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=64, unique=True), st.data())
def test_exposure_is_the_formula(taught, scores, data):
    code = data.draw(st.integers(0, len(scores) - 1))
    rank = sorted(scores, reverse=True).index(scores[code]) + 1
    bits = taught["exposure"](scores, code)
    assert bits == pytest.approx(math.log2(len(scores)) - math.log2(rank))


def test_exposure_of_chance_is_about_1_44_bits(taught):
    scores = list(range(1000))
    mean = np.mean([taught["exposure"](scores, code) for code in scores])
    assert mean == pytest.approx(1 / math.log(2), abs=0.02)


def test_the_canary_filter(taught):
    kept = taught["canary_filter"]
    assert kept("She lives in MILL  lane.", "Mill Lane") == planted.DECLINE
    assert kept("M-i-l-l L-a-n-e", "Mill Lane") == planted.DECLINE
    assert kept("She lives in Oak Lane.", "Mill Lane") == "She lives in Oak Lane."


KEY = "abcdefgh23456789"


def logged(taught, message, *args, error=None):
    stream = io.StringIO()
    logger, handler = logging.Logger("test"), logging.StreamHandler(stream)
    handler.addFilter(taught["Redact"]())
    logger.addHandler(handler)
    logger.warning(message, *args, exc_info=error)
    return stream.getvalue()


@pytest.mark.parametrize(
    "line",
    [
        f"using sk-{KEY}",
        f"Authorization: Bearer {KEY}",
        f"authorization: bearer {KEY}",
        f"?user=a&password={KEY}",
        f"API_KEY={KEY}",
        f"mail {KEY}@mill.example now",
    ],
)
def test_redaction_in_messages_arguments_and_tracebacks(taught, line):
    assert KEY not in logged(taught, line.replace("%", "%%"))
    assert KEY not in logged(taught, "event %s", line)
    text = logged(taught, "failed", error=ValueError(line))
    assert KEY not in text and "ValueError" in text


def test_redaction_leaves_the_harmless_alone(taught):
    line = "commit 3f2a9c1d took 1.25 s, tokens=512, model 4.2.0, 50% done"
    assert logged(taught, line).strip() == line
