"""The metrics of notebook 04.2 are those of the packages, on texts made to differ."""

import importlib
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate import bleu_score

from projects.llama3_qlora import Llama, Tokenizer
from projects.llama3_qlora.evaluate import bits_per_byte
from tests.notebook_code import namespace
from utils import corpora
from utils.props import paraphrases
from utils.runtime import ROOT

REASON = "needs the extra 'evaluation' (pip install -e '.[evaluation]')"
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason=REASON)
sacrebleu = pytest.importorskip("sacrebleu", reason=REASON)
pytest.importorskip("evaluate", reason=REASON)

ROUGE = ["stem_of", "words", "Score", "score", "n_grams", "rouge_n", "rouge_l"]
SUBSEQUENCES = ["common_subsequence", "rouge_s"]
BLEU = ["statistics", "bleu_from", "bleu"]
SQUAD = ["normalised", "exact_match", "answer_f1", "width"]
PERPLEXITY = ["perplexity", "by_product", "token_nats"]
LADDER = ["cut_words", "spelled", "word_model"]
NAMES = [*ROUGE, *SUBSEQUENCES, *BLEU, *SQUAD, *PERPLEXITY, *LADDER]

pieces = st.sampled_from(paraphrases.TROUBLE) | st.text(max_size=6)
texts = st.lists(pieces, max_size=12).map(" ".join)
corpora_of_texts = st.integers(1, 3).flatmap(
    lambda n: st.lists(
        st.tuples(texts, st.lists(texts, min_size=n, max_size=n)),
        min_size=1,
        max_size=6,
    )
)


@pytest.fixture(scope="module")
def taught():
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_EVALUATE_OFFLINE", "1")
    yield namespace("04.2", NAMES)
    patch.undo()


def squad():
    """The official functions, as lm-eval carries them."""
    name = "lm_eval.tasks.qasper.metrics"
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(REASON)


@pytest.mark.parametrize("stem", [True, False])
@settings(max_examples=700, deadline=None)
@given(a=texts, b=texts)
def test_rouge_is_that_of_rouge_score(taught, stem, a, b):
    judge = rouge_scorer.RougeScorer(["rouge1", "rouge3", "rougeL"], use_stemmer=stem)
    theirs = [*judge.score(a, b).values()]
    ours = [taught["rouge_n"](a, b, n, stem) for n in (1, 3)]
    ours.append(taught["rouge_l"](a, b, stem))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_skip_bigrams_give_the_figures_of_the_paper(taught):
    # the pattern of Lin 2004, section 5: a verb changed; two orders of the rest
    reference = "farmers fed the donkey"
    for prediction, expected in (
        ("farmers feed the donkey", 1 / 2),
        ("the donkey feed farmers", 1 / 6),
        ("the donkey farmers fed", 1 / 3),
    ):
        assert taught["rouge_s"](reference, prediction, False).f == pytest.approx(
            expected
        )


@settings(max_examples=200, deadline=None)
@given(a=texts, b=texts)
def test_skip_bigrams_by_counting_pairs_one_by_one(taught, a, b):
    first, second = taught["words"](a), taught["words"](b)
    pairs = [(x, y) for i, x in enumerate(first) for y in first[i + 1 :]]
    left = [(x, y) for i, x in enumerate(second) for y in second[i + 1 :]]
    size, hits = len(left), 0
    for pair in pairs:
        if pair in left:
            left.remove(pair)
            hits += 1
    found = taught["rouge_s"](a, b)
    assert found[:2] == (hits / max(size, 1), hits / max(len(pairs), 1))


@pytest.mark.parametrize("name", ["none", "13a"])
@pytest.mark.parametrize("smooth", ["none", "floor", "add-k", "exp"])
@settings(max_examples=120, deadline=None)
@given(rows=corpora_of_texts)
def test_bleu_is_that_of_sacrebleu(taught, name, smooth, rows):
    said, known = map(list, zip(*rows, strict=True))
    said = [f"{p} {several[0]}" for p, several in rows]  # some runs in common
    judge = sacrebleu.BLEU(tokenize=name, smooth_method=smooth, force=True)
    theirs = judge.corpus_score(said, [*zip(*known, strict=True)]).score

    def tokenize(text):
        return judge.tokenizer(text.rstrip()).split()

    assert taught["bleu"](said, known, tokenize, smooth) == pytest.approx(theirs)


def test_bleu_is_that_of_nltk_where_nothing_is_smoothed(taught):
    rng, compared = np.random.default_rng(0), 0
    for _ in range(300):
        known = [paraphrases.troublesome(rng, 30).split() for _ in range(2)]
        said = known[0][:9] + paraphrases.troublesome(rng, 9).split()
        total = taught["statistics"](said, known)
        if total[:4].all():
            theirs = bleu_score.corpus_bleu([known], [said])
            assert taught["bleu_from"](total, "none") / 100 == pytest.approx(theirs)
            compared += 1
    assert compared > 100


