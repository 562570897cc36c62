"""The closed world: the same for everyone, true, and as hard as its card says."""

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tag.hmm import HiddenMarkovModelTagger
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from utils import closed_world as cw
from utils.runtime import ROOT, Problem

SEEDS = st.integers(0, 2**32 - 1)
DIGEST = """
import hashlib
from utils import closed_world as cw
town = cw.build(3)
parts = [town, cw.facts(town), cw.fact_sentences(town), cw.questions(town, "test"),
         cw.stories(town, 50), cw.agreement_items(town, count=50), cw.reviews(town, 50),
         cw.parallel(town, 50), cw.tagged(town, 50), sorted(cw.lexicon().items())]
digest = hashlib.sha256(repr(parts).encode()).hexdigest()
"""


@pytest.fixture(scope="module")
def town():
    return cw.build()


@pytest.fixture(scope="module")
def told(town):
    return cw.stories(town, 5_000)


def types(texts):
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


def test_another_process_with_other_hashes_makes_the_same():
    here = {}
    exec(DIGEST, here)
    there = subprocess.run(
        [sys.executable, "-c", DIGEST + "print(digest)"],
        env={**os.environ, "PYTHONHASHSEED": "99"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here["digest"]


def test_other_seeds_make_other_towns_and_texts(town):
    assert cw.build(1) != town == cw.build(0)
    for make in (cw.stories, cw.reviews, cw.parallel, cw.tagged, cw.agreement_items):
        assert make(town, seed=1, count=20) != make(town, seed=2, count=20)
    assert cw.fact_sentences(town, 1) != cw.fact_sentences(town, 2)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(20, 120))
def test_a_town_hangs_together(seed, people):
    town = cw.build(seed, people)
    names = {p.name for p in town.people}
    owners = {s.owner for s in town.shops}
    assert len(names) == len({p.friend for p in town.people}) == people
    assert {p.friend for p in town.people} == names
    assert all(p.friend != p.name for p in town.people)
    assert all((p.boss in owners) != (p.name in owners) for p in town.people)
    assert all(
        g.name in s.goods for s in town.shops for g in town.goods if g.shop == s.name
    )
    assert sum(len(s.goods) for s in town.shops) == len(town.goods) == 32
    assert not names & {child.name for child in town.children}
    assert {p.street for p in town.people} <= set(town.streets)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(20, 120))
def test_every_question_has_one_right_choice(seed, people):
    town = cw.build(seed, people)
    value = {(f.subject, f.relation): f.value for f in cw.facts(town)}
    assert len(value) == len(cw.facts(town))  # one value for each subject and relation
    for split in ("train", "valid", "test"):
        for q in cw.questions(town, split):
            assert q.answer == q.fact.value == value[q.fact.subject, q.fact.relation]
            assert len(set(q.choices)) == 4
            assert q.choices.count(q.answer) == 1
            assert q.choices[q.correct] == q.answer


def test_right_choices_stand_at_every_place_alike(town):
    places = Counter(q.correct for q in cw.questions(town, "train"))
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) < 1.6 * min(places.values())


def test_splits_share_no_fact_and_leave_none_out(town):
    splits = [
        {q.fact for q in cw.questions(town, s)} for s in ("train", "valid", "test")
    ]
    assert sum(map(len, splits)) == len(set.union(*splits)) == len(cw.facts(town))
    for split in splits:
        assert {(f.relation, f.frequency) for f in split} >= {
            (r, n) for r in ("trade", "boss", "price") for n in cw.FREQUENCIES
        }


def test_frequencies_are_exact_and_balanced(town):
    every = cw.facts(town)
    for relation in {f.relation for f in every}:
        sizes = Counter(f.frequency for f in every if f.relation == relation)
        assert set(sizes) == set(cw.FREQUENCIES)
        assert max(sizes.values()) - min(sizes.values()) <= 1
    for repeats in (1, 2):
        counted = len(cw.fact_sentences(town, repeats=repeats))
        assert counted == repeats * sum(f.frequency for f in every)


