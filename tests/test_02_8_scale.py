"""The guard, the scaling-law fit and the table audit of notebook 02.8."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from transformers import AutoModelForCausalLM, BloomConfig

from tests.notebook_code import namespace
from utils import runtime

NAMES = (
    "VOCABULARY BLOOM bloom_config count_parameters BYTES ROOM needed_gb guard "
    "MakeBelieveHub load_model load_model_fixed traffic Steady CONTEXT BATCH dealt "
    "GRID fit_law predict best_ratio loss_with_ratio CHINCHILLA"
)
book = namespace("02.8", NAMES.split())
book["runtime"] = runtime  # imported by the set-up cell, which does not run here
LAW = np.array([0.35, 0.6, 1.7, 0.8, 0.5])
PUBLISHED = {  # from the model cards
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064,
    "bloom": 176_247_271_424,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_give_the_published_sizes(name: str) -> None:
    config = book["bloom_config"](name)
    assert book["count_parameters"](config) == PUBLISHED[name]


def test_the_count_without_weights_is_that_of_a_real_model() -> None:
    config = BloomConfig(vocab_size=100, hidden_size=16, n_layer=2, n_head=2)
    model = AutoModelForCausalLM.from_config(config)
    assert book["count_parameters"](config) == model.num_parameters()


@given(st.integers(1, 10**12), st.floats(0.5, 1000))
def test_the_guard_says_go_exactly_when_it_fits(count: int, free: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(book, "count_parameters", lambda config: count)
        try:
            fits = book["guard"]("model", None, "bfloat16", free).startswith("GO")
        except runtime.Problem as problem:
            fits = not str(problem).startswith("NO GO")
    assert fits == (count * 2 * 1.2 / 1e9 <= free)


def test_only_the_faulty_loader_downloads_what_does_not_fit() -> None:
    assert book["traffic"](book["load_model"], "bloom") > 350
    assert book["traffic"](book["load_model_fixed"], "bloom") == 0
    assert book["traffic"](book["load_model_fixed"], "bloom-560m") > 1


def runs(noise: float = 0.0) -> pd.DataFrame:
    """Points of a known law on a grid of sizes and tokens."""
    sizes, tokens = np.meshgrid([6e3, 2e4, 5e4, 1e5], [3e4, 1e5, 2e5, 4e5])
    table = pd.DataFrame({"parameters": sizes.ravel(), "tokens": tokens.ravel()})
    shaken = np.random.default_rng(0).normal(0, noise, len(table))
    loss = book["predict"](LAW, table.parameters, table.tokens) + shaken
    return table.assign(loss=loss)


def test_the_fit_finds_a_planted_law() -> None:
    np.testing.assert_allclose(book["fit_law"](runs()), LAW, rtol=1e-4)


def test_the_fit_of_noisy_runs_beats_the_true_law_on_them() -> None:
    table = runs(noise=0.02)

    def error(law: np.ndarray) -> float:
        fitted = book["predict"](law, table.parameters, table.tokens)
        return float(((fitted - table.loss) ** 2).sum())

    assert error(book["fit_law"](table)) <= error(LAW)


@pytest.mark.parametrize("operations", [1e10, 3e12, 1e20])
def test_the_best_ratio_is_the_bottom_of_the_valley(operations: float) -> None:
    def loss(log_ratio: float) -> float:
        return book["loss_with_ratio"](LAW, np.exp(log_ratio), operations)

    bottom = minimize_scalar(loss, bounds=(-12, 25), method="bounded").x
    assert np.isclose(np.log(book["best_ratio"](LAW, operations)), bottom, atol=0.01)


def test_published_constants_give_the_published_losses() -> None:
    for size, tokens, loss in ((175e9, 300e9, 2.002), (70e9, 1.4e12, 1.937)):
        assert round(book["predict"](book["CHINCHILLA"], size, tokens), 3) == loss


def test_every_window_is_dealt_once_and_targets_are_shifted() -> None:
    tokens = torch.arange(64 * 40 + 1)
    sample, seen = book["dealt"](tokens, seed=3), []
    for _ in range(40 // book["BATCH"]):
        inputs, targets = sample(None)
        assert torch.equal(inputs + 1, targets)
        seen += inputs.flatten().tolist()
    assert sorted(seen) == list(range(64 * 40))


def test_a_prefix_of_a_steady_run_is_a_steady_run() -> None:
    long, short = (book["Steady"](steps, 0.01) for steps in (500, 50))
    assert [long.rate(i) for i in range(50)] == [short.rate(i) for i in range(50)]
    assert long.rate(499) == 0.01
