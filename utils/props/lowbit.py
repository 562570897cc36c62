"""The plumbing of quantized models: packed codes, files, exchanged and watched layers.

The methods themselves are the lesson of notebook 03.5 and stand there.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Multiply = Callable[[Tensor, Tensor], Tensor]
NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes 0 to 2**bits - 1 of any shape as a stream of bits, eight to a byte."""
    places = torch.arange(bits, dtype=torch.uint8)
    stream = (codes.flatten().byte()[:, None] >> places) & 1  # (codes, bits)
    return torch.from_numpy(np.packbits(stream.numpy()))


def unpacked(stream: Tensor, bits: int, shape: Iterable[int]) -> Tensor:
    """The codes of a stream as floats, in their shape."""
    shape = tuple(shape)
    flat = torch.from_numpy(np.unpackbits(stream.numpy()))
    flat = flat[: math.prod(shape) * bits].view(-1, bits).long()
    return (flat << torch.arange(bits)).sum(1).view(shape).float()


def file_mb(path: Path, tensors: dict[str, Tensor]) -> float:
    """Write a safetensors file; its size in MB (10**6 bytes)."""
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, path)
    return path.stat().st_size / 1e6


def plain(model: nn.Module) -> nn.Module:
    """A copy whose linear layers are of PyTorch's own class, which is what libraries
    that exchange layers look for; subclasses that only override `forward` fit."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = nn.Linear
    return model


def swapped(
    model: nn.Module, names: Iterable[str], make: Callable[[str, nn.Module], nn.Module]
) -> nn.Module:
    """A copy in which `make(name, layer)` replaces each of the named layers."""
    model = copy.deepcopy(model)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(
            model.get_submodule(parent), child, make(name, model.get_submodule(name))
        )
    return model


@torch.no_grad()
def watch_inputs(
    model: nn.Module,
    names: Iterable[str],
    rows: Iterable[Tensor],
    see: Callable[[str, Tensor], None],
) -> None:
    """Run the model on rows of token ids (time,) and call `see(name, x)` with what each
    named layer receives, x (tokens, inputs)."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: see(name, arguments[0].flatten(0, -2))

    hooks = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    try:
        for row in rows:
            model(row[None])
    finally:
        for one in hooks:
            one.remove()


class Logits(nn.Module):
    """A Llama of transformers with the interface of ours: ids (batch, time) in, logits
    (batch, time, vocab) out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids, use_cache=False).logits
        return logits


class Product(nn.Module):
    """A linear layer that multiplies by a function of x (tokens, inputs) and weight
    (outputs, inputs)."""

    def __init__(self, weight: Tensor, multiply: Multiply) -> None:
        super().__init__()
        self.weight, self.multiply = weight, multiply

    def forward(self, x: Tensor) -> Tensor:
        found = self.multiply(x.flatten(0, -2), self.weight)
        return found.unflatten(0, x.shape[:-1])


def multiplied_by(
    model: nn.Module, names: Iterable[str], multiply: Multiply
) -> nn.Module:
    """A copy in which the named layers multiply by a function."""
    return swapped(
        model, names, lambda _, layer: Product(layer.get_parameter("weight"), multiply)
    )


def readers(norm: str) -> list[str]:
    """The names of the matrices that read what a norm of a Llama writes."""
    block, _, kind = norm.rpartition(".")
    return [f"{block}.{name}" for name in NORMS[kind]]


@torch.no_grad()
def rescale(model: nn.Module, norm: str, factors: Tensor) -> None:
    """Multiply a norm's channels by factors (hidden,) and divide the columns of the
    matrices that read them, in place: the model computes the same."""
    model.get_submodule(norm).get_parameter("weight").mul_(factors)
    for reader in readers(norm):
        model.get_submodule(reader).get_parameter("weight").div_(factors)


def channel_maxima(model: nn.Module, norm: str, rows: Iterable[Tensor]) -> Tensor:
    """Largest magnitude in each channel behind a norm (hidden,), on rows (time,)."""
    seen: list[Tensor] = []
    watch_inputs(model, readers(norm)[:1], rows, lambda _, x: seen.append(x))
    return torch.cat(seen).abs().amax(0)


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a file needs of a model: int8 codes and scales as they are, the rest in
    bfloat16, and a tied output head once."""
    if isinstance(model, torch.fx.GraphModule):
        return {
            name: t.bfloat16() if t.is_floating_point() and t.dim() > 1 else t
            for name, t in graph_tensors(model).items()
        }
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if hasattr(tensor, "qdata"):  # a weight that torchao quantized
            found |= {f"{name}.codes": tensor.qdata, f"{name}.scale": tensor.scale}
        elif isinstance(tensor, Tensor):
            keep = tensor.dtype == torch.int8 or name.endswith("scale")
            found[name] = tensor if keep else tensor.bfloat16()
    head, embedding = (found.get(n) for n in ("lm_head.weight", EMBEDDING))
    if head is not None and embedding is not None and torch.equal(head, embedding):
        del found["lm_head.weight"]
    return found


EMBEDDING = "model.embed_tokens.weight"


def graph_tensors(program: torch.fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that a graph reads, by name; its `state_dict` may hold others."""
    names = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
    found = {name: operator.attrgetter(name)(program) for name in sorted(names)}
    return {name: t for name, t in found.items() if isinstance(t, Tensor)}
