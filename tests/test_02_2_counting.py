"""Notebook 02.2: what is written there from scratch equals the libraries, or the sum
over all cases, on random small inputs."""

import math
import random
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk import lm
from nltk.util import everygrams
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.naive_bayes import MultinomialNB

from tests.notebook_code import namespace

SMOOTHINGS = ["maximum_likelihood", "add_k", "interpolated", "kneser_ney"]
WANTED = """WORD START END bag_of_words runs_of tabulate NGramCounts successors generate
longest_copy NaiveBayes leaks tf_idf bm25 ranks HMM viterbi forward blocks SeededChain
FixedChain"""
TAUGHT = namespace("02.2", [*WANTED.split(), *SMOOTHINGS])
tokens = st.lists(st.sampled_from("abcd"), min_size=8, max_size=50)
sentences = st.lists(
    st.lists(
        st.tuples(st.sampled_from("uvwxy"), st.sampled_from(["N", "V", "D"])),
        min_size=1,
        max_size=5,
    ),
    min_size=3,
    max_size=12,
)


def full(text: list[str]) -> list[str]:
    """The tokens, after each letter once, so that all are known, and a first token that
    never comes back: NLTK counts wrongly when the first context occurs again."""
    return ["<s>", *"abcd", *text]


@settings(max_examples=40, deadline=None)
@given(tokens, st.sampled_from(SMOOTHINGS), st.integers(0, 2))
def test_probabilities_sum_to_one_after_every_context(text, name, size):
    words = full(text)
    model = TAUGHT["NGramCounts"](words, 3)
    context = tuple(words[2 : 2 + size])
    p = [TAUGHT[name](model, word, context) for word in sorted(set(words))]
    assert all(x >= 0 for x in p)
    assert sum(p) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(tokens)
def test_ngrams_equal_nltk(text):
    text = full(text)
    model, words = TAUGHT["NGramCounts"](text, 3), sorted(set(text))
    pairs = [
        (TAUGHT["maximum_likelihood"], lm.MLE(3)),
        (TAUGHT["add_k"], lm.Lidstone(0.05, 3)),
        (TAUGHT["kneser_ney"], lm.KneserNeyInterpolated(3, discount=0.75)),
    ]
    contexts = set(pairwise(text[1:-1]))
    for ours, theirs in pairs:
        theirs.fit([everygrams(text, max_len=3)], words)
        model.size = len(theirs.vocab)
        for context, word in product(sorted(contexts), words):
            expected = theirs.score(word, context)
            assert ours(model, word, context) == pytest.approx(expected, abs=1e-12)


def test_kneser_ney_by_hand():
    """ "Francisco" is as frequent as "tea", but only ever follows "San"."""
    text = ["San", "Francisco", "San", "Francisco", "hot", "tea", "cold", "tea"]
    model = TAUGHT["NGramCounts"](text, 2)
    after_new = {w: TAUGHT["kneser_ney"](model, w, ("new",)) for w in set(text)}
    assert after_new["tea"] == pytest.approx(2 * after_new["Francisco"])
    assert TAUGHT["maximum_likelihood"](model, "tea") == pytest.approx(0.25)


@given(st.text())
def test_bag_of_words_ignores_order(text):
    words = TAUGHT["WORD"].findall(text)
    bag = TAUGHT["bag_of_words"]
    assert bag(" ".join(words)) == bag(" ".join(reversed(words)))
    assert bag(text).total() == len(TAUGHT["WORD"].findall(text.lower()))


@given(st.lists(tokens, min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 9))
def test_generated_text_follows_the_table(texts, size, seed):
    table = TAUGHT["successors"](texts, size)
    walk = TAUGHT["generate"](table, random.Random(seed), limit=30)
    assert walk == TAUGHT["generate"](table, random.Random(seed), limit=30)
    padded = [TAUGHT["START"]] * size + walk
    for run in TAUGHT["runs_of"](padded, size + 1):
        assert run[-1] in table[run[:-1]]


def test_longest_copy_by_hand():
    longest_copy = TAUGHT["longest_copy"]
    assert longest_copy(["the ", "old ", "cat"], "an old cat sat") == 2
    assert longest_copy(["dog"], "an old cat sat") == 0


