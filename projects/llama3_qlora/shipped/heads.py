"""Attention heads written by hand, so that a model can copy from the start.

An induction head finds where the present token stood before and says what followed
(Olsson et al. 2022, arXiv 2209.11895). It needs two layers: a head that tells every
token which one was before it, and a head that looks for the present token among those.
Training finds the pair late, as neither half is of use without the other, and a short
run may never find it (notebook 09.3 shows one). Written into the initial weights, they
copy before the first step, and training builds on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projects.llama3_qlora.model import Llama, rope_frequencies
from utils.runtime import Problem

SCALE = 0.1  # deviation of the embedding, against 0.02 of the other weights
FAST = 8  # pairs of a head that turn fast enough to tell neighbours apart
BACK, MATCH, SAY = 0.85, 2.5, 2.0  # sizes of the weights, chosen by trial


@torch.no_grad()
def write_copying_heads(model: Llama, seed: int = 1) -> None:
    """Write the first head of layer 0, and one head per key of layer 1, in place. The
    other heads stay as they are.

    Needs a model as just initialized. Raises `Problem` when it has less than two
    layers, a head of its own, or heads too small.
    """
    random = torch.Generator().manual_seed(seed)
    config = model.config
    if config.n_layers < 2 or not config.tie_embeddings or config.head_dim < 2 * FAST:
        raise Problem(
            "Copying heads need two layers, the second to find what the first has "
            f"noted, a tied embedding, and a head_dim of {2 * FAST} or more."
        )
    hidden, size = config.hidden_size, config.head_dim
    basis = torch.linalg.qr(torch.randn(hidden, hidden, generator=random))[0]
    same, own = basis[0], basis[1 : size + 1]  # (hidden,) and (size, hidden)
    before = torch.linalg.qr(torch.randn(hidden - 1, size, generator=random))[0]
    before = basis[1:].T @ before  # (hidden, size), like `own` at right angles to same

    # One direction that all tokens share: what heads see that look at places only.
    embedding = model.model.embed_tokens.weight
    embedding.mul_(SCALE / embedding.std())
    embedding.add_(SCALE * hidden**0.5 * same)

    _look_one_back(model, same, own, before)
    _look_up(model, own, before, basis[1:])


def _heads(model: Llama, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of the weights of queries, keys, values (each: heads, head_dim, hidden) and
    output (hidden, heads, head_dim)."""
    attention: Any = model.model.layers[layer].self_attn
    size = model.config.head_dim
    read = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (linear.weight.unflatten(0, (-1, size)) for linear in read)
    return q, k, v, attention.o_proj.weight.unflatten(1, (-1, size))


def _look_one_back(model: Llama, same: Tensor, own: Tensor, before: Tensor) -> None:
    """The query is the key turned by one place, so that they meet one token back; what
    `own` reads there goes into the stream along `before`."""
    q, k, v, o = _heads(model, 0)
    half = model.config.head_dim // 2
    turn = rope_frequencies(model.config)[:FAST]
    q[0], k[0], v[0] = 0, 0, own
    k[0, :FAST] = BACK * same
    q[0, :FAST] = BACK * torch.outer(turn.cos(), same)
    q[0, half : half + FAST] = -BACK * torch.outer(turn.sin(), same)
    o[:, 0] = 2.8 * SCALE * before


def _look_up(model: Llama, own: Tensor, before: Tensor, basis: Tensor) -> None:
    """The query is the token itself, the key the token before the key's. Only slow
    pairs of a head take part, which hardly turn over the length of a text. What stands
    there is written out as it is: the tied head then says it."""
    q, k, v, o = _heads(model, 1)
    config = model.config
    size, group = config.head_dim, config.n_heads // config.n_kv_heads
    slow = torch.arange(size).view(2, 2, -1)[:, 1].flatten()  # the slower half of both
    for key in range(config.n_kv_heads):
        part = (torch.arange(len(slow)) + key * len(slow)) % size
        k[key, slow] = MATCH * before.T[part]
        q[key * group, slow] = MATCH * own[part]
        read = basis[(key * size) % (len(basis) - size) :][:size]
        v[key], o[:, key * group] = read, SAY * read.T
