"""Training on one process or many, from which a killed run goes on bit for bit.

    python -m projects.llama3_qlora.train --model DIR --tokens FILE --out DIR --steps N
    torchrun --standalone --nproc-per-node 2 -m projects.llama3_qlora.train ...

The folder gets log.jsonl, checkpoint.safetensors and, at the end, the trained model in
Hugging Face's format. Started again, the same command goes on from the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from projects.llama3_qlora import distributed
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.data import IGNORED, Batch, Mixture
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.recipe import FREE, TrainConfig, make_optimizer
from projects.llama3_qlora.training_log import Line, Log
from utils.runtime import Problem

Evaluate = Callable[[Llama], dict[str, float]]


def train(
    model: Llama,
    mixture: Mixture,
    config: TrainConfig,
    folder: str | Path,
    evaluate: Evaluate | None = None,
    label: str | None = "training",
) -> list[Line]:
    """Train `model` in place and return the log, which is also `folder`/log.jsonl: one
    line every `log_every` steps (see `Log`), and one with what `evaluate(model)` gives
    every `evaluate_every` steps and at the end. With a checkpoint in `folder`, training
    goes on from it. Under torchrun every process calls this, and the model is sharded
    in place. `label` stands at the progress bar; None shows no bar.

    Raises `Problem` when the loss is not finite (the last checkpoint stays), when
    SIGTERM asked to stop (after the step, with a checkpoint), and when the checkpoint
    is damaged or of another model or configuration.
    """
    rank, world = distributed.rank_and_world()
    path = Path(folder) / "checkpoint.safetensors"
    log = Log(path.with_name("log.jsonl"), model, mixture, config)
    if world > 1:
        if config.optimizer == "muon":
            raise Problem("Muon needs whole matrices: one process, or adamw.")
        distributed.shard(model, config.precision)
    optimizer = make_optimizer(model, config)
    first = resume(path, model, optimizer, config, log)
    steps, hidden = range(first, config.steps), rank > 0 or label is None
    bar = tqdm(steps, label, config.steps, initial=first, disable=hidden)
    with sigterm() as asked, recomputing(model, config.checkpoint_activations):
        for step in bar:
            loss, norm = update(model, optimizer, mixture, config, step)
            done, due = step + 1, partial(_due, step + 1, config.steps)
            if due(config.log_every):
                log.measure(done, loss, norm)
                bar.set_postfix(loss=f"{loss:.3f}")
            if evaluate and due(config.evaluate_every):
                log.write({"step": done, **_evaluated(model, evaluate)})
            stop = distributed.total(asked.is_set(), log.device) > 0
            if stop or due(config.save_every):
                notes = {"step": done, "config": asdict(config), "log": log.lines}
                distributed.save_checkpoint(path, model, optimizer, notes)
                log.start_clock(done)
            if stop and done < config.steps:
                raise Problem(
                    f"Stopped by SIGTERM after step {done}, which is saved: the same "
                    "command goes on from there."
                )
    return log.lines


def update(
    model: Llama,
    optimizer: Optimizer,
    mixture: Mixture,
    config: TrainConfig,
    step: int,
) -> tuple[float, float]:
    """One step of the optimizer: loss in nats per target, and gradient norm. Each
    target of all batches and processes weighs the same, as in one large batch.

    Raises `Problem`, before a weight has changed, when loss or gradient is not finite.
    """
    rank, world = distributed.rank_and_world()
    device = model.model.embed_tokens.weight.device
    micro = range(step * config.accumulation, (step + 1) * config.accumulation)
    batches = [mixture.batch(i, config.seed, rank, world) for i in micro]
    local = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    targets = max(1.0, distributed.total(local, device))
    nats = torch.zeros((), device=device)
    # a sharded model has its precision from distributed.shard
    half = config.precision == "bf16" and world == 1
    for batch in batches:
        there = Batch(*(part.to(device) for part in batch))
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = loss_sum(model, there)
        (loss * (world / targets)).backward()  # FSDP2 divides the sum by world
        nats += loss.detach()
    mean = distributed.total(float(nats), device) / targets
    clipped = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    norm = float(distributed.whole(clipped))
    if not math.isfinite(mean) or not math.isfinite(norm):
        raise Problem(
            f"At step {step} the loss is {mean} and the gradient norm {norm}: lower "
            "learning_rate. The last checkpoint is as it was."
        )
    for group in optimizer.param_groups:
        group["lr"] = config.rate(step) * group.get("scale", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return mean, norm


def loss_sum(model: Llama, batch: Batch) -> Tensor:
    """Cross-entropy in nats, summed over the targets that are not `IGNORED`."""
    logits = model(batch.inputs, documents=batch.documents).flatten(0, 1).float()
    return nn.functional.cross_entropy(
        logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _due(done: int, steps: int, every: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _evaluated(model: Llama, evaluate: Evaluate) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        values = evaluate(model)
    model.train()
    return values


def resume(
    path: Path, model: Llama, optimizer: Optimizer, config: TrainConfig, log: Log
) -> int:
    """Put back the checkpoint, if there is one; gives the number of steps done."""
    notes = distributed.read_notes(path)
    ours = json.loads(json.dumps(asdict(config)))  # tuples become lists, as in notes
    before = notes.get("config", ours)
    changed = sorted({name for name in ours if before.get(name) != ours[name]} - FREE)
    if changed:
        raise Problem(
            f"{path.name} is of a run with other {', '.join(changed)}: take the same "
            "or an empty folder."
        )
    if notes:
        distributed.load_checkpoint(path, model, optimizer)
    log.lines = notes.get("log", [])  # what came later will be done again
    log.start_clock(notes.get("step", 0))
    return notes.get("step", 0)


@contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets: schedulers send it some time before they kill."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def recomputing(model: Llama, on: bool) -> Iterator[None]:
    """While inside, if `on`, each block forgets its activations and computes them again
    in the backward pass. Names of parameters stay as they are."""
    blocks = list(model.model.layers) if on else []
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    model.train()
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the method of the class shows again


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """What the scripts that train share: batches, and most fields of `TrainConfig`."""
    add = parser.add_argument
    add("--steps", type=int, required=True)
    add("--context", type=int, default=256)
    add("--batch-size", type=int, default=8, help="rows, over all processes")
    add("--accumulation", type=int, default=1, help="batches of one step")
    add("--learning-rate", type=float, default=TrainConfig.learning_rate)
    add("--warmup", type=int, default=TrainConfig.warmup)
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--checkpoint-activations", action="store_true")
    add("--log-every", type=int, default=TrainConfig.log_every)
    add("--save-every", type=int, default=100)
    add("--seed", type=int, default=0)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser("projects.llama3_qlora.train")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of config.json, weights")
    add("--tokens", nargs="+", required=True, metavar="FILE[=WEIGHT]")
    add("--out", type=Path, required=True, help="where log and model go")
    add("--optimizer", choices=["adamw", "muon"], default="adamw")
    recipe_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """The script: the model of `--model`, with random weights where it has none."""
    values = vars(arguments())
    folder, out = values.pop("model"), values.pop("out")
    weights: dict[str | Path, float] = {}
    for name in values.pop("tokens"):
        path, _, weight = name.partition("=")
        weights[path] = float(weight or 1)
    mixture = Mixture(weights, values.pop("context"), values.pop("batch_size"))
    config = TrainConfig(**values)
    device = distributed.start()
    torch.manual_seed(config.seed)  # the same random weights in every process
    if any(folder.glob("*.safetensors")):
        model = Llama.from_pretrained(folder, device=device)
    else:
        model = Llama(LlamaConfig.load(folder)).to(device)
    train(model, mixture, config, out)
    if distributed.rank_and_world()[0] == 0:
        whole = Llama(model.config)  # the trained one may lie in parts
        distributed.load_checkpoint(out / "checkpoint.safetensors", whole)
        whole.save_pretrained(out)
    # Python 3.11 may abort when it ends while gloo's thread still holds a result of it.
    distributed.meet()


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(str(problem))
    finally:
        distributed.stop()
