"""The start of a notebook."""

import random

import numpy as np
import pytest
import torch

from utils import runtime
from utils.runtime import Problem


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_the_same_seed_gives_the_same_numbers(capsys):
    runtime.start("laptop", 3)
    first = draws()
    session = runtime.start("laptop", 3)
    assert draws() == first
    runtime.start("laptop", 4)
    assert draws() != first
    assert (session.device, session.threads, session.hub) == ("cpu", 1, False)
    assert session.pick(laptop=1, gpu=2) == 1
    assert "laptop scale, seed 3" in capsys.readouterr().out


@pytest.mark.parametrize("scale", ["Laptop", "big", "", None])
def test_a_wrong_scale_is_one_sentence(scale):
    with pytest.raises(Problem, match=r"^SCALE must be .*\.$"):
        runtime.start(scale)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True, 2**32])
def test_a_wrong_seed_is_one_sentence(seed):
    with pytest.raises(Problem, match=r"^SEED must be .*\.$"):
        runtime.start("laptop", seed)


def test_gpu_scale_without_a_gpu_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(Problem, match="needs a GPU"):
        runtime.start("gpu")


def test_a_problem_shows_no_frames():
    assert Problem("Do this.")._render_traceback_() == ["Problem: Do this."]


def test_scratch_is_emptied(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    (runtime.scratch("a") / "deep").mkdir()
    (tmp_path / "build/scratch/a/deep/file").write_text("old")
    assert list(runtime.scratch("a").iterdir()) == []


def test_seeds_of_two_runs_do_not_meet():
    assert not set(runtime.seeds(0, 100)) & set(runtime.seeds(7, 100))


def test_a_missing_extra_is_named_in_one_sentence():
    runtime.needs("operations", "json", "torch")
    with pytest.raises(Problem, match=r"needs no_such_module: .*EXTRAS=dev,operations"):
        runtime.needs("operations", "torch", "no_such_module")
