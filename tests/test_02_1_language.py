"""What notebook 02.1 writes from scratch, against libraries and known answers."""

import nltk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebook_code import namespace

CHARACTERS = st.characters(exclude_categories=["Cs"])
WORDS = ["she", "met", "drew", "the", "king", "in", "with", "near", "and"]


@pytest.fixture(scope="module")
def grammar():
    return namespace("02.1", ["GRAMMAR", "rules", "count_parses"])


@pytest.fixture(scope="module")
def words():
    return namespace("02.1", ["quantise", "context_vectors", "read_back"])


@pytest.fixture(scope="module")
def utf8():
    return namespace("02.1", ["utf8"])["utf8"]


@given(CHARACTERS)
def test_utf8_is_python_s(utf8, character):
    assert utf8(ord(character)) == character.encode("utf-8")


def test_every_length_of_utf8(utf8):
    edges = {0x7F: 1, 0x80: 2, 0x7FF: 2, 0x800: 3, 0xFFFF: 3, 0x10000: 4, 0x10FFFF: 4}
    assert {point: len(utf8(point)) for point in edges} == edges


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=7))
def test_parser_counts_as_nltk_does(grammar, tail):
    library = nltk.ChartParser(nltk.CFG.fromstring(grammar["GRAMMAR"]))
    sentence = ["she", "met", "the", "king", *tail]
    expected = len(list(library.parse(sentence)))
    assert grammar["count_parses"](" ".join(sentence)) == expected


def test_catalan(grammar):
    counts = [
        grammar["count_parses"]("she met the king" + " near the hill" * k)
        for k in range(6)
    ]
    assert counts == [1, 2, 5, 14, 42, 132]


def test_quantise_keeps_the_extremes_and_errs_by_half_a_step(words):
    x = np.random.default_rng(0).normal(size=(20, 5))
    for bits in (1, 3, 8):
        rounded = words["quantise"](x, bits)
        step = (x.max() - x.min()) / (2**bits - 1)
        assert np.abs(rounded - x).max() <= step / 2 + 1e-12
        assert len(np.unique(rounded.round(9))) <= 2**bits
        assert np.isclose(rounded.min(), x.min())
        assert np.isclose(rounded.max(), x.max())


def test_read_back_finds_itself(words):
    table = np.random.default_rng(0).normal(size=(50, 8))
    assert words["read_back"](table, 16) == 1
    assert words["read_back"](table[:, :1], 1) < 0.2


def test_words_in_the_same_contexts_get_the_same_vector(words):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 8, size=20_000)
    ids[1::2] = ids[::2] % 4  # after 0 and 4 comes 0, after 1 and 5 comes 1, ...
    vectors = words["context_vectors"](ids, 8, 4, window=1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit.T
    assert likeness[4, 4:].argmax() == 0
    assert vectors.shape == (8, 4)


def test_cuts():
    cuts = namespace("02.1", ["cuts"])["cuts"]
    assert cuts(["un", "break", "able"]) == {2, 7}
    assert cuts(["cat"]) == set()


def test_the_parallel_text_is_parallel():
    found = namespace("02.1", ["LATIN", "OTHER_SCRIPTS"])
    for text in [*found["LATIN"].values(), *found["OTHER_SCRIPTS"].values()]:
        assert text.count("/") == 7


def test_pronunciations_agree_with_the_spelling():
    found = namespace("02.1", ["PRONOUNCED", "sounds_of"])["sounds_of"]
    assert all("v" in word.lower() for word, sound in found.items() if "v" in sound)
    assert all("sh" in word.lower() for word, sound in found.items() if "ʃ" in sound)
