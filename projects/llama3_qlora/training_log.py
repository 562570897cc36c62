"""What training writes down as it goes: one JSON line at a time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from projects.llama3_qlora import distributed
from projects.llama3_qlora.data import Mixture
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.recipe import TrainConfig, flops_per_token

Line = dict[str, Any]


class Log:
    """Lines in memory and, written by the first process, in a JSONL file."""

    def __init__(
        self, path: Path, model: Llama, mixture: Mixture, config: TrainConfig
    ) -> None:
        self.path, self.config, self.lines = path, config, list[Line]()
        self.device = model.model.embed_tokens.weight.device
        self.rank, self.world = distributed.rank_and_world()
        self.step_tokens = mixture.batch_size * mixture.context * config.accumulation
        self.flops = flops_per_token(model, mixture.context)
        self.start_clock(0)

    def start_clock(self, done: int) -> None:
        """Speed is measured from here: evaluating and saving do not count."""
        self.since, self.clock = done, time.perf_counter()

    def measure(self, done: int, loss: float, norm: float) -> None:
        """A line on the step just done: loss in nats per target, learning rate,
        gradient norm before clipping, tokens so far, tokens per second since the last
        line, and MFU, the share of the hardware's peak, where that is known."""
        seconds = time.perf_counter() - self.clock
        speed = (done - self.since) * self.step_tokens / seconds
        line = {
            "step": done,
            "loss": loss,
            "learning_rate": self.config.rate(done - 1),
            "gradient_norm": norm,
            "tokens": done * self.step_tokens,
            "tokens_per_second": speed,
        }
        if self.config.peak_flops:
            line["mfu"] = speed * self.flops / (self.config.peak_flops * self.world)
        self.write(line)

    def write(self, line: Line) -> None:
        """Add a line; the clock starts anew."""
        self.lines.append(line)
        if self.rank == 0:
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(text, "utf-8")
        self.start_clock(line["step"])