def test_clipping_and_the_nearest_length(taught):
    reference = ["the", "cat", "is", "on", "the", "mat"]
    total = taught["statistics"](["the"] * 7, [reference])
    assert total.tolist() == [2, 0, 0, 0, 7, 6, 5, 4, 7, 6]
    lengths = [["a"] * 3, ["a"] * 5]  # a tie: the shorter counts
    assert taught["statistics"](["a"] * 4, lengths)[-1] == 3


@settings(max_examples=1_000, deadline=None)
@given(prediction=texts, answers=st.lists(texts, min_size=1, max_size=3))
def test_squad_scores_are_the_official_ones(taught, prediction, answers):
    official = squad()
    f1 = max(official.f1_abstractive([prediction], [a]) for a in answers)
    said = official.normalize_answer(prediction)
    exact = any(official.normalize_answer(a) == said for a in answers)
    assert taught["exact_match"](prediction, answers) == exact
    assert taught["answer_f1"](prediction, answers) == pytest.approx(f1)


def test_perplexity_forms_agree_and_one_of_them_underflows(taught):
    few = np.random.default_rng(0).uniform(0.05, 1, 20)
    assert taught["perplexity"](-np.log(few)) == pytest.approx(
        taught["by_product"](few)
    )
    many = np.full(2_000, 0.1)
    assert taught["perplexity"](-np.log(many)) == pytest.approx(10)
    with pytest.raises(ZeroDivisionError):
        taught["by_product"](many)


@pytest.mark.parametrize(("context", "stride"), [(512, 512), (64, 16), (33, 7)])
def test_token_nats_sum_to_the_score_of_the_package(taught, context, stride):
    text = corpora.text("prose", "test", 2_000)
    folder = ROOT / "data/models/base"
    model, tokenizer = Llama.from_pretrained(folder).eval(), Tokenizer.load(folder)
    taught["lm"] = lambda ids: SimpleNamespace(logits=model(ids))
    taught["session"] = SimpleNamespace(device="cpu")
    ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(text)])
    ours = taught["token_nats"](ids, context, stride)
    theirs = bits_per_byte(
        model, tokenizer.encode, [text], context, tokenizer.bos_id, stride
    )
    assert len(ours) == len(ids) - 1
    assert ours.sum() == pytest.approx(theirs.nats[0], rel=1e-4)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_words_are_cut_without_loss(taught, text):
    assert "".join(taught["cut_words"](text)) == text


def test_the_word_model_spends_all_its_probability(taught):
    """Over all words that it may know, and "unknown", the probabilities sum to 1, and
    spelling costs something exactly when a word is unknown."""
    train = corpora.text("prose", "train", 30_000)
    nats = taught["word_model"](train, 2)
    counts = Counter(taught["cut_words"](train))
    known = [w for w in counts if counts[w] >= 2]
    one_word = [w for w in known if taught["cut_words"](w) == [w]]
    assert len(one_word) == len(known)
    total = sum(math.exp(-nats(w)[0][0]) for w in known)
    unknown, letters = nats(" Zyxwvu")
    assert total + math.exp(-unknown[0]) == pytest.approx(1, abs=1e-6)
    assert sum(letters) > 5 and not nats(known[0])[1]


def test_relatives_are_what_they_say():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = paraphrases.relatives(rng)
        cut = {kind: text.rstrip(".").split() for kind, text in found.items()}
        assert sorted(cut["shuffled"]) == sorted(cut["reference"])
        assert [w for w in cut["negated"] if w != "never"] == cut["reference"]
        for kind in ("close paraphrase", "unrelated"):
            pairs = zip(cut["reference"], cut[kind], strict=True)
            assert sum(a != b for a, b in pairs) == len(paraphrases.WORDS)
        pairs = zip(cut["free paraphrase"], cut["near copy"], strict=True)
        assert sum(a != b for a, b in pairs) == 2


def test_no_word_stands_for_two_ideas():
    every = [w for ideas in paraphrases.WORDS.values() for pair in ideas for w in pair]
    assert len(every) == len(set(every))


def test_systems_plant_as_many_errors_as_they_say():
    known, said, errors = paraphrases.systems(np.random.default_rng(0), True, 8, 40)
    assert known.shape == said.shape == errors.shape == (8, 40)
    assert errors[0].max() == 0 and abs(errors[-1].mean() - 4) < 0.5
    other = {b: a for ideas in paraphrases.WORDS.values() for a, b in ideas}
    for a, b, count in zip(known.flat, said.flat, errors.flat, strict=True):
        plain = [" ".join(t.replace(",", " ,").split()) for t in (a, b)]
        first, second = (
            [other.get(w, w) for w in t.rstrip(".").split()] for t in plain
        )
        wrong = {x for x, y in zip(first, second, strict=True) if x != y}
        assert len(wrong) == count


def test_an_interval_of_three_is_too_wide_to_report(taught):
    assert taught["width"]([1, 0, 0]) > 0.5 > 0.2 > taught["width"]([1, 0] * 100)
