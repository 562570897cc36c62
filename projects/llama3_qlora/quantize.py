"""Weights in 8 bits: a quarter of the memory, and so a faster next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from projects.llama3_qlora.linear import linear
from projects.llama3_qlora.model import Llama

# up to this many tokens at once, reading the weights is the cost; beyond, multiplying
FEW_ROWS = 128


class Int8Linear(nn.Module):
    """A linear layer whose weights are whole numbers from -127 to 127 times one float
    scale per output row (LLM.int8() without outliers, Dettmers et al. 2022, section 2).

    The scale is the row's largest magnitude / 127, so that no weight is off by more
    than scale / 2, which is 1/254 of the largest in its row. Few rows of x (generation)
    go through PyTorch's int8 kernel, which rounds x and the result to bfloat16, 1/256
    of their size at most; many (a prompt) meet the weights turned back into floats.
    """

    def __init__(self, weight: Tensor) -> None:
        """From weights (outputs, inputs), which are copied."""
        super().__init__()
        largest = weight.detach().float().abs().amax(1)
        # a row of zeros has no scale of its own: any will do
        scale = torch.where(largest > 0, largest / 127, 1.0)
        whole = (weight.detach().float() / scale[:, None]).round()
        self.weight: Tensor
        self.scale: Tensor
        self.ones: Tensor
        self.register_buffer("weight", whole.to(torch.int8))
        self.register_buffer("scale", scale)  # (outputs,)
        # the kernel would round its scale to bfloat16: it gets 1, ours comes after it
        ones = torch.ones_like(scale, dtype=torch.bfloat16)
        self.register_buffer("ones", ones, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) to (..., outputs), in the type of x."""
        rows = x.flatten(0, -2)
        if len(rows) > FEW_ROWS or x.device.type != "cpu":
            return linear(x, self.dequantized().to(x.dtype))
        y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.ones)
        return (y * self.scale).to(x.dtype).unflatten(0, x.shape[:-1])

    def dequantized(self) -> Tensor:
        """The weights as floats (outputs, inputs)."""
        return self.weight * self.scale[:, None]


def quantize_int8(model: Llama) -> Llama:
    """The model with an `Int8Linear` in place of every linear layer, changed in place;
    for generation only. A head tied to the embedding gets int8 weights of its own, the
    embedding stays as it is."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight))
    return model
