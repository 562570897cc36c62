"""The races of the benchmark: what is measured, and how."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from projects.llama3_qlora.benchmark.contestants import (
    Contestant,
    Int8,
    LitGPT,
    Ours,
    Transformers,
    TransformersStatic,
    Uncached,
)
from projects.llama3_qlora.benchmark.llama_cpp import LlamaCpp
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.model import Llama
from utils.runtime import Problem, scratch

Runs = Mapping[str, Callable[[], Any]]
SIZES = {
    "5M": LlamaConfig(4096, 256, 640, 6, 4, 2, tie_embeddings=True),
    "57M": LlamaConfig(32_000, 512, 1408, 8, 8, 4),
    # Llama 3.2 1B with a quarter of its layers and half of its vocabulary
    "375M": LlamaConfig(64_000, 2048, 8192, 4, 32, 8, tie_embeddings=True),
}
PROMPTS = (64, 512, 1900)
TEXTS = ((64, 64), (512, 32), (1900, 32))  # prompt and new tokens
# bfloat16 operations and bytes per second from the makers' data sheets
PEAKS = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.04e12),
    "L4": (121e12, 0.3e12),
    "T4": (65e12, 0.32e12),
}


@dataclass(frozen=True)
class Row:
    """Seconds of every round, per contestant, for `tokens` tokens of a task. `share` is
    the part of a GPU's peak that one token per second takes, 0 for not known."""

    size: str
    task: str
    tokens: int
    seconds: dict[str, list[float]]
    share: float = 0.0

    def rate(self, name: str) -> float:
        """Tokens per second: the median over the rounds."""
        return self.tokens / statistics.median(self.seconds[name])

    def spread(self, name: str) -> float:
        """Half the distance between the quartiles, as part of the median."""
        low, middle, high = statistics.quantiles(self.seconds[name], n=4)
        return (high - low) / 2 / middle

    def fastest(self, prefix: str) -> str:
        """The fastest contestant whose name begins so, or nothing."""
        names = [n for n in self.seconds if n.startswith(prefix)]
        return max(names, key=self.rate, default="")

    def cell(self, name: str) -> str:
        rate = self.rate(name)
        return f"{rate:,.{0 if rate >= 100 else 1}f} ±{self.spread(name):.0%}"


