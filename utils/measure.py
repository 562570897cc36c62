"""Numbers with their uncertainty: bits per byte, intervals over seeds, cost.

An interval here is always 95 %.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from utils.runtime import Problem


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, from `count` independent runs (or items)."""

    mean: float
    low: float
    high: float
    count: int
    over: str = "runs"

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: Sequence[float]) -> Interval:
    """Mean over runs with Student's t interval (Student 1908); at least two runs."""
    if len(values) < 2:
        raise Problem("An interval needs at least two runs.")
    mean, spread = float(np.mean(values)), float(stats.sem(values))
    half = spread * float(stats.t.ppf(0.975, len(values) - 1))
    return Interval(mean, mean - half, mean + half, len(values))


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Interval of first - second, run by run: for runs that share seed and data."""
    if len(first) != len(second):
        raise Problem(f"Paired runs differ in number: {len(first)} and {len(second)}.")
    return interval([a - b for a, b in zip(first, second, strict=True)])


def bootstrap(
    values: Sequence[float],
    statistic: Callable[..., float] = np.mean,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron 1979), for the scores of one run on many items."""
    data, rng = np.asarray(values), np.random.default_rng(seed)
    picks = rng.integers(len(data), size=(resamples, len(data)))
    scores = [float(statistic(data[pick])) for pick in picks]
    low, high = np.percentile(scores, [2.5, 97.5])
    return Interval(float(statistic(data)), float(low), float(high), len(data), "items")


def bits_per_byte(total_nats: float, text: str) -> float:
    """Cross-entropy of a text in bits per UTF-8 byte.

    Unlike perplexity per token it compares models whatever their tokenizers: whoever
    needs fewer bits for the same bytes predicts better.
    """
    return total_nats / math.log(2) / len(text.encode())


@torch.no_grad()
def total_nats(
    model: nn.Module, tokens: Tensor, context: int, batch_size: int = 64
) -> float:
    """Sum of the negative log-likelihoods of tokens[1:] in nats.

    The text is cut in windows of `context` inputs, each token predicted once; `model`
    maps ids (batch, time) to logits (batch, time, vocab).
    """
    model.eval()
    inputs, targets = tokens[:-1], tokens[1:]
    full = len(inputs) // context * context
    rows = list(
        zip(
            inputs[:full].view(-1, context).split(batch_size),
            targets[:full].view(-1, context).split(batch_size),
            strict=True,
        )
    )
    if full < len(inputs):
        rows.append((inputs[full:][None], targets[full:][None]))
    return sum(_nats(model, x, y) for x, y in rows)


def _nats(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    logits = model(inputs).flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
    return float(loss)


def time_ratio(
    first: Callable[[], object], second: Callable[[], object], repeats: int = 7
) -> Interval:
    """How many times longer `first` takes than `second`, in CPU time of this process.

    The two alternate, so that what else the machine does hits both; the interval is
    over the pairs. A ratio survives the change of machine better than seconds do.
    """
    first(), second()  # warm caches
    ratios = [cpu_seconds(first) / cpu_seconds(second) for _ in range(repeats)]
    logs = interval([math.log(ratio) for ratio in ratios])
    mean, low, high = (math.exp(x) for x in (logs.mean, logs.low, logs.high))
    return Interval(mean, low, high, repeats)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    before = time.process_time()
    work()
    return max(time.process_time() - before, 1e-9)


def peak_memory_mb() -> float:
    """Largest resident memory that this process has had so far, in MB (10**6 bytes)."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    if sys.platform == "linux":  # ru_maxrss would also count whoever started us
        status = Path("/proc/self/status").read_text("utf-8")
        kilobytes = status.split("VmHWM:")[1].split()[0]
        return int(kilobytes) * 1024 / 1e6
    import resource  # only where there is one

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in one call (multiply and add
    are two), as PyTorch's own counter sees them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
