"""The made-up worlds of notebook 02.9: their rules, and the best possible learner."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.notebook_code import namespace
from utils.gpt import GPT, GPTConfig

NAMES = (
    "answers_only column fresh PLUS EQUALS FIRST sums EVEN NATURAL ROOMS DOORS WALK "
    "DIRECTLY STEPWISE UNTOLD ASK DONE START house walks THINGS WORDS LANGUAGES NOISE "
    "PAIR NAMED UNNAMED TRAINED LONGEST tables speak prompt bayes shuffled BOARD MOVES "
    "BEGIN STEPS legal games LOOK inside after_edit"
)
book = namespace("02.9", NAMES.split())
SEEDS = st.integers(0, 10_000)


def dice(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed)


@given(SEEDS)
def test_sums_are_right_and_units_come_first(seed: int) -> None:
    for row in book["sums"](20, dice(seed), book["EVEN"]).tolist():
        a, b, answer = row[:2], row[3:5], row[6:]
        number = answer[0] + 10 * answer[1] + 100 * answer[2]
        assert number == 10 * a[0] + a[1] + 10 * b[0] + b[1]
        assert row[2] == book["PLUS"] and row[5] == book["EQUALS"]


def test_only_answers_count() -> None:
    rows = torch.arange(16).view(2, 8)
    inputs, targets = book["answers_only"](rows, 6)
    assert torch.equal(inputs, rows[:, :-1])
    assert torch.equal(targets[:, 5:], rows[:, 6:])
    assert bool((targets[:, :5] == -100).all())


@given(SEEDS)
def test_walks_follow_the_doors(seed: int) -> None:
    doors = book["house"](seed)
    stepwise = book["walks"](doors, 10, book["STEPWISE"], True, dice(seed))
    direct = book["walks"](doors, 10, book["DIRECTLY"], False, dice(seed))
    start = book["START"]
    for steps, short in zip(stepwise.tolist(), direct.tolist(), strict=True):
        room = steps[1]
        for i in range(book["WALK"]):
            room = int(doors[steps[2 + i] - book["ROOMS"], room])
            assert steps[start + i] == room
        assert short[start] == room  # the last room, told at once
        assert steps[-1] == book["DONE"] == short[start + 1]


def by_hand(languages: Tensor, things: Tensor, words: Tensor) -> list[list[float]]:
    """Total belief in each word after each number of examples, for one prompt."""
    right = 1 - book["NOISE"] + book["NOISE"] / book["WORDS"]
    wrong = book["NOISE"] / book["WORDS"]
    belief = [1.0] * len(languages)
    votes = []
    for thing, word in zip(things.tolist(), words.tolist(), strict=True):
        says = [int(table[thing]) for table in languages]
        votes.append(
            [
                sum(b for b, said in zip(belief, says, strict=True) if said == guess)
                for guess in range(book["WORDS"])
            ]
        )
        belief = [
            b * (right if said == word else wrong)
            for b, said in zip(belief, says, strict=True)
        ]
    return votes


@given(SEEDS)
def test_the_best_possible_learner_is_bayes(seed: int) -> None:
    languages = book["tables"](seed)
    _, things, words = book["speak"](languages, 3, 12, dice(seed))
    guesses = book["bayes"](languages, things, words)
    for row in range(3):
        votes = by_hand(languages, things[row], words[row])
        for chosen, vote in zip(guesses[row].tolist(), votes, strict=True):
            assert math.isclose(vote[chosen], max(vote), rel_tol=1e-4)


@given(SEEDS)
def test_shuffling_deals_the_same_words(seed: int) -> None:
    _, _, words = book["speak"](book["tables"](seed), 5, 12, dice(seed))
    dealt = book["shuffled"](words, dice(seed))
    assert torch.equal(dealt.sort(1).values, words.sort(1).values)


def test_a_prompt_names_each_thing_before_its_word() -> None:
    things, words = torch.tensor([[2, 5]]), torch.tensor([[3, 0]])
    tag = torch.tensor([book["UNNAMED"]])
    pairs = [book["PAIR"] + t * book["WORDS"] + w for t, w in ((2, 3), (5, 0))]
    expected = [book["UNNAMED"], 2, pairs[0], 5, pairs[1]]
    assert book["prompt"](tag, things, words).tolist() == [expected]


@given(SEEDS)
def test_no_game_leaves_the_board(seed: int) -> None:
    moves, squares = book["games"](20, dice(seed))
    rows, columns = squares // 3, squares % 3
    change = torch.stack([rows.diff(), columns.diff()], -1)
    assert torch.equal(change, book["STEPS"][moves[:, 1:]])
    assert bool(((squares >= 0) & (squares < 9)).all())


def test_legal_moves_of_the_corners_and_the_middle() -> None:
    places = torch.tensor([0, 4, 8])
    up_down_left_right = [[0, 1, 0, 1], [1, 1, 1, 1], [1, 0, 1, 0]]
    assert book["legal"](places).int().tolist() == up_down_left_right


def test_the_unedited_inside_gives_the_model_itself() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(5, 16, 2, 2, book["MOVES"] + 1)).eval()
    moves, squares = book["games"](300, dice(1))
    before, after = book["after_edit"](model, moves, squares)
    look, here = book["LOOK"], squares[:, book["LOOK"]] == 0
    plain = model(moves[here])[:, look].softmax(-1)[:, :4].mean(0).detach()
    assert before == pytest.approx(plain.numpy(), abs=1e-6)
    assert after != pytest.approx(plain.numpy(), abs=1e-6)
