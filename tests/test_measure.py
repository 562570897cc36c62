"""Numbers with their uncertainty."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from utils import measure
from utils.runtime import Problem

floats = st.floats(-1e3, 1e3)


@given(st.lists(floats, min_size=2, max_size=20))
def test_interval_is_students(values):
    found = measure.interval(values)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert found.count == len(values)
    if np.std(values) > 1e-6:
        low, high = stats.t.interval(
            0.95, len(values) - 1, np.mean(values), stats.sem(values)
        )
        assert (found.low, found.high) == pytest.approx((low, high))


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2_000):
        found = measure.interval(rng.normal(5, 2, size=4))
        hits += found.low <= 5 <= found.high
    assert 0.93 < hits / 2_000 < 0.97


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(0)
    found = [measure.bootstrap(rng.normal(size=60), resamples=300) for _ in range(200)]
    assert 0.88 < np.mean([f.low <= 0 <= f.high for f in found]) < 0.99
    assert (found[0].count, found[0].over) == (60, "items")


def test_paired_runs_must_match():
    assert measure.paired([3, 4, 6], [1, 2, 3]).mean == pytest.approx(7 / 3)
    with pytest.raises(Problem, match="differ in number"):
        measure.paired([1], [1, 2])
    with pytest.raises(Problem, match="two runs"):
        measure.interval([1.0])


def test_bits_per_byte_of_the_uniform_model_is_eight():
    text = "naïve €"  # bytes, not characters
    assert measure.bits_per_byte(len(text.encode()) * math.log(256), text) == 8


class Bigram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 11)

    def forward(self, ids):
        return self.table(ids)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 50])
def test_total_nats_counts_every_token_once(length):
    torch.manual_seed(0)
    model, tokens = Bigram(), torch.randint(11, (length,))
    expected = nn.functional.cross_entropy(
        model(tokens[:-1]), tokens[1:], reduction="sum"
    )
    found = measure.total_nats(model, tokens, context=4, batch_size=2)
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_counting():
    model = nn.Linear(10, 20, bias=False)
    assert measure.count_parameters(model) == 200
    assert measure.count_flops(lambda: model(torch.zeros(3, 10))) == 2 * 3 * 200


def test_time_ratio_sees_ten_times_the_work():
    def work(n: int) -> None:
        sum(i * i for i in range(n))

    ratio = measure.time_ratio(lambda: work(300_000), lambda: work(30_000))
    assert ratio.low < ratio.mean < ratio.high
    assert ratio.mean > 2  # a ratio, not a time: far from the true 10 on purpose


def test_peak_memory_is_plausible():
    assert 20 < measure.peak_memory_mb() < 100_000
