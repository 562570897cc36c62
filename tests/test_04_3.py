"""The sets of notebook 04.3 keep their promises, and what it teaches is lm-eval's."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tests.notebook_code import namespace
from utils import closed_world, runtime
from utils.props import benchmarks, superglue
from utils.runtime import ROOT, Problem

REASON = "needs the extra 'evaluation' (pip install -e '.[evaluation]')"
lm_eval = pytest.importorskip("lm_eval", reason=REASON)
pytest.importorskip("datasets", reason=REASON)

NAMES = [
    *("BATCH", "LETTERS", "Template", "Examinee", "encode_pair", "log_likelihoods"),
    *("SCALES", "picks", "right", "f1", "macro_f1", "exact", "word_f1", "rotated"),
    *("chance", "majority", "ceiling", "check_asks", "check_score", "read_off"),
    *("without_candidate", "standard_error", "questions_needed"),
    *("words_of", "ngrams", "contaminated"),
]
seeds = st.integers(0, 10_000)
labels = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1)


@pytest.fixture(scope="module")
def taught():
    return definitions()


def definitions():
    """The notebook's definitions, and what its setup cell would give them."""
    found = namespace("04.3", NAMES)
    found |= {"runtime": runtime, "session": SimpleNamespace(device="cpu")}
    return found


def every(seed=0):
    """All sets of a seed, by name."""
    return {
        **superglue.tasks(seed, 20),
        "mmlu": benchmarks.mmlu(seed, 20),
        "hellaswag": benchmarks.hellaswag(seed, 40),
        "documentation": benchmarks.documentation(seed, 40),
    }


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_choices_differ_and_the_gold_is_one_of_them(seed):
    for items in every(seed).values():
        for item in items:
            assert len(set(item.choices)) == len(item.choices) >= 2
            assert item.answer in item.choices


def test_a_set_depends_on_its_seed_only():
    assert every(3) == every(3)
    assert all(items != every(4)[name] for name, items in every(3).items())


def test_sets_have_the_promised_sizes():
    reading = superglue.tasks(0)
    assert {name: len(items) for name, items in reading.items()} == dict(
        dict.fromkeys(reading, 50), MultiRC=200
    )
    assert Counter(i.task for i in benchmarks.mmlu(0)) == dict.fromkeys(
        ("people", "ties", "goods", "grammar", "lexicon"), 60
    )
    assert len(benchmarks.hellaswag(0)) == len(benchmarks.documentation(0)) == 250


@pytest.mark.parametrize("make", [superglue.tasks, benchmarks.mmlu])
def test_an_impossible_size_is_a_problem(make):
    with pytest.raises(Problem, match="each must be from 2"):
        make(0, 1_000)
    with pytest.raises(Problem, match="count must be 1"):
        benchmarks.hellaswag(0, 0)


def test_reading_answers_follow_from_the_text():
    tasks = superglue.tasks(5)
    for item in tasks["MultiRC"]:
        street = item.question.removeprefix("Who lives in ").removesuffix("?")
        lives = f"{item.candidate} lives in {street}." in item.text
        assert lives == (item.answer == "yes")
    for item in tasks["ReCoRD"]:
        assert all(choice in item.text for choice in item.choices)
        assert superglue.GAP in item.question
    people = {p.name for p in benchmarks.TOWN.people}
    for item in (*tasks["BoolQ"], *tasks["RTE"], *tasks["CB"]):
        assert not people & set(item.text.replace(".", "").split())


def test_town_questions_are_true_and_leaks_are_marked():
    facts = {(f.subject, f.relation): f for f in closed_world.facts(benchmarks.TOWN)}
    truths = {closed_world.statement(f): f for f in facts.values()}
    for item in benchmarks.mmlu(1):
        if item.task in benchmarks.SUBJECTS:
            fact = truths[f"{item.stem} {item.answer}."]
            assert item.leaked == (fact.split == "train")
        else:
            assert not item.leaked


def test_only_one_predicate_agrees():
    verbs = {p[0]: 0 for p in closed_world.words.PREDICATES}
    verbs |= {p[1]: 1 for p in closed_world.words.PREDICATES}
    for item in benchmarks.mmlu(2):
        if item.task == "grammar":
            numbers = [verbs[choice.split()[0]] for choice in item.choices]
            assert numbers.count(numbers[item.gold]) == 1


def test_stories_are_new_and_endings_use_their_cast():
    from projects.llama3_qlora.shipped import corpus

    read = set(corpus.stories())
    for item in benchmarks.hellaswag(0, 60):
        assert f"{item.text} {item.answer}" not in read
        children = {c.name for c in benchmarks.TOWN.children}
        for choice in item.choices:
            named = {w.strip('.,"') for w in choice.split()} & children
            assert all(name in item.text for name in named)


def test_real_rows_become_items():
    row = {"subject": "astronomy", "question": "?", "choices": list("wxyz")}
    assert benchmarks.from_mmlu(row | {"answer": 2}).answer == "y"
    row = {"ctx": "He", "endings": ["a", "b", "c", "d"], "label": "3"}
    assert benchmarks.from_hellaswag(row).answer == "d"


def test_the_card_counts_right():
    text = (superglue.FOLDER / "README.md").read_text("utf-8")
    assert f"{len(superglue._rows('copa.csv'))} hand-written pairs" in text
    assert f"{len(superglue._rows('winograd.csv'))} hand-written sentences" in text


