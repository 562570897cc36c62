"""Bits per byte: how well a model predicts texts, whatever its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from projects.llama3_qlora.data import IGNORED
from utils import measure
from utils.runtime import Problem

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Score:
    """Cross-entropy in nats and length in UTF-8 bytes of each document."""

    nats: tuple[float, ...]
    n_bytes: tuple[int, ...]

    @property
    def bits_per_byte(self) -> float:
        """Over all documents together: every byte weighs the same."""
        return sum(self.nats) / math.log(2) / sum(self.n_bytes)

    @property
    def per_document(self) -> list[float]:
        """Bits per byte of each document."""
        pairs = zip(self.nats, self.n_bytes, strict=True)
        return [nats / math.log(2) / n_bytes for nats, n_bytes in pairs]

    def interval(self, seed: int = 0) -> measure.Interval:
        """95 % interval of `bits_per_byte`, by bootstrap over the documents."""
        nats, n_bytes = np.array(self.nats), np.array(self.n_bytes)

        def together(chosen: np.ndarray) -> float:
            return float(nats[chosen].sum() / math.log(2) / n_bytes[chosen].sum())

        return measure.bootstrap(range(len(nats)), together, seed=seed)


@torch.no_grad()
def bits_per_byte(
    model: nn.Module,
    encode: Encode,
    texts: Sequence[str],
    context: int,
    start_id: int,
    stride: int = 0,
    batch_size: int = 16,
) -> Score:
    """Score `texts`, each read from its beginning after the token `start_id`, in
    windows of at most `context` tokens.

    `encode` gives the ids of a text without special tokens; `model` maps ids (batch,
    time) to logits (batch, time, vocab) and may look back only. Windows overlap: each
    begins `stride` tokens (0: half of `context`) after the one before, and only what is
    new in it counts, so that every token has seen at least `context - stride` before
    it, or all there is.

    Raises `Problem` when there is nothing to score or `stride` is not 1 to `context`.
    """
    stride = stride or max(1, context // 2)
    if not 1 <= stride <= context:
        raise Problem(f"stride must be 1 to {context} (context), not {stride}.")
    if not texts or not all(texts):
        raise Problem("There is nothing to score: no text, or an empty one.")
    ids = [torch.tensor([start_id, *encode(text)]) for text in texts]
    pieces = [
        (document, *window)
        for document, tokens in enumerate(ids)
        for window in windows(tokens, context, stride)
    ]
    pieces.sort(key=lambda piece: -len(piece[1]))  # similar lengths: little padding
    nats = [0.0] * len(texts)
    model.eval()
    for first in range(0, len(pieces), batch_size):
        documents, inputs, targets = zip(
            *pieces[first : first + batch_size], strict=True
        )
        losses = _nats(model, inputs, targets)
        for document, value in zip(documents, losses, strict=True):
            nats[document] += value
    return Score(tuple(nats), tuple(len(text.encode()) for text in texts))


def windows(tokens: Tensor, context: int, stride: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets (time,) that ask for each of tokens[1:] exactly once."""
    found, asked = [], 0  # targets asked for so far
    while asked < len(tokens) - 1:
        end = min(len(tokens) - 1, context if asked == 0 else asked + stride)
        begin = max(0, end - context)
        targets = tokens[begin + 1 : end + 1].clone()
        targets[: asked - begin] = IGNORED
        found.append((tokens[begin:end], targets))
        asked = end
    return found


def _nats(
    model: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor]
) -> list[float]:
    """Negative log-likelihood of each row. Padding stands at the right, where a model
    that looks back only does not see it."""
    device = next(model.parameters(), torch.empty(0)).device
    x = pad_sequence(list(inputs), batch_first=True).to(device)
    y = pad_sequence(list(targets), batch_first=True, padding_value=IGNORED).to(device)
    logits = model(x).float().transpose(1, 2)  # (batch, vocab, time)
    losses = nn.functional.cross_entropy(
        logits, y, ignore_index=IGNORED, reduction="none"
    )
    return losses.double().sum(1).tolist()
