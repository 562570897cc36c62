"""The finetuning task: its truth, its splits, and queries that must not run."""

import pytest
import torch

from projects.llama3_qlora import Llama, Tokenizer, questions
from projects.llama3_qlora.data import PackedTokens, write_tokens
from utils.closed_world import splits
from utils.runtime import ROOT, Problem


@pytest.fixture(scope="module")
def asked():
    return {split: questions.examples(split, 300) for split in ("train", "test")}


def test_every_query_finds_something_in_its_own_town(asked):
    for example in asked["train"] + asked["test"]:
        rows = questions.run(example.sql, example.town)
        assert rows, example
        assert questions.right(example, example.sql)


def test_a_query_in_other_words_is_right_and_another_is_not(asked):
    example = next(e for e in asked["test"] if "SELECT age FROM people" in e.sql)
    same = example.sql.replace("SELECT age", "select people.age").rstrip(";")
    assert questions.right(example, same)
    assert not questions.right(example, example.sql.replace("age", "name", 1))
    assert not questions.right(example, "")


def test_splits_share_no_town_and_no_person(asked):
    towns = {split: {e.town for e in made} for split, made in asked.items()}
    assert not towns["train"] & towns["test"]
    for split, made in asked.items():
        for example in made:
            if "FROM people WHERE name = '" in example.sql:
                name = example.sql.split("'")[1]
                assert splits.split_of(name) == split


def test_half_of_the_test_questions_have_new_words(asked):
    known = {e.wording for e in questions.examples("train", 3_000)}
    new = [e.wording not in known for e in asked["test"]]
    assert 0.4 < sum(new) / len(new) < 0.6
    assert all("*" in e.wording for e in asked["test"])


def test_the_same_seed_gives_the_same_questions():
    assert questions.examples("valid", 20, 3) == questions.examples("valid", 20, 3)
    assert questions.examples("valid", 20, 3) != questions.examples("valid", 20, 4)
    with pytest.raises(Problem, match="split must be one of"):
        questions.examples("dev", 1)


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE people;",
        "DELETE FROM people;",
        "INSERT INTO shops VALUES ('a', 'b', 'c');",
        "ATTACH DATABASE '/etc/passwd' AS x;",
        "PRAGMA writable_schema = 1;",
        "CREATE TABLE t (x);",
        "SELECT name FROM people; DROP TABLE people;",
        "SELECT load_extension('x');",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT COUNT(*) FROM n;",
        "SELECT",
        "\0",
        "SELECT * FROM nobody;",
    ],
)
def test_what_is_not_a_short_query_is_refused(sql):
    before = questions.run("SELECT * FROM people;", 9_000)
    assert questions.run(sql, 9_000) is None
    assert questions.run("SELECT * FROM people;", 9_000) == before and before


def test_only_the_query_is_learnt(asked, tmp_path):
    tokenizer = Tokenizer.load(ROOT / "data" / "models" / "base")
    documents, masks = questions.as_tokens(tokenizer, asked["train"])
    for example, ids, mask in zip(asked["train"], documents, masks, strict=True):
        learnt = [i for i, m in zip(ids, mask, strict=True) if m]
        assert learnt[-1] == tokenizer.eos_id
        assert tokenizer.decode(learnt[:-1]) == f" {example.sql}"
    write_tokens(documents, tmp_path / "q.npy", masks)
    assert PackedTokens(tmp_path / "q.npy", 128).mask is not None


def test_a_model_answers_every_question(asked):
    folder = ROOT / "data" / "models" / "base"
    model, tokenizer = Llama.from_pretrained(folder), Tokenizer.load(folder)
    torch.set_num_threads(1)
    texts = questions.written(model, tokenizer, asked["test"][:60], most=4)
    alone = questions.written(model, tokenizer, asked["test"][59:60], most=4)
    assert len(texts) == 60 and texts[59:] == alone
