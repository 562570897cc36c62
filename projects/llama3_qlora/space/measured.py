"""The numbers on the card: how fast, from how much memory and how well it answers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from projects.llama3_qlora.generate import generate, tokens
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.quantize import quantize_int8
from projects.llama3_qlora.shipped import corpus
from projects.llama3_qlora.shipped.exam import rate
from projects.llama3_qlora.space.assistant import Limits
from projects.llama3_qlora.space.running import running
from projects.llama3_qlora.tokenizer import Tokenizer
from utils import closed_world, measure
from utils.measure import Interval

REPEATS = 3


@dataclass(frozen=True)
class Speed:
    """Of one answer on one thread: CPU seconds until the first token of the longest
    prompt that is allowed, and tokens per CPU second from then on."""

    first_token: float
    tokens_per_second: float


def speed(model: Llama) -> Speed:
    """Medians of a few answers. What the prompt says does not matter for the time."""
    limits = Limits()
    prompt = [[i % model.config.vocab_size for i in range(limits.prompt_tokens)]]

    def write(count: int) -> float:
        return measure.cpu_seconds(lambda: list(tokens(model, prompt, count)))

    write(1)  # to warm up
    first = statistics.median(write(1) for _ in range(REPEATS))
    whole = statistics.median(write(limits.new_tokens) for _ in range(REPEATS))
    return Speed(first, (limits.new_tokens - 1) / (whole - first))


@dataclass(frozen=True)
class Agreement:
    """Greedy answers with the weights of training and with those of the Space: the
    share that is right, and the share of the texts that are the same."""

    trained: Interval
    served: Interval
    same: Interval


def agreement(folder: Path, per_kind: int) -> Agreement:
    """Both ask the first `per_kind` dialogues of each kind in the chat exam."""
    tokenizer, town = Tokenizer.load(folder), closed_world.build(corpus.TOWN)
    asked = [
        dialogue
        for kind in closed_world.KINDS
        for dialogue in closed_world.dialogues(town, kind, "test", per_kind, seed=2)
    ]

    def replies(model: Llama) -> list[str]:
        stop = tokenizer.stop_ids
        prompts = [tokenizer.chat(d.prompt) for d in asked]
        new = (generate(model, [p], 100, stop_ids=stop)[0] for p in prompts)
        return [tokenizer.decode(ids) for ids in new]

    trained = replies(Llama.from_pretrained(folder).eval())
    served = replies(quantize_int8(Llama.from_pretrained(folder).eval()))
    same = rate([a == b for a, b in zip(trained, served, strict=True)])
    return Agreement(right(asked, trained), right(asked, served), same)


def right(asked: Sequence[closed_world.Dialogue], replies: Sequence[str]) -> Interval:
    """The share of the dialogues whose reply keeps their rule."""
    pairs = zip(asked, replies, strict=True)
    return rate([closed_world.check(dialogue, reply) for dialogue, reply in pairs])


@dataclass(frozen=True)
class Numbers:
    """All that the card says about the Space, and what its health check said."""

    health: Mapping[str, Any]
    speed: Speed
    memory_mb: float
    agreement: Agreement


def numbers(folder: Path, per_kind: int) -> Numbers:
    """Measure a Space folder: one thread, whatever this machine has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = quantize_int8(Llama.from_pretrained(folder / "model").eval())
        with running(folder) as space:
            health, memory = space.health(), space.memory_mb()
        answers = agreement(folder / "model", per_kind)
        return Numbers(health, speed(model), memory, answers)
    finally:
        torch.set_num_threads(threads)
