"""Token files on disk, and batches of packed documents drawn from them.

A row of a batch holds whole documents, end to end. A document that fits a row is never
cut, because the second half of a dialogue without the first teaches to make things up;
the documents are packed best-fit, which leaves little padding (Ding et al. 2024, arXiv
2404.10830). Longer documents are cut, at other places in every epoch. No target lies in
another document, and the model is told which tokens belong together.

Every batch is a pure function of seed and step: a run that goes on after a kill needs
no memory of what was drawn.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.runtime import Problem

IGNORED = -100  # a target that the loss does not look at, as in PyTorch
Piece = tuple[int, int]  # first token and end of a document, or of a part of one


class Batch(NamedTuple):
    """Three tensors (batch, time) of int64. `documents` numbers the documents of a row,
    and padding is a document of its own."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor


def write_tokens(
    documents: Iterable[Sequence[int]],
    path: str | Path,
    masks: Iterable[Sequence[int]] | None = None,
) -> int:
    """Write token ids as one flat array to `path` (`name.npy`), in 16 bits where they
    fit, and to `name.starts.npy` where each document starts. `masks`, one per document
    with 1 for each token that is to be learnt, goes to `name.mask.npy`. Gives the
    number of tokens. All are in memory while they are written; a corpus too large for
    that is several files, mixed by `Mixture`.

    Raises `Problem` for a wrong file name, no tokens, or a mask of another length.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise Problem(f"A token file is named something.npy, not {path.name}.")
    rows = [np.asarray(document, dtype=np.uint32) for document in documents]
    starts = np.cumsum([0, *map(len, rows)])  # the last entry is where all of them end
    if starts[-1] == 0:
        raise Problem(f"There are no tokens to write to {path.name}.")
    tokens = np.concatenate(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    _beside(path, "mask").unlink(missing_ok=True)
    if masks is not None:
        parts = [np.asarray(mask, dtype=np.uint8) for mask in masks]
        if [len(part) for part in parts] != [len(row) for row in rows]:
            raise Problem("Each document needs a mask of its own length.")
        _write(np.concatenate(parts), _beside(path, "mask"))
    _write(starts, _beside(path, "starts"))
    # Last, so that a token file on disk means that the others are there.
    _write(tokens.astype(np.uint16) if tokens.max() < 2**16 else tokens, path)
    return len(tokens)


def _beside(path: Path, what: str) -> Path:
    return path.with_suffix(f".{what}.npy")


def _write(array: np.ndarray, path: Path) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def _read(path: Path, mapped: bool = True) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r" if mapped else None)
    except FileNotFoundError:
        raise Problem(f"There is no {path.name}: write_tokens makes it.") from None
    except (ValueError, EOFError, OSError):
        raise Problem(f"{path.name} is damaged: write it again.") from None


class PackedTokens:
    """The documents of a token file as rows of `context` inputs and targets.

    An epoch has `rows_per_epoch` rows, drawn without replacement from a new packing in
    a new order. As a packing has some more rows than the tokens would fill without
    padding, an epoch leaves out a few of them, others each time.

    Raises `Problem` when a file is missing or damaged, or the text is less than a row.
    """

    def __init__(self, path: str | Path, context: int) -> None:
        self.path, self.context = Path(path), context
        if context < 1:
            raise Problem(f"context must be at least 1, not {context}.")
        self.tokens = _read(self.path)
        self.starts = _read(_beside(self.path, "starts"), mapped=False)
        mask = _beside(self.path, "mask")
        self.mask = _read(mask) if mask.exists() else None
        sizes = {len(self.tokens), int(self.starts[-1])}
        if len(sizes | ({len(self.mask)} if self.mask is not None else set())) > 1:
            raise Problem(
                f"{self.path.name} and the files beside it do not fit together: write "
                "them again."
            )
        lengths = np.diff(self.starts)
        self.rows_per_epoch = int(lengths[lengths > 1].sum()) // (context + 1)
        if not self.rows_per_epoch:
            raise Problem(
                f"{self.path.name} has {len(self.tokens)} tokens, too few for a row of "
                f"{context} and the one after."
            )
        self._packed: tuple[tuple[int, int], list[list[Piece]]] = ((-1, -1), [])

    def row(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, targets and document numbers, each (context,), of row `index` of an
        endless series: a pure function of index and seed."""
        epoch, place = divmod(index, self.rows_per_epoch)
        if self._packed[0] != (seed, epoch):  # kept only to save time
            self._packed = ((seed, epoch), self._pack(seed, epoch))
        size = self.context + 1
        tokens, targets = np.zeros(size, np.int64), np.full(size, IGNORED)
        documents, end = np.full(size, -1), 0
        for number, (first, last) in enumerate(self._packed[1][place]):
            here = slice(end, end := end + last - first)
            tokens[here] = targets[here] = self.tokens[first:last]
            if self.mask is not None:
                targets[here][self.mask[first:last] == 0] = IGNORED
            targets[here.start] = IGNORED  # nothing of its document comes before
            documents[here] = number
        documents[documents < 0] = documents.max() + 1
        return tokens[:-1], targets[1:], documents[:-1]

    def _pack(self, seed: int, epoch: int) -> list[list[Piece]]:
        rng = np.random.default_rng([seed, epoch])
        rows = best_fit(self._pieces(rng), self.context + 1, rng)
        return [rows[place] for place in rng.permutation(len(rows))]

    def _pieces(self, rng: np.random.Generator) -> list[Piece]:
        """Documents, the long ones in parts of `context` targets. A part begins with
        the last token of the part before it, so that every token but the first of a
        document is a target once."""
        pieces: list[Piece] = []
        for first, end in pairwise(self.starts.tolist()):
            if end - first > self.context + 1:
                begin = first + int(rng.integers(1, self.context + 1))
                for cut in range(begin, end - 1, self.context):
                    pieces.append((first, cut + 1))
                    first = cut
            if end - first > 1:  # one token alone has nothing to predict
                pieces.append((first, end))
        return pieces


