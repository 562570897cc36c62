"""The text that everything is trained on: disjoint splits, nothing of this machine."""

import builtins
import json

import pytest

from utils import corpora
from utils.runtime import Problem


def test_splits_are_disjoint_by_module_and_by_text():
    homes: dict[str, set[str]] = {}
    for document in corpora.prose():
        homes.setdefault(document.module.split(".")[0], set()).add(document.split)
    assert all(len(splits) == 1 for splits in homes.values())


def test_held_out_text_is_new():
    """Hardly a long line of the held-out parts stands in train."""

    def lines(split):
        text = corpora.text("prose", split)
        return [x.strip() for x in text.splitlines() if len(x.strip()) >= 40]

    known = set(lines("train"))
    for split in ("valid", "test"):
        asked = lines(split)
        assert sum(line in known for line in asked) / len(asked) < 0.02


def test_a_notebook_does_not_change_the_text(monkeypatch, tmp_path):
    first = corpora.fingerprint(corpora.text("prose", "train"))
    monkeypatch.setattr(builtins, "input", json.dumps)  # as Jupyter does
    monkeypatch.setattr(corpora, "ROOT", tmp_path)  # nothing is kept there yet
    texts = [d.text for d in corpora.prose.__wrapped__() if d.split == "train"]
    assert corpora.fingerprint("\n\n".join(texts)) == first


def test_twins_of_a_module_share_its_split():
    one, other = corpora.Document("decimal", ""), corpora.Document("_pydecimal", "")
    assert one.split == other.split


def test_there_is_enough_of_everything():
    sizes = {s: len(corpora.text("prose", s)) for s in corpora.SPLITS}
    assert sum(sizes.values()) > 1_500_000
    assert min(sizes.values()) > 50_000
    assert len(corpora.text("code", "train")) > 3_000_000


def test_the_same_text_every_time():
    first = corpora.fingerprint(corpora.text("prose", "valid"))
    corpora.prose.cache_clear()
    assert corpora.fingerprint(corpora.text("prose", "valid")) == first


def test_the_kept_copy_is_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "ROOT", tmp_path)
    assert corpora.prose.__wrapped__() == corpora.prose.__wrapped__()
    assert len(list((tmp_path / "build").iterdir())) == 1


def test_tokenizer_gives_every_text_back():
    tokenizer = corpora.tokenizer(512)
    for text in ("Return a list.", "naïve café €", "\tdef f():\n\n  pass"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.get_vocab_size() == 512


@pytest.mark.parametrize("kind, split", [("poetry", "train"), ("prose", "dev")])
def test_unknown_kind_or_split_is_refused(kind, split):
    with pytest.raises(Problem, match="must be"):
        corpora.text(kind, split)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(Problem, match="at least 256"):
        corpora.tokenizer(100)
