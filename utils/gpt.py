"""A small GPT, for lessons that need a transformer but are not about its inside.

Notebook 02.5 takes attention apart and chapter 9 builds Llama; this is the plain
pre-norm decoder between them. (batch, time) ids in, (batch, time, vocab) logits out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.runtime import Problem


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a `GPT`; `context` is the longest input in tokens."""

    vocab_size: int
    hidden_size: int = 96
    n_layers: int = 2
    n_heads: int = 4
    context: int = 64

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.n_layers, self.n_heads, self.context) < 1:
            raise Problem("Every size of a GPTConfig must be at least 1.")
        if self.hidden_size % self.n_heads:
            raise Problem(
                f"hidden_size {self.hidden_size} must divide by n_heads {self.n_heads}."
            )


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        split = self.qkv(x).view(batch, time, 3, self.n_heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, head_dim)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, time, width))


class Block(nn.Module):
    """Attention, then a two-layer MLP, each added to the stream that it reads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(config)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """Token and position embeddings, blocks, and a head tied to the token embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.context, config.hidden_size)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layers)))
        self.norm = nn.LayerNorm(config.hidden_size)
        # Unit-size logits at the start; residual branches small, so that depth is safe.
        nn.init.normal_(self.tokens.weight, std=config.hidden_size**-0.5)
        nn.init.normal_(self.positions.weight, std=0.02)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * config.n_layers) ** 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        time = ids.shape[1]
        if time > self.config.context:
            raise Problem(
                f"{time} tokens do not fit a context of {self.config.context}."
            )
        x = self.tokens(ids) + self.positions(torch.arange(time, device=ids.device))
        return self.norm(self.blocks(x)) @ self.tokens.weight.T
