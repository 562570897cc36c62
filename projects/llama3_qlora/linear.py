"""A linear layer that uses the whole of an AVX-512 processor.

PyTorch hands float32 products on a CPU to Intel's MKL, which on AMD's processors stays
with AVX2. oneDNN, which PyTorch carries too, uses AVX-512 on both: twice the speed for
a prompt and in training, up to 1.4 times for a single token and a large matrix. Where
that does not apply, this is `torch.nn.functional.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# starting oneDNN costs 10 microseconds: smaller products are faster without
WORTH_IT = 2**20
AVX512 = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class Linear(nn.Linear):
    """x (..., inputs) times the transpose of weight (outputs, inputs), no bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """What `torch.nn.functional.linear` gives, through oneDNN where that is faster."""
    if not AVX512 or not suits_onednn(x, weight):
        return F.linear(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Product.apply(x, weight)
    return _product(x, weight)


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is faster: float32 on a CPU, and enough multiplications."""
    return (
        x.numel() * weight.shape[0] >= WORTH_IT
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _Product(torch.autograd.Function):
    """The operator has no gradient of its own: these are the two products of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = _product(x.flatten(0, -2), weight)
        # not `view`: FSDP warns of modules whose result is a view of another tensor
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], len(weight)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = _product(grad, weight.t())
        if ctx.needs_input_grad[1]:
            rows, grads = x.flatten(0, -2), grad.flatten(0, -2)
            for_weight = _product(rows.t(), grads.t()).t()
        return for_x, for_weight
