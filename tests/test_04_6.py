"""Notebook 04.6: spectra of weights, against theory, weightwatcher and powerlaw."""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.notebook_code import namespace

CODE = namespace(
    "04.6",
    [
        "eigenvalues",
        "spectrum",
        "noise_edges",
        "noise_density",
        "aspect",
        "distance_from_noise",
        "spikes",
        "tail_fit",
    ],
)
SHAPES = [(96, 96), (96, 384), (384, 96), (30, 200)]


def normal(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_eigenvalues_are_those_of_the_gram_matrix(shape: tuple[int, int]) -> None:
    weight = normal(shape)
    small = weight if shape[0] <= shape[1] else weight.T
    expected = torch.linalg.eigvalsh((small @ small.T).double()).numpy()
    np.testing.assert_allclose(CODE["eigenvalues"](weight), expected, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectrum_has_mean_one_whatever_the_scale(shape: tuple[int, int]) -> None:
    assert CODE["spectrum"](17 * normal(shape)).mean() == pytest.approx(1)


@given(st.floats(0.05, 1))
def test_noise_density_has_the_known_moments(q: float) -> None:
    """Total 1, mean 1 and second moment 1 + q (Marchenko and Pastur 1967)."""
    low, high = CODE["noise_edges"](q)
    angle = np.linspace(0, np.pi, 20_001)[1:-1]
    x = low + (high - low) * (1 - np.cos(angle)) / 2
    density = CODE["noise_density"](x, q)
    for power, moment in enumerate((1, 1, 1 + q)):
        assert np.trapezoid(density * x**power, x) == pytest.approx(moment, rel=0.02)


@pytest.mark.parametrize("entries", ["normal", "uniform", "signs"])
def test_a_large_random_matrix_follows_the_curve(entries: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = {
        "normal": torch.randn(400, 800, generator=generator),
        "uniform": torch.rand(400, 800, generator=generator) - 0.5,
        "signs": torch.randint(0, 2, (400, 800), generator=generator) * 2.0 - 1,
    }[entries]
    assert CODE["distance_from_noise"](weight) < 0.01
    assert CODE["spikes"](weight) == 0


def test_a_planted_direction_is_found() -> None:
    weight = normal((96, 384))
    planted = weight + 0.2 * torch.outer(torch.ones(96), torch.ones(384))
    assert CODE["spikes"](planted) == 1
    assert CODE["distance_from_noise"](planted) > CODE["distance_from_noise"](weight)


def test_tail_fit_equals_weightwatcher() -> None:
    reason = "needs the extra evaluation"
    pytest.importorskip("weightwatcher", reason=reason)
    with contextlib.redirect_stdout(io.StringIO()):
        from weightwatcher.WW_powerlaw import WWFit
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values = np.sort(rng.pareto(rng.uniform(0.5, 5), rng.integers(30, 400)) + 1)
        ours, theirs = CODE["tail_fit"](values), WWFit(values)
        assert ours["alpha"] == pytest.approx(theirs.alpha, rel=1e-9)
        assert ours["D"] == pytest.approx(theirs.D, rel=1e-9)
        assert ours["xmin"] == pytest.approx(theirs.xmin, rel=1e-9)


def test_tail_fit_equals_powerlaw() -> None:
    """The implementation of Alstott, Bullmore and Plenz (2014)."""
    powerlaw = pytest.importorskip("powerlaw", reason="needs the extra evaluation")
    values = np.sort(np.random.default_rng(3).pareto(2.0, 300) + 1)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = powerlaw.Fit(values, verbose=False)
    ours = CODE["tail_fit"](values)
    assert ours["alpha"] == pytest.approx(theirs.power_law.alpha, rel=1e-3)


@given(st.floats(0.1, 100), st.integers(0, 1_000))
def test_the_exponent_does_not_depend_on_the_unit(scale: float, seed: int) -> None:
    values = np.sort(np.random.default_rng(seed).pareto(2.0, 60) + 1)
    one, other = CODE["tail_fit"](values), CODE["tail_fit"](scale * values)
    assert other["alpha"] == pytest.approx(one["alpha"], rel=1e-6)
    assert other["tail"] == one["tail"]
