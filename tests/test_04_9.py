"""The tokenizers that notebook 04.9 trains are those of the libraries."""

import json
import math
import os
import random
import re
from collections import Counter
from itertools import pairwise

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.notebook_code import namespace
from utils import corpora

pytest.importorskip("sentencepiece", reason="needs the extra evaluation")

BPE = ["replace", "bpe_slowly", "merge_inside", "spell", "join", "train_bpe"]
ENCODING = ["bpe_encode", "wordpiece", "cut", "lattice", "viterbi", "worst"]
UNIGRAM = ["seed_pieces", "expect", "all_ways", "em_step", "prune", "train_unigram"]
LIBRARY = ["METASPACE", "BYTES", "count_words", "library_bpe", "merges_of"]
NUMBERS = ["by_pattern", "grouped_left", "grouped_right", "CHUNK", "FROM_RIGHT"]
MORE = ["library_unigram", "train_sentencepiece", "belong_together", "sampled"]
ANY_WORDS = st.dictionaries(
    st.text("abc", min_size=1, max_size=9), st.integers(1, 5), min_size=1, max_size=25
)
some = settings(max_examples=80, deadline=None)


@pytest.fixture(scope="module")
def taught():
    return namespace("04.9", [*BPE, *ENCODING, *UNIGRAM, *LIBRARY, *NUMBERS, *MORE])


def by_library(words, size, model, trainer, **options):
    """A tokenizer of the library, trained on {word: count}."""
    result = Tokenizer(model)
    result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = " ".join(word for word, count in words.items() for _ in range(count))
    options = {"vocab_size": size, "show_progress": False, **options}
    result.train_from_iterator([text], trainer(**options))
    return result


@some
@given(words=ANY_WORDS, size=st.integers(3, 60))
def test_bpe_equals_the_library_on_random_words(taught, words, size):
    tokens, merges = taught["train_bpe"](words, size)
    theirs = by_library(words, size, models.BPE(), trainers.BpeTrainer)
    assert {token: i for i, token in enumerate(tokens)} == theirs.get_vocab()
    names = [(tokens[a], tokens[b]) for a, b in merges]
    assert names == taught["merges_of"](theirs)
    assert taught["bpe_slowly"](words, size) == (tokens, merges)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for word in words:
        ids = taught["bpe_encode"](word, tokens, ranks)
        assert ids == theirs.encode(word).ids


@pytest.mark.parametrize(
    ("kind", "length", "size"),
    [("prose", 200_000, 500), ("prose", 600_000, 8_000), ("code", 300_000, 3_000)],
)
def test_bpe_equals_the_library_on_real_text(taught, kind, length, size):
    text = corpora.text(kind, "train", length)
    words = taught["count_words"](text, taught["BYTES"])
    tokens, merges = taught["train_bpe"](words, size)
    theirs = taught["library_bpe"](text, size)
    assert {token: i for i, token in enumerate(tokens)} == theirs.get_vocab()
    assert [(tokens[a], tokens[b]) for a, b in merges] == taught["merges_of"](theirs)


