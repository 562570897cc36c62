"""How to train: the configuration, the optimizer, and what a token costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.muon import MuonAdamW
from utils.runtime import Problem


@dataclass(frozen=True)
class TrainConfig:
    """Linear warm-up, then cosine decay to `min_rate` times the learning rate.

    The embedding and a head of its own take `embedding_rate` times that learning rate.
    `optimizer` is "adamw", or "muon", which here learns more per second but needs whole
    matrices, so one process.
    A step reads `accumulation` batches of the `Mixture`, which knows their size. "bf16"
    computes in bfloat16 and keeps fp32 weights. `checkpoint_activations` computes each
    block again in the backward pass in place of remembering it: a third more work for
    much less memory (Chen et al. 2016). 0 for `evaluate_every` or `save_every` means
    only at the end. `peak_flops` is what one device can do per second, 0 if unknown.

    Raises `Problem` for values that make no sense.
    """

    steps: int
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    embedding_rate: float = 1.0
    min_rate: float = 0.1
    warmup: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    accumulation: int = 1
    precision: str = "fp32"
    checkpoint_activations: bool = False
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    seed: int = 0
    peak_flops: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.accumulation, self.log_every) < 1:
            raise Problem("steps, accumulation and log_every must be at least 1.")
        others = (self.warmup, self.evaluate_every, self.save_every, self.seed)
        if min(*others, self.weight_decay, self.peak_flops) < 0:
            raise Problem(
                "warmup, evaluate_every, save_every, seed, weight_decay and peak_flops "
                "must be 0 or more."
            )
        rates = self.learning_rate, self.embedding_rate, self.clip
        if min(rates) <= 0 or not 0 <= self.min_rate <= 1:
            raise Problem(
                "learning_rate, embedding_rate and clip must be above 0, min_rate from "
                "0 to 1."
            )
        if self.precision not in ("fp32", "bf16"):
            raise Problem(f'precision is "fp32" or "bf16", not {self.precision!r}.')
        if self.optimizer not in ("adamw", "muon"):
            raise Problem(f'optimizer is "adamw" or "muon", not {self.optimizer!r}.')

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        share = (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * (self.min_rate + (1 - self.min_rate) * share)


# What may change between a run and its continuation, because it moves no weight.
FREE = {"log_every", "evaluate_every", "save_every", "peak_flops"}


def make_optimizer(model: Llama, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or Muon with AdamW for what it cannot do.
    Only the blocks' matrices are decayed: the scales of norms have no reason to be
    near 0, and the embedding of a rare token would fade between the few times it is
    read. Frozen weights are left out."""
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    ends = [embedding] if embedding is head else [embedding, head]
    learnt = [w for w in model.parameters() if w.requires_grad]
    blocks = [w for w in learnt if not any(w is end for end in ends)]
    ends = [end for end in ends if end.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [w for w in blocks if w.dim() == 2],
            "weight_decay": config.weight_decay,
        },
        {"params": [w for w in blocks if w.dim() == 1], "weight_decay": 0.0},
        {"params": ends, "weight_decay": 0.0, "scale": config.embedding_rate},
    ]
    if config.optimizer == "muon":
        groups[0]["muon"] = True
        return MuonAdamW(groups, betas=config.betas)
    # an empty group cannot be put back from a checkpoint by several processes
    groups = [group for group in groups if group["params"]]
    # fused is one kernel for the whole update; elsewhere (None) PyTorch takes foreach
    fused = True if embedding.device.type in ("cpu", "cuda") else None
    return torch.optim.AdamW(groups, betas=config.betas, fused=fused)


def flops_per_token(model: Llama, context: int) -> int:
    """Floating-point operations of forward and backward pass for one token: 6 for each
    weight that multiplies, and attention to the whole context, as if nothing were
    masked (Chowdhery et al. 2022, arXiv 2204.02311, appendix B)."""
    c = model.config
    weights = sum(weight.numel() for weight in model.parameters())
    if not c.tie_embeddings:
        weights -= c.vocab_size * c.hidden_size  # looked up, not multiplied
    return 6 * weights + 12 * c.n_layers * c.n_heads * c.head_dim * context
