"""What notebook 04.8 defines: masks, labels, agreement, shares, intervals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.metrics.agreement import AnnotationTask
from sklearn.metrics import cohen_kappa_score

from projects.llama3_qlora import Llama, Tokenizer
from projects.llama3_qlora.data import IGNORED, PackedTokens, write_tokens
from projects.llama3_qlora.evaluate import bits_per_byte
from tests.notebook_code import namespace
from utils.closed_world import words
from utils.runtime import ROOT

lesson = namespace(
    "04.8",
    [
        "instruct", "encode", "response_loss",
        "unshifted", "mask_not_moved", "lessons", "collate", "cohen", "fleiss",
        "krippendorff", "task", "temperature_shares", "sample_size", "choose",
        "GRAMMAR", "LINES", "sentences", "SIGNS", "ORDERS", "by_rules",
        "THINGS", "LENGTHS", "ANSWERS", "LAYOUTS", "MARKS", "VOCABULARY",
        "NUMBER", "records",
        "inspect", "without_space",
    ],
)  # fmt: skip


class CPU:
    """Stands in for the session of the notebook."""

    device = "cpu"


BASE = ROOT / "data/models/base"
lesson |= {
    "session": CPU(),
    "tokenizer": Tokenizer.load(BASE),
    "base": Llama.from_pretrained(BASE),
}


def example() -> tuple[list[int], list[int]]:
    prompt = lesson["instruct"]("Name the street.", "Ada lives in Mill Lane.")
    return lesson["encode"](prompt, "Mill Lane")


def test_the_mask_is_the_answer_and_its_end():
    ids, mask = example()
    tokenizer = lesson["tokenizer"]
    learned = [token for token, m in zip(ids, mask, strict=True) if m]
    assert tokenizer.decode(learned[:-1]) == " Mill Lane"
    assert learned[-1] == tokenizer.eos_id
    assert ids[0] == tokenizer.bos_id
    assert mask == sorted(mask)  # the prompt first, then the answer


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_only_the_right_loss_teaches_the_masked_tokens(data):
    ids = data.draw(st.lists(st.integers(0, 9), min_size=4, max_size=12, unique=False))
    start = data.draw(st.integers(2, len(ids) - 1))
    mask = [0] * start + [1] * (len(ids) - start)
    wanted = [(t - 1, ids[t]) for t in range(start, len(ids))]
    lessons = lesson["lessons"]
    assert lessons(lesson["response_loss"], ids, mask, 10) == wanted
    for wrong in ("unshifted", "mask_not_moved"):
        assert lessons(lesson[wrong], ids, mask, 10) != wanted


def test_the_loss_is_that_of_transformers():
    transformers = pytest.importorskip("transformers", reason="the extra of chapter 9")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        BASE, dtype=torch.float32
    )
    ids, mask = (torch.tensor([part]) for part in example())
    with torch.no_grad():
        labels = ids.masked_fill(mask == 0, IGNORED)
        expected = theirs(ids, labels=labels).loss
        found = lesson["response_loss"](lesson["base"](ids), ids, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_labels_are_those_of_the_packer_of_chapter_9(tmp_path):
    ids, mask = example()
    write_tokens([ids], tmp_path / "one.npy", [mask])
    inputs, targets, _ = PackedTokens(tmp_path / "one.npy", len(ids) - 1).row(0, 0)
    x, y = lesson["collate"]([(ids, mask)], 0)
    assert x[0].tolist() == inputs.tolist()
    assert y[0].tolist() == targets.tolist()


def test_four_ways_to_label():
    rows = [([5, 6, 7, 9], [0, 0, 1, 1]), ([5, 7, 9], [0, 1, 1])]
    n = IGNORED
    expected = {
        "right": [[n, 7, 9], [7, 9, n]],
        "padding learned": [[n, 7, 9], [7, 9, 9]],
        "prompt learned": [[6, 7, 9], [7, 9, n]],
        "end ignored": [[n, 7, n], [7, n, n]],
    }
    for labels, targets in expected.items():
        inputs, found = lesson["collate"](rows, 9, labels)
        assert found.tolist() == targets
        assert inputs.tolist() == [[5, 6, 7], [5, 7, 9]]
    wide, _ = lesson["collate"](rows, 9, width=8)
    assert wide.shape == (2, 7)


class Perfect(torch.nn.Module):
    """Knows each next token of the rows that it was given."""

    def __init__(self, following):
        super().__init__()
        self.following = following

    def forward(self, inputs):
        return 20 * torch.nn.functional.one_hot(self.following, 40).float()


def test_inspect_sees_exact_short_and_endless_answers():
    rows = [([5, 6, 7, 8, 0], [0, 0, 1, 1, 1])]
    following = torch.tensor([[6, 7, 8, 0]])

    def found(next_tokens):
        return lesson["inspect"](Perfect(next_tokens), rows)

    good = found(following)
    assert good["exact"] == 1 and good["loss"] < 1e-6
    assert good["cut short"] == pytest.approx(0, abs=1e-4) and good["runs on"] == 0
    short = found(torch.tensor([[6, 7, 0, 0]]))
    assert short["cut short"] == pytest.approx(1) and short["exact"] == 0
    endless = found(torch.tensor([[6, 7, 8, 8]]))
    assert endless["runs on"] == 1 and endless["exact"] == 0


@pytest.mark.parametrize("layout", ["full", "unmarked", "pair"])
def test_records_ask_and_answer(layout):
    vocabulary = lesson["VOCABULARY"]
    assert len(set(vocabulary)) == len(vocabulary)
    for ids, mask in lesson["records"](layout, 3, 50, tasks=("first",)):
        text = [vocabulary[i] for i in ids]
        asked, said = text[: mask.index(1)], text[mask.index(1) :]
        things = [word for word in asked if word in lesson["THINGS"]]
        assert said == [things[0], "<end>"]
        assert ("first" in asked) == (layout != "pair")
        assert ("[answer]" in asked) == (layout != "unmarked")


def test_agreement_equals_the_libraries_on_random_tables():
    rng = np.random.default_rng(1)
    for _ in range(1_500):
        items, raters, labels = rng.integers(4, 14), rng.integers(2, 6), 4
        ratings = rng.choice(labels, (items, raters), p=rng.dirichlet([1] * labels))
        ratings[0, :2] = 0, 1  # at least two labels
        gaps = np.where(rng.random(ratings.shape) < 0.3, -1, ratings)
        gaps[0, :2] = 0, 1
        first, second = ratings[:, 0], ratings[:, 1]
        kappa = cohen_kappa_score(first, second)
        whole, partly = lesson["task"](ratings), lesson["task"](gaps)
        assert lesson["cohen"](first, second) == pytest.approx(kappa, abs=1e-9)
        assert lesson["fleiss"](ratings) == pytest.approx(whole.pi(), abs=1e-9)
        assert lesson["krippendorff"](gaps) == pytest.approx(partly.alpha(), abs=1e-9)
    two = AnnotationTask([(c, i, int(ratings[i, c])) for i in range(4) for c in (0, 1)])
    assert lesson["cohen"](*ratings[:4, :2].T) == pytest.approx(two.kappa(), abs=1e-9)


def test_agreement_of_known_cases():
    same = np.tile([[0], [1], [2]], (1, 4))
    assert lesson["fleiss"](same) == lesson["krippendorff"](same) == pytest.approx(1)
    assert lesson["cohen"](np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0])) == 0
    opposite = np.array([0, 1] * 50)
    assert lesson["cohen"](opposite, 1 - opposite) == pytest.approx(-1)


@given(
    st.lists(st.integers(1, 10**6), min_size=2, max_size=6), st.floats(1, 50)
)  # fmt: skip
def test_temperature_moves_shares_towards_equal(sizes, temperature):
    shares = lesson["temperature_shares"](sizes, temperature)
    assert shares.sum() == pytest.approx(1)
    assert np.ptp(shares) <= np.ptp(np.array(sizes) / sum(sizes)) + 1e-9
    assert lesson["temperature_shares"](sizes, 1) == pytest.approx(
        np.array(sizes) / sum(sizes)
    )
    big, small = np.argmax(sizes), np.argmin(sizes)
    assert shares[big] >= shares[small]


def test_sample_sizes_of_the_textbook():
    assert lesson["sample_size"](0.5, 0.05) == 385
    assert lesson["sample_size"](0.5, 0.03) == 1068


def test_choose_agrees_with_the_scorer_of_chapter_9():
    prompts = ["The oven", "The goats"]
    endings = [[" is red.", " are red."], [" sleeps here.", " sleep here."]]
    picked = lesson["choose"](prompts, endings)
    tokenizer = lesson["tokenizer"]
    for prompt, some, choice in zip(prompts, endings, picked, strict=True):
        texts = [prompt + ending for ending in some]
        score = bits_per_byte(
            lesson["base"], tokenizer.encode, texts, 64, tokenizer.bos_id
        )
        assert int(np.argmin(score.nats)) == choice


def test_the_grammar_is_balanced_and_rules_get_direct_forms():
    rows = lesson["sentences"](0)
    counts: dict[tuple, int] = {}
    for text, name, direct, number in rows:
        assert "X" not in text and "  " not in text and text[0].isupper()
        counts[name, direct, number] = counts.get((name, direct, number), 0) + 1
        if direct:
            assert lesson["by_rules"](text) == name, text
    assert len(counts) == 7 * 2 * 4 and len(set(counts.values())) == 1
    assert any(thing in rows[0][0] for thing in words.GOODS)


def test_without_space_changes_the_first_token_only_in_form():
    ids, mask = example()
    moved, new_mask = lesson["without_space"]((ids, mask))
    tokenizer = lesson["tokenizer"]
    assert len(moved) == len(new_mask)
    assert tokenizer.decode(moved) == tokenizer.decode(ids).replace(
        "[Answer] ", "[Answer]\n"
    )
    learned = [t for t, m in zip(moved, new_mask, strict=True) if m]
    assert tokenizer.decode(learned[:-1]) == "Mill Lane"
