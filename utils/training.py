"""One training loop, for lessons in which the loop is not the lesson.

Progress bar, warm-up and cosine decay, clipping, evaluation on the way, and checkpoints
from which a killed run goes on bit for bit as if nothing had happened. Checkpoints are
safetensors: tensors and JSON, nothing that runs when it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from utils.runtime import Problem

Batch = tuple[Tensor, ...]
BatchSampler = Callable[[torch.Generator], Batch]
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, linear warm-up, then cosine decay to a tenth."""

    steps: int
    learning_rate: float = 3e-3
    warmup: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0
    evaluate_every: int = 0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise Problem(f"steps must be at least 1, not {self.steps}.")
        if self.learning_rate <= 0:
            raise Problem(f"learning_rate must be positive, not {self.learning_rate}.")
        if min(self.evaluate_every, self.checkpoint_every, self.warmup) < 0:
            raise Problem(
                "evaluate_every, checkpoint_every and warmup must be 0 or more."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


@dataclass
class History:
    """What happened: the loss of every step, and (step, value) of every evaluation."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)


def windows(tokens: Tensor, batch_size: int, context: int) -> BatchSampler:
    """A sampler of language-modelling batches from one long row of token ids.

    Each call gives (inputs, targets), both (batch_size, context): random windows and
    the same windows one token later.
    """
    if len(tokens) <= context:
        raise Problem(f"{len(tokens)} tokens are too few for a context of {context}.")

    def sample(generator: torch.Generator) -> Batch:
        starts = torch.randint(
            len(tokens) - context, (batch_size, 1), generator=generator
        )
        rows = tokens[starts + torch.arange(context + 1)]  # (batch, context + 1)
        return rows[:, :-1], rows[:, 1:]

    return sample


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats of a model that maps ids (batch, time) to logits
    (batch, time, vocab)."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def fit(
    model: nn.Module,
    sample: BatchSampler,
    loss: Loss,
    recipe: Recipe,
    *,
    seed: int = 0,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: Path | None = None,
    label: str | None = "training",
) -> History:
    """Train `model` in place for `recipe.steps` and return its `History`.

    `sample(generator)` gives a batch, `loss(model, batch)` a scalar, and
    `evaluate(model)` a number, asked for every `recipe.evaluate_every` steps and at the
    end. If the file `checkpoint` exists, training goes on from it. `label` stands at
    the progress bar; None shows no bar.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    history = History()
    if checkpoint and checkpoint.exists():
        load_checkpoint(checkpoint, model, optimizer, generator, history)
    first = len(history.losses)
    bar = tqdm(
        range(first, recipe.steps),
        initial=first,
        total=recipe.steps,
        desc=label,
        disable=label is None,
    )
    for step in bar:
        model.train()
        value = _step(model, optimizer, sample(generator), loss, recipe, step)
        history.losses.append(value)
        done = step + 1
        if evaluate and _due(done, recipe.evaluate_every, recipe.steps):
            history.evaluations.append((done, _evaluate(model, evaluate)))
        if checkpoint and _due(done, recipe.checkpoint_every, recipe.steps):
            save_checkpoint(checkpoint, model, optimizer, generator, history)
        if done % 10 == 0:
            bar.set_postfix(loss=f"{value:.3f}")
    return history


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss: Loss,
    recipe: Recipe,
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    optimizer.zero_grad(set_to_none=True)
    value = loss(model, batch)
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    if not math.isfinite(value.item()):
        raise Problem(
            f"The loss is {value.item()} at step {step}: lower learning_rate."
        )
    return value.item()


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _evaluate(model: nn.Module, evaluate: Callable[[nn.Module], float]) -> float:
    model.eval()
    with torch.no_grad():
        return float(evaluate(model))


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    history: History,
) -> None:
    """Everything that the next step depends on, in one safetensors file. The file is
    replaced as a whole, so that a kill while writing leaves the old one."""
    tensors = {f"model.{n}": t.clone() for n, t in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{n}": t.clone() for n, t in state.items()}
    tensors["generator"] = generator.get_state()
    tensors["torch_rng"] = torch.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"history": json.dumps(asdict(history))})
    partial.replace(path)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    history: History,
) -> None:
    """Put back what `save_checkpoint` wrote. Raises `Problem` when the file cannot be
    read or belongs to another model."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            past = json.loads(file.metadata()["history"])
        model.load_state_dict(_strip(tensors, "model."))
    except Exception as error:
        raise Problem(
            f"The checkpoint {path.name} is damaged or of another model: delete it to "
            "start anew."
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _strip(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["torch_rng"])
    history.losses[:] = past["losses"]
    history.evaluations[:] = [(step, value) for step, value in past["evaluations"]]


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
    }
