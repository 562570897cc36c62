"""Muon: for matrices, a step whose every direction is equally long.

A gradient matrix is dominated by few directions. Muon keeps its momentum's singular
vectors and sets all its singular values to about 1, by five multiplications in place of
a singular value decomposition (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
Embeddings and scales of norms are no maps between spaces: they get AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

# Coefficients of an odd polynomial that drives singular values in (0, 1] towards 1.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix (rows, columns) with singular values near 1 and the same singular
    vectors, by a Newton-Schulz iteration in bfloat16."""
    a, b, c = QUINTIC
    x = matrix.bfloat16()
    if tall := matrix.shape[0] > matrix.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)  # no singular value above 1, where the iteration starts
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups with `muon=True`, AdamW for the others.

    Muon's step is scaled to the size that AdamW's would have (Liu et al. 2025, arXiv
    2502.16982), so that both take one learning rate.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": 1e-3, "betas": betas, "momentum": momentum, "eps": 1e-8}
        super().__init__(groups, {**defaults, "weight_decay": 0.0, "muon": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                gradient = weight.grad
                if gradient is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                move = _muon if group["muon"] else _adam
                step = move(gradient, self.state[weight], group)
                weight.sub_(step, alpha=group["lr"])


def _muon(gradient: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    beta = group["momentum"]
    state["momentum"].lerp_(gradient, 1 - beta)
    ahead = gradient.lerp(state["momentum"], beta)  # Nesterov
    return orthogonalized(ahead) * (0.2 * max(gradient.shape) ** 0.5)


def _adam(gradient: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    if not state:
        state["step"] = torch.zeros(())
        state["mean"] = torch.zeros_like(gradient)
        state["square"] = torch.zeros_like(gradient)
    state["step"] += 1
    first, second = group["betas"]
    state["mean"].lerp_(gradient, 1 - first)
    state["square"].lerp_(gradient.square(), 1 - second)
    mean = state["mean"] / (1 - first ** state["step"])
    square = state["square"] / (1 - second ** state["step"])
    return mean / (square.sqrt() + group["eps"])
