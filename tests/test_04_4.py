"""Notebook 04.4: tests, corrections and designs, against scipy and known truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.notebook_code import namespace

CODE = namespace(
    "04.4",
    [
        "listed",
        "honest",
        "p_of_difference",
        "can_tell_apart",
        "sign_flip_test",
        "pairs_needed",
        "holm",
        "benjamini_hochberg",
        "swapped",
        "sentences",
        "TRADES",
        "KIND",
        "UNKIND",
        "PLAIN",
        "FRAMES",
        "chess_items",
        "STEPS_OF",
    ],
)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_honest_is_a_share() -> None:
    assert CODE["honest"](["kind", "rude", "rude", "tall"], {"rude"}) == 0.5


def test_sign_flips_agree_with_all_sign_flips() -> None:
    """scipy enumerates the 2**10 cases exactly; ours draws from them."""
    for seed in range(5):
        values = np.random.default_rng(seed).normal(0.3, 1, 10)
        exact = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        ours = CODE["sign_flip_test"](values, flips=20_000, seed=seed)
        assert ours == pytest.approx(exact, abs=0.02)


@given(P_VALUES)
def test_benjamini_hochberg_equals_scipy(p_values: list[float]) -> None:
    ours = CODE["benjamini_hochberg"](np.array(p_values))
    np.testing.assert_allclose(ours, stats.false_discovery_control(p_values))


@given(P_VALUES)
def test_holm_is_the_step_down_rule(p_values: list[float]) -> None:
    """Holm 1979: go up the sorted p-values, stop at the first above 0.05 / what is
    left."""
    left, rejected = len(p_values), set()
    for index in np.argsort(p_values, kind="stable"):
        if p_values[index] * left > 0.05:
            break
        rejected.add(index)
        left -= 1
    adjusted = CODE["holm"](np.array(p_values))
    assert set(np.flatnonzero(adjusted <= 0.05)) == rejected


@given(P_VALUES)
def test_holm_is_between_raw_and_bonferroni(p_values: list[float]) -> None:
    raw = np.array(p_values)
    adjusted = CODE["holm"](raw)
    assert (adjusted >= np.minimum(raw, 1) - 1e-12).all()
    assert (adjusted <= np.minimum(1, raw * len(raw)) + 1e-12).all()
    assert (adjusted >= CODE["benjamini_hochberg"](raw) - 1e-12).all()


@pytest.mark.parametrize("gap", [0.1, 0.2])
def test_pairs_needed_gives_the_power_it_promises(gap: float) -> None:
    rng, count = np.random.default_rng(0), CODE["pairs_needed"](gap)
    she = rng.random((2_000, count)) < 0.35 + gap / 2
    he = rng.random((2_000, count)) < 0.35 - gap / 2
    differences = she.astype(float) - he
    error = differences.std(1, ddof=1) / np.sqrt(count)
    found = np.abs(differences.mean(1)) > 1.96 * error
    assert 0.74 < found.mean() < 0.88


def test_sentences_hold_the_planted_gap() -> None:
    lines = CODE["sentences"](0.3, 40_000, 0)
    share = {}
    for trade in CODE["TRADES"]:
        for pronoun in (" she ", " he "):
            own = [x.split()[-1] for x in lines if pronoun in x and f" {trade} " in x]
            share[trade, pronoun] = np.mean([word in CODE["UNKIND"] for word in own])
    gaps = [share[t, " she "] - share[t, " he "] for t in CODE["TRADES"]]
    assert np.mean(gaps) == pytest.approx(0.3, abs=0.02)


def test_swapping_twice_changes_nothing() -> None:
    for line in CODE["sentences"](0.2, 50, 3):
        assert CODE["swapped"](line) != line
        assert CODE["swapped"](CODE["swapped"](line)) == line


def test_chess_items_are_half_legal_and_rightly_so() -> None:
    items = CODE["chess_items"](100, 0)
    assert [truth for _, truth in items].count(True) == 50
    assert CODE["STEPS_OF"]["knight"](1, -2) and not CODE["STEPS_OF"]["knight"](2, 2)
    assert CODE["STEPS_OF"]["bishop"](3, -3) and not CODE["STEPS_OF"]["rook"](1, 1)


def test_few_completions_cannot_tell_apart() -> None:
    assert not CODE["can_tell_apart"](1 / 6, 0, 6)
    assert CODE["can_tell_apart"](1 / 6, 0, 60)
    assert CODE["p_of_difference"](3, 10, 3, 10) == 1
