"""Weights in 8 and 4 bits, in memory and on disk: less to keep, and less to read for
the next token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from projects.llama3_qlora.linear import linear
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.rounding import Coded, block_linears, nearest
from utils.runtime import Problem

# up to this many tokens at once, reading the weights is the cost; beyond, multiplying
FEW_ROWS = 128
# elsewhere PyTorch's int4 kernel is a plain loop, 20 times slower than multiplying
INT4_KERNEL = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
Method = Callable[[str, Tensor], Coded]  # name and weights of a layer to codes


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
        # the kernel has no gradient: adapters below it would not learn
        if len(rows) > FEW_ROWS or x.device.type != "cpu" or x.requires_grad:
            return linear(x, self.dequantized().to(x.dtype))
        y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.ones)
        return (y * self.scale).to(x.dtype).unflatten(0, x.shape[:-1])

    def dequantized(self) -> Tensor:
        """The weights as floats (outputs, inputs)."""
        return self.weight * self.scale[:, None]


class Int8Embedding(nn.Module):
    """The rows of an `Int8Linear` looked up as an embedding, by an index of rows."""

    def __init__(self, table: Int8Linear) -> None:
        """`table` (vocab, hidden) may be the head too: one copy then serves both."""
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (...) to float32 (..., hidden)."""
        return self.table.weight[ids] * self.table.scale[ids][..., None]

    @property
    def weight(self) -> Tensor:
        """The scales: `generate` takes its device and its type of number from here."""
        return self.table.scale


class Int4Linear(nn.Module):
    """A linear layer whose weights are codes from 0 to 15, two to a byte:
    (code - 8) * scale + zero, with a scale and a zero for each group of a row.

    The product is PyTorch's int4 kernel, which rounds x, the weights and the result to
    bfloat16, 1/512 of their size each. It wants the codes in an order of its own, which
    differs between processors: that is `packed`. The `state_dict` has in its place

    codes  uint8    (outputs, inputs / 2), the first of two weights in the lower half
    grid   bfloat16 (groups, outputs, 2), scale and zero; in memory too
    """

    def __init__(self, coded: Coded) -> None:
        """Raises `Problem` where the kernel cannot take these sizes."""
        super().__init__()
        (outputs, self.inputs), groups = coded.codes.shape, coded.scale.shape[1]
        self.group = self.inputs // groups
        if self.group not in (32, 64, 128, 256) or outputs % 16:
            raise Problem(
                "Int4Linear needs groups of 32, 64, 128 or 256 and outputs in "
                f"multiples of 16, not groups of {self.group} and {outputs} outputs."
            )
        zero = (8 - coded.zero) * coded.scale
        self.packed: Tensor
        self.grid: Tensor
        self.register_buffer("packed", into_kernel(coded.codes))
        both = torch.stack([coded.scale.T, zero.T], -1)
        self.register_buffer("grid", both.bfloat16().contiguous())
        self.register_state_dict_post_hook(_portable)
        self.register_load_state_dict_pre_hook(_from_portable)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) to (..., outputs), in the type of x. Raises `Problem` for x
        on another device than the CPU."""
        if x.device.type != "cpu":
            raise Problem("Int4Linear works on the CPU only; NF4Linear works on a GPU.")
        if not INT4_KERNEL:
            return linear(x, self.dequantized().to(x.dtype))
        rows = x.flatten(0, -2).bfloat16()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, self.group, self.grid
        )
        return y.to(x.dtype).unflatten(0, x.shape[:-1])

    def codes(self) -> Tensor:
        """The codes uint8 (outputs, inputs)."""
        return from_kernel(self.packed, self.inputs)

    def dequantized(self) -> Tensor:
        """The weights as float32 (outputs, inputs)."""
        scale, zero = self.grid.float().transpose(0, 1)[..., None].unbind(2)
        groups = self.codes().unflatten(1, (-1, self.group)).float() - 8
        return (groups * scale + zero).flatten(1)


def two_to_a_byte(codes: Tensor) -> Tensor:
    """Codes uint8 (outputs, inputs) as bytes (outputs, inputs / 2)."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def one_to_a_byte(pairs: Tensor) -> Tensor:
    """What `two_to_a_byte` was given."""
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(1)


def into_kernel(codes: Tensor) -> Tensor:
    """Codes uint8 (outputs, inputs) in the order of the int4 kernel, two to a byte."""
    if not INT4_KERNEL:
        return two_to_a_byte(codes)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)


def from_kernel(packed: Tensor, inputs: int) -> Tensor:
    """What `into_kernel` was given. PyTorch has no way back, but the product of the
    identity with weights of scale 1 is these weights, small whole numbers and exact."""
    if not INT4_KERNEL:
        return one_to_a_byte(packed)
    plain = torch.zeros(inputs // 32, len(packed), 2, dtype=torch.bfloat16)
    plain[..., 0] = 1
    identity = torch.eye(inputs, dtype=torch.bfloat16)
    y = torch.ops.aten._weight_int4pack_mm_for_cpu(identity, packed, 32, plain)
    return (y.T + 8).byte()


def _portable(module: Int4Linear, state: dict[str, Any], prefix: str, _: Any) -> None:
    del state[f"{prefix}packed"]
    state[f"{prefix}codes"] = two_to_a_byte(module.codes())


def _from_portable(
    module: Int4Linear, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    pairs = state.pop(f"{prefix}codes", None)
    if pairs is not None:
        state[f"{prefix}packed"] = into_kernel(one_to_a_byte(pairs))


def quantize_int8(model: Llama) -> Llama:
    """The model with an `Int8Linear` in place of every linear layer, changed in place;
    for generation only. A head tied to the embedding gets int8 weights of its own, the
    embedding stays as it is."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight))
    return model


def quantize_int4(
    model: Llama, method: Method = lambda _, weight: nearest(weight)
) -> Llama:
    """The model with an `Int4Linear` in place of every linear layer of its blocks,
    changed in place; for generation only. Embedding and head stay as they are."""
    for name, layer in block_linears(model).items():
        parent, _, child = name.rpartition(".")
        coded = method(name, layer.weight.detach())
        setattr(model.get_submodule(parent), child, Int4Linear(coded))
    return model


def quantize_embedding(model: Llama) -> Llama:
    """The model with head and embedding in int8, changed in place; where they were
    tied, one copy serves both."""
    embedding = Int8Linear(model.model.embed_tokens.weight)
    head: nn.Module = model.lm_head
    if model.config.tie_embeddings:
        head = embedding
    elif isinstance(head, nn.Linear):
        head = Int8Linear(head.weight)
    model.register_module("lm_head", head)
    model.model.register_module("embed_tokens", Int8Embedding(embedding))
    return model