def best_fit(
    pieces: list[Piece], size: int, rng: np.random.Generator
) -> list[list[Piece]]:
    """Rows of at most `size` tokens: each piece, the longest first, goes to the fullest
    row that has room for it. Among equals chance decides."""
    order = rng.permutation(len(pieces))
    rows: list[list[Piece]] = []
    with_room: dict[int, list[list[Piece]]] = {}  # tokens free: rows
    rooms: list[int] = []  # the keys of with_room, in order
    for first, end in sorted((pieces[i] for i in order), key=lambda p: p[0] - p[1]):
        place = bisect_left(rooms, end - first)
        if place == len(rooms):
            room, row = size, list[Piece]()
            rows.append(row)
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        row.append((first, end))
        left = room - (end - first)
        if left > 1:
            if left not in with_room:
                insort(rooms, left)
            with_room.setdefault(left, []).append(row)
    return rows


DEAL = 1000  # rows among which each source has its exact share


class Mixture:
    """Batches of `batch_size` rows from several token files: `{path: weight}` says what
    share of the rows each gives. Like cards, the sources are dealt in shuffled packs of
    1,000 rows that hold each in its share.

    Raises `Problem` for weights that are not positive, and what `PackedTokens` raises.
    """

    def __init__(
        self, weights: Mapping[str | Path, float], context: int, batch_size: int
    ) -> None:
        if not weights or min(weights.values()) <= 0 or batch_size < 1:
            raise Problem(
                "A mixture needs a token file, weights above 0 and a batch_size of 1 "
                "or more."
            )
        self.context, self.batch_size = context, batch_size
        self.sources = [PackedTokens(path, context) for path in weights]
        edges = np.cumsum(list(weights.values())) / sum(weights.values()) * DEAL
        counts = np.diff(np.round(edges).astype(int), prepend=0)
        if counts.min() < 1:
            raise Problem(f"A weight is below 1/{DEAL} of all: leave that file out.")
        self.pack = np.repeat(np.arange(len(counts)), counts)  # a source for each row
        self.counts = counts

    def batch(self, step: int, seed: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step, or of `world` processes the part that `rank` works on:
        together they see what one alone would see. A pure function of its arguments.

        Raises `Problem` when batch_size is not a multiple of world.
        """
        if self.batch_size % world:
            raise Problem(
                f"batch_size {self.batch_size} is not a multiple of {world} processes."
            )
        first = step * self.batch_size
        rows = [
            self._row(index, seed)
            for index in range(first + rank, first + self.batch_size, world)
        ]
        inputs, targets, documents = (
            torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)
        )
        return Batch(inputs, targets, documents)

    def _row(self, index: int, seed: int) -> tuple[np.ndarray, ...]:
        pack, place = divmod(index, DEAL)
        dealt = np.random.default_rng([seed, pack]).permutation(self.pack)
        source = int(dealt[place])
        before = pack * self.counts[source] + (dealt[:place] == source).sum()
        return self.sources[source].row(int(before), seed)