def test_each_fact_is_stated_as_often_as_it_says(town):
    """Friends are counted in the sentences: both names occur, the subject first."""
    sentences = cw.fact_sentences(town, seed=5)
    for fact in (f for f in cw.facts(town) if f.relation == "friend"):
        pattern = re.compile(rf"\b{fact.subject}\b.*\b{fact.value}\b")
        hits = [s for s in sentences if pattern.search(s)]
        also = [
            f
            for f in cw.facts(town)
            if (f.subject, f.value) == (fact.subject, fact.value)
        ]
        assert len(hits) == sum(f.frequency for f in also)


def test_statements_end_in_the_value_and_can_be_translated(town):
    for fact in cw.facts(town):
        plain = cw.statement(fact)
        assert plain.endswith(f" {fact.value}.")
        assert cw.translate(plain)


def test_stories_are_distinct_small_and_of_the_right_length(told):
    assert len(set(told)) > 0.999 * len(told)
    assert len(types(told)) < 700
    for story in told:
        assert 4 <= len(re.findall(r'[.!?]"?(?: |$)', story)) <= 8


def test_pronouns_agree_with_the_only_hero(town, told):
    """In stories without a second child every pronoun is the hero's."""
    pronoun = {child.name: child.pronoun for child in town.children}
    other = {"she": r"\b(he|him|his)\b", "he": r"\b(she|her|hers)\b"}
    alone = 0
    for story in told:
        heroes = {name for name in pronoun if re.search(rf"\b{name}\b", story)}
        if len(heroes) == 1:
            alone += 1
            assert not re.search(other[pronoun[heroes.pop()]], story.lower())
    assert alone > 500


def test_stories_state_no_fact(town, told):
    subjects = {thing.name.lower() for thing in (*town.people, *town.goods)}
    assert len(subjects) == 60 + 32
    assert not types(told) & subjects


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_agreement_pairs_differ_in_the_verb_only(seed):
    for item in cw.agreement_items(cw.build(), seed, count=100):
        good, bad = item.good.split(), item.bad.split()
        where = [i for i, (a, b) in enumerate(zip(good, bad, strict=True)) if a != b]
        assert where == [item.distance + 2]  # after "The", the head and the distance
        assert item.distance or not item.distractor


def test_agreement_is_tested_on_unseen_pairs_at_many_distances(town, told):
    items = cw.agreement_items(town, count=2_000)
    assert {item.distance for item in items} == {0, 3, 4, 6, 8}
    assert 0.3 < sum(item.distractor for item in items) / len(items) < 0.5
    text = " ".join(told)
    assert not any(item.good in text for item in items)
    verbs = {item.good.split()[item.distance + 2] for item in items}
    assert verbs <= types(told)  # but no verb is new


def test_reviews_are_balanced_and_twins_share_their_words(town):
    reviews = cw.reviews(town, 2_000)
    assert sum(r.truth for r in reviews) == 1_000
    assert all(r.label == r.truth and 0 < r.strength <= 1 for r in reviews)
    twins = sorted((r for r in reviews if r.pair >= 0), key=lambda r: (r.pair, r.truth))
    assert 100 < len(twins) < 300
    for bad, good in pairwise(twins):
        if bad.pair == good.pair:
            assert (bad.truth, good.truth) == (0, 1)
            assert Counter(types_of(bad)) == Counter(types_of(good))
            assert bad.text != good.text


def types_of(review):
    return re.findall(r"[a-z]+", review.text.lower())


def test_label_noise_is_what_was_asked_for(town):
    noisy = cw.reviews(town, 2_000, noise=0.05)
    clean = cw.reviews(town, 2_000)
    assert [r.text for r in noisy] == [r.text for r in clean]
    assert 60 < sum(r.label != r.truth for r in noisy) < 140


