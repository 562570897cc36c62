"""Kneser-Ney: a probability distribution, and NLTK's numbers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.lm import KneserNeyInterpolated

from utils.ngram import KneserNey
from utils.runtime import Problem

KINDS = 4
tokens = st.lists(st.integers(0, KINDS - 1), min_size=8, max_size=40)


@settings(max_examples=60, deadline=None)
@given(tokens, st.integers(1, 4), st.lists(st.integers(0, KINDS - 1), max_size=5))
def test_probabilities_are_positive_and_sum_to_one(train, order, context):
    model = KneserNey(train, order, KINDS)
    p = [model.probability(tuple(context), token) for token in range(KINDS)]
    assert all(x > 0 for x in p)
    assert sum(p) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(tokens)
def test_equal_to_nltk(train):
    """On a circle of tokens: there every n-gram has a token before it, so that no rule
    for the edge of the text, where the two differ, comes into play. Every kind occurs,
    so that our last step, to the uniform distribution, changes nothing."""
    circle = [*train, *range(KINDS)]
    circle += circle[:2]
    ours = KneserNey(circle, 3, KINDS, discount=0.1)
    grams = [
        tuple(map(str, circle[i : i + n]))
        for n in (1, 2, 3)
        for i in range(len(circle) - 2)
    ]
    theirs = KneserNeyInterpolated(3, discount=0.1)
    theirs.fit([grams], [str(i) for i in range(KINDS)])
    for i in range(KINDS**3):
        a, b, word = i // KINDS**2, i // KINDS % KINDS, i % KINDS
        expected = theirs.score(str(word), (str(a), str(b)))
        assert ours.probability((a, b), word) == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    """After 1 comes 2 twice and 3 once; the shorter level is uniform here."""
    model = KneserNey([0, 1, 2, 0, 1, 2, 0, 1, 3], 2, 4, discount=0.5)
    expected = [(max(c - 0.5, 0) + 0.5 * 2 / 4) / 3 for c in (0, 0, 2, 1)]
    assert [model.probability((1,), t) for t in range(4)] == pytest.approx(expected)
    assert model.nats([1, 2]) == pytest.approx([-math.log(expected[2])])


def test_wrong_values_are_refused():
    with pytest.raises(Problem):
        KneserNey([1, 2, 3], 0, 5)
    with pytest.raises(Problem):
        KneserNey([1, 2, 3], 2, 5, discount=1.5)