class Bench:
    """One size: its contestants, and how often they are measured."""

    def __init__(self, size: str, rounds: int, device: str) -> None:
        self.size, self.rounds, self.device = size, rounds, device
        self.steps = 4 if size == "375M" else 16  # tokens of one decode measurement
        self.config = SIZES[size]
        self.rows: list[Row] = []
        torch.manual_seed(0)
        self.folder = scratch(f"benchmark-{size}")
        Llama(self.config).save_pretrained(self.folder)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.ours = Ours(self.folder, dtype, device)
        transformers = Transformers(self.folder, dtype, device)
        self.prompted: list[Contestant] = [self.ours, transformers]
        try:
            self.prompted.append(LitGPT(self.folder, dtype, device))
        except Problem as problem:
            print(problem)
        self.cached = [*self.prompted, TransformersStatic(transformers)]
        self.check_equal()

    def ids(self, *shape: int) -> torch.Tensor:
        return torch.randint(self.config.vocab_size, shape, device=self.device)

    @torch.inference_mode()
    def check_equal(self) -> None:
        """A race of different models would say nothing: stop when logits differ."""
        ids, allowed = self.ids(1, 32), 1e-4 if self.device == "cpu" else 0.1
        expected, *others = [c.read(ids, c.filled(1, 0, 33)) for c in self.cached]
        for contestant, logits in zip(self.cached[1:], others, strict=True):
            if (logits - expected).abs().max() > allowed:
                raise Problem(f"{contestant.name} does not give the same logits.")

    def race(self, task: str, tokens: int, runs: Runs, share: float = 0.0) -> None:
        """Measure `runs` in turn, each round beginning with another; the first round
        warms up and does not count."""
        row = Row(self.size, task, tokens, {name: [] for name in runs}, share)
        names = list(runs)
        for index in range(self.rounds + 1):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                start = self.now()
                runs[name]()
                if index:
                    row.seconds[name].append(self.now() - start)
        self.rows.append(row)
        print(f"{self.size} {task}:", "; ".join(f"{n} {row.cell(n)}" for n in names))

    def now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def prefill(self, length: int) -> None:
        """Reading a prompt, up to the logits behind its last token."""
        ids = self.ids(1, length)
        runs = {c.name: partial(read, c, ids) for c in self.prompted}
        self.race(f"prefill {length}", length, runs)

    @torch.inference_mode()
    def decode(self, batch: int, length: int) -> None:
        """Greedy tokens after `length` others."""
        token, peak = self.ids(batch, 1), self.peak(1)
        runs = {c.name: decoding(c, token, length, self.steps) for c in self.cached}
        share = bytes_read(self.config, batch, length) / batch / peak if peak else 0.0
        task = f"decode after {length}, batch {batch}"
        self.race(task, self.steps * batch, runs, share)

    @torch.inference_mode()
    def generation(self, prompt: int, count: int) -> None:
        """A prompt read and continued."""
        ids = self.ids(1, prompt)
        runs = {c.name: partial(c.generate, ids, count) for c in self.cached}
        self.race(f"generate {prompt}+{count}", count, runs)

    def training(self) -> None:
        """Forward, backward and the step of AdamW."""
        rows, time = (1, 512) if self.size == "375M" else (4, 256)
        ids, peak = self.ids(rows, time + 1), self.peak(0)
        runs = {c.name: partial(c.train_step, ids) for c in self.prompted}
        share = operations(self.config, time) / peak if peak else 0.0
        self.race("training step", rows * time, runs, share)

    def without_cache(self) -> None:
        """What the cache is worth."""
        ids = self.ids(1, 64)
        every = [self.ours, *map(Uncached, self.prompted)]
        runs = {c.name: partial(c.generate, ids, 64) for c in every}
        self.race("cache, 64+64", 64, runs)

    @torch.inference_mode()
    def eight_bits(self) -> None:
        """int8 weights beside float32, and llama.cpp at Q8_0."""
        both = [self.ours, Int8(self.folder, torch.float32, "cpu")]
        server = None
        try:
            server = LlamaCpp(self.folder)
        except Problem as problem:
            print(problem)
        for length in PROMPTS:
            token, prompt = self.ids(1, 1), self.ids(length).tolist()
            runs: dict[str, Callable[[], Any]] = {
                c.name: decoding(c, token, length, self.steps) for c in both
            }
            if server:
                runs[server.name] = partial(server.decode, prompt, self.steps)
            self.race(f"int8, decode after {length}", self.steps, runs)

    def peak(self, which: int) -> float:
        """Operations (0) or bytes (1) per second of the device; 0 when not known."""
        if self.device == "cpu":
            return 0.0
        name = torch.cuda.get_device_name()
        return next((peaks[which] for key, peaks in PEAKS.items() if key in name), 0.0)

    def run(self) -> list[Row]:
        for length in PROMPTS:
            self.prefill(length)
            self.decode(1, length)
            self.decode(8, length)
        for prompt, count in TEXTS:
            self.generation(prompt, count)
        self.without_cache()
        if self.device == "cpu":
            self.eight_bits()
        self.training()  # last: it changes the weights
        return self.rows


def read(contestant: Contestant, ids: torch.Tensor) -> None:
    contestant.read(ids, contestant.filled(1, 0, ids.shape[1]))


def decoding(
    contestant: Contestant, token: torch.Tensor, length: int, steps: int
) -> Callable[[], None]:
    """What decodes `steps` tokens after `length` others, and takes them back."""
    cache = contestant.filled(len(token), length, length + steps)

    def run() -> None:
        contestant.decode(token, cache, steps)
        contestant.rewind(cache, steps)

    return run


def n_matrix_weights(config: LlamaConfig) -> int:
    """Weights that are multiplied for every token: all matrices but the embedding."""
    with torch.device("meta"):
        model = Llama(config)
    inside = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    return inside + model.lm_head.weight.numel()


def operations(config: LlamaConfig, time: int) -> float:
    """Operations of a training step per token: two for each weight and, on average,
    for half of `time` keys and values; twice that again on the way back."""
    attention = config.n_layers * config.n_heads * config.head_dim * time
    return 6.0 * (n_matrix_weights(config) + attention)


def bytes_read(config: LlamaConfig, batch: int, length: int) -> float:
    """Bytes of bfloat16 weights, keys and values that one step of decoding reads."""
    cache = 2 * config.n_layers * config.n_kv_heads * config.head_dim * length
    return 2.0 * (n_matrix_weights(config) + batch * cache)