def accuracy(town, longest):
    train, test = cw.reviews(town, 3_000), cw.reviews(town, 2_000, seed=1)
    model = make_pipeline(CountVectorizer(ngram_range=(1, longest)), MultinomialNB())
    model.fit([r.text for r in train], [r.truth for r in train])
    return model.score([r.text for r in test], [r.truth for r in test])


def test_a_bag_of_words_does_well_and_word_order_helps(town):
    assert 0.78 < accuracy(town, 1) < 0.93
    assert accuracy(town, 2) > accuracy(town, 1) + 0.02


def test_the_lexicon_is_one_to_one():
    lexicon = cw.lexicon()
    assert len(set(lexicon.values())) == len(lexicon) > 150
    assert not set(lexicon) & set(lexicon.values())
    assert {len(word) for word in lexicon.values()} == {5}  # so endings stand out


def test_word_order_endings_and_names_of_the_second_language():
    words = {
        k: cw.lexicon()[k] for k in ("the", "a", "old", "two", "goat", "well", "see")
    }
    baker, near = cw.lexicon()["baker"], cw.lexicon()["near"]
    expected = (
        f"{baker} {words['old']} {words['the']} {words['goat']}i {words['two']} "
        f"{words['well']} {words['the']} {near} {words['see']}ath."
    )
    said = cw.translate("The old baker saw two goats near the well.")
    assert said == expected.capitalize()
    assert cw.translate("Mirta saw Ogdo.").startswith("Mirta Ogdo ")


def test_different_scenes_have_different_translations(town):
    pairs = set(cw.parallel(town, 3_000))
    folded = {re.sub(r"\ban\b", "a", english.lower()) for english, _ in pairs}
    assert len({other for _, other in pairs}) == len(folded)


def test_tags_are_of_the_set_and_words_are_ambiguous(town):
    sentences = cw.tagged(town, 3_000)
    tags = {}
    for word, tag in (pair for sentence in sentences for pair in sentence):
        tags.setdefault(word.lower(), Counter())[tag] += 1
    assert {tag for counts in tags.values() for tag in counts} == set(cw.TAGS)
    for word in ("saw", "watch", "light", "can", "duck", "water", "plants", "her"):
        assert tags[word].most_common()[-1][1] > 20  # the rarer tag is not a rarity
        assert len(tags[word]) > 1
    common = sum(max(counts.values()) for counts in tags.values())
    total = sum(sum(counts.values()) for counts in tags.values())
    assert 0.85 < common / total < 0.95  # what the most frequent tag gets
    hmm = HiddenMarkovModelTagger.train(sentences[:2_000])
    assert hmm.accuracy(sentences[2_000:2_300]) > common / total + 0.03


def everything(town):
    yield from cw.fact_sentences(town)[:3_000]
    yield from (q.question for q in cw.questions(town, "train"))
    yield from cw.stories(town, 1_000)
    yield from (r.text for r in cw.reviews(town, 1_000))
    yield from (english for english, _ in cw.parallel(town, 1_000))
    yield from (item.good for item in cw.agreement_items(town))


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_all_texts_are_plain_tidy_english(seed):
    for text in everything(cw.build(seed)):
        assert text.isascii()
        assert text[0].isupper() or text[0] == '"'
        assert text[-1] in '.?"'
        assert not re.search(r"[{}]|  | [.,?]|\.\.|[.?] [a-z]", text)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.lower())
        assert not re.search(r"\b(\w+) \1\b", text.lower())


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: cw.build(people=3),
        lambda: cw.questions(cw.build(), "dev"),
        lambda: cw.fact_sentences(cw.build(), repeats=0),
        lambda: cw.reviews(cw.build(), noise=2),
        lambda: cw.translate("The zebra saw a goat."),
        lambda: cw.translate("The goat."),
    ],
)
def test_mistakes_are_explained(mistake):
    with pytest.raises(Problem):
        mistake()
