"""What answers behind the page: one function from a conversation to growing text."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from projects.llama3_qlora.generate import Sampling, stream
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.quantize import quantize_int8
from projects.llama3_qlora.tokenizer import Tokenizer
from utils.runtime import Problem

NAME = "the companion's chat model"


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for, and how many may ask. `prompt_tokens` and
    `new_tokens` are together the 512 tokens of a row in the model's training; answers
    are written for `at_once` visitors, `waiting` more stand in line, others are sent
    away."""

    message_characters: int = 2_000
    prompt_tokens: int = 320
    new_tokens: int = 192
    temperature: float = 1.5
    at_once: int = 4
    waiting: int = 16

    def __post_init__(self) -> None:
        if min(self.at_once, self.waiting, self.new_tokens) < 1:
            raise Problem("At least one visitor must be answered, with one token.")


class Assistant:
    """A chat model with int8 weights, safe to be asked from several threads."""

    def __init__(self, folder: str | Path, limits: Limits = Limits()) -> None:
        """From a Hugging Face folder. Raises `Problem` when it lacks a file."""
        model = Llama.from_pretrained(folder).eval()
        self.tokenizer = Tokenizer.load(folder)
        self.n_parameters = sum(p.numel() for p in model.parameters())
        self.model = quantize_int8(model)  # twice the speed of float32
        self.limits = limits
        self.answering = 0  # how many answers are being written
        self._lock = Lock()

    def answer(
        self,
        message: str,
        history: Sequence[Mapping[str, Any]] = (),
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """The answer so far, each time longer. A model computes a token when it is
        asked for the next piece: closing the iterator is what stops it.

        `history` has the earlier messages (role and content), oldest first. Raises
        `Problem` for a message that is empty or too long, or an odd temperature.
        """
        if not 0 <= temperature <= self.limits.temperature:  # NaN is refused as well
            raise Problem(f"The temperature goes from 0 to {self.limits.temperature}.")
        prompt = self.prompt(message, history)
        sampling = Sampling(temperature, seed=secrets.randbits(31))
        self._count(1)
        try:
            text = ""
            for piece in stream(
                self.model, self.tokenizer, prompt, self.limits.new_tokens, sampling
            ):
                text += piece
                yield text
        finally:  # also when the visitor stops it or goes away
            self._count(-1)

    def prompt(self, message: str, history: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of the message after as many of the latest turns as there is room
        for. Raises `Problem` for an empty message and one without any room."""
        if not message.strip():
            raise Problem("Please write a question first.")
        # characters first: no visitor may keep the tokenizer busy with a megabyte
        if len(message) > self.limits.message_characters:
            raise Problem(
                f"This message has {len(message):,} characters; at most "
                f"{self.limits.message_characters:,} are read."
            )
        messages: list[Mapping[str, Any]] = [{"role": "user", "content": message}]
        ids = self.tokenizer.chat(messages)
        if len(ids) > self.limits.prompt_tokens:
            raise Problem(
                f"This message has {len(ids)} tokens; the model reads at most "
                f"{self.limits.prompt_tokens}."
            )
        for turn in reversed(history):
            messages.insert(0, turn)
            if len(turn["content"]) > self.limits.message_characters:
                break
            longer = self.tokenizer.chat(messages)
            if len(longer) > self.limits.prompt_tokens:
                break
            if turn["role"] == "user":  # no conversation begins with an answer
                ids = longer
        return ids

    def health(self) -> dict[str, Any]:
        """Who answers here, and whether it can: the model has just read a token, and
        what it made of it is numbers."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([[self.tokenizer.bos_id]]))
        return {
            "model": NAME,
            "parameters": self.n_parameters,
            "ready": bool(torch.isfinite(logits).all()),
            "answering": self.answering,
        }

    def _count(self, change: int) -> None:
        with self._lock:
            self.answering += change
