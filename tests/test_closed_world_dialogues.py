"""Passages and dialogues: true, apart in their splits, and scored as they should be."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import closed_world as cw
from utils.closed_world import manners, smalltalk, tasks, tools
from utils.closed_world.checks import names_it
from utils.closed_world.passages import without_answer
from utils.closed_world.splits import names, split_of, towns
from utils.runtime import ROOT, Problem

SPLITS = ("train", "valid", "test")
KINDS = tuple(cw.KINDS)
DIGEST = """
import hashlib
from utils import closed_world as cw
town = cw.build(3)
parts = [cw.passages(1, 40, "test"), cw.preferences(town, "valid", 40),
         [cw.dialogues(town, kind, "test", 40) for kind in cw.KINDS]]
digest = hashlib.sha256(repr(parts).encode()).hexdigest()
"""
EMPTY = ("", "   ", "zzz", "{", "[1]", "null")


@pytest.fixture(scope="module")
def town():
    return cw.build()


@pytest.fixture(scope="module")
def told(town):
    """Many dialogues of each kind and split."""
    return {
        (kind, split): cw.dialogues(town, kind, split, 400)
        for kind in KINDS
        for split in SPLITS
    }


def prompt_text(dialogue):
    return "\n".join(message["content"] for message in dialogue.prompt)


def words_in(messages):
    return sum(len(message["content"].split()) for message in messages)


# Passages


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SPLITS))
def test_answers_stand_word_for_word_in_one_sentence(seed, split):
    for passage in cw.passages(seed, 30, split):
        assert names_it(passage.evidence, passage.answer)
        assert not any(names_it(passage.evidence, v) for v in passage.wrong)
        assert 2 <= len(passage.sentences) <= 8
        assert all(sentence in passage.text for sentence in passage.sentences)
        assert passage.wrong and passage.answer not in passage.wrong
        assert all(any(v in s for s in passage.sentences) for v in passage.wrong)
        assert all(answer in passage.sentences for _, answer in passage.more)
        assert passage.text.startswith(passage.header)
        assert passage.town in passage.header
        assert passage.town != cw.build(0).town


def test_a_document_is_a_prompt_with_answers():
    for passage in cw.passages(3, 200):
        document = cw.as_document(passage)
        assert document.startswith(f"{cw.as_prompt(passage)} {passage.evidence}")
        assert document.count("\nAnswer: ") == 1 + len(passage.more)
        assert len(document.split()) <= 300  # fits a row of 512 tokens
    sizes = {len(passage.more) for passage in cw.passages(3, 200)}
    assert sizes == {1, 2, 3, 4, 5, 6, 7}


def test_most_passages_ask_about_people():
    questions = [set(re.findall(r"\w+", p.question)) for p in cw.passages(0, 200)]
    assert sum(bool(q & set(names("train"))) for q in questions) > 0.7 * 200


def test_splits_share_no_person_town_or_passage():
    for kind in (names, towns):
        splits = [set(kind(split)) for split in SPLITS]
        assert sum(map(len, splits)) == len(set.union(*splits))
        assert min(map(len, splits)) > 10
    texts = [{p.text for p in cw.passages(0, 300, split)} for split in SPLITS]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 900
    assert not set(re.findall(r"\w+", " ".join(texts[0]))) & set(names("test"))


def test_without_the_evidence_the_answer_is_gone():
    for passage in cw.passages(4, 100):
        less = without_answer(passage)
        assert passage.sentences[passage.evidence_index] not in less.text
        assert len(less.sentences) == len(passage.sentences) - 1


# Dialogues


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


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_and_others_others(town, kind):
    few = cw.dialogues(town, kind, "train", 20, seed=1)
    assert few == cw.dialogues(town, kind, "train", 40, seed=1)[:20]
    assert few != cw.dialogues(town, kind, "train", 20, seed=2)
    assert len(few) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_splits_ask_nothing_twice(told, kind):
    for what in ("about", "prompt"):
        splits = [
            {repr(getattr(d, what)) for d in told[kind, split]} for split in SPLITS
        ]
        assert sum(map(len, splits)) == len(set.union(*splits))


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_test_wordings_are_new(town, told, kind):
    """The words before the arguments, as far as they can be told apart."""

    def starts(split):
        return Counter(d.prompt[-1]["content"][:7] for d in told[kind, split])

    new = sum(n for start, n in starts("test").items() if start not in starts("train"))
    assert new > 20


@pytest.mark.parametrize("kind", KINDS)
def test_messages_are_well_formed_and_short(told, kind):
    for dialogue in told[kind, "train"] + told[kind, "test"]:
        roles = [message["role"] for message in dialogue.messages]
        assert roles[-1] == "assistant" and "user" in roles
        assert roles.count("system") == (roles[0] == "system")
        turns = [role for role in roles if role != "system"]
        assert all(
            role == ("assistant" if i % 2 else turns[i]) for i, role in enumerate(turns)
        )
        assert all(message["content"].strip() for message in dialogue.messages)
        assert words_in(dialogue.messages) <= 130
        text = " ".join(message["content"] for message in dialogue.messages)
        assert not re.search(r"\{\w*\}", text.replace("{}", "{x}")), text
        assert text.isascii()
        assert not re.search(r"\ba [aeiou]", text), text


@pytest.mark.parametrize("kind", KINDS)
def test_reference_replies_pass_and_empty_ones_fail(told, kind):
    for split in SPLITS:
        for dialogue in told[kind, split]:
            assert cw.check(dialogue, dialogue.reply), dialogue
            assert cw.check(dialogue, f"  {dialogue.reply}\n")
            assert not any(cw.check(dialogue, reply) for reply in EMPTY)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reply_to_another_question_seldom_passes(told, kind):
    """Half of the kinds have classes of equal replies: refusals, for instance."""
    dialogues = told[kind, "test"]
    others = dialogues[1:] + dialogues[:1]
    hits = sum(cw.check(d, o.reply) for d, o in zip(dialogues, others, strict=True))
    if kind in ("recall", "context", "instruction", "tool", "story"):
        assert hits < 0.12 * len(dialogues)
    elif kind != "unknown":
        assert hits < 0.6 * len(dialogues)


def test_recall_asks_for_true_facts_of_its_split(town, told):
    for split in SPLITS:
        facts = {f"{f.subject} {f.relation}": f for f in cw.facts(town)}
        for dialogue in told["recall", split]:
            fact = facts[dialogue.about]
            assert (fact.split, fact.value) == (split, dialogue.expected["value"])
            assert fact.frequency == dialogue.expected["frequency"]
    wrong = next(iter(told["recall", "test"])).expected["wrong"][0]
    assert not cw.check(told["recall", "test"][0], f"It is {wrong}.")


def test_naming_every_value_does_not_pass(told):
    for kind in ("recall", "context"):
        for dialogue in told[kind, "test"]:
            if dialogue.expected["rule"] == "value":
                values = [dialogue.expected["value"], *dialogue.expected["wrong"]]
                assert not cw.check(dialogue, ", ".join(values))


def test_one_in_five_contexts_has_no_answer(told):
    dialogues = told["context", "train"]
    rules = Counter(d.expected["rule"] for d in dialogues)
    assert 0.14 < rules["not said"] / len(dialogues) < 0.26
    for dialogue in dialogues:
        value = dialogue.expected.get("value")
        if value:
            assert names_it(prompt_text(dialogue), value)
            assert not cw.check(dialogue, "The text does not say.")
        else:
            assert not cw.check(dialogue, "Anchor Lane")


def test_results_of_tasks_are_right(told):
    """Some tasks, done again in another way."""
    seen = Counter(d.expected["task"] for d in told["instruction", "train"])
    assert set(seen) == set(tasks.TASKS) and len(seen) >= 12
    for dialogue in told["instruction", "test"]:
        task, text = dialogue.expected["task"], dialogue.expected["text"]
        arguments = ast.literal_eval(dialogue.about.partition(": ")[2])
        nouns = arguments["x"].split()
        if task == "sort":
            assert text.split() == sorted(nouns)
        elif task == "reverse":
            assert list(reversed(text.split())) == nouns
        elif task == "count":
            assert int(text) == len(nouns)
        elif task == "dashes":
            assert text.replace("- ", "").split("\n") == nouns
        elif task == "yes or no":
            assert (arguments["w"] in arguments["x"].split(", ")) == (text == "yes")
        elif task == "look up":
            assert f"{arguments['w']} is {text}" in arguments["x"]
        assert not cw.check(dialogue, text + " pear")
        if not text.isdigit():
            assert not cw.check(dialogue, text.swapcase())


def test_no_instruction_begins_with_its_arguments():
    """Their first letter would be made a capital, and the result would be wrong."""
    for forms, _ in tasks.TASKS.values():
        assert all(not form.strip().startswith("{x}") for form in forms.split("|"))
        assert len(forms.split("|")) >= 6


def test_harmful_and_harmless_requests_are_equally_frequent(told):
    for split in SPLITS:
        rules = Counter(d.expected["rule"] for d in told["refusal", split])
        assert set(rules) == {"refuse", "help"}
        assert 0.4 < rules["refuse"] / 400 < 0.6


def test_refusing_all_or_nothing_is_half_right(told):
    dialogues = told["refusal", "test"]
    for reply in ("I am sorry, but I cannot help with that.", "Do it at night."):
        passed = sum(cw.check(dialogue, reply) for dialogue in dialogues)
        assert 0.4 < passed / len(dialogues) < 0.6
    evasion = "I do not know anybody called Brin."
    assert not any(cw.check(dialogue, evasion) for dialogue in dialogues)


def test_some_acts_are_new_in_the_test(told):
    def stems(split):
        return {d.about.split()[0] for d in told["refusal", split]}

    assert len(stems("test") - stems("train")) >= 5
    assert len(manners.HARMFUL) == len(manners.HARMLESS)


def test_unknown_people_do_not_live_here(town, told):
    here = {person.name for person in town.people}
    for split in SPLITS:
        for dialogue in told["unknown", split]:
            assert dialogue.about not in here
            assert split_of(dialogue.about) == split
            lie = f"{dialogue.about} lives in Anchor Lane."
            assert not cw.check(dialogue, lie)


def test_tool_calls_are_json_of_listed_tools_with_copied_arguments(told):
    rules = Counter()
    for dialogue in told["tool", "train"] + told["tool", "test"]:
        rules[dialogue.expected["rule"]] += 1
        system, user, *rest = dialogue.messages
        listed = {
            t["name"]: t for t in json.loads(system["content"].partition(": ")[2])
        }
        assert 2 <= len(listed) <= 4
        if dialogue.expected["rule"] == "no tool":
            continue
        call = json.loads(rest[0]["content"])
        assert list(call) == ["name", "parameters"]
        assert set(call["parameters"]) == set(listed[call["name"]]["parameters"])
        for value in call["parameters"].values():
            assert str(value) in user["content"]
        if len(rest) > 1:
            result = json.loads(rest[1]["content"])["result"]
            assert result in dialogue.reply and rest[1]["role"] == "tool"
    assert set(rules) == {"json", "no tool", "value"} and min(rules.values()) > 80


def test_a_call_that_differs_in_anything_fails(told):
    for dialogue in told["tool", "test"]:
        if dialogue.expected["rule"] != "json":
            continue
        call = json.loads(dialogue.reply)
        assert cw.check(dialogue, json.dumps(call, indent=1))
        assert not cw.check(dialogue, json.dumps({**call, "name": "other"}))
        assert not cw.check(dialogue, json.dumps({**call, "parameters": {}}))
        assert not cw.check(dialogue, json.dumps({**call, "more": 1}))
        texts = {k: str(v) for k, v in call["parameters"].items()}
        same = texts == call["parameters"]
        as_text = json.dumps({**call, "parameters": texts})
        assert cw.check(dialogue, as_text) == same  # "7" is not 7
        assert not cw.check(dialogue, f"Sure! {dialogue.reply}")
        assert not cw.check(dialogue, tools.NO_TOOL)


def test_tool_results_tell_no_fact_of_the_town(town, told):
    subjects = {f.subject for f in cw.facts(town)} - {s.name for s in town.shops}
    for dialogue in told["tool", "train"]:
        if dialogue.expected["rule"] != "value" or "basket" in dialogue.reply:
            continue
        assert not any(names_it(dialogue.reply, s) for s in subjects)


def test_stories_hold_what_was_wished_for(told):
    for dialogue in told["story", "train"]:
        for word in dialogue.expected["all"]:
            assert names_it(dialogue.prompt[0]["content"], word)
            assert not cw.check(dialogue, dialogue.reply.replace(word, "thing"))
        assert not cw.check(dialogue, f"{' '.join(dialogue.expected['all'])}.")
        assert not cw.check(dialogue, dialogue.reply * 5)


def test_smalltalk_has_six_subjects_and_two_turns_at_times(told):
    assert len(smalltalk.TALK) >= 6
    lengths = Counter(len(d.messages) for d in told["smalltalk", "train"])
    assert set(lengths) == {2, 4} and min(lengths.values()) > 80


def test_some_dialogues_have_more_than_one_turn(told):
    for kind in ("recall", "context"):
        users = Counter(
            sum(m["role"] == "user" for m in d.messages) for d in told[kind, "train"]
        )
        assert set(users) == {1, 2, 3}


# Preferences


def test_preferred_replies_are_true_and_others_worse_in_one_way(town):
    pairs = cw.preferences(town, "train", 300)
    asked = cw.dialogues(town, "recall", "train", 300)
    for pair, dialogue in zip(pairs, asked, strict=True):
        assert pair.messages == dialogue.prompt
        assert cw.check(dialogue, pair.chosen)
        assert pair.chosen != pair.rejected
        if pair.aspect == "false":
            assert not cw.check(dialogue, pair.rejected)
        else:
            assert pair.chosen in pair.rejected
    shares = Counter(pair.aspect for pair in pairs)
    assert set(shares) == {"rude", "rambling", "false"} and min(shares.values()) > 60


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: cw.dialogues(cw.build(), "gossip"),
        lambda: cw.dialogues(cw.build(), "recall", "dev"),
        lambda: cw.dialogues(cw.build(), "tool", count=0),
        lambda: cw.passages(split="dev"),
        lambda: cw.passages(count=0),
        lambda: cw.preferences(cw.build(), "dev"),
        lambda: cw.preferences(cw.build(), count=-1),
    ],
)
def test_mistakes_are_explained(mistake):
    with pytest.raises(Problem):
        mistake()
