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


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a file needs of a model: int8 codes and scales as they are, the rest in
    bfloat16, and a tied output head once."""
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
