"""Llama 3, from token ids to logits.

Shapes: batch, time (tokens of this call), keys (tokens seen so far), heads, kv_heads,
head_dim, hidden, vocab. Modules are named as in Hugging Face's checkpoints, so that
weights move between the two without a table. (Touvron et al. 2023, arXiv 2302.13971;
Grattafiori et al. 2024, arXiv 2407.21783.)
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.llama3_qlora.cache import KVCache
from projects.llama3_qlora.checkpoint import load_weights, save_weights, weight_files
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.linear import Linear
from utils.runtime import Problem

# cosine and sine, each (batch or 1, 1, time, head_dim) or (time, head_dim)
Rotation = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, then scale (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Radians by which each pair of a head turns per position: (head_dim / 2,)."""
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**pairs
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    # in this order transformers gets the same bits; an ulp shows after 2,000 tokens
    turns = scaling.original_positions / (2 * math.pi / frequencies)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: fast pairs stay as they are
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotation(frequencies: Tensor, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Cosine and sine for positions (time,) or (batch, time); the sine of the first
    half of a head is negated, which is what `rotate` needs."""
    angles = positions[..., None].float() * frequencies
    if positions.dim() == 2:
        angles = angles[:, None]  # (batch, 1, time, pairs): the same for all heads
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys (batch, heads, time, head_dim) by their positions: number i
    of a head is paired with number i + head_dim / 2 (Su et al. 2021)."""
    cos, sin = rotation
    partner = x.roll(x.shape[-1] // 2, -1)
    return (x * cos).addcmul_(partner, sin)


class Attention(nn.Module):
    """Causal self-attention; a group of query heads shares a key and a value head
    (Ainslie et al. 2023)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries = config.n_heads * config.head_dim
        keys = config.n_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries)
        self.k_proj = Linear(config.hidden_size, keys)
        self.v_proj = Linear(config.hidden_size, keys)
        self.o_proj = Linear(queries, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.head_dim)
        q = rotate(self.q_proj(x).view(heads).transpose(1, 2), rotation)
        k = rotate(self.k_proj(x).view(heads).transpose(1, 2), rotation)
        v = self.v_proj(x).view(heads).transpose(1, 2)  # (batch, kv_heads, time, ...)
        if cache is not None:
            k, v = cache.update(layer, k, v)  # (batch, kv_heads, keys, head_dim)
        y = attend(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q (batch, heads, time, head_dim) over k and v (batch, kv_heads,
    keys, head_dim). Without a mask, each token sees itself and what is before it."""
    batch, heads, time, head_dim = q.shape
    if time > 1:
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, enable_gqa=True
        )
    # One new token sees all: the queries that share a key stand in for time, and one
    # pass over the keys serves the whole group (twice as fast on a CPU).
    grouped = q.view(batch, k.shape[1], -1, head_dim)
    y = F.scaled_dot_product_attention(grouped, k, v, mask)
    return y.view(batch, heads, 1, head_dim)


class MLP(nn.Module):
    """SwiGLU: one projection gates the other (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(hidden, inner)
        self.up_proj = Linear(hidden, inner)
        self.down_proj = Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then MLP; each reads a normed copy of the stream and adds to it."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Everything but the head: token ids to hidden states."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.frequencies: Tensor | None = None  # made at first use, on the right device

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (batch, time, hidden); the arguments are those of `Llama`."""
        time, seen = input_ids.shape[1], cache.length if cache else 0
        if seen + time > self.config.max_positions:
            raise Problem(
                f"{seen + time} tokens do not fit max_positions "
                f"{self.config.max_positions}."
            )
        if cache is not None:
            padding = cache.padding if padding is None else padding
            cache.padding = padding
        x = self.embed_tokens(input_ids)
        if self.frequencies is None or self.frequencies.device != x.device:
            self.frequencies = rope_frequencies(self.config).to(x.device)
        positions = torch.arange(seen, seen + time, device=x.device)
        mask = visible(positions, padding, documents)
        if padding is not None:  # count positions from the first real token
            positions = (positions - padding[:, None]).clamp(min=0)
        turn = rotation(self.frequencies, positions, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, turn, mask, cache, index)
        if cache is not None:
            cache.length += time
        return self.norm(x)


def visible(
    positions: Tensor, padding: Tensor | None, documents: Tensor | None
) -> Tensor | None:
    """Which keys each query sees, True for yes: (batch or 1, 1, time, keys). None where
    plain causal attention says it all: a whole text from its start, or one new token.
    """
    time, seen = len(positions), int(positions[0])
    if padding is None and documents is None and (time == 1 or seen == 0):
        return None
    keys = torch.arange(seen + time, device=positions.device)
    mask = (positions[:, None] >= keys)[None]  # (1, time, keys)
    if padding is not None:
        # a padding token sees itself: a softmax over nothing has no value
        real = keys >= padding[:, None, None]
        mask = mask & (real | (positions[:, None] == keys))
    if documents is not None:
        mask = mask & (documents[:, :, None] == documents[:, None, :])
    return mask[:, None]


class Llama(nn.Module):
    """A Llama 3 language model with random weights; see `from_pretrained`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        if not self.lm_head.weight.is_meta:  # weights that are still to be read
            self.initialize()

    def initialize(self) -> None:
        """Normal weights of deviation 0.02; those that add to the stream smaller, so
        that its variance does not grow with depth (Radford et al. 2019)."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * self.config.n_layers) ** -0.5 if deep else 1.0
                nn.init.normal_(weight, std=0.02 * scale)

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocab) for token ids (batch, time).

        `cache` holds what was read before and takes what is read now. `padding`
        (batch,) counts the tokens at the left of each row that mean nothing.
        `documents` (batch, time) numbers the documents packed into a row: no token
        looks into another document; not to be used with a cache.

        Raises `Problem` when the text is longer than `config.max_positions`.
        """
        return self.lm_head(self.model(input_ids, cache, padding, documents))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Llama:
        """The model of a Hugging Face folder (`config.json` and safetensors, sharded or
        not); None for `dtype` takes the weights as they are stored. Raises `Problem`
        when files or tensors are missing, damaged or misshapen.
        """
        folder = Path(folder)
        weight_files(folder)  # a folder without any says so first
        config = LlamaConfig.load(folder)
        with torch.device("meta"):  # shapes without memory, until the weights are read
            model = cls(config)
        load_weights(model, folder, dtype, device)
        if config.tie_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model

    def save_pretrained(
        self, folder: str | Path, max_shard_bytes: int = 5_000_000_000
    ) -> None:
        """Write `config.json` and safetensors that transformers can load."""
        self.config.save(Path(folder))
        save_weights(self, Path(folder), max_shard_bytes)