@settings(max_examples=100, deadline=None)
@given(labels)
def test_f1_is_that_of_scikit_learn(pairs):
    taught = namespace("04.3", ["f1", "macro_f1"])
    gold, chosen = map(list, zip(*pairs, strict=True))
    ours = taught["macro_f1"](gold, chosen)
    theirs = metrics.f1_score(gold, chosen, average="macro", zero_division=0)
    assert ours == pytest.approx(theirs)


def test_exact_match_wants_all_candidates(taught):
    items = superglue.tasks(0, 3)["MultiRC"]
    gold = [item.gold for item in items]
    assert taught["exact"](items, gold) == [True] * 3
    assert taught["exact"](items, [1 - gold[0], *gold[1:]]) == [False, True, True]
    assert taught["word_f1"]("Mill Row", "Ivy Row") == 0.5


WORDS = st.text("abcdefgh .?", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6), st.integers(1, 4))
def test_log_likelihoods_are_those_of_transformers(requests, batch):
    taught, model = definitions(), tiny_llama()

    def read(ids):
        return model.model(ids).last_hidden_state

    def encode(text):
        return list(text.encode())

    who = taught["Examinee"]("tiny", model, read, encode, (1,))
    requests = [(context, end.strip()) for context, end in requests]
    ours = taught["log_likelihoods"](who, requests, batch)
    for (context, end), value in zip(requests, ours, strict=True):
        ids = torch.tensor([[1, *encode(f"{context} {end}")]])
        rows = model(ids).logits[0, :-1].log_softmax(-1)
        chosen = rows.gather(1, ids[0, 1:, None])[len(encode(context)) :]
        assert value == pytest.approx(chosen.sum().item(), rel=1e-4)


def tiny_llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_all_three_scores_are_those_of_lm_eval(taught, tmp_path):
    """Random log-likelihoods, and choices with letters of two bytes."""
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    dice = np.random.default_rng(0)
    base = benchmarks.documentation(0, 40)
    items = [
        replace(i, choices=tuple("ä" * dice.integers(9) + c[:20] for c in i.choices))
        for i in base
    ]
    values = [dice.normal(-20, 6, 4) for _ in items]

    class Fixed(LM):
        def loglikelihood(self, requests):
            return [(float(values[r.doc_id][r.idx]), False) for r in requests]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

        def generate_until(self, requests):
            raise NotImplementedError

    rows = [
        json.dumps({"text": i.text, "choices": i.choices, "gold": i.gold})
        for i in items
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(rows), "utf-8")
    task = {
        "task": "fixed",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "items.jsonl")},
            "cache_dir": str(tmp_path),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": name} for name in taught["SCALES"]],
    }
    found = lm_eval.simple_evaluate(
        Fixed(),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=100,
    )
    samples = sorted(found["samples"]["fixed"], key=lambda s: s["doc_id"])
    for name in taught["SCALES"]:
        ours = taught["right"](values, items, name)
        assert ours == [bool(s[name]) for s in samples]
        error = np.std(ours, ddof=1) / np.sqrt(len(ours))
        assert found["results"]["fixed"][f"{name}_stderr,none"] == pytest.approx(error)
    a, b, c = (taught["picks"](values, items, name) for name in taught["SCALES"])
    assert a != b and b != c


def test_checks_fire_on_the_faulty_and_pass_on_the_right(taught):
    items = superglue.tasks(1)["MultiRC"]
    with pytest.raises(Problem, match="nobody can score over"):
        taught["check_asks"](items, taught["without_candidate"])
    taught["check_asks"](items, lambda item: item.text + item.candidate)
    with pytest.raises(Problem, match="below chance"):
        taught["check_score"]([False] * 100, 0.25)
    taught["check_score"]([True] * 20 + [False] * 80, 0.25)


def test_rotations_put_the_answer_at_every_place(taught):
    for item in benchmarks.mmlu(0, 5):
        turned = [taught["rotated"](item, by) for by in range(4)]
        assert {t.gold for t in turned} == {0, 1, 2, 3}
        assert {t.answer for t in turned} == {item.answer}


@given(st.integers(2, 400), st.data())
def test_standard_error_is_lm_evals_but_for_n_minus_1(n, data):
    from lm_eval.api.metrics import mean_stderr

    error = namespace("04.3", ["standard_error"])["standard_error"]
    hits = data.draw(st.integers(0, n))
    theirs = mean_stderr([1] * hits + [0] * (n - hits))
    assert theirs == pytest.approx(error(hits / n, n) * np.sqrt(n / (n - 1)))


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.data())
def test_a_planted_text_is_found_and_a_strange_one_is_not(words, data):
    taught = namespace("04.3", ["words_of", "ngrams", "contaminated"])
    n = data.draw(st.integers(1, 13))
    text = " ".join(words)
    read = [f"Before. {text.upper()}, after."]
    found = taught["contaminated"]([text, "x y z"], read, n, whole=True)
    assert found.tolist() == [True, False]
    long_enough = taught["contaminated"]([text], read, n)
    assert long_enough.tolist() == [len(words) >= n]


def test_the_canary_stands_in_the_card_once():
    text = (ROOT / "data" / "benchmarks" / "README.md").read_text("utf-8")
    assert text.count("canary ") == 1
