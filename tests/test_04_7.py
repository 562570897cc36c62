"""What notebook 04.7 teaches and its funnel: hashes, stages, streams, and crashes."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebook_code import namespace
from utils import closed_world, runtime
from utils.props import dump, funnel, stages

datasketch = pytest.importorskip("datasketch", reason="needs the extra `evaluation`")
pytest.importorskip("datasets", reason="needs the extra `evaluation`")

HASHING = ["shingles", "jaccard", "numbers", "min_hash", "buckets"]
HASHING += ["BANDS", "ROWS", "dice", "odd", "shift"]
WORDS = st.lists(
    st.sampled_from(["a", "be", "see", "tree", "otter", "Ärger", "7"]), max_size=60
)


@pytest.fixture(scope="module")
def taught():
    return namespace("04.7", [*HASHING, "shuffled", "on_ray", "runs"])


@pytest.fixture(scope="module")
def pile():
    return dump.dump(3, 400)


@pytest.fixture(scope="module")
def judge(taught):
    exam = dump.exam(closed_world.build(3))
    return stages.Judge(protected=taught["runs"](exam, stages.SHARED))


def outputs(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*/*.jsonl"))} | {
        kind: sorted(p.name for p in (folder / kind).iterdir())
        for kind in ("kept", "rejected")
    }


def clean(names, load, judge, folder, **settings):
    return list(funnel.run(names, load, judge, folder, batch=20, **settings))


def load_from(texts, name):
    return texts[name], ""


def as_files(pile, folder):
    """The documents as files: their names, and how workers load them."""
    folder.mkdir()
    for name, text in zip(pile.name, pile.text, strict=True):
        (folder / name).write_text(text, "utf-8")
    return list(pile.name), partial(stages.read, folder)


# --- hashing


@settings(deadline=None, max_examples=60)
@given(WORDS)
def test_signature_is_that_of_datasketch(taught, words):
    text = " ".join(words)
    library = datasketch.MinHash(num_perm=128)
    parts = taught["shingles"](text)
    library.update_batch([part.encode() for part in parts])
    assert np.array_equal(taught["min_hash"](parts), library.digest())
    assert np.array_equal(stages.signature(text), library.digest())


def test_long_texts_are_signed_in_parts(taught):
    text = " ".join(str(i) for i in range(5_000))
    ours = taught["min_hash"](taught["shingles"](text))
    assert np.array_equal(stages.signature(text), ours)


def test_candidates_are_those_of_datasketch(taught, pile):
    signatures = [stages.signature(text) for text in pile.text]
    library = datasketch.MinHashLSH(num_perm=128, params=(stages.BANDS, stages.ROWS))
    for i, met in enumerate(taught["buckets"](signatures)):
        sketch = datasketch.MinHash(hashvalues=signatures[i], scheme="affine32")
        assert set(library.query(sketch)) == met
        library.insert(i, sketch)
        keys = set(stages.band_keys(signatures[i]))
        for j in met:
            assert keys & set(stages.band_keys(signatures[j]))


def test_estimate_is_near_the_true_similarity(taught):
    rng, errors = np.random.default_rng(0), []
    for shared in (20, 50, 80):
        for _ in range(40):
            pool = rng.integers(0, 2**32, 200 - shared, dtype=np.uint32)
            minima = [
                (part[:, None] * taught["odd"] + taught["shift"]).min(0)
                for part in (pool[:100], pool[-100:])
            ]
            errors.append(np.mean(minima[0] == minima[1]) - shared / (200 - shared))
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.06


# --- stages of one document


@given(st.text("0123456789", min_size=12, max_size=18))
def test_every_number_has_one_check_digit(digits):
    assert sum(stages.luhn(f"{digits}{last}") for last in range(10)) == 1


def test_true_account_number_and_a_wrong_one():
    right, wrong = "GB82 WEST 1234 5698 7654 32", "GB83WEST12345698765432"
    text, found = stages.redact(f"Pay {right}, not {wrong}.")
    assert text == f"Pay <iban>, not {wrong}." and found == {"iban": 1}
    assert stages.redact(f"Pay {wrong}.", checked=False)[1]["iban"] == 1


def test_personal_data_is_masked_and_its_neighbours_are_not():
    text = "Ask a.b+c@m.example.org or 0123 4567890, 2019-2024, v1.2.3 of 2026-11-21."
    masked, found = stages.redact(text)
    assert masked == "Ask <email> or <phone>, 2019-2024, v1.2.3 of 2026-11-21."
    assert found == {"email": 1, "phone": 1}


def test_planted_faults_are_found(pile, judge):
    reasons = pile.text.map(judge.reason)
    assert set(reasons[pile.kind.isin(["clean", "copy", "near copy"])]) == {""}
    assert set(reasons[pile.kind == "foreign"]) == {"language"}
    assert set(reasons[pile.kind == "menu"]) == {"rule: repeated lines"}
    assert set(reasons[pile.kind == "salad"]) == {""}
    assert set(reasons[pile.detail == "verbatim"]) == {"leaked"}
    for kind in ("card", "iban"):
        assert all(stages.redact(t)[1][kind] for t in pile.text[pile.detail == kind])


def test_classifier_likes_what_is_like_the_good():
    weights = stages.log_odds(["the cat sat"], ["buy it now"])
    assert stages.score(weights, "a cat") > 0 > stages.score(weights, "buy now")
    assert stages.score(weights, "") == 0


@pytest.mark.parametrize(
    ("name", "content", "text", "reason"),
    [
        ("a.txt", b"Hello.", "Hello.", ""),
        ("a.txt", "Köln".encode("latin-1"), "", "not UTF-8"),
        ("a.txt", b"\0\1", "", "not text"),
        ("a.md", b" \n", " \n", "no prose"),
        ("a.py", b'x = 1\n"""A.\n\nB."""\n', "A.\n\nB.", ""),
        ("METADATA", b"Name: a\n\nWhat it is.", "What it is.", ""),
        ("a.html", b"<p>A &amp; B<script>x</script></p>", " A & B  ", ""),
        ("a.txt", b"a" * (stages.LARGEST + 1), "", "too large"),
    ],
)
def test_read(tmp_path, name, content, text, reason):
    (tmp_path / name).write_bytes(content)
    assert stages.read(tmp_path, name) == (text, reason)


def test_a_file_that_has_gone_is_a_reject(tmp_path):
    assert stages.read(tmp_path, "gone.txt") == ("", "unreadable")


# --- the funnel


def test_files_are_found_in_a_fixed_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.py", "sub/LICENSE", "sub/b.png", "c.txt"):
        (tmp_path / name).write_text("x")
    found = funnel.files(tmp_path)
    assert sorted(found) == ["a.py", "c.txt", "sub/LICENSE"]
    assert found == funnel.files(tmp_path)


def test_nothing_to_clean_is_one_sentence(tmp_path):
    with pytest.raises(runtime.Problem, match="no text files"):
        funnel.files(tmp_path)
    with pytest.raises(runtime.Problem, match="no documents"):
        clean([], load_from, stages.Judge(), tmp_path / "out")


def test_duplicates_go_and_nothing_is_lost(tmp_path, pile, judge):
    texts = dict(zip(pile.name, pile.text, strict=True))
    clean(texts, partial(load_from, texts), judge, tmp_path)
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        reasons = dict(db.execute("SELECT name, reason FROM document"))
    assert list(reasons) == list(texts)
    by_kind = pile.assign(reason=pile.name.map(reasons)).groupby("kind").reason
    assert set(by_kind.get_group("copy")) == {"exact duplicate"}
    assert set(by_kind.get_group("clean")) == {""}
    assert (by_kind.get_group("near copy") == "near duplicate").mean() > 0.4
    lines = [p.read_text().splitlines() for p in tmp_path.glob("*/*.jsonl")]
    assert sum(map(len, lines)) == len(texts)


def test_processes_and_interruptions_change_nothing(tmp_path, pile, judge):
    names, load = as_files(pile, tmp_path / "files")
    clean(names, load, judge, tmp_path / "one")
    clean(names, load, judge, tmp_path / "two", workers=2)
    for number in funnel.run(names, load, judge, tmp_path / "cut", batch=20):
        if number == 3:
            break
    (tmp_path / "cut" / "kept" / "00004.jsonl").write_text("half a li")
    assert clean(names, load, judge, tmp_path / "cut")[0] == 4
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    assert outputs(tmp_path / "one") == outputs(tmp_path / "cut")
    assert clean(names, load, judge, tmp_path / "cut") == []  # nothing is left to do


KILLED = """
import sys, time
from pathlib import Path
from utils.props import funnel, stages
files, out = map(Path, sys.argv[1:])
def load(name):
    time.sleep(0.01)
    return stages.read(files, name)