def test_the_seed_check_tells_good_from_bad():
    table = TAUGHT["successors"]([list("abcabdacbdbacd")], 1)
    first, second = (TAUGHT["FixedChain"](table, 5).write(15) for _ in range(2))
    assert first == second
    bad = {tuple(TAUGHT["SeededChain"](table, 5).write(15)) for _ in range(20)}
    assert len(bad) > 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(tokens, st.integers(0, 2)), min_size=3, max_size=12))
def test_naive_bayes_equals_scikit_learn(examples):
    bags = [Counter(text) for text, _ in examples]
    labels = [label for _, label in examples]
    ours = TAUGHT["NaiveBayes"](bags, labels)
    counter = CountVectorizer(analyzer=lambda bag: bag.elements())
    x = counter.fit_transform(bags)
    theirs = MultinomialNB().fit(x, labels)
    assert np.allclose(ours.log_word, theirs.feature_log_prob_)
    scores = np.array([ours.scores(bag) for bag in bags])
    assert np.allclose(scores, theirs.predict_joint_log_proba(x))
    assert ours.scores(Counter(["never seen"])) == pytest.approx(ours.log_prior)


def test_leaks_finds_the_label_among_the_inputs():
    bags = [Counter("abc"), Counter("ab"), Counter("bc"), Counter("c")] * 5
    has_a = [int("a" in bag) for bag in bags]
    assert TAUGHT["leaks"](bags, has_a) == ["a"]
    assert TAUGHT["leaks"](bags, [0, 1, 1, 0] * 5) == []


def test_tf_idf_equals_scikit_learn():
    texts = ["the old cat", "the cat and the dog", "a dog here", "old old news"]
    counts = CountVectorizer().fit_transform(texts).toarray()
    expected = TfidfVectorizer().fit_transform(texts).toarray()
    assert np.allclose(TAUGHT["tf_idf"](counts), expected)


def test_bm25_saturates_and_ranks():
    counts = np.array([[1, 0, 3], [2, 0, 2], [0, 4, 0], [0, 1, 3]])
    weights = TAUGHT["bm25"](counts)
    assert weights[0, 0] < weights[1, 0] < 2 * weights[0, 0]
    assert weights[1, 0] > weights[1, 2], "rarer words must weigh more"
    asked = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    assert TAUGHT["ranks"](weights, asked).tolist() == [1, 0, 0, 1]


def test_blocks_drops_the_rest():
    assert TAUGHT["blocks"](np.arange(7.0), 3).tolist() == [1, 4]


@settings(max_examples=30, deadline=None)
@given(sentences, st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=5))
def test_hmm_equals_hmmlearn_and_the_sum_over_all_paths(examples, words):
    model = TAUGHT["HMM"](examples)
    theirs = CategoricalHMM(len(model.tags), init_params="", params="")
    theirs.startprob_ = np.exp(model.start)
    theirs.transmat_ = np.exp(model.step)
    theirs.emissionprob_ = np.exp(model.emit)
    theirs.n_features = model.emit.shape[1]
    row = np.array([[model.ids.get(word, 0)] for word in words])
    assert TAUGHT["forward"](model, words) == pytest.approx(theirs.score(row))
    path = TAUGHT["viterbi"](model, words)
    best = joint(model, words, [model.tags.index(tag) for tag in path])
    assert best == pytest.approx(theirs.decode(row)[0])
    states = product(range(len(model.tags)), repeat=len(words))
    every = [joint(model, words, list(s)) for s in states]
    assert TAUGHT["forward"](model, words) == pytest.approx(
        float(np.logaddexp.reduce(every))
    )
    assert best == pytest.approx(max(every))


def joint(model, words: list[str], states: list[int]) -> float:
    """log p(words, states), factor by factor."""
    emit = model.emissions(words)
    steps = sum(model.step[a, b] for a, b in pairwise(states))
    seen = sum(emit[t, state] for t, state in enumerate(states))
    return float(model.start[states[0]] + steps + seen)


def test_hmm_probabilities_sum_to_one_over_all_short_sentences():
    model = TAUGHT["HMM"]([[("u", "N"), ("v", "V")], [("v", "N"), ("w", "V")]])
    total = sum(
        math.exp(TAUGHT["forward"](model, list(words)))
        for words in product(["u", "v", "w", "new"], repeat=2)
    )
    assert total == pytest.approx(1)
