"""The keys and values of all tokens read so far, in memory set aside once."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.llama3_qlora.config import LlamaConfig
from utils.runtime import Problem


class KVCache:
    """Keys and values, each (layers, batch, kv_heads, max_length, head_dim).

    The model reads `length` and `padding`, and moves `length` on after each call. To
    take tokens back, set `length` to a smaller number: what lies behind it is never
    read and is written over.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, batch_size, config.n_kv_heads, max_length)
        self.keys = torch.empty(*shape, config.head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0
        self.padding: Tensor | None = None  # (batch,) tokens at the left to ignore

    @property
    def max_length(self) -> int:
        """How many tokens there is room for."""
        return self.keys.shape[3]

    @property
    def n_bytes(self) -> int:
        """Memory of keys and values in bytes."""
        return 2 * self.keys.nbytes

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new k and v (batch, kv_heads, time, head_dim) of a layer and give
        all of the layer: two views (batch, kv_heads, length + time, head_dim).

        Raises `Problem` when there is no room, or the cache is for another batch size.
        """
        if len(k) != self.keys.shape[1]:
            raise Problem(
                f"A cache for {self.keys.shape[1]} texts cannot hold {len(k)}."
            )
        end = self.length + k.shape[2]
        if end > self.max_length:
            raise Problem(f"{end} tokens do not fit a cache of {self.max_length}.")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