names = sorted(path.name for path in files.iterdir())
for _ in funnel.run(names, load, stages.Judge(), out, batch=20):
    pass
"""


def test_a_killed_run_goes_on_to_the_same_output(tmp_path, pile):
    names, load = as_files(pile, tmp_path / "files")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "files"), str(killed)]
    victim = subprocess.Popen(command, cwd=runtime.ROOT)
    while not (killed / "rejected" / "00003.jsonl").exists():
        assert victim.poll() is None
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    went_on = clean(names, load, stages.Judge(), killed)
    assert 3 <= went_on[0] < 19 and went_on[-1] == 19
    clean(names, load, stages.Judge(), whole)
    assert outputs(killed) == outputs(whole)


def test_another_list_of_documents_is_noticed(tmp_path, pile):
    texts = dict(zip(pile.name, pile.text, strict=True))
    load = partial(load_from, texts)
    next(funnel.run(texts, load, stages.Judge(), tmp_path, batch=20))
    with pytest.raises(runtime.Problem, match="not those of the run"):
        clean([*texts][5:], load, stages.Judge(), tmp_path)


def test_damage_is_one_sentence(tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(runtime.Problem, match="damaged"):
        clean(["a"], load_from, stages.Judge(), tmp_path)
    with pytest.raises(runtime.Problem, match="worker has died"):
        clean([1], os._exit, stages.Judge(), tmp_path / "out", workers=1)


def test_benchmark_counts_every_document(tmp_path):
    row = funnel.benchmark(0.2, tmp_path, workers=1)
    reasons = [v for k, v in row.items() if k == "kept" or k.islower()]
    assert row["MB"] >= 0.2 and row["kept"] > 0 and row["peak MB"] > 0
    assert row["documents"] <= sum(reasons) and row["index MB"] > 0


# --- streams


@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 9))
def test_shuffle_buffer_is_a_permutation_that_looks_no_further(
    taught, count, size, seed
):
    rng = np.random.default_rng(seed)
    out = [int(i) for i in taught["shuffled"](range(count), size, rng)]
    assert sorted(out) == list(range(count))
    assert all(item - place < size for place, item in enumerate(out))


def test_ray_gives_the_same_reasons(tmp_path, taught, pile, judge):
    pytest.importorskip("ray", reason="needs the extra `evaluation`")
    few = pile[:120]
    texts = dict(zip(few.name, few.text, strict=True))
    load = lambda name: (texts[name], "")  # noqa: E731 - pickled by value
    told = taught["on_ray"]([*texts], load, judge, tmp_path, cpus=1)
    clean(texts, load, judge, tmp_path / "out")
    with sqlite3.connect(tmp_path / "out" / "index.sqlite") as db:
        assert told == dict(db.execute("SELECT name, reason FROM document"))


# --- the planted dirt


def test_dump_is_a_function_of_its_seed(pile):
    assert dump.dump(3, 400).equals(pile)
    assert set(pile.kind) == set(dump.MIX)
    assert pile.kind.iloc[0] == "clean" and pile.name.is_unique


def test_spoilt_pages_keep_what_they_promise():
    dice, page = random.Random(0), "The goat saw a boat."
    salad = dump.spoil("salad", page, [], dice)
    garbled = dump.spoil("garbled", page, [], dice)
    assert sorted(salad.split()) == sorted(page.split())
    assert [sorted(w) for w in garbled.split()] == [sorted(w) for w in page.split()]
