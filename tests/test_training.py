"""The training loop: it learns, and a killed run goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from utils import training
from utils.gpt import GPT, GPTConfig
from utils.runtime import Problem

RECIPE = training.Recipe(steps=30, warmup=5, evaluate_every=10, checkpoint_every=7)


class Tiny(nn.Module):
    """Embedding, dropout, head: dropout makes the global random state matter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Embedding(16, 8), nn.Dropout(0.3), nn.Linear(8, 16)
        )

    def forward(self, ids):
        return self.layers(ids)


def train(checkpoint: Path | None = None, loss=training.next_token_loss):
    torch.manual_seed(1)
    model = Tiny()
    tokens = torch.arange(400) % 16
    history = training.fit(
        model,
        training.windows(tokens, 4, 8),
        loss,
        RECIPE,
        evaluate=lambda m: float(next(m.parameters()).sum()),
        checkpoint=checkpoint,
    )
    return model, history


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_to_count():
    torch.manual_seed(0)
    model = GPT(GPTConfig(16, hidden_size=16, n_layers=1, n_heads=2, context=8))
    recipe = training.Recipe(steps=150, learning_rate=1e-2)
    tokens = torch.arange(400) % 16
    history = training.fit(
        model, training.windows(tokens, 8, 8), training.next_token_loss, recipe
    )
    assert history.losses[0] > 2
    assert history.losses[-1] < 0.1


@pytest.mark.parametrize("stop", [3, 7, 20])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, stop):
    whole, history = train()
    calls = 0

    def dying_loss(model, batch):
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        return training.next_token_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run.safetensors", dying_loss)
    resumed, second = train(tmp_path / "run.safetensors")
    assert same(whole, resumed)
    assert second == history


def test_a_killed_process_resumes_bit_for_bit(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.test_training import train, training\n"
        "calls = []\n"
        "def loss(model, batch):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 17: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return training.next_token_loss(model, batch)\n"
        "train(Path(sys.argv[1]), loss)\n"
    )
    path = tmp_path / "run.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    torch.set_num_threads(1)
    assert same(train()[0], train(path)[0])


def test_a_damaged_or_foreign_checkpoint_is_one_sentence(tmp_path):
    path = tmp_path / "run.safetensors"
    train(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Problem, match="damaged or of another model"):
        train(path)


def test_the_learning_rate_rises_and_falls():
    rates = [RECIPE.rate(step) for step in range(30)]
    assert rates[4] == max(rates) == RECIPE.learning_rate
    assert rates[0] == RECIPE.learning_rate / 5
    assert rates[-1] == pytest.approx(RECIPE.learning_rate / 10, rel=0.1)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"warmup": -1}]
)
def test_a_wrong_recipe_is_refused(wrong):
    with pytest.raises(Problem):
        replace(RECIPE, **wrong)


def test_too_little_text_and_a_diverging_loss_are_one_sentence():
    with pytest.raises(Problem, match="too few"):
        training.windows(torch.arange(5), 2, 8)
    with pytest.raises(Problem, match="lower learning_rate"):
        train(loss=lambda m, b: training.next_token_loss(m, b) * float("nan"))


def test_windows_are_shifted_by_one():
    inputs, targets = training.windows(torch.arange(100), 5, 7)(torch.Generator())
    assert inputs.shape == targets.shape == (5, 7)
    assert torch.equal(inputs + 1, targets)
