"""Weights in 4.127 bits: NF4 with double quantization (Dettmers et al. 2023, QLoRA,
arXiv 2305.14314, section 3).

Sixteen levels, closer together where normally distributed weights are more frequent; a
scale for each block of 64 weights, itself kept in 8 bits with a scale for each block of
256 scales. Levels, codes and scales are bit for bit those of bitsandbytes. Notebook
03.4 derives the levels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.llama3_qlora.linear import linear
from projects.llama3_qlora.model import Llama
from utils.runtime import Problem

BLOCK = 64  # weights that share a scale
SCALES = 256  # scales that share a scale of their own

# Quantiles of the normal distribution, scaled to [-1, 1]: the float32 constants that
# the paper's appendix E prints, so that files mean the same everywhere.
LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
])  # fmt: skip


def dynamic_levels() -> Tensor:
    """256 levels in [-1, 1] for numbers of very different size: seven decades, the
    upper ones divided more finely (Dettmers 2015, arXiv 1511.04561): (256,)."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        found += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(found))


SCALE_LEVELS = dynamic_levels()
# what both halves of a byte stand for: one look-up for two weights
PAIRS = torch.cartesian_prod(LEVELS, LEVELS)  # (256, 2)


def in_blocks(x: Tensor, size: int, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of x (count,) on the levels, and the largest magnitude of each block of
    `size` numbers; the last block may be shorter."""
    blocks = F.pad(x, (0, -len(x) % size)).view(-1, size)
    largest = blocks.abs().amax(1)
    # multiplied by the inverse, as bitsandbytes does: a quotient may round otherwise
    scaled = (blocks * (1 / largest.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    edges = ((levels[:-1] + levels[1:]) / 2).to(x.device)
    codes = torch.bucketize(scaled, edges)
    return codes.flatten()[: len(x)].byte(), largest


class NF4Linear(nn.Module):
    """A linear layer without bias whose weights are NF4 codes, two to a byte, in blocks
    of 64 along the rows; frozen. Gradients pass through to x.

    codes        uint8   (outputs, inputs / 2), the first weight in the upper half
    scales       uint8   (outputs, inputs / 64), on `SCALE_LEVELS`
    scales_scale float32 (outputs * inputs / 64 / 256, rounded up)
    offset       float32 (1,), the mean of the scales, taken off before they are rounded

    They are parameters, not buffers, because FSDP2 shares only parameters out.
    """

    def __init__(self, weight: Tensor) -> None:
        """From weights (outputs, inputs). Raises `Problem` when 64 does not divide
        inputs: a block would run over the end of its row."""
        super().__init__()
        outputs, inputs = weight.shape
        if inputs % BLOCK:
            raise Problem(f"NF4 needs rows of a multiple of {BLOCK}, not {inputs}.")
        codes, largest = in_blocks(weight.detach().float().flatten(), BLOCK, LEVELS)
        offset = largest.mean()
        scales, scales_scale = in_blocks(largest - offset, SCALES, SCALE_LEVELS)
        self.codes = _frozen((codes[::2] << 4 | codes[1::2]).view(outputs, -1))
        self.scales = _frozen(scales.view(outputs, -1))
        self.scales_scale = _frozen(scales_scale)
        self.offset = _frozen(offset.view(1))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) to (..., outputs), in the type of x."""
        stored = self.codes, self.scales, self.scales_scale, self.offset
        product: Tensor = _Product.apply(x, *stored)
        return product

    def dequantized(self) -> Tensor:
        """The weights as float32 (outputs, inputs)."""
        return dequantized(self.codes, self.scales, self.scales_scale, self.offset)


def dequantized(
    codes: Tensor, scales: Tensor, scales_scale: Tensor, offset: Tensor
) -> Tensor:
    """The weights that an `NF4Linear` stores, float32 (outputs, inputs)."""
    rounded = SCALE_LEVELS.to(codes.device)[scales.flatten().int()]
    per_scale = scales_scale.repeat_interleave(SCALES)[: len(rounded)]
    largest = rounded * per_scale + offset  # (blocks,)
    weights = F.embedding(codes.int(), PAIRS.to(codes.device))  # (outputs, inputs/2, 2)
    return weights.view(-1, BLOCK).mul_(largest[:, None]).view(len(codes), -1)


class _Product(torch.autograd.Function):
    """Remembers the codes, a seventh of the floats, and decodes them twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *stored: Tensor) -> Tensor:
        ctx.save_for_backward(*stored)
        return linear(x, dequantized(*stored).to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = dequantized(*ctx.saved_tensors).to(grad.dtype)
        return linear(grad, weight.t()), None, None, None, None


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def quantize_nf4(model: Llama) -> Llama:
    """The model with an `NF4Linear` in place of every linear layer of its blocks,
    changed in place and frozen; embedding and head stay as they are."""
    model.requires_grad_(False)
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, NF4Linear(child.weight))
    return model