@some
@given(
    symbols=st.lists(st.integers(0, 2), max_size=12),
    pair=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_changes_of_a_merge_are_the_difference_of_the_counts(taught, symbols, pair):
    def pairs(row):
        return Counter(pairwise(row))

    merged, changes = list(symbols), Counter(pairs(symbols))
    for other, change in taught["merge_inside"](merged, pair, 9):
        changes[other] += change
    assert merged == taught["replace"](symbols, pair, 9)
    expected = pairs(merged)
    for other in changes | expected:  # nobody asks for the merged pair again
        assert other == pair or changes[other] == expected[other]


@some
@given(words=ANY_WORDS, size=st.integers(8, 60), text=st.text("abcd", min_size=1))
def test_wordpiece_equals_the_library(taught, words, size, text):
    inner = sorted({"##" + c for word in words for c in word[1:]})
    start = ["[UNK]", *inner, *sorted(set("".join(words)))]
    tokens, _ = taught["train_bpe"](words, size, start, "##")
    model = models.WordPiece(unk_token="[UNK]")
    first = {"special_tokens": ["[UNK]", *inner]}
    theirs = by_library(words, size, model, trainers.WordPieceTrainer, **first)
    assert {token: i for i, token in enumerate(tokens)} == theirs.get_vocab()
    ours = taught["wordpiece"](text, set(tokens))
    assert ours == theirs.encode(text).tokens


@pytest.mark.parametrize(
    ("kind", "size"), [("prose", 400), ("prose", 900), ("code", 900)]
)
def test_unigram_equals_the_library(taught, kind, size):
    text = " ".join(corpora.text(kind, "train", 40_000).split())
    words = taught["count_words"](text, taught["METASPACE"])
    assert taught["library_unigram"](text, 10**6, rounds=0)[0] == taught["seed_pieces"](
        words
    )
    theirs, tokenizer = taught["library_unigram"](text, size)
    # A library without the slip in pruning would equal the other variant.
    variants = [taught["train_unigram"](words, size, slip) for slip in (False, True)]
    equal = [ours for ours in variants if ours.keys() == theirs.keys()]
    assert equal
    floor = min(equal[0].values())  # scores of lost letters come in any order there
    for piece, score in equal[0].items():
        assert score == floor or math.isclose(score, theirs[piece], abs_tol=1e-8)
    for word in taught["count_words"](text[:5_000], taught["METASPACE"]):
        assert taught["cut"](word, theirs) == tokenizer.encode(word).tokens


@some
@given(words=ANY_WORDS, word=st.text("abc", min_size=1, max_size=8))
def test_expected_counts_are_those_of_brute_force(taught, words, word):
    scores = taught["seed_pieces"]({**words, "abc": 1})
    ways = list(taught["all_ways"](word, scores))
    weights = [math.exp(sum(scores[p] for p in way)) for way in ways]
    brute, flow = Counter(), Counter()
    for way, weight in zip(ways, weights, strict=True):
        for piece in way:
            brute[piece] += 2 * weight / sum(weights)
    found = taught["expect"](word, 2, scores, -99.0, flow)
    assert math.isclose(found, math.log(sum(weights)), abs_tol=1e-9)
    assert all(math.isclose(flow[p], brute[p], abs_tol=1e-9) for p in brute | flow)
    best = sum(scores[p] for p in taught["viterbi"](word, scores, -99.0))
    assert math.isclose(best, math.log(max(weights)), abs_tol=1e-9)


def test_cut_equals_sentencepiece(taught):
    text = " ".join(corpora.text("prose", "train", 60_000).split())
    rules = {"normalization_rule_name": "identity", "add_dummy_prefix": False}
    google = taught["train_sentencepiece"](text.split(". "), 700, "unigram", **rules)
    usable = [i for i in range(len(google)) if google.get_score(i)]
    scores = {google.id_to_piece(i): google.get_score(i) for i in usable}
    lost = taught["worst"](scores)
    words = [*taught["count_words"](text[:20_000], taught["METASPACE"]), "▁snow☃☃man"]
    for word in words:
        ours, theirs = taught["cut"](word, scores), google.encode(word, out_type=str)
        if ours != theirs:  # a tie: in single precision there, in double here
            a, b = (sum(scores.get(p, lost) for p in way) for way in (ours, theirs))
            assert math.isclose(a, b, rel_tol=1e-5)


def test_sampled_ways_spell_the_word(taught):
    scores = taught["seed_pieces"]({"banana": 3, "bandana": 2})
    ways = {tuple(way) for way in taught["all_ways"]("bandana", scores)}
    rng = random.Random(0)
    drawn = {tuple(taught["sampled"]("bandana", scores, rng)) for _ in range(500)}
    assert drawn <= ways
    assert len(drawn) > 1


@given(st.integers(0, 10**12))
def test_groups_of_digits(taught, number):
    text = str(number)
    for group in (taught["grouped_left"], taught["grouped_right"]):
        groups = group(number)
        assert "".join(groups) == text
        assert all(len(g) == taught["CHUNK"] for g in groups[1:-1])
    assert re.findall(taught["FROM_RIGHT"], text) == f"{number:,}".split(",")
    pieces = taught["by_pattern"](text)
    assert [len(p) for p in pieces[:-1]] == [3] * (len(pieces) - 1)


def test_ids_of_another_run_are_noticed(taught):
    class Both:
        def __init__(self, vocabulary):
            self.vocabulary = vocabulary

        def convert_ids_to_tokens(self, ids):
            return [self.vocabulary[i] for i in ids]

    check, one = taught["belong_together"], Both(["a", "b", "ab"])
    assert check(one, ["ab", "a"], [2, 0])
    assert not check(one, ["ab", "a"], [2, 1])
    assert not check(one, ["ab", "a"], [2])
    assert json.dumps(one.convert_ids_to_tokens([2])) == '["ab"]'
