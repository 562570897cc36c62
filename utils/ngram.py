"""Interpolated Kneser-Ney n-grams over token ids: the baseline that counting can reach.

Notebook 02.2 builds the idea up step by step; this is the same model for any tokens,
used wherever a neural model must first beat a counting one. Kneser and Ney 1995, in
the interpolated form of Chen and Goodman 1999.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from utils.runtime import Problem

Gram = tuple[int, ...]


class KneserNey:
    """p(token | last order - 1 tokens), smoothed so that no token has probability 0.

    The longest n-grams are counted as they occur; every shorter one by the number of
    different tokens seen before it. `discount` of each count is handed down to the
    next shorter context, in the end to the uniform distribution over `vocab_size`.
    """

    def __init__(
        self, tokens: Sequence[int], order: int, vocab_size: int, discount: float = 0.75
    ) -> None:
        if order < 1 or not 0 < discount < 1:
            raise Problem("KneserNey needs order >= 1 and a discount between 0 and 1.")
        self.order, self.vocab_size, self.discount = order, vocab_size, discount
        counts = Counter(zip(*(tokens[i:] for i in range(order)), strict=False))
        levels = []
        for _ in range(order):
            totals, kinds = Counter[Gram](), Counter[Gram]()
            for gram, count in counts.items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1
            levels.append((counts, totals, kinds))
            counts = Counter(gram[1:] for gram in counts)
        self.levels = levels[::-1]  # the i-th looks at i tokens of context

    def probability(self, context: Gram, token: int) -> float:
        """p(token | context); only the last `order - 1` tokens of context count."""
        result = 1 / self.vocab_size
        for length, (counts, totals, kinds) in enumerate(self.levels):
            if length > len(context):
                break
            seen = context[len(context) - length :]
            if seen not in totals:
                break
            kept = max(counts[(*seen, token)] - self.discount, 0)
            spread = self.discount * kinds[seen]
            result = (kept + spread * result) / totals[seen]
        return result

    def nats(self, tokens: Sequence[int]) -> list[float]:
        """-log p of each of tokens[1:], given all tokens before it, in nats."""
        ids, size = tuple(tokens), self.order - 1
        return [
            -math.log(self.probability(ids[max(0, i - size) : i], ids[i]))
            for i in range(1, len(ids))
        ]
